"""The callback with one group of the lasso for each channel number."""

import gc
import weakref

import keras
import numpy as np
import pytest

import keras_prunetrain as kpt
from tests.callbacks.fits import (
    KERNELS,
    PLACES,
    TRACED,
    Kill,
    examples,
    kill,
    network,
    widths,
)

DATA = examples(40)
CHANNELS = [(place, i) for place in PLACES for i in range(6)]


def fit(model, *callbacks, epochs=1, data=DATA, **kwargs):
    return model.fit(
        *data,
        batch_size=8,
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=list(callbacks),
        **kwargs,
    ).history


def parts_of(model, place, channel):
    """The slices of one channel, of all kernels that share it."""
    return [
        np.take(model.get_layer(name).kernel.numpy(), channel, axis)
        for name, axis in PLACES[place]
    ]


def coupled_norms(model):
    total = 0.0
    for place, i in CHANNELS:
        parts = parts_of(model, place, i)
        squares = sum(np.square(x.astype("float64")).sum() for x in parts)
        total += np.sqrt(len(parts) * (squares + len(parts) * 1e-8))
    return total


def adam():
    return keras.optimizers.Adam(0.01)


def gradient_descent(**kwargs):
    return keras.optimizers.SGD(0.05, **kwargs)


@pytest.mark.parametrize("make", [adam, gradient_descent])
def test_the_factor_is_that_of_equation_3_for_these_groups(make):
    model = network(dropout=0.0, compiled={"optimizer": make()})
    plain = network(dropout=0.0, compiled={"optimizer": make()})
    before = coupled_norms(model)
    first = DATA[0][:8], DATA[1][:8]
    task_loss = fit(plain, data=first)["loss"][0]
    pruning = kpt.PruneTrainCallback(0.6, coupled=True)
    history = fit(model, pruning, data=first)
    np.testing.assert_allclose(history["loss"][0], task_loss, rtol=1e-5)
    penalty = pruning.factor * before
    np.testing.assert_allclose(penalty / (penalty + task_loss), 0.6, rtol=1e-4)


@pytest.mark.parametrize("make", [adam, gradient_descent])
def test_a_program_in_float64_has_the_same_groups(make):
    weights = network().get_weights()

    def trained(dtype):
        before = keras.config.floatx()
        keras.config.set_floatx(dtype)
        try:
            model = network(
                dtype=dtype, dropout=0.0, compiled={"optimizer": make()}
            )
            model.set_weights(weights)  # Other ones are drawn in float64.
            fit(model, kpt.PruneTrainCallback(factor=0.1, coupled=True))
        finally:
            keras.config.set_floatx(before)
        return model.get_layer("inner").kernel

    kernel = trained("float64")
    assert kernel.dtype == "float64"
    np.testing.assert_allclose(
        kernel.numpy(), trained("float32").numpy(), rtol=1e-3, atol=1e-4
    )


class Zeros(keras.callbacks.Callback):
    """Counts the slices that are zero, of each channel, before the cut."""

    def on_epoch_end(self, epoch, logs=None):
        self.found = {
            (place, i): [not x.any() for x in parts_of(self.model, place, i)]
            for place, i in CHANNELS
            if i < self.model.get_layer("inner").kernel.shape[-1]
        }


@pytest.mark.parametrize(
    ("make", "solver"), [(adam, "auto"), (gradient_descent, "proximal")]
)
def test_the_slices_of_a_channel_die_together(make, solver):
    model = network(compiled={"optimizer": make()})
    kill(model, "stage", [2], value=1e-4)
    # One slice alone is close to zero, and the others hold it.
    kernel = model.get_layer("inner").kernel
    kernel.assign(kernel * np.array([1, 1, 1, 1, 1, 1e-3]))
    zeros = Zeros()
    pruning = kpt.PruneTrainCallback(
        interval=9, factor=0.1, coupled=True, solver=solver
    )
    fit(model, zeros, pruning)
    assert all(all(x) or not any(x) for x in zeros.found.values())
    assert all(zeros.found["stage", 2])
    assert not any(zeros.found["inner", 5])


def test_after_a_cut_the_groups_are_those_of_the_smaller_model():
    model = network(compiled={"optimizer": adam(), **TRACED})
    pruning = kpt.PruneTrainCallback(interval=1, factor=1e-6, coupled=True)
    old = weakref.ref(model.get_layer("inner").kernel)

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            groups = pruning._lasso._steps.groups
            names = {x.path: x for x in groups.kernels}
            assert len(names) == len(KERNELS)
            for name in KERNELS:
                kernel = self.model.get_layer(name).kernel
                assert names[kernel.path] is kernel
            if epoch == 1:  # Also the traced step shrinks the new channels.
                kill(self.model, "inner", [0], value=1e-5)
                for name in KERNELS:
                    kernel = self.model.get_layer(name).kernel
                    kernel.regularizer.lasso.factor = 1.0

        def on_epoch_end(self, epoch, logs=None):
            kernel = self.model.get_layer("inner").kernel.numpy()
            if epoch == 1:
                assert not kernel[..., 0].any()

    fit(model, Kill({0: {"inner": [1, 3]}}), Look(), pruning, epochs=2)
    assert widths(model)["inner"] <= 3
    gc.collect()
    assert old() is None


def momentum():
    return gradient_descent(momentum=0.9)


def accumulating():
    return gradient_descent(gradient_accumulation_steps=2)


@pytest.mark.parametrize("make", [momentum, accumulating])
def test_the_subgradient_of_the_groups_is_followed(make):
    """A step with and without a lasso differ by the gradient of the penalty."""
    weights = {}
    for factor in (None, 0.01):
        model = network(dropout=0.0, compiled={"optimizer": make()})
        before = model.get_weights()
        pruning = factor and kpt.PruneTrainCallback(
            factor=factor, coupled=True, interval=9
        )
        steps = 2 if make is accumulating else 1
        data = DATA[0][: 8 * steps], DATA[1][: 8 * steps]
        fit(model, *([pruning] if pruning else []), data=data)
        weights[factor] = model.get_layer("inner").kernel.numpy()
    model.set_weights(before)
    expected = np.zeros_like(weights[None], "float64")
    for place, axis in (("inner", -1), ("stage", -2)):
        for i in range(6):
            parts = parts_of(model, place, i)
            squares = sum(np.square(x).sum() for x in parts)
            norm = np.sqrt(squares + len(parts) * 1e-8)
            index = [slice(None)] * 4
            index[axis] = i
            own = model.get_layer("inner").kernel.numpy()[tuple(index)]
            expected[tuple(index)] += np.sqrt(len(parts)) * own / norm
    found = weights[None] - weights[0.01]
    np.testing.assert_allclose(
        found, 0.05 * 0.01 * expected, rtol=0.02, atol=2e-6
    )


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
@pytest.mark.parametrize(
    ("make", "solver"), [(adam, "proximal"), (momentum, "subgradient")]
)
def test_replicas_train_as_one_device(strategy, make, solver):
    def trained(scope):
        with scope:
            model = network(
                dropout=0.0,
                synchronized=True,
                compiled={"optimizer": make(), **TRACED},
            )
        pruning = kpt.PruneTrainCallback(
            factor=0.2, coupled=True, interval=9, solver=solver
        )
        fit(model, pruning)
        return model

    mirrored = trained(strategy.scope())
    alone = trained(keras.name_scope("alone"))
    for name in KERNELS:
        values = mirrored.get_layer(name).kernel.value.values
        first, second = (x.numpy() for x in values)
        np.testing.assert_array_equal(first, second)
        expected = alone.get_layer(name).kernel.numpy()
        np.testing.assert_allclose(first, expected, rtol=0.05, atol=2e-3)


def test_the_report_has_the_share_of_these_groups():
    model = network(compiled={"optimizer": adam()})
    pruning = kpt.PruneTrainCallback(0.5, interval=1, coupled=True)
    norms = []

    class Norms(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            norms.append(coupled_norms(self.model))

    history = fit(model, Kill({0: {"inner": [0]}}), Norms(), pruning)
    penalty = pruning.factor * norms[0]
    share = penalty / (history["loss"][0] + penalty)
    assert pruning.reports[0].penalty_ratio == pytest.approx(share, rel=1e-3)


def test_layers_with_a_lasso_of_their_own_cannot_be_coupled():
    model = network(regularizers={"inner": kpt.GroupLasso(0.1)})
    with pytest.raises(ValueError, match="'inner/kernel' with a `GroupLasso`"):
        fit(model, kpt.PruneTrainCallback(coupled=True))
    assert int(model.optimizer.iterations) == 0


@pytest.mark.parametrize("coupled", [None, 1, "yes"])
def test_a_flag_that_is_none_is_refused(coupled):
    with pytest.raises(ValueError, match="`coupled` must be True or False"):
        kpt.PruneTrainCallback(coupled=coupled)

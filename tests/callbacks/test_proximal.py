"""The solver of the lasso inside `fit`: which one, and what it leaves."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_prunetrain as kpt
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.lasso import attach
from keras_prunetrain.lasso.group_lasso import BesideLasso
from tests import optimizers
from tests.callbacks.fits import (
    KERNELS,
    TRACED,
    Kill,
    examples,
    factors,
    kill,
    network,
    norms,
)

DATA = examples(40)


def compiled(optimizer, **kwargs):
    return network(compiled={"optimizer": optimizer} | kwargs)


def adam():
    return keras.optimizers.Adam(1e-3)


def gradient_descent():
    return keras.optimizers.SGD(0.05)


def fit(model, *callbacks, epochs=2, **kwargs):
    return model.fit(
        *DATA,
        batch_size=8,
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=list(callbacks),
        **kwargs,
    ).history


class Watch(keras.callbacks.Callback):
    """What is on the kernels at the beginning of each epoch."""

    def on_train_begin(self, logs=None):
        self.in_loss, self.zeros = [], []

    def on_epoch_begin(self, epoch, logs=None):
        found = {
            getattr(self.model.get_layer(x).kernel.regularizer, "in_loss", None)
            for x in KERNELS
        }
        (in_loss,) = found
        self.in_loss.append(in_loss)

    def on_epoch_end(self, epoch, logs=None):
        kernel = self.model.get_layer("inner").kernel.numpy()
        self.zeros.append(int((np.abs(kernel).max((0, 1, 2)) == 0.0).sum()))


@pytest.mark.parametrize(
    ("name", "solver", "in_loss"),
    [
        ("sgd", "auto", True),
        ("adamw", "auto", False),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("sgd", "proximal", False),
                ("adamw", "subgradient", True),
                ("ftrl", "auto", True),
                ("loss_scale", "auto", True),
                ("multi_by_function", "auto", False),
                ("multi_by_function", "proximal", False),
            )
        ),
    ],
)
def test_the_optimizer_chooses_the_solver_unless_it_is_given(
    name, solver, in_loss
):
    model, watch = compiled(optimizers.ALL[name]()), Watch()
    fit(model, kpt.PruneTrainCallback(solver=solver), watch, epochs=1)
    assert watch.in_loss == [in_loss]


@pytest.mark.parametrize(
    "name",
    [
        x
        for x in optimizers.sampled()
        if x.values[0] not in ("ftrl", "schedule_free")
    ],
)
def test_channels_arrive_at_zero_under_every_optimizer(name):
    model, watch = compiled(optimizers.ALL[name]()), Watch()
    # An adaptive optimizer moves no weight much further than its rate.
    kill(model, "inner", [0, 3], value=1e-4)
    pruning = kpt.PruneTrainCallback(interval=9, solver="proximal", factor=50.0)
    fit(model, watch, pruning, epochs=1)
    assert watch.zeros[0] >= 2


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(TRACED, marks=pytest.mark.long, id="traced"),
        pytest.param({}, id="eager"),
    ],
)
def test_the_loss_has_no_lasso_and_the_factor_is_that_of_equation_3(mode):
    plain = fit(compiled(adam(), **mode), epochs=1)
    pruning = {
        solver: kpt.PruneTrainCallback(0.5, solver=solver)
        for solver in ("proximal", "subgradient")
    }
    losses = {
        solver: fit(compiled(adam(), **mode), callback, epochs=1)["loss"][0]
        for solver, callback in pruning.items()
    }
    np.testing.assert_allclose(
        pruning["proximal"].factor, pruning["subgradient"].factor, rtol=1e-4
    )
    np.testing.assert_allclose(losses["proximal"], plain["loss"][0], rtol=0.02)
    assert losses["subgradient"] > 1.4 * losses["proximal"]


def test_the_report_has_the_share_that_the_lasso_would_have():
    model = compiled(adam())
    pruning = kpt.PruneTrainCallback(0.5, interval=1)
    history = fit(model, Kill({0: {"inner": [0]}}), pruning, epochs=1)
    penalty = pruning.factor * norms(model)
    share = penalty / (history["loss"][0] + penalty)
    assert pruning.reports[0].penalty_ratio == pytest.approx(share, rel=0.02)


def test_the_steps_go_on_after_a_reconfiguration():
    model, watch = compiled(gradient_descent(), **TRACED), Watch()
    pruning = kpt.PruneTrainCallback(interval=1, factor=1e-6, solver="proximal")

    class Strong(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                for name in KERNELS:
                    kernel = self.model.get_layer(name).kernel
                    kernel.regularizer.lasso.factor = 50.0

    fit(model, Kill({0: {"inner": [0, 3]}}), watch, pruning, Strong())
    assert watch.zeros == [2, 4]  # Of 6 channels, then of 4.
    assert watch.in_loss == [False, False]
    assert [report.epoch for report in pruning.reports] == [0, 1]


class Fails(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise RuntimeError("It fails.")


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_everything_comes_off_however_fit_ends(ends):
    optimizer = adam()
    model = network(l2=0.01, compiled={"optimizer": optimizer})
    optimizer.build(model.trainable_variables)
    before = set(vars(optimizer))
    own = [model.get_layer(name).kernel.regularizer for name in KERNELS]
    if ends == "well":
        fit(model, kpt.PruneTrainCallback(), epochs=1)
    else:
        with pytest.raises(RuntimeError, match="It fails"):
            fit(model, kpt.PruneTrainCallback(), Fails(), epochs=1)
    assert set(vars(optimizer)) == before
    for name, regularizer in zip(KERNELS, own, strict=True):
        assert model.get_layer(name).kernel.regularizer is regularizer


def test_a_lasso_of_the_layers_own_acts_once():
    lasso = kpt.GroupLasso(50.0)
    model = network(
        regularizers={"inner": lasso},
        compiled={"optimizer": gradient_descent()},
    )
    watch = Watched("inner")
    pruning = kpt.PruneTrainCallback(interval=9, solver="proximal")
    history = fit(model, watch, pruning, epochs=1)
    assert isinstance(watch.regularizer, BesideLasso)
    assert watch.regularizer.lasso is lasso
    # Its penalty, of hundreds, is not in the loss, and its steps are done.
    assert history["loss"][0] < 3.0
    assert watch.zeros > 0
    assert model.get_layer("inner").kernel.regularizer is lasso
    assert lasso.factor == 50.0


class Watched(keras.callbacks.Callback):
    """The regularizer and the zeros of one kernel after the first epoch."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def on_epoch_end(self, epoch, logs=None):
        kernel = self.model.get_layer(self.layer).kernel
        self.regularizer = kernel.regularizer
        self.zeros = int((kernel.numpy() == 0.0).sum())


def test_what_a_fit_that_broke_off_has_left_on_is_replaced():
    model, watch = compiled(adam()), Watch()
    attach.attach_lasso(model, number_channels(model))  # In the loss.
    fit(model, kpt.PruneTrainCallback(), watch, epochs=1)
    assert watch.in_loss == [False]


def test_the_last_epochs_are_without_steps():
    model = compiled(adam())
    pruning = kpt.PruneTrainCallback(0.9, interval=9, finetune_epochs=1)
    watch = Watch()
    fit(model, pruning, watch, epochs=2)
    assert watch.in_loss == [False, None]


def test_an_optimizer_that_undoes_the_steps_is_refused_before_the_first():
    model = compiled(keras.optimizers.Ftrl(0.01))
    with pytest.raises(ValueError, match="Ftrl is none that it can follow"):
        fit(model, kpt.PruneTrainCallback(solver="proximal"))
    assert int(model.optimizer.iterations) == 0


class Mine(keras.optimizers.Optimizer):
    """An optimizer of the user's own."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, gradient * learning_rate)


def test_an_unknown_optimizer_has_its_penalty_in_the_loss():
    keras.saving.register_keras_serializable("tests")(Mine)
    with pytest.raises(ValueError, match="steps of Mine is not known"):
        fit(compiled(Mine(0.01)), kpt.PruneTrainCallback(solver="proximal"))
    watch = Watch()
    fit(compiled(Mine(0.01)), kpt.PruneTrainCallback(), watch, epochs=1)
    assert watch.in_loss == [True]


class OwnUpdate(keras.Model):
    """Updates its weights without its optimizer."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        weights = self.trainable_variables
        for w, g in zip(weights, tape.gradient(loss, weights), strict=True):
            w.assign_sub(0.01 * g)
        return {"loss": loss}


def test_a_step_that_does_not_use_the_optimizer_is_refused():
    model = network(OwnUpdate, compiled={"optimizer": adam(), "metrics": None})
    with pytest.raises(
        ValueError, match="no optimizer .* has updated a kernel"
    ):
        fit(model, kpt.PruneTrainCallback())


@pytest.mark.parametrize("coupled", [False, True])
def test_what_the_refusal_advises_lets_this_step_train(coupled):
    model = network(OwnUpdate, compiled={"optimizer": adam(), "metrics": None})
    advice = {"solver": "subgradient"} | ({"coupled": False} if coupled else {})
    words = " and ".join(f"{name}={value!r}" for name, value in advice.items())
    with pytest.raises(ValueError, match=f"or pass {words}\\."):
        fit(model, kpt.PruneTrainCallback(coupled=coupled))
    fit(model, kpt.PruneTrainCallback(**{"coupled": coupled} | advice))


def test_a_first_step_that_the_loss_scale_skips_is_no_fault():
    optimizer = keras.optimizers.LossScaleOptimizer(adam(), 2.0**30)
    model = network(dtype="mixed_float16", compiled={"optimizer": optimizer})
    fit(model, kpt.PruneTrainCallback(), epochs=1)
    assert int(optimizer.iterations) == 0


@pytest.mark.parametrize("solver", ["newton", None, True])
def test_a_solver_that_is_none_is_refused(solver):
    with pytest.raises(ValueError, match="`solver` must be 'auto'"):
        kpt.PruneTrainCallback(solver=solver)


def test_mixed_precision_shrinks_with_exact_zeros():
    optimizer = keras.optimizers.LossScaleOptimizer(gradient_descent())
    model = network(
        dtype="mixed_float16", compiled={"optimizer": optimizer, **TRACED}
    )
    pruning = kpt.PruneTrainCallback(interval=9, factor=50.0, solver="proximal")
    watch = Watch()
    fit(model, watch, pruning, epochs=1)
    assert watch.zeros[0] > 0


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
@pytest.mark.long
def test_replicas_shrink_alike(strategy):
    with strategy.scope():
        model = network(
            synchronized=True, compiled={"optimizer": adam(), **TRACED}
        )
    watch = Watch()
    pruning = kpt.PruneTrainCallback(interval=1, factor=2.0)
    fit(model, Kill({0: {"inner": [0]}}), pruning, watch, epochs=2)
    assert watch.in_loss == [False, False]
    assert len(pruning.reports) > 0
    assert factors(model) == [0.0] * 4
    for weight in model.trainable_weights:
        first, second = (x.numpy() for x in weight.value.values)
        np.testing.assert_array_equal(first, second)

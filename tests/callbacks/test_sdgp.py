"""SDGPCallback: the phases of a `fit`, and what it leaves behind."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_prunetrain as kpt
from keras_prunetrain.sdgp.attach import kept_masses, sdgp_layers
from keras_prunetrain.sdgp.emulation import layer_gradient
from keras_prunetrain.sdgp.pattern import MODES
from tests.callbacks.fits import TRACED, Kill, examples, network, widths
from tests.callbacks.test_backup_and_restore import Break, Trained


def fit(model, *callbacks, epochs=2, **kwargs):
    x, y = examples(16)
    return model.fit(
        *(x, y, 8, epochs),
        verbose=0,
        shuffle=False,
        callbacks=list(callbacks),
        **kwargs,
    ).history


def net(**kwargs):
    return network(dropout=0.0, **kwargs)


def assert_equal_weights(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_trains_as_with_sdgp_and_takes_itself_off():
    model, other = net(), kpt.with_sdgp(net(), 1, 4, "mvue", seed=3)
    fit(model, kpt.SDGPCallback(1, 4, "mvue", seed=3))
    fit(other)
    assert_equal_weights(model, other)
    assert not sdgp_layers(model)


@pytest.mark.parametrize("fails", [Break((0, 1)), "data"])
def test_it_takes_itself_off_when_fit_fails(fails):
    def broken():
        yield examples(8)
        raise RuntimeError("no more data")

    model, sdgp = net(), kpt.SDGPCallback()
    with pytest.raises(RuntimeError):
        if fails == "data":
            model.fit(broken(), verbose=0, shuffle=False, callbacks=[sdgp])
        else:
            fit(model, sdgp, fails)
    assert not sdgp_layers(model)


@pytest.mark.parametrize("share, epochs", [(0.25, 3), (0.3, 2), (0.5, 2)])
def test_the_last_share_of_the_epochs_is_dense(share, epochs):
    model, other = net(), net()
    sdgp = kpt.SDGPCallback(1, 4, "magnitude", dense_last=share)
    history = fit(model, sdgp, epochs=4)
    fit(other, kpt.SDGPCallback(1, 4, "magnitude"), epochs=epochs)
    fit(other, epochs=4, initial_epoch=epochs)
    assert_equal_weights(model, other)
    kept = history["kept_gradient"]
    assert all(0.3 < x < 0.9 for x in kept[:epochs])
    assert kept[epochs:] == [1.0] * (4 - epochs)


def test_a_fit_that_begins_in_the_dense_part_counts_dense_gradients():
    model, meter, found = net(), kpt.EpochMeter(), []
    see = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: found.append(meter.cost)
    )
    sdgp = kpt.SDGPCallback(1, 2, dense_last=0.5)
    fit(model, meter, sdgp, see, initial_epoch=1)
    assert found == [kpt.model_cost(model)]


def test_a_dense_part_that_leaves_no_epoch_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        history = fit(net(), kpt.SDGPCallback(dense_last=0.2), epochs=1)
    assert history["kept_gradient"] == [1.0]
    (record,) = caplog.records
    assert "dense_last=0.2, epochs=1" in record.getMessage()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.75])
def test_a_training_that_ends_before_its_dense_part_is_warned_of(share, caplog):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        fit(net(), kpt.SDGPCallback(dense_last=share), Stop(), epochs=4)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (share == 0.5)
    if messages:
        assert "ended before its epochs with dense gradients" in messages[0]
        assert messages[0].endswith("dense_last=0.5, epochs=4")


def test_a_first_step_that_overflows_is_not_taken_for_a_train_step(caplog):
    sgd = keras.optimizers.SGD(0.01)
    optimizer = keras.optimizers.LossScaleOptimizer(sgd, 2.0**60)
    model = net(dtype="mixed_float16", compiled={"optimizer": optimizer})
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        (kept,) = fit(model, kpt.SDGPCallback(), epochs=1)["kept_gradient"]
    assert np.isnan(kept) and not caplog.records


def test_the_step_is_traced_once_for_all_phases():
    traced = []

    def loss(y, predicted):
        traced.append(1)
        return keras.losses.sparse_categorical_crossentropy(
            y, predicted, from_logits=True
        )

    model = net(compiled={**TRACED, "loss": loss, "metrics": []})
    counts = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: counted.append(len(traced))
    )
    counted = []
    fit(model, kpt.SDGPCallback(dense_last=0.5), counts)
    assert len(set(counted)) == 1


def test_what_is_kept_is_measured_in_the_first_step():
    seen = {}

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen[epoch] = kept_masses(self.model)

        def on_train_batch_end(self, batch, logs=None):
            inner = layer_gradient(self.model.get_layer("inner"))
            sums.append(inner.mass[1])

    model, sums = net(compiled={"optimizer": keras.optimizers.SGD(0.0)}), []
    history = fit(model, See(), kpt.SDGPCallback(1, 2))
    for epoch, kept in enumerate(history["kept_gradient"]):
        assert list(seen[epoch]) == ["inner", "last"]
        np.testing.assert_allclose(kept, np.mean(list(seen[epoch].values())))
        # Of two of any size, the larger one is more than half of them.
        assert all(0.5 < x < 1.0 for x in seen[epoch].values())
    # Two epochs of two steps, of which the first ones are alike.
    np.testing.assert_allclose(sums, [sums[0]] * 4)


class WithoutTraining(keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x))
        weights = self.trainable_weights
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


def test_a_train_step_that_does_not_say_training_is_warned_of(caplog):
    model = net(model_class=WithoutTraining, compiled={"metrics": None})
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        history = fit(model, kpt.SDGPCallback(dense_last=0.5))
    assert np.isnan(history["kept_gradient"][0])
    (record,) = caplog.records
    assert "must call the model with `training=True`" in record.getMessage()


@pytest.mark.parametrize("mode", MODES)
def test_the_mass_is_that_of_the_gradient_before_it_is_scaled(mode):
    x = keras.Input((1, 1, 4))
    layer = keras.layers.Conv2D(4, 1)
    outputs = keras.layers.Concatenate()([layer(x), layer(x)])  # Two calls.
    model = keras.Model(x, keras.layers.Flatten()(outputs))
    slopes = np.array([[1, 1, 1, 3, 1, 1, 1, 1]], "float32").T
    model.compile("sgd", lambda y, found: found @ slopes)
    history = model.fit(
        *(np.ones((4, 1, 1, 4)), np.zeros((4, 1))),
        verbose=0,
        callbacks=[kpt.SDGPCallback(2, 4, mode, seed=1)],
    ).history
    (kept,) = history["kept_gradient"]
    if mode.startswith("random"):
        assert 4 / 10 - 1e-6 <= kept <= 6 / 10 + 1e-6
    else:
        # The 3, which has to be kept, and one of the others; and two of four.
        np.testing.assert_allclose(kept, 6 / 10, rtol=1e-6)


def test_history_counts_what_hardware_computes_and_a_target_all_products():
    model = net()
    cost = kpt.model_cost(model)
    sparse = [cost.per_layer[x].forward_flops for x in ("inner", "last")]
    history = fit(
        model,
        kpt.TargetPruneCallback(training_flops=0.97, decay=1, warmup=3),
        kpt.SDGPCallback(1, 2, dense_last=0.4),
        epochs=5,
    )
    flops = np.array(history["training_flops"]) / 16
    left_out = np.array(history["emulated_flops"]) / 16
    dense = cost.training_flops
    emulated = np.array([sum(sparse) / 2] * 3 + [0, 0])
    np.testing.assert_allclose(flops[:4], dense - emulated[:4], rtol=1e-12)
    np.testing.assert_allclose(left_out, emulated, rtol=1e-12)
    assert 0.9 < (flops + emulated).sum() / (5 * dense) <= 0.97


def test_a_model_shrinks_to_a_target_with_it():
    model, sdgp = net(), kpt.SDGPCallback(1, 2, "mvue", seed=1)
    left = []
    see = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: left.append(list(sdgp_layers(model)))
    )
    pruning = kpt.TargetPruneCallback(
        flops=0.6, decay=2, reconfigure={"channel_multiple": 2}
    )
    fit(model, pruning, sdgp, see, epochs=4)
    assert len(pruning.reports) == 2 and widths(model)["inner"] in (2, 4)
    assert left == [["inner", "last"]] * 4
    assert not sdgp_layers(model)


@pytest.mark.parametrize(
    "freq, stop, cut",
    # Of 6 channels 3 are left, fewer than m.
    [("epoch", (1, 1), {}), (1, (1, 0), {0: {"inner": [1, 2, 3]}})],
)
def test_a_training_that_breaks_off_draws_what_it_would_have_drawn(
    tmp_path, freq, stop, cut
):
    def train(folder, stop=None):
        model = net()
        pruning = kpt.PruneTrainCallback(interval=1)
        backup = kpt.BackupAndRestore(tmp_path / folder, freq)
        sdgp = kpt.SDGPCallback(2, 4, "mvue", seed=1, dense_last=0.3)
        others = [Kill(cut), pruning, backup, sdgp, Break(stop)]
        fit(model, *others, epochs=3)
        return Trained(model, pruning, model.history)

    whole = train("whole")
    with pytest.raises(RuntimeError, match="killed"):
        train("broken", stop)
    train("broken").equals(whole)


def test_a_model_that_has_it_by_hand_goes_on_as_well(tmp_path):
    def train(folder, stop=None, mode="random", layers=None):
        model = kpt.with_sdgp(net(), 2, 4, mode, layers, seed=1)
        fit(model, kpt.BackupAndRestore(tmp_path / folder), Break(stop))
        return Trained(model, None, model.history)

    whole = train("whole")
    with pytest.raises(RuntimeError, match="killed"):
        train("broken", (1, 0))
    with pytest.raises(ValueError, match="sdgp was '2:4 random' and is '2:4 m"):
        train("broken", mode="mvue")
    with pytest.raises(
        ValueError, match=r"sdgp_layers was \[4, 6\] and is \[6"
    ):
        train("broken", layers=["last"])
    train("broken").equals(whole)


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_xla_compiles_the_step(mode):
    weights = []
    for jit in (True, False):
        model = net(compiled={**TRACED, "jit_compile": jit})
        history = fit(model, kpt.SDGPCallback(2, 4, mode, dense_last=0.5))
        assert history["kept_gradient"][0] < history["kept_gradient"][1] == 1
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        # XLA draws other numbers.
        exact = mode in ("rescaled", "magnitude")
        np.testing.assert_allclose(one, other, atol=1e-4 if exact else 0.1)


@pytest.mark.long
def test_on_two_replicas(strategy):
    with strategy.scope():
        model = net(compiled=TRACED)
    history = fit(model, kpt.SDGPCallback(mode="mvue", dense_last=0.5, seed=1))
    assert 0.5 < history["kept_gradient"][0] < history["kept_gradient"][1] == 1
    assert not sdgp_layers(model)


@pytest.mark.parametrize("share", [1.0, -0.1, "half", float("nan"), True])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(ValueError, match="`dense_last` is a share of the epo"):
        kpt.SDGPCallback(dense_last=share)


def test_a_model_that_has_it_already_is_refused():
    model = kpt.with_sdgp(net())
    with pytest.raises(ValueError, match="has pruned data gradients already"):
        fit(model, kpt.SDGPCallback())
    assert sdgp_layers(model)
    kpt.without_sdgp(model)
    with pytest.raises(ValueError, match="has pruned data gradients already"):
        fit(model, kpt.SDGPCallback(), kpt.SDGPCallback())
    assert not sdgp_layers(model)

"""The lasso is in the loss that is trained, and not in the one monitored."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_prunetrain as kpt
from tests.callbacks.fits import TRACED, examples, network


class OwnStep(keras.Model):
    """A `train_step` and a `test_step` as a user writes them."""

    adds_losses = False

    def loss_of(self, data, training):
        x, y = data
        logits = self(x, training=training)
        loss = keras.losses.sparse_categorical_crossentropy(
            y, logits, from_logits=True
        )
        loss = tf.reduce_mean(loss)
        return loss + sum(self.losses) if self.adds_losses else loss

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.loss_of(data, training=True)
        weights = self.trainable_variables
        gradients = tape.gradient(loss, weights)
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return {"loss": loss}

    def test_step(self, data):
        loss = self.loss_of(data, training=False)
        # Of the names of its own metrics, Keras takes its own values.
        return {"loss": loss, "double": 2 * loss}


class AddsLosses(OwnStep):
    adds_losses = True


class OwnLoss(keras.Model):
    """A `compute_loss` that leaves the penalties out."""

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        loss = keras.losses.sparse_categorical_crossentropy(
            y, y_pred, from_logits=True
        )
        return keras.ops.mean(loss)


WITHOUT_METRICS = {"metrics": None}  # A step of the user's own updates none.


def fit(model, *callbacks, epochs=2, **kwargs):
    return model.fit(
        *examples(20),
        validation_data=examples(8, seed=2),
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
        **kwargs,
    ).history


@pytest.mark.parametrize("compiled", [TRACED, {}], ids=["traced", "eager"])
@pytest.mark.parametrize("model_class", [OwnStep, OwnLoss])
def test_a_step_that_leaves_the_lasso_out_is_refused(model_class, compiled):
    model = network(model_class, compiled=compiled)
    with pytest.raises(ValueError, match=r"loss = loss \+ sum\(self.losses\)"):
        fit(model, kpt.PruneTrainCallback(interval=1))
    assert int(model.optimizer.iterations) == 1


@pytest.mark.parametrize("own_lasso", [False, True])
def test_the_advice_to_add_the_losses_is_true(own_lasso):
    regularizers = {"inner": kpt.GroupLasso(0.01)} if own_lasso else None
    model = network(AddsLosses, WITHOUT_METRICS, regularizers=regularizers)
    pruning = kpt.PruneTrainCallback(interval=1)
    fit(model, pruning)
    assert pruning.factor > 0


def test_where_nothing_can_be_pruned_no_lasso_is_missed():
    model = network(OwnStep, WITHOUT_METRICS)
    for layer in model.layers:
        layer.trainable = layer.name == "stem_bn"
    fit(model, kpt.PruneTrainCallback(interval=1))


@pytest.mark.parametrize("model_class", [keras.Model, AddsLosses])
@pytest.mark.parametrize("compiled", [TRACED, {}], ids=["traced", "eager"])
def test_the_task_loss_of_the_validation_has_no_penalties(
    model_class, compiled
):
    model = network(model_class, WITHOUT_METRICS | compiled, l2=0.01)
    history = fit(model, kpt.PruneTrainCallback(interval=1, penalty_ratio=0.9))
    x, y = examples(8, seed=2)
    logits = model.predict(x, verbose=0)
    loss = keras.losses.sparse_categorical_crossentropy(
        y, logits, from_logits=True
    )
    assert history["val_loss"][-1] > 2 * history["val_task_loss"][-1]
    assert history["val_task_loss"][-1] == pytest.approx(
        float(np.mean(loss)), rel=1e-3
    )
    assert len(history["val_task_loss"]) == 2


def test_a_metric_called_task_loss_is_not_overwritten():
    metric = keras.metrics.SparseCategoricalAccuracy(name="task_loss")
    model = network(compiled={"metrics": [metric]})
    accuracy = model.evaluate(*examples(8, seed=2), verbose=0)[1]
    history = fit(model, kpt.PruneTrainCallback(), epochs=1)
    assert 0.0 <= history["val_task_loss"][0] <= 1.0
    assert abs(history["val_task_loss"][0] - accuracy) % 0.125 == 0


def test_early_stopping_behind_the_callback_can_monitor_the_task_loss(caplog):
    stop = keras.callbacks.EarlyStopping(
        "val_task_loss", patience=0, mode="min"
    )
    history = fit(
        network(),
        kpt.PruneTrainCallback(),
        LossGoesUp(),
        stop,
        epochs=4,
    )
    assert len(history["val_task_loss"]) == 2
    assert "monitors" not in caplog.text


class LossGoesUp(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        assert "val_task_loss" in logs
        logs["val_task_loss"] = float(epoch)


@pytest.mark.parametrize(
    "sibling",
    [
        keras.callbacks.EarlyStopping(),
        keras.callbacks.ReduceLROnPlateau(),
        keras.callbacks.ModelCheckpoint("x.keras", save_best_only=True),
    ],
    ids=lambda sibling: type(sibling).__name__,
)
def test_who_monitors_the_loss_with_penalties_is_warned(sibling, caplog):
    fit(network(), kpt.PruneTrainCallback(), Without(sibling), epochs=1)
    said = [x for x in caplog.messages if "monitors 'val_loss'" in x]
    assert len(said) == 1
    assert "'val_task_loss'" in said[0]


@pytest.mark.parametrize("solver", ["auto", "subgradient"])
def test_who_monitors_a_loss_without_the_penalty_is_not_warned(solver, caplog):
    stop = Without(keras.callbacks.EarlyStopping())
    pruning = kpt.PruneTrainCallback(solver=solver)
    fit(network(compiled={"optimizer": "adam"}), pruning, stop, epochs=1)
    assert ("monitors 'val_loss'" in caplog.text) == (solver != "auto")


class Without(keras.callbacks.Callback):
    """Is taken for `sibling`, without doing anything."""

    def __init__(self, sibling):
        super().__init__()
        self.monitor = sibling.monitor
        self.save_best_only = getattr(sibling, "save_best_only", True)


def test_who_monitors_the_task_loss_from_in_front_is_warned(caplog):
    stop = keras.callbacks.EarlyStopping("val_task_loss", mode="min")
    with pytest.warns(UserWarning, match="val_task_loss"):
        fit(network(), stop, kpt.PruneTrainCallback(), epochs=1)
    assert "Put it behind" in caplog.text


def test_a_checkpoint_of_every_epoch_is_not_warned(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    fit(network(), kpt.PruneTrainCallback(), checkpoint, epochs=1)
    assert "monitors" not in caplog.text


def test_a_given_factor_acts_from_the_first_step():
    model = network()
    pruning = kpt.PruneTrainCallback(factor=0.01)
    losses, without = [], []
    fit(model, pruning, Appends(losses), epochs=1)
    fit(network(), Appends(without), epochs=1)
    assert pruning.factor == 0.01
    assert losses[0] > without[0] + 0.01


class Appends(keras.callbacks.Callback):
    def __init__(self, losses):
        super().__init__()
        self.losses = losses

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), "1", True])
def test_a_factor_that_is_none_is_refused(factor):
    with pytest.raises(ValueError, match="`factor` must be a number above 0"):
        kpt.PruneTrainCallback(factor=factor)


def test_another_model_begins_with_the_given_factor():
    pruning = kpt.PruneTrainCallback(factor=0.01)
    fit(network(), pruning, epochs=1)
    fit(network(), pruning, epochs=1)
    assert pruning.factor == 0.01

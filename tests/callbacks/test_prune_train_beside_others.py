"""Next to Keras's own callbacks, with losses and metrics of every kind."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_prunetrain import BackupAndRestore, PruneTrainCallback
from tests.callbacks.fits import (
    Kill,
    examples,
    factors,
    graph,
    network,
    widths,
)

DEATHS = {0: {"inner": [0, 3]}, 1: {"inner": [1], "stage": [2]}}
WIDTHS = {"stem": 5, "inner": 3, "last": 5, "logits": 3}
IMAGES, LABELS = examples()
CALLBACKS = keras.callbacks


def pruning():
    return PruneTrainCallback(0.5, 1)


def fit(model, *callbacks, epochs=3, labels=LABELS, deaths=DEATHS, **kwargs):
    return model.fit(
        IMAGES,
        labels,
        batch_size=16,
        epochs=epochs,
        callbacks=[Kill(deaths), *callbacks],
        verbose=0,
        **kwargs,
    )


class Lower(CALLBACKS.Callback):
    """Writes the values to be monitored into the logs."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs["quality"] = self.values[epoch]


@pytest.mark.parametrize("first", ["checkpoint", "pruning"])
def test_checkpoint_of_the_best_model_has_its_own_shape(first, tmp_path):
    path = tmp_path / "best.keras"
    checkpoint = CALLBACKS.ModelCheckpoint(
        path, monitor="quality", mode="min", save_best_only=True
    )
    quality = Lower([3.0, 1.0, 2.0])
    order = [checkpoint, pruning()]
    order = order if first == "checkpoint" else order[::-1]
    model = network()
    fit(model, quality, *order)
    best = keras.saving.load_model(path)
    # The best is that of epoch 1, before or after its own reconfiguration.
    assert widths(best) == (
        WIDTHS | {"stem": 6, "inner": 4, "last": 6}
        if first == "checkpoint"
        else WIDTHS
    )
    assert widths(model) == WIDTHS
    assert best.optimizer.iterations == 6
    assert factors(best) == [0.0] * 4
    assert best.losses == []
    assert np.isfinite(best.predict(IMAGES, verbose=0)).all()


@pytest.mark.parametrize("first", ["stop", "pruning"])
def test_early_stopping_ends_with_a_last_reconfiguration(first):
    stop = CALLBACKS.EarlyStopping("quality", patience=1, mode="min")
    prune = PruneTrainCallback(0.5, interval=10)
    order = [stop, prune] if first == "stop" else [prune, stop]
    model = network()
    quality = Lower([1.0, 2.0, 3.0])
    # At once: momentum would bring back what died an epoch ago.
    deaths = {1: {"inner": [0, 1, 3], "stage": [2]}}
    history = fit(model, quality, *order, epochs=20, deaths=deaths)
    assert len(history.history["loss"]) == 2
    assert widths(model) == WIDTHS
    assert [report.epoch for report in prune.reports] == [1]
    assert factors(model) == [0.0] * 4
    assert model.losses == []


class OwnPruneTrain(PruneTrainCallback):
    def set_model(self, model):
        super().set_model(model)


class OwnEarlyStopping(CALLBACKS.EarlyStopping):
    pass


@pytest.mark.parametrize("stop", [CALLBACKS.EarlyStopping, OwnEarlyStopping])
@pytest.mark.parametrize("is_first", [True, False])
def test_early_stopping_brings_back_the_best_epoch_of_the_smaller_model(
    stop, is_first
):
    # The larger model of epoch 0 was better than any later one.
    quality = Lower([1.0, 5.0, 4.0, 2.0, 3.0, 3.0, 1.0])
    stopping = stop(
        "quality", mode="min", patience=2, restore_best_weights=True
    )
    order = [stopping, pruning()] if is_first else [pruning(), stopping]
    kept = []
    keep = CALLBACKS.LambdaCallback(
        on_epoch_end=lambda epoch, logs: kept.append(model.get_weights())
    )
    model = network()
    fit(model, quality, *order, keep, epochs=7)
    assert widths(model) == WIDTHS
    assert len(kept) == 6 and stopping.best_epoch == 3
    for one, other in zip(kept[3], model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.long
def test_patience_begins_anew_with_each_cut():
    stopping = CALLBACKS.EarlyStopping(
        *("quality", 0, 3),
        **{"mode": "min", "baseline": 0.5, "restore_best_weights": True},
    )
    # The baseline is never reached; the last cut comes after epoch 1.
    history = fit(network(), Lower([1.0] * 7), stopping, pruning(), epochs=7)
    assert history.epoch == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("is_first", "patience"),
    [
        (False, 0),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in ((True, 0), (True, 9), (False, 9))
        ),
    ],
)
def test_the_last_cut_is_that_of_the_best_epoch(is_first, patience):
    stopping, again = (
        CALLBACKS.EarlyStopping(
            "quality", 0, n, mode="min", restore_best_weights=True
        )
        for n in (patience, 9)
    )
    prune = PruneTrainCallback(0.5, interval=3)
    order = [stopping, again, prune] if is_first else [prune, stopping, again]
    found = []
    model = network()
    watch = CALLBACKS.LambdaCallback(
        on_epoch_end=lambda epoch, logs: found.append(model(IMAGES).numpy())
    )
    # The last cut finds those of epoch 3, and nothing of the epochs after it.
    deaths = {2: DEATHS[0], 3: DEATHS[1], 4: {"stage": [0, 1]}}
    quality = Lower([1.0, 0.5, 0.4, 0.2, 0.3, 0.3])
    history = fit(
        *(model, quality, watch, *order),
        epochs=6 if patience == 0 else 5,
        deaths=deaths,
    )
    assert len(found) == 5
    np.testing.assert_allclose(model(IMAGES), found[3], atol=1e-5)
    assert widths(model) == WIDTHS
    assert history.history["density"][-1] == pytest.approx(14 / 18)
    assert [x.epoch for x in prune.reports] == [2, 4]


def test_weights_of_the_same_shapes_are_not_forgotten():
    quality = Lower([1.0, 2.0, 3.0])
    stopping = CALLBACKS.EarlyStopping(
        "quality", mode="min", restore_best_weights=True
    )
    fit(network(), quality, pruning(), stopping, deaths={})
    assert stopping.best_epoch == 0 and stopping.best == 1.0


class OwnBackup(CALLBACKS.BackupAndRestore):
    pass


class OwnCheckpoint(CALLBACKS.ModelCheckpoint):
    pass


@pytest.mark.parametrize("kind", [CALLBACKS.BackupAndRestore, OwnBackup])
def test_a_backup_that_could_not_be_resumed_is_refused(kind, tmp_path):
    model = network()
    backup = kind(tmp_path / "backup")
    with pytest.raises(ValueError, match="saves weights without the sizes"):
        fit(model, pruning(), backup)
    assert model.optimizer.iterations == 0
    assert factors(model) == [0.0] * 4

    # The advice works.
    backup = BackupAndRestore(tmp_path / "backup")
    assert fit(model, pruning(), backup, epochs=2).epoch == [0, 1]


@pytest.mark.parametrize("kind", [CALLBACKS.ModelCheckpoint, OwnCheckpoint])
def test_weights_that_fit_no_model_are_warned_of(kind, tmp_path, caplog):
    checkpoint = kind(tmp_path / "best.weights.h5", save_weights_only=True)
    model = network()
    fit(model, pruning(), checkpoint, epochs=1)
    (record,) = [x for x in caplog.records if x.name == "keras_prunetrain"]
    assert f"{kind.__name__}(save_weights_only=True)" in record.getMessage()
    assert "ModelCheckpoint('best.keras')" in record.getMessage()
    whole = CALLBACKS.ModelCheckpoint(tmp_path / "best.keras")
    fit(model, pruning(), whole, epochs=1)
    assert len(caplog.records) == 1


def test_csv_logger_gets_all_columns(tmp_path):
    path = tmp_path / "log.csv"
    model = network()
    history = fit(model, pruning(), CALLBACKS.CSVLogger(path)).history
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {"epoch"} | history.keys() <= rows[0].keys()
    for name in ("density", "training_flops", "loss"):
        found = [float(row[name]) for row in rows]
        np.testing.assert_allclose(found, history[name], rtol=1e-6)


@pytest.mark.parametrize("histogram_freq", [0, 1])
def test_tensorboard_gets_all_curves(histogram_freq, tmp_path):
    board = CALLBACKS.TensorBoard(
        tmp_path, histogram_freq=histogram_freq, write_graph=False
    )
    model = network()
    history = fit(model, pruning(), board).history
    (path,) = (tmp_path / "train").iterdir()
    found = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            if value.tensor.dtype == 1 and not value.tensor.tensor_shape.dim:
                number = float(tf.make_ndarray(value.tensor))
                found.setdefault(value.tag, []).append(number)
    for name in ("density", "training_flops", "loss"):
        np.testing.assert_allclose(
            found[f"epoch_{name}"], history[name], rtol=1e-6
        )


class Rates(CALLBACKS.Callback):
    """How far the kernels move in each epoch."""

    def __init__(self):
        super().__init__()
        self.moved = []

    def on_epoch_begin(self, epoch, logs=None):
        self.before = self.model.get_layer("inner").get_weights()[0]

    def on_epoch_end(self, epoch, logs=None):
        now = self.model.get_layer("inner").get_weights()[0]
        self.moved.append(np.abs(now - self.before).max())


@pytest.mark.parametrize(
    ("first", "traced"), [("schedule", False), ("pruning", True)]
)
def test_learning_rate_scheduler_acts_on_the_smaller_model(first, traced):
    schedule = CALLBACKS.LearningRateScheduler(
        lambda epoch: [0.05, 0.0, 0.01][epoch]
    )
    prune, rates = pruning(), Rates()
    order = [schedule, prune] if first == "schedule" else [prune, schedule]
    model = network(compiled={"optimizer": "sgd", "run_eagerly": not traced})
    optimizer = model.optimizer
    # Before the channels are killed.
    model.fit(
        IMAGES,
        LABELS,
        batch_size=16,
        epochs=3,
        callbacks=[rates, Kill(DEATHS), *order],
        verbose=0,
    )
    assert model.optimizer is optimizer
    assert rates.moved[0] > 1e-4
    assert rates.moved[1] == 0.0
    assert rates.moved[2] > 1e-5
    assert [r.learning_rate for r in prune.reports] == pytest.approx([0.05, 0])


@pytest.mark.parametrize(
    ("first", "traced"), [("plateau", True), ("pruning", False)]
)
def test_reduce_on_plateau_acts_on_the_smaller_model(first, traced):
    plateau = CALLBACKS.ReduceLROnPlateau(
        "quality", factor=0.1, patience=1, mode="min", min_delta=0.0
    )
    prune, rates = pruning(), Rates()
    order = [plateau, prune] if first == "plateau" else [prune, plateau]
    model = network(
        compiled={
            "optimizer": keras.optimizers.SGD(0.05),
            "run_eagerly": not traced,
        }
    )
    optimizer = model.optimizer
    callbacks = [rates, Lower([1.0, 2.0, 3.0, 4.0]), *order]
    fit(model, *callbacks, epochs=4)
    assert model.optimizer is optimizer
    assert float(optimizer.learning_rate) == pytest.approx(5e-5)
    # The plateau begins in epoch 1; in epoch 3 two cuts have taken effect.
    assert rates.moved[3] < 0.05 * rates.moved[1]


def halved(labels, logits):
    """A loss that no file knows."""
    return 0.5 * keras.losses.sparse_categorical_crossentropy(
        labels, logits, from_logits=True
    )


def largest(labels, logits):
    return keras.ops.max(logits, axis=-1)


@pytest.mark.parametrize(
    ("loss", "traced"),
    [
        pytest.param(halved, False, marks=pytest.mark.long),
        (lambda labels, logits: halved(labels, logits), True),
    ],
)
def test_losses_and_metrics_are_carried_as_objects(loss, traced):
    mean = keras.metrics.MeanMetricWrapper(largest, name="mean_largest")
    model = network(
        compiled={
            "loss": loss,
            "metrics": [largest, mean],
            "run_eagerly": not traced,
        }
    )
    history = fit(model, pruning(), validation_data=(IMAGES, LABELS)).history
    assert widths(model) == WIDTHS
    assert model.loss is loss
    assert {"largest", "mean_largest", "val_largest"} <= history.keys()
    # They go on counting: the values of the last epoch are the last model's.
    logits = model.predict(IMAGES, verbose=0)
    found = model.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)
    np.testing.assert_allclose(
        found["loss"], np.mean(loss(LABELS, logits)), rtol=1e-5
    )
    for name in ("largest", "mean_largest"):
        np.testing.assert_allclose(
            found[name], logits.max(axis=1).mean(), rtol=1e-5
        )
        np.testing.assert_allclose(
            history[f"val_{name}"][-1], found[name], rtol=1e-5
        )
    # The user's own object goes on counting.
    np.testing.assert_allclose(
        float(mean.result()), found["mean_largest"], rtol=1e-5
    )


@pytest.mark.long
def test_two_outputs_with_loss_weights():
    inputs, logits = graph(dropout=0.0)
    other = keras.layers.Dense(1, name="other")(
        keras.layers.GlobalAveragePooling2D()(inputs)
    )
    model = keras.Model(inputs, {"logits": logits, "other": other})
    model.compile(
        "sgd",
        loss={
            "logits": keras.losses.SparseCategoricalCrossentropy(True),
            "other": "mse",
        },
        loss_weights={"logits": 1.0, "other": 0.25},
        metrics={"logits": ["accuracy"]},
        run_eagerly=True,
    )
    labels = {"logits": LABELS, "other": LABELS.astype("float32")[:, None]}
    # The classifier reads the channels of the stage.
    history = fit(model, pruning(), labels=labels).history
    assert widths(model) == WIDTHS
    found = model.evaluate(IMAGES, labels, verbose=0, return_dict=True)
    np.testing.assert_allclose(
        found["loss"],
        found["logits_loss"] + 0.25 * found["other_loss"],
        rtol=1e-5,
    )
    assert {"logits_accuracy", "logits_loss", "density"} <= history.keys()


def test_activity_regularizers_are_part_of_the_task():
    # They stay in the layers' configs and so in the smaller model.
    inputs, logits = graph(dropout=0.0)
    penalized = keras.layers.ActivityRegularization(l2=0.1)(logits)
    model = keras.Model(inputs, penalized)
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(True),
        run_eagerly=True,
    )
    fit(model, pruning())
    assert widths(model) == WIDTHS
    model(IMAGES)
    assert len(model.losses) == 1

"""The meter of an epoch, against a clock and counts by hand."""

import keras
import numpy as np
import pytest

import keras_prunetrain as kpt
from keras_prunetrain.fit import meter as meter_module
from tests.callbacks.fits import examples, network


class Clock(keras.callbacks.Callback):
    """A step takes 1 s, a batch of validation 60, between epochs pass 10."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def on_train_batch_end(self, batch, logs=None):
        self.now += 1.0

    def on_epoch_begin(self, epoch, logs=None):
        self.now += 10.0 if epoch else 0.0

    def on_test_batch_end(self, batch, logs=None):
        self.now += 60.0


class Note(keras.callbacks.Callback):
    def __init__(self, meter, *names):
        super().__init__()
        self.meter, self.names, self.rows = meter, names, []

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append([getattr(self.meter, name) for name in self.names])


def test_seconds_are_those_of_the_epoch_without_validation(monkeypatch):
    meter, clock = kpt.EpochMeter(), Clock()
    monkeypatch.setattr(meter_module, "time", clock)
    note = Note(meter, "seconds", "fit_seconds")
    network().fit(
        *examples(40),
        batch_size=16,
        epochs=2,
        verbose=0,
        validation_data=examples(8),
        callbacks=[clock, meter, note],
    )
    assert note.rows == [[3.0, 3.0], [3.0, 16.0]]


@pytest.mark.parametrize("strategy", ["default", "mirrored"], indirect=True)
def test_examples_and_flops_are_those_of_the_epoch(strategy):
    meter = kpt.EpochMeter()
    note = Note(meter, "examples", "batch_size", "training_flops")
    with strategy.scope():
        model = network()
    model.fit(
        *examples(40),
        batch_size=16,
        epochs=2,
        verbose=0,
        callbacks=[meter, note],
    )
    flops = 40 * kpt.model_cost(model).training_flops
    # The mean of 16, 16 and 8 would be 14: the first step tells.
    assert note.rows == [[40, 16, flops]] * 2


class StopAtSecond(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = batch == 1


@pytest.mark.parametrize(
    ("strategy", "validated"),
    [("default", False), ("default", True), ("mirrored", True)],
    indirect=["strategy"],
)
def test_an_epoch_that_a_callback_ends_is_counted_to_its_last_step(
    strategy, validated
):
    meter = kpt.EpochMeter()
    note = Note(meter, "examples")
    with strategy.scope():
        model = network()
    model.fit(
        *examples(40),
        batch_size=16,
        verbose=0,
        validation_data=examples(8) if validated else None,
        callbacks=[StopAtSecond(), meter, note],
    )
    assert note.rows == [[32]]


class Batches(keras.utils.PyDataset):
    """Does not tell the size of an example."""

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return examples(8)


@pytest.mark.parametrize("told", [True, False])
def test_what_a_model_of_any_size_costs_is_known_if_the_data_tell(told):
    image = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(image)
    model = keras.Model(image, keras.layers.Dense(3)(x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    meter = kpt.EpochMeter()
    note = Note(meter, "examples", "training_flops")
    data = examples(8) if told else (Batches(),)
    model.fit(*data, verbose=0, callbacks=[meter, note])
    flops = 8 * 3 * 2 * 3 * 3 if told else np.nan
    assert note.rows == [[8, pytest.approx(flops, nan_ok=True)]]


def test_the_learning_rate_is_that_of_the_last_step():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [2], [0.5, 0.1]
    )
    meter = kpt.EpochMeter()
    note = Note(meter, "learning_rate")
    model = network(compiled={"optimizer": keras.optimizers.SGD(schedule)})
    model.fit(
        *examples(40),
        batch_size=16,
        epochs=2,
        verbose=0,
        callbacks=[meter, note],
    )
    # The third step is still of the first rate.
    np.testing.assert_allclose(note.rows, [[0.5], [0.1]])


def test_the_learning_rate_of_an_epoch_without_a_last_step_is_the_present_one():
    class Lower(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch
            self.model.optimizer.learning_rate = 0.5 / (1 + epoch)

        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = self.epoch == 1

    meter = kpt.EpochMeter()
    note = Note(meter, "learning_rate")
    network().fit(
        *examples(40),
        batch_size=16,
        epochs=2,
        verbose=0,
        callbacks=[Lower(), meter, note],
    )
    np.testing.assert_allclose(note.rows, [[0.5], [0.25]])


def test_a_second_fit_counts_images_of_another_size_anew():
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(2, 3)(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(3)(x))
    model.compile("sgd", "mse", run_eagerly=True)
    meter = kpt.EpochMeter()
    found = []
    for size in (8, 12):
        note = Note(meter, "training_flops")
        data = np.ones((4, size, size, 3)), np.ones((4, 3))
        model.fit(*data, verbose=0, callbacks=[meter, note])
        flops = 4 * kpt.model_cost(model, (size, size, 3)).training_flops
        assert note.rows == [[flops]]
        found.append(flops)
    assert found[0] < found[1]


def test_before_fit_nothing_is_known():
    meter = kpt.EpochMeter()
    assert meter.current_cost() is meter.cost is meter.learning_rate is None
    assert np.isnan(meter.training_flops)
    assert meter.seconds == meter.fit_seconds == 0.0

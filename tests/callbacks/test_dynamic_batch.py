"""`fit` with a batch that grows: real fits of a tiny network."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_prunetrain import (
    DynamicBatch,
    PruneTrainCallback,
    model_cost,
    training_bytes,
)
from tests.callbacks.fits import Kill, examples, network

COUNT = 41  # No batch size divides it.


def grower(**kwargs):
    """A batch that only its maximum limits."""
    return DynamicBatch(
        **{
            "initial": 4,
            "granularity": 4,
            "memory_budget": 2**30,
            "maximum": 16,
            **kwargs,
        }
    )


class Watch(keras.callbacks.Callback):
    """Notes what each step of each epoch was given."""

    def on_train_begin(self, logs=None):
        self.steps, self.sizes, self.updates = [], [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.steps.append(0)

    def on_train_batch_end(self, batch, logs=None):
        self.steps[-1] += 1

    def on_epoch_end(self, epoch, logs=None):
        self.updates.append(int(self.model.optimizer.iterations))


def fit(batch, data=None, epochs=4, callbacks=(), interval=1, **kwargs):
    model = network(**kwargs)
    pruning = PruneTrainCallback(batch=batch, interval=interval)
    watch = Watch()
    kill = Kill({1: {"inner": [0]}})
    if data is None:
        data = batch.arrays(*examples(COUNT), seed=0)
    history = model.fit(
        data,
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=[kill, *callbacks, pruning, watch],
    )
    return model, pruning, watch, history.history


def test_the_batch_grows_after_a_reconfiguration():
    batch = grower()
    model, pruning, watch, history = fit(batch)
    assert len(pruning.reports) == 1
    assert history["batch_size"] == [4, 4, 16, 16]
    assert watch.steps == [11, 11, 3, 3]
    assert watch.updates == [11, 22, 25, 28]
    (report,) = pruning.reports
    assert (report.batch_size, report.batch_size_after) == (4, 16)
    assert "batch 4 -> 16" in str(report)


def test_no_example_is_lost_or_seen_twice_and_each_epoch_has_its_own_order():
    batch = grower()
    data = batch(tf.data.Dataset.range(COUNT).shuffle(COUNT, seed=0))
    epochs = []
    for size in (4, 16, 7):
        batch.size = size
        for _ in range(2):
            batches = data.take(batch.steps).as_numpy_iterator()
            epochs.append(np.concatenate(list(batches)))
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in epochs}) == 6


class Probe(keras.optimizers.SGD):
    """Notes the learning rate of each update."""

    rates = ()

    def update_step(self, gradient, variable, learning_rate):
        if variable.shape == (6, 3):  # Once per update.
            Probe.rates.append(round(float(learning_rate), 6))
        super().update_step(gradient, variable, learning_rate)


RATE = 0.04
GROWN_AT = 22  # Updates of 4, and then of 16 examples.


class ByHand(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = RATE / (epoch + 1)


# What sets the learning rate: the argument of the optimizer, callbacks, and
# what it is in each epoch.
SETTERS = {
    "a constant": (RATE, [], [RATE] * 4),
    "by hand": (RATE, [ByHand], [RATE, RATE / 2, RATE / 3, RATE / 4]),
    "scheduler": (
        RATE,
        [
            lambda: keras.callbacks.LearningRateScheduler(
                lambda epoch, rate: rate / 2 if epoch else rate
            )
        ],
        [RATE, RATE / 2, RATE / 4, RATE / 8],
    ),
    "plateau": (
        RATE,
        [
            lambda: keras.callbacks.ReduceLROnPlateau(
                "loss", factor=0.5, patience=1, min_delta=1e9
            )
        ],
        [RATE, RATE, RATE / 2, RATE / 4],
    ),
    "a schedule in updates": (
        # 3 updates of 16 are 12 updates of 4: the border is in epoch 3.
        keras.optimizers.schedules.PiecewiseConstantDecay(
            [GROWN_AT + 11], [RATE, RATE / 10]
        ),
        [],
        [RATE, RATE, RATE, RATE / 10],
    ),
}


@pytest.mark.parametrize(
    ("rate", "make", "shown"), SETTERS.values(), ids=SETTERS
)
def test_whatever_sets_the_learning_rate_it_is_scaled_once(rate, make, shown):
    Probe.rates = []
    model, _, _, history = fit(
        grower(),
        callbacks=[maker() for maker in make],
        compiled={"optimizer": Probe(rate)},
    )
    expected = [
        *([shown[0]] * 11),
        *([shown[1]] * 11),
        *([4 * shown[2]] * 3),
        *([4 * shown[3]] * 3),
    ]
    np.testing.assert_allclose(Probe.rates, expected, atol=1e-6)
    if rate == RATE:
        assert float(model.optimizer.learning_rate) <= RATE


def test_the_logs_show_the_rate_that_was_trained_with():
    _, pruning, _, history = fit(grower())
    np.testing.assert_allclose(history["learning_rate"], [0.05, 0.05, 0.2, 0.2])
    assert pruning.reports[0].learning_rate == pytest.approx(0.05)


def test_the_logs_show_what_a_schedule_gave_the_last_step():
    rate = keras.optimizers.schedules.PiecewiseConstantDecay(
        [10], [0.08, 0.01]
    )  # An epoch has the steps 0 to 10.
    _, _, _, history = fit(
        grower(), epochs=2, compiled={"optimizer": keras.optimizers.SGD(rate)}
    )
    np.testing.assert_allclose(history["learning_rate"], [0.08, 0.01])


# That is how Keras learns of its length.
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_reports_show_the_last_rate_of_data_of_unknown_length():
    class Lower(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.optimizer.learning_rate = 0.01 / (1 + batch)

    data = tf.data.Dataset.from_tensor_slices(examples(COUNT)).batch(8)
    data = data.filter(lambda *_: True)  # Six batches, as nobody knows.
    pruning = PruneTrainCallback(interval=1)
    network().fit(
        data,
        verbose=0,
        shuffle=False,
        callbacks=[Kill({0: {"inner": [0]}}), Lower(), pruning],
    )
    assert pruning.reports[0].learning_rate == pytest.approx(0.01 / 6)


def test_the_logs_show_the_rate_that_a_callback_sets_before_the_step():
    class WarmUp(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.optimizer.learning_rate = 0.01 * (1 + batch)

    model, batch = network(), grower()
    history = model.fit(
        batch.arrays(*examples(COUNT)),
        verbose=0,
        shuffle=False,
        callbacks=[PruneTrainCallback(batch=batch), WarmUp()],
    ).history
    np.testing.assert_allclose(history["learning_rate"], [0.11])


def test_examples_are_counted_where_an_epoch_ends_early():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            self.model.stop_training = step == 2

    class Evaluate(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.evaluate(*examples(6), verbose=0)

    model, history = network(), {}
    for validation in (None, examples(8)):
        history = model.fit(
            *examples(COUNT),
            batch_size=4,
            verbose=0,
            validation_data=validation,
            callbacks=[Evaluate(), PruneTrainCallback(), Stop()],
        ).history
        flops = model_cost(model).training_flops
        assert history["training_flops"] == [3 * 4 * flops]


def test_the_logs_show_the_rate_before_a_callback_reduced_it():
    _, pruning, _, history = fit(
        grower(),
        callbacks=[
            keras.callbacks.ReduceLROnPlateau(
                "loss", factor=0.5, patience=1, min_delta=1e9
            )
        ],
    )
    expected = [0.05, 0.05, 4 * 0.025, 4 * 0.0125]
    np.testing.assert_allclose(history["learning_rate"], expected)
    assert pruning.reports[0].learning_rate == pytest.approx(0.05)


def test_reports_of_two_growths_name_the_sizes_before_and_after():
    batch = DynamicBatch(4, 4, memory_budget=2**30, maximum=8)

    class Allow(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            batch.maximum = 8 if epoch < 2 else 16

    _, pruning, _, _ = fit(
        batch, callbacks=[Kill({2: {"stage": [1]}}), Allow()], epochs=4
    )
    sizes = [(r.batch_size, r.batch_size_after) for r in pruning.reports]
    assert sizes == [(4, 8), (8, 16)]


def test_the_first_budget_holds_the_slots_of_an_optimizer_that_is_not_built():
    model = network(compiled={"optimizer": "adam"})
    assert not model.optimizer.built
    batch = DynamicBatch(4)
    data = batch.arrays(*examples(COUNT))
    model.fit(
        data,
        verbose=0,
        shuffle=False,
        callbacks=[PruneTrainCallback(batch=batch)],
    )
    assert batch.growth.budget == training_bytes(model, 4)


def test_after_a_fit_that_broke_off_the_next_one_is_not_scaled_twice():
    batch = grower()

    class BreakOff(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    model = network()
    callbacks = [
        Kill({1: {"inner": [0]}}),
        PruneTrainCallback(batch=batch, interval=1),
    ]
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            batch.arrays(*examples(COUNT)),
            epochs=4,
            verbose=0,
            shuffle=False,
            callbacks=[*callbacks, BreakOff()],
        )
    model.fit(*examples(COUNT), verbose=0, callbacks=[PruneTrainCallback()])
    assert "apply" not in vars(model.optimizer)


def test_accumulated_gradients_do_not_stretch_a_schedule():
    border = keras.optimizers.schedules.PiecewiseConstantDecay(
        [GROWN_AT + 11], [RATE, RATE / 10]
    )
    Probe.rates = []
    fit(
        grower(),
        compiled={"optimizer": Probe(border, gradient_accumulation_steps=2)},
    )
    # Half of the 28 updates; at the 25th, the schedule is behind its border.
    np.testing.assert_allclose(Probe.rates[:11], RATE)
    np.testing.assert_allclose(Probe.rates[-1], 4 * RATE / 10, atol=1e-6)


def test_after_fit_the_optimizer_is_an_ordinary_one():
    model, *_ = fit(grower())
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)
    assert not {"apply", "_get_current_learning_rate"} & set(
        vars(model.optimizer)
    )
    assert model.stop_training is False


def test_a_second_fit_goes_on_with_the_grown_batch():
    batch = grower()
    model = network()
    pruning, watch = PruneTrainCallback(batch=batch, interval=1), Watch()
    data = batch.arrays(*examples(COUNT), seed=0)
    kill = Kill({1: {"inner": [0]}})
    kwargs = {"verbose": 0, "shuffle": False}
    model.fit(data, epochs=2, callbacks=[kill, pruning], **kwargs)
    again = model.fit(
        data, epochs=4, initial_epoch=2, callbacks=[pruning, watch], **kwargs
    )
    assert watch.steps == [3, 3]
    assert watch.updates == [25, 28]
    np.testing.assert_allclose(again.history["learning_rate"], [0.2, 0.2])


def test_it_is_the_same_training_traced_as_eagerly():
    runs = []
    for run_eagerly in (True, False):
        model, _, watch, history = fit(
            grower(),
            compiled={"run_eagerly": run_eagerly},
            dropout=0.0,
        )
        assert watch.updates == [11, 22, 25, 28]
        runs.append((history["loss"], model.get_weights()))
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=1e-4)
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("place", ["before", "after"])
def test_early_stopping_still_stops(place):
    batch = grower()
    model = network()
    stop = keras.callbacks.EarlyStopping(
        "loss", patience=1, min_delta=1e9, start_from_epoch=3
    )
    pruning = PruneTrainCallback(batch=batch, interval=1)
    kill = Kill({1: {"inner": [0]}})
    callbacks = [stop, pruning] if place == "before" else [pruning, stop]
    history = model.fit(
        batch.arrays(*examples(COUNT), seed=0),
        epochs=9,
        verbose=0,
        shuffle=False,
        callbacks=[kill, *callbacks],
    )
    assert len(history.epoch) == 5
    assert batch.size == 16


def test_the_progress_bar_shows_the_true_number_of_steps(capsys):
    batch = grower()
    model = network()
    model.fit(
        batch.arrays(*examples(COUNT), seed=0),
        epochs=3,
        verbose=2,
        shuffle=False,
        callbacks=[
            Kill({1: {"inner": [0]}}),
            PruneTrainCallback(batch=batch, interval=1),
        ],
    )
    lines = capsys.readouterr().out.splitlines()
    totals = [line.split(" - ")[0] for line in lines if "/step" in line]
    assert totals == ["11/11", "11/11", "3/3"]


def test_validation_is_not_cut_short():
    batch = grower()
    seen = []

    class Count(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            seen.append(0)

        def on_test_batch_end(self, batch, logs=None):
            seen[-1] += 1

    model = network()
    model.fit(
        batch.arrays(*examples(COUNT), seed=0),
        validation_data=tf.data.Dataset.from_tensor_slices(examples(30)).batch(
            2
        ),
        epochs=3,
        verbose=0,
        shuffle=False,
        callbacks=[
            Kill({0: {"inner": [0]}}),
            PruneTrainCallback(batch=batch, interval=1),
            Count(),
        ],
    )
    assert seen == [15, 15, 15]


def test_data_of_another_batch_is_refused_before_the_first_step():
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError, match="does not train on the data set of"):
        model.fit(
            *examples(COUNT),
            verbose=0,
            callbacks=[PruneTrainCallback(batch=grower())],
        )
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_arrays_are_not_its_data_set():
    batch = grower()
    batch.arrays(*examples(COUNT))
    with pytest.raises(ValueError, match="Received: ndarray"):
        network().fit(
            *examples(COUNT),
            batch_size=4,
            verbose=0,
            callbacks=[PruneTrainCallback(batch=batch)],
        )


def test_a_fixed_number_of_steps_is_refused():
    batch = grower()
    data = batch.arrays(*examples(COUNT))
    with pytest.raises(ValueError, match="Received: steps_per_epoch=11"):
        network().fit(
            data,
            steps_per_epoch=batch.steps,
            verbose=0,
            shuffle=False,
            callbacks=[PruneTrainCallback(batch=batch)],
        )


def test_other_data_of_as_many_steps_is_noticed_at_the_first():
    batch = grower()
    batch.arrays(*examples(COUNT))
    other = tf.data.Dataset.from_tensor_slices(examples(COUNT - 11)).batch(3)
    other = other.concatenate(other.take(1))  # 11 steps, too.
    with pytest.raises(ValueError, match="3 examples in the first step"):
        network().fit(
            other,
            verbose=0,
            shuffle=False,
            callbacks=[PruneTrainCallback(batch=batch)],
        )


def test_a_callback_that_stops_at_the_last_step_stops_the_training():
    batch = grower()

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            if step + 1 == batch.steps:
                self.model.stop_training = True

    _, _, watch, _ = fit(batch, callbacks=[Stop()])
    assert watch.steps == [11]


def test_a_number_is_no_batch():
    with pytest.raises(ValueError, match="`batch` must be a `DynamicBatch`"):
        PruneTrainCallback(batch=128)

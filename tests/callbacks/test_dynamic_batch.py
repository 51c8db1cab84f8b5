"""`fit` with a batch that grows: real fits of a tiny network."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_prunetrain import (
    DynamicBatch,
    PruneTrainCallback,
    model_cost,
    training_bytes,
)

# No batch size divides it: 5 batches of 2, or 2 of 8.
COUNT = 9
SMALL, LARGE = 2, 8


def network(optimizer=None, run_eagerly=True):
    """Two layers, the cheapest that can shrink; run eagerly, not traced."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((4,))
    x = layers.Dense(6, "relu", name="hidden")(x)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    if optimizer is None:
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=run_eagerly,
    )
    return model


def examples(count=COUNT):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 4)).astype("float32")
    return x, x[:, :3].argmax(axis=1)


class Kill(keras.callbacks.Callback):
    """Sets a channel of the first layer to zero at the end of each of `epochs`.

    It leaves in the reconfiguration that follows, and the batch may grow.
    """

    def __init__(self, *epochs):
        super().__init__()
        self.epochs = epochs

    def on_epoch_end(self, epoch, logs=None):
        if epoch in self.epochs:
            hidden = self.model.get_layer("hidden").kernel
            logits = self.model.get_layer("logits").kernel
            hidden.assign(hidden.numpy() * (np.arange(hidden.shape[1]) > 0))
            logits.assign(
                logits.numpy() * (np.arange(logits.shape[0]) > 0)[:, None]
            )


def grower(**kwargs):
    """A batch that only its maximum limits."""
    return DynamicBatch(
        **{
            "initial": SMALL,
            "granularity": SMALL,
            "memory_budget": 2**30,
            "maximum": LARGE,
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


def fit(batch, callbacks=(), epochs=4, kill=(1,), **kwargs):
    """Trains on `batch`, which grows after the second epoch."""
    model = network(**kwargs)
    pruning, watch = PruneTrainCallback(batch=batch, interval=1), Watch()
    history = model.fit(
        batch.arrays(*examples()),
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=[Kill(*kill), *callbacks, pruning, watch],
    )
    return model, pruning, watch, history.history


@pytest.fixture(scope="module")
def grown():
    """A `fit` that several tests look at."""
    return fit(grower())


def test_the_batch_grows_after_a_reconfiguration(grown):
    _, pruning, watch, history = grown
    assert history["batch_size"] == [2, 2, 8, 8]
    assert watch.steps == [5, 5, 2, 2]
    assert watch.updates == [5, 10, 12, 14]
    (report,) = pruning.reports
    assert (report.batch_size, report.batch_size_after) == (2, 8)
    assert "batch 2 -> 8" in str(report)


def test_the_logs_show_the_rate_that_was_trained_with(grown):
    _, pruning, _, history = grown
    np.testing.assert_allclose(history["learning_rate"], [0.05, 0.05, 0.2, 0.2])
    assert pruning.reports[0].learning_rate == pytest.approx(0.05)


def test_after_fit_the_optimizer_is_an_ordinary_one(grown):
    model, *_ = grown
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)
    assert not {"apply", "_get_current_learning_rate"} & set(
        vars(model.optimizer)
    )
    assert model.stop_training is False


def test_no_example_is_lost_or_seen_twice_and_each_epoch_has_its_own_order():
    batch, count = grower(), 41
    data = batch(tf.data.Dataset.range(count).shuffle(count, seed=0))
    epochs = []
    for size in (4, 16, 7):
        batch.size = size
        for _ in range(2):
            batches = data.take(batch.steps).as_numpy_iterator()
            epochs.append(np.concatenate(list(batches)))
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    assert len({tuple(epoch) for epoch in epochs}) == 6


class Probe(keras.optimizers.SGD):
    """Notes the learning rate of each update."""

    rates = ()

    def update_step(self, gradient, variable, learning_rate):
        if variable.shape == (3,):  # Once per update.
            Probe.rates.append(round(float(learning_rate), 6))
        super().update_step(gradient, variable, learning_rate)


RATE = 0.04
GROWN_AT = 10  # Updates of 2, and then of 8 examples.


class ByHand(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = RATE / (epoch + 1)


def halving():
    return keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: rate / 2 if epoch else rate
    )


def plateau():
    return keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=1, min_delta=1e9
    )


def border():
    # 2 updates of 8 are 8 updates of 2: the border is in the last epoch, at
    # its second update.
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        [GROWN_AT + 8], [RATE, RATE / 10]
    )


# What sets the learning rate: the argument of the optimizer, a callback, and
# the rate that it sets in each epoch.
SETTERS = {
    "a constant": (RATE, [], [RATE] * 4),
    "by hand": (RATE, [ByHand], [RATE, RATE / 2, RATE / 3, RATE / 4]),
    "scheduler": (RATE, [halving], [RATE, RATE / 2, RATE / 4, RATE / 8]),
    "plateau": (RATE, [plateau], [RATE, RATE, RATE / 2, RATE / 4]),
    "a schedule in updates": (border(), [], [RATE, RATE, RATE, RATE / 10]),
}


@pytest.mark.parametrize(
    ("rate", "make", "shown"), SETTERS.values(), ids=SETTERS
)
def test_whatever_sets_the_learning_rate_it_is_scaled_once(rate, make, shown):
    Probe.rates = []
    model, _, _, history = fit(
        grower(), [maker() for maker in make], optimizer=Probe(rate)
    )
    expected = [
        *([shown[0]] * 5),
        *([shown[1]] * 5),
        *([4 * shown[2]] * 2),
        *([4 * shown[3]] * 2),
    ]
    if rate != RATE:
        expected[-2] = 4 * RATE  # The border lies behind it.
    np.testing.assert_allclose(Probe.rates, expected, atol=1e-6)
    if rate == RATE:
        assert float(model.optimizer.learning_rate) <= RATE


def test_accumulated_gradients_do_not_stretch_a_schedule():
    Probe.rates = []
    fit(grower(), optimizer=Probe(border(), gradient_accumulation_steps=2))
    # Half of the 14 updates: the border is behind the 13th.
    np.testing.assert_allclose(Probe.rates[:5], RATE)
    np.testing.assert_allclose(Probe.rates[-1], 4 * RATE / 10, atol=1e-6)


def test_the_logs_show_what_a_schedule_gave_the_last_step():
    rate = keras.optimizers.schedules.PiecewiseConstantDecay(
        [4], [0.08, 0.01]
    )  # An epoch has the steps 0 to 4.
    optimizer = keras.optimizers.SGD(rate)
    _, _, _, history = fit(grower(), epochs=2, optimizer=optimizer)
    np.testing.assert_allclose(history["learning_rate"], [0.08, 0.01])


# That is how Keras learns of its length.
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_reports_show_the_last_rate_of_data_of_unknown_length():
    class Lower(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.optimizer.learning_rate = 0.01 / (1 + batch)

    data = tf.data.Dataset.from_tensor_slices(examples()).batch(2)
    data = data.filter(lambda *_: True)  # Five batches, as nobody knows.
    pruning = PruneTrainCallback(interval=1)
    network().fit(
        data, verbose=0, shuffle=False, callbacks=[Kill(0), Lower(), pruning]
    )
    assert pruning.reports[0].learning_rate == pytest.approx(0.01 / 5)


def test_the_logs_show_the_rate_that_a_callback_sets_before_the_step():
    class WarmUp(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.optimizer.learning_rate = 0.01 * (1 + batch)

    batch = grower()
    history = (
        network()
        .fit(
            batch.arrays(*examples()),
            verbose=0,
            shuffle=False,
            callbacks=[PruneTrainCallback(batch=batch), WarmUp()],
        )
        .history
    )
    np.testing.assert_allclose(history["learning_rate"], [0.05])


def test_the_logs_show_the_rate_before_a_callback_reduced_it():
    _, pruning, _, history = fit(grower(), [plateau()])
    expected = [0.05, 0.05, 4 * 0.025, 4 * 0.0125]
    np.testing.assert_allclose(history["learning_rate"], expected)
    assert pruning.reports[0].learning_rate == pytest.approx(0.05)


def test_examples_are_counted_where_an_epoch_ends_early():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            self.model.stop_training = step == 2

    class Evaluate(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.evaluate(*examples(6), verbose=0)

    model = network()
    for validation in (None, examples(8)):
        history = model.fit(
            *examples(),
            batch_size=2,
            verbose=0,
            validation_data=validation,
            callbacks=[Evaluate(), PruneTrainCallback(), Stop()],
        ).history
        flops = model_cost(model).training_flops
        assert history["training_flops"] == [3 * 2 * flops]


def test_reports_of_two_growths_name_the_sizes_before_and_after():
    batch = grower(maximum=4)

    class Allow(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            batch.maximum = 4 if epoch < 2 else LARGE

    _, pruning, _, _ = fit(batch, [Allow()], kill=(1, 2))
    sizes = [(r.batch_size, r.batch_size_after) for r in pruning.reports]
    assert sizes == [(2, 4), (4, 8)]


def test_the_first_budget_holds_the_slots_of_an_optimizer_that_is_not_built():
    model = network("adam")
    assert not model.optimizer.built
    batch = DynamicBatch(4)
    model.fit(
        batch.arrays(*examples()),
        verbose=0,
        shuffle=False,
        callbacks=[PruneTrainCallback(batch=batch)],
    )
    assert batch.growth.budget == training_bytes(model, 4)


def test_after_a_fit_that_broke_off_the_next_one_is_not_scaled_twice():
    class BreakOff(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    model, batch = network(), grower()
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            batch.arrays(*examples()),
            epochs=4,
            verbose=0,
            shuffle=False,
            callbacks=[
                Kill(1),
                PruneTrainCallback(batch=batch, interval=1),
                BreakOff(),
            ],
        )
    model.fit(*examples(), verbose=0, callbacks=[PruneTrainCallback()])
    assert "apply" not in vars(model.optimizer)


def test_a_second_fit_goes_on_with_the_grown_batch():
    model, batch = network(), grower()
    pruning, watch = PruneTrainCallback(batch=batch, interval=1), Watch()
    data = batch.arrays(*examples())
    kwargs = {"verbose": 0, "shuffle": False}
    model.fit(data, epochs=2, callbacks=[Kill(1), pruning], **kwargs)
    again = model.fit(
        data, epochs=4, initial_epoch=2, callbacks=[pruning, watch], **kwargs
    )
    assert watch.steps == [2, 2]
    assert watch.updates == [12, 14]
    np.testing.assert_allclose(again.history["learning_rate"], [0.2, 0.2])


def test_it_is_the_same_training_traced_as_eagerly(grown):
    model, _, _, history = grown
    traced, _, watch, again = fit(grower(), run_eagerly=False)
    assert watch.updates == [5, 10, 12, 14]
    np.testing.assert_allclose(again["loss"], history["loss"], rtol=1e-4)
    for one, other in zip(
        traced.get_weights(), model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("place", ["before", "after"])
def test_early_stopping_still_stops(place):
    model, batch = network(), grower()
    stop = keras.callbacks.EarlyStopping(
        "loss", patience=1, min_delta=1e9, start_from_epoch=3
    )
    pruning = PruneTrainCallback(batch=batch, interval=1)
    callbacks = [stop, pruning] if place == "before" else [pruning, stop]
    history = model.fit(
        batch.arrays(*examples()),
        epochs=9,
        verbose=0,
        shuffle=False,
        callbacks=[Kill(1), *callbacks],
    )
    assert len(history.epoch) == 5
    assert batch.size == 8


def test_the_progress_bar_shows_the_true_number_of_steps(capsys):
    batch = grower()
    network().fit(
        batch.arrays(*examples()),
        epochs=3,
        verbose=2,
        shuffle=False,
        callbacks=[Kill(1), PruneTrainCallback(batch=batch, interval=1)],
    )
    lines = capsys.readouterr().out.splitlines()
    totals = [line.split(" - ")[0] for line in lines if "/step" in line]
    assert totals == ["5/5", "5/5", "2/2"]


def test_validation_is_not_cut_short():
    batch = grower()
    seen = []

    class Count(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            seen.append(0)

        def on_test_batch_end(self, batch, logs=None):
            seen[-1] += 1

    validation = tf.data.Dataset.from_tensor_slices(examples(14)).batch(2)
    network().fit(
        batch.arrays(*examples()),
        validation_data=validation,
        epochs=2,
        verbose=0,
        shuffle=False,
        callbacks=[
            Kill(0),
            PruneTrainCallback(batch=batch, interval=1),
            Count(),
        ],
    )
    assert batch.steps == 2
    assert seen == [7, 7]


def test_data_of_another_batch_is_refused_before_the_first_step():
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError, match="does not train on the data set of"):
        model.fit(
            *examples(),
            verbose=0,
            callbacks=[PruneTrainCallback(batch=grower())],
        )
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_arrays_are_not_its_data_set():
    batch = grower()
    batch.arrays(*examples())
    with pytest.raises(ValueError, match="Received: ndarray"):
        network().fit(
            *examples(),
            batch_size=2,
            verbose=0,
            callbacks=[PruneTrainCallback(batch=batch)],
        )


def test_a_fixed_number_of_steps_is_refused():
    batch = grower()
    data = batch.arrays(*examples())
    with pytest.raises(ValueError, match="Received: steps_per_epoch=5"):
        network().fit(
            data,
            steps_per_epoch=batch.steps,
            verbose=0,
            shuffle=False,
            callbacks=[PruneTrainCallback(batch=batch)],
        )


def test_other_data_of_as_many_steps_is_noticed_at_the_first():
    batch = grower()
    batch.arrays(*examples())
    other = tf.data.Dataset.from_tensor_slices(examples(5)).batch(1)
    with pytest.raises(ValueError, match="1 examples in the first step"):
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

    _, _, watch, _ = fit(batch, [Stop()], kill=())
    assert watch.steps == [5]


def test_a_number_is_no_batch():
    with pytest.raises(ValueError, match="`batch` must be a `DynamicBatch`"):
        PruneTrainCallback(batch=128)

"""What a backup stands on in Keras: hooks, steps, random generators."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_prunetrain import keras_internals
from tests.callbacks.fits import examples, network


def draw():
    return [
        random.random(),
        np.random.rand(),
        *keras.random.uniform((2,)).numpy().tolist(),
        *tf.random.uniform((2,)).numpy().tolist(),
    ]


def test_all_generators_go_on_where_they_were():
    draw()
    state = keras_internals.random_state()
    first, second = draw(), draw()
    assert first != second
    keras_internals.set_random_state(state)
    assert [draw(), draw()] == [first, second]


def test_to_ask_for_the_state_draws_nothing():
    keras.utils.set_random_seed(3)
    expected = draw()
    keras.utils.set_random_seed(3)
    keras_internals.random_state()
    assert draw() == expected


def test_a_generator_that_was_not_made_yet_is_made():
    draw()
    state = keras_internals.random_state()
    expected = draw()
    keras.backend.clear_session()  # Forgets Keras's own.
    keras_internals.set_random_state(state)
    assert draw() == expected


def test_wrapped_hooks_act_around_all_callbacks_the_last_one_outside():
    said = []
    callbacks = keras.callbacks.CallbackList(
        [
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs, i=i: said.append((i, epoch))
            )
            for i in range(2)
        ]
    )

    def around(name):
        def act(hook):
            said.append(f"before {name}")
            hook()
            said.append(f"after {name}")

        return act

    keras_internals.wrap_hook(callbacks, "on_epoch_end", around("inner"))
    keras_internals.wrap_hook(callbacks, "on_epoch_end", around("outer"))
    callbacks.on_epoch_end(7, {})
    assert said == [
        *("before outer", "before inner", (0, 7), (1, 7)),
        *("after inner", "after outer"),
    ]


class Skip(keras.callbacks.Callback):
    """Skips two steps of the second epoch."""

    def __init__(self):
        super().__init__()
        self.seen, self.metrics = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append([])
        if epoch == 1:
            keras_internals.skip_steps(2, self.note)

    def note(self):
        self.metrics = [v.path for v in self.model.metrics_variables]

    def on_train_batch_begin(self, batch, logs=None):
        self.seen[-1].append(batch)


# Keras says so in the first epoch, while it does not know how many there are.
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("replicas", [False, True])
def test_an_epoch_goes_on_behind_the_steps_that_are_skipped(
    known, replicas, strategy
):
    scope = strategy if replicas else tf.distribute.get_strategy()
    with scope.scope():
        model = network(compiled={"run_eagerly": not replicas})
    x, y = examples(8)
    seen = []

    def batches():
        for i in range(4):
            seen.append(i)
            yield x[2 * i : 2 * i + 2], y[2 * i : 2 * i + 2]

    shapes = tuple(tf.TensorSpec((2, *a.shape[1:]), a.dtype) for a in (x, y))
    data = tf.data.Dataset.from_generator(batches, output_signature=shapes)
    if known:
        data = data.apply(tf.data.experimental.assert_cardinality(4))
    skip = Skip()
    model.fit(data, epochs=3, verbose=0, shuffle=False, callbacks=[skip])
    # Where Keras does not know the number of steps, it begins one more.
    assert [steps[:4] for steps in skip.seen[::2]] == [[0, 1, 2, 3]] * 2
    assert skip.seen[1][:2] == [2, 3]
    assert len(skip.metrics) == 4  # Loss and accuracy, total and count.


def test_metrics_have_their_variables_before_the_first_step():
    model = network()
    skip = Skip()
    x, y = examples(8)
    model.fit(
        x,
        y,
        batch_size=2,
        initial_epoch=1,
        epochs=2,
        verbose=0,
        callbacks=[skip],
    )
    assert skip.seen == [[2, 3]]
    assert len(skip.metrics) == 4


def test_skipping_everything_still_says_that_it_is_done():
    model = network()
    done = []

    class All(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                keras_internals.skip_steps(4, lambda: done.append(True))

    x, y = examples(8)
    model.fit(x, y, batch_size=2, epochs=3, verbose=0, callbacks=[All()])
    assert done == [True]


def test_passes_over_the_validation_data_are_counted_and_brought_back():
    orders = []

    class Order(keras.Model):
        def test_step(self, data):
            orders[-1].append(data.numpy().tolist())
            return {"loss": tf.constant(0.0)}

    class Count(keras.callbacks.Callback):
        def __init__(self, done):
            super().__init__()
            self.done, self.passes = done, None

        def on_test_begin(self, logs=None):
            orders.append([])
            if self.passes is None:
                self.passes = keras_internals.Passes(self.model)
                self.passes.begin(self.done)

    def train(epochs, done=0):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((1,))
        model = Order(inputs, keras.layers.Dense(1)(inputs))
        model.compile("sgd", "mse", run_eagerly=True)
        x, count = np.ones((2, 1)), Count(done)
        data = tf.data.Dataset.range(12).shuffle(12, seed=1).batch(2)
        model.fit(
            *(x, x),
            epochs=epochs,
            verbose=0,
            validation_data=data,
            callbacks=[count],
        )
        return count.passes.begun

    begun = [train(1), train(3)]
    assert orders[0] == orders[1] != orders[2] != orders[3]
    assert begun[1] == 3 * begun[0] > 0
    train(1, done=2 * begun[0])
    assert orders[4] == orders[3]


class Seeing(keras.Model):
    """Runs out of memory, once, when it has seen the examples `fails`."""

    def train_step(self, data):
        self.seen.append(int(data[1][0, 0]))
        if self.seen == self.fails:
            raise tf.errors.ResourceExhaustedError(None, None, "none left")
        return super().train_step(data)


class Retry(keras.callbacks.Callback):
    """Retries the first step."""

    def on_train_begin(self, logs=None):
        self.passes = keras_internals.Passes()
        self.recovered, self.begun = [], []

    def on_train_batch_begin(self, batch, logs=None):
        if not self.model.seen:
            self.step = self.model.train_function
            self.retried = keras_internals.RetriedStep(
                self.model, lambda: self.recovered.append(batch)
            )

    def on_epoch_end(self, epoch, logs=None):
        self.begun.append(self.passes.begun)
        self.retried.end()
        mine = self.retried._go_on, self.retried._try
        assert self.model.train_function not in mine


def retried_fit(fails, retry):
    """Returns what examples a `fit` of three, two epochs long, has seen."""
    inputs = keras.Input((1,))
    model = Seeing(inputs, keras.layers.Dense(1)(inputs))
    model.seen, model.fails = [], fails
    model.compile("sgd", "mse", run_eagerly=True)
    x = np.arange(3.0)[:, None]
    options = {"batch_size": 1, "shuffle": False, "verbose": 0}
    try:
        model.fit(x, x, epochs=2, callbacks=[retry], **options)
    finally:
        retry.seen = list(model.seen)
    return model


def test_a_step_without_memory_reads_the_epoch_anew():
    retry = Retry()
    model = retried_fit([0], retry)
    assert retry.seen == [0, 0, 1, 2, 0, 1, 2]
    assert retry.recovered == [0]
    assert retry.begun[0] == 1 + retry.begun[1] - retry.begun[0]
    assert model.train_function is not retry.step  # It was traced anew.


def test_a_later_step_without_memory_is_an_error():
    retry = Retry()
    with pytest.raises(tf.errors.ResourceExhaustedError):
        retried_fit([0, 1], retry)
    assert retry.seen == [0, 1]
    assert retry.recovered == []


def test_a_step_that_has_memory_is_left_alone():
    retry = Retry()
    model = retried_fit(None, retry)
    assert retry.seen == [0, 1, 2, 0, 1, 2]
    assert model.train_function is retry.step

"""The private parts of Keras that a running `fit` is carried on with.

What they are for is tested in tests/callbacks; here is what they must not do.
"""

import keras
import pytest

from keras_prunetrain import keras_internals
from tests.callbacks.fits import examples, network


class Ask(keras.callbacks.Callback):
    calling = None

    def set_model(self, model):
        super().set_model(model)
        self.calling = keras_internals.calling_list()


def test_a_callback_finds_the_list_that_it_is_in():
    ask, other = Ask(), keras.callbacks.Callback()
    ask.set_model(network())
    assert ask.calling is None
    members = keras.callbacks.CallbackList([ask, other], model=network())
    assert ask.calling is members


class Count(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.counts = []

    def on_train_batch_end(self, batch, logs=None):
        self.counts.append(keras_internals.example_count(self.model, batch + 1))


class OwnStep(keras.Model):
    def train_step(self, data):
        return super().train_step(data)


@pytest.mark.parametrize("model_class", [keras.Model, OwnStep])
def test_examples_are_counted_where_keras_weighs_by_them(model_class):
    model, count = network(model_class), Count()
    model.fit(
        *examples(40), batch_size=16, epochs=2, callbacks=[count], verbose=0
    )
    assert count.counts == [16, 32, 40] * 2


class Deaf(keras.Model):
    """Counts no examples."""

    def train_step(self, data):
        logs = super().train_step(data)
        self._loss_tracker.reset_state()
        return logs


def test_examples_that_nobody_counts_are_not_known():
    model, count = network(Deaf), Count()
    model.fit(*examples(40), batch_size=16, callbacks=[count], verbose=0)
    assert count.counts == [None] * 3


def test_what_is_compiled_is_carried_as_objects():
    model, smaller = network(), network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metric = keras.metrics.SparseCategoricalAccuracy()
    model.compile(
        "sgd",
        loss,
        loss_weights=0.5,
        weighted_metrics=[metric],
        run_eagerly=True,
        steps_per_execution=1,
        jit_compile=False,
    )
    optimizer = keras.optimizers.Adam()
    keras_internals.compile_like(model, smaller, optimizer)
    assert smaller.optimizer is optimizer
    assert smaller.loss is loss
    assert smaller._compile_config.config["weighted_metrics"] == [metric]
    assert smaller._compile_config.config["loss_weights"] == 0.5
    assert smaller.run_eagerly
    assert not smaller.jit_compile


def test_a_loss_scale_is_not_put_around_another_one():
    inner = keras.optimizers.SGD()
    model = network(compiled={"optimizer": inner}, dtype="mixed_float16")
    model.optimizer = keras.optimizers.LossScaleOptimizer(inner)
    smaller = network(dtype="mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    keras_internals.compile_like(model, smaller, optimizer)
    assert smaller.optimizer is optimizer


class Asked(keras.callbacks.Callback):
    """Asks for what `fit` was called with."""

    def __init__(self, *names):
        super().__init__()
        self.names, self.answers = names, {}

    def on_train_begin(self, logs=None):
        self.answers = {n: keras_internals.fit_argument(n) for n in self.names}


class OwnFit(keras.Model):
    """Hands its own arguments on to Keras's `fit`."""

    def fit(self, pictures, **kwargs):
        return super().fit(*pictures, **kwargs)


def test_what_fit_was_called_with_is_known_inside_of_it_alone():
    images, labels = examples(40)
    asked = Asked("x", "steps_per_epoch", "batch_size", "no_argument")
    network().fit(
        *(images, labels),
        batch_size=8,
        steps_per_epoch=2,
        callbacks=[asked],
        verbose=0,
    )
    assert asked.answers["x"] is images
    assert asked.answers["steps_per_epoch"] == 2
    assert asked.answers["batch_size"] == 8
    assert asked.answers["no_argument"] is None
    assert keras_internals.fit_argument("x") is None


def test_what_keras_was_given_is_known_below_a_fit_of_the_users_own():
    asked = Asked("x")
    pictures = examples(40)
    network(OwnFit).fit(pictures, callbacks=[asked], verbose=0)
    assert asked.answers["x"] is pictures[0]

"""What a trainer with parts may not do is said in time, and nothing is lost."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_prunetrain as kpt
from keras_prunetrain import keras_internals
from keras_prunetrain.keras_internals import own_attributes
from tests.programs.watched import descend


class Trainer(keras.Model):
    """Trains some of its two parts, with an optimizer for each step."""

    def __init__(self, steps, **held):
        super().__init__()
        self.first, self.second = part("first"), part("second")
        for name, value in held.items():
            setattr(self, name, value)
        self.steps = steps

    def compile(self, optimizers):
        super().compile(run_eagerly=True)
        self.optimizers = optimizers

    def train_step(self, x):
        for optimizer, names in zip(self.optimizers, self.steps, strict=True):
            parts = [getattr(self, name) for name in names]
            with tf.GradientTape() as tape:
                loss = sum(tf.reduce_mean(part(x) ** 2) for part in parts)
            weights = [w for part in parts for w in part.trainable_weights]
            descend(tape, loss, weights, optimizer)
        return {"error": loss}


def part(name):
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(8), layers.Dense(4)], name=name
    )


DATA = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")


def fit(model, pruning, **kwargs):
    kwargs = {"epochs": 2, "batch_size": 8, "verbose": 0} | kwargs
    return model.fit(DATA, callbacks=[pruning], **kwargs)


def target(score):
    """Meets a target within three epochs."""
    return kpt.TargetPruneCallback(
        parameters=0.7,
        warmup=1,
        score=score,
        reconfigure={"channel_multiple": 1},
    )


def compiled(steps, count=1, **held):
    model = Trainer(steps, **held)
    model.compile([keras.optimizers.Adam(0.01) for _ in range(count)])
    return model


def test_a_part_that_no_step_trains_is_named_after_the_first_step():
    model = compiled([["first"]])
    with pytest.raises(ValueError, match="has updated 'second' in the first"):
        fit(model, kpt.PruneTrainCallback(factor=1e-3))
    fit(model, kpt.PruneTrainCallback(factor=1e-3, submodels=["first"]))


def test_a_loss_that_is_not_in_the_logs_needs_a_factor():
    model = compiled([["first", "second"]])
    with pytest.raises(ValueError, match="or pass the factor, as `factor`"):
        fit(model, kpt.PruneTrainCallback())
    pruning = kpt.PruneTrainCallback(factor=1e-3)
    assert np.isfinite(fit(model, pruning).history["error"]).all()


def test_an_optimizer_whose_slots_cannot_be_cut_is_refused_before_training():
    model = compiled([["first", "second"]])
    model.optimizers = [keras.optimizers.Adafactor()]
    before = [w.numpy() for w in model.weights]
    with pytest.raises(ValueError, match="state of Adafactor"):
        fit(model, kpt.PruneTrainCallback(factor=1e-3))
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_a_weight_of_two_optimizers_is_said_once(caplog):
    model = compiled([["first", "second"], ["first"]], count=2)
    with caplog.at_level(logging.WARNING):
        pruning = target(score="random")
        fit(model, pruning, epochs=3)
    (warning,) = [x for x in caplog.messages if "both update" in x]
    assert "both update 'first/" in warning or "both update 'dense" in warning


def test_a_copy_of_a_part_gets_a_warning(caplog):
    average = part("average")
    average.trainable = False
    model = compiled([["first", "second"]], average=average)
    with caplog.at_level(logging.WARNING):
        fit(model, kpt.PruneTrainCallback(factor=1e-3))
    (warning,) = [x for x in caplog.messages if "the same shapes" in x]
    assert "'average'" in warning and "{'skip': 'first'}" in warning


def test_nothing_is_left_of_a_fit():
    model = compiled([["first", "second"]])
    model.optimizers[0].build(model.trainable_variables)
    before = own_attributes(model).keys(), set(vars(model.optimizers[0]))
    for pruning in (
        target(score="taylor"),
        kpt.PruneTrainCallback(factor=1e-3),
    ):
        fit(model, pruning, epochs=3)
        assert own_attributes(model).keys() == before[0]
        assert vars(model.optimizers[0]).keys() == before[1]
        assert all(w.regularizer is None for w in model.weights)


class Both(keras.Model):
    """Trains two parts, one behind the other, by the step of Keras."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def call(self, x):
        return self.second(self.first(x))


@pytest.mark.long
@pytest.mark.parametrize("score", ["taylor", "magnitude"])
def test_replicas_stay_equal_and_meet_the_target(score, strategy):
    with strategy.scope():
        model = Both(part("first"), part("second"))
        model.compile(keras.optimizers.Adam(0.01), "mse")
    before = [kpt.model_cost(x).parameters for x in (model.first, model.second)]
    pruning = target(score=score)
    model.fit(DATA, DATA, 8, 3, verbose=0, callbacks=[pruning])
    after = [kpt.model_cost(x).parameters for x in (model.first, model.second)]
    assert 0.5 < sum(after) / sum(before) <= 0.7
    for weight in model.weights:
        one, other = strategy.experimental_local_results(weight.value)
        np.testing.assert_array_equal(one, other)


def test_a_part_that_is_not_compiled_shrinks_and_a_new_trainer_takes_it():
    model = compiled([["first", "second"]])
    kernels = [x.kernel for x in model.first.layers]
    kernels[0].assign(kernels[0] * (np.arange(8) < 5))
    kernels[1].assign(kernels[1] * (np.arange(8) < 5)[:, None])
    expected = model.first(DATA)
    smaller = kpt.reconfigure(model.first)
    assert not smaller.compiled and model.first.count_params() == 8 * 5 + 9 * 4
    np.testing.assert_allclose(smaller(DATA), expected, atol=1e-6)
    with pytest.raises(ValueError, match="pass one of these"):
        kpt.reconfigure(model)
    again = Both(smaller, model.second)
    again.compile("adam", "mse")
    again.fit(DATA, DATA, verbose=0)
    assert smaller.count_params() == 5 * 5 + 6 * 4


class Around(keras.Model):
    """Calls a trainer, a weight and a layer of its own, by Keras's step."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.last = layers.TimeDistributed(part("last"))
        self.between = layers.Dense(4)
        self.temperature = self.add_weight(initializer="ones")

    def call(self, x):
        x = self.between(self.inner(x)) * self.temperature
        return self.last(x[:, None])[:, 0]


def test_parts_in_a_trainer_and_in_a_layer_shrink_beside_other_weights():
    inner = Both(part("first"), part("second"))
    model = Around(inner)
    model.compile(keras.optimizers.Adam(use_ema=True), "mse", run_eagerly=True)
    parts = [inner.first, inner.second, model.last.layer]
    before = [x.count_params() for x in parts]
    swap = keras.callbacks.SwapEMAWeights()
    model.fit(
        *(DATA, DATA, 8, 4),
        callbacks=[target(score="random"), swap],
        validation_data=(DATA, DATA),
        verbose=0,
    )
    after = [x.count_params() for x in parts]
    assert sum(after) <= 0.7 * sum(before)
    updated = keras_internals.optimizer_variables(model.optimizer)[0]
    pairs = zip(updated, model.trainable_variables, strict=True)
    assert all(one is other for one, other in pairs)


class Own(Trainer):
    """Trains each part with the part's own optimizer."""

    def train_step(self, x):
        parts = [self.first, self.second][: self.steps]
        self.optimizers = [part.optimizer for part in parts]
        self.steps = [[part.name] for part in parts]
        logs = super().train_step(x)
        self.optimizers, self.steps = [], len(parts)
        return logs


def with_own_optimizers(count):
    model = Own(count)
    model.compile([])
    for one in (model.first, model.second):
        one.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
        one.train_on_batch(DATA, DATA)
    return model


@pytest.mark.parametrize(
    "score", ["taylor", pytest.param("magnitude", marks=pytest.mark.long)]
)
def test_parts_that_are_compiled_train_with_their_own_optimizers(score):
    model = with_own_optimizers(2)
    fit(model, target(score), epochs=4)
    assert model.first.count_params() + model.second.count_params() <= 106
    for one in (model.first, model.second):
        assert int(one.optimizer.iterations) == 9
        one.train_on_batch(DATA, DATA)


def test_an_optimizer_that_takes_no_step_trains_nothing(caplog):
    model = with_own_optimizers(1)
    with pytest.raises(ValueError, match="has updated 'second' in the first"):
        fit(model, kpt.PruneTrainCallback(factor=1e-3))
    model = compiled([["first", "second"]])
    model.optimizer.build(model.trainable_variables)  # As under a strategy.
    model.first.compile("adam", "mse", run_eagerly=True)
    model.first.train_on_batch(DATA, DATA)
    with caplog.at_level(logging.WARNING):
        fit(model, kpt.PruneTrainCallback(factor=1e-3), epochs=1)
    assert "both update" not in caplog.text


def test_a_part_that_was_not_built_is_said(caplog):
    unbuilt = keras.Sequential([layers.Dense(4)], name="unbuilt")
    model = Both(unbuilt, keras.Sequential([layers.Dense(4)], name="second"))
    model.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(ValueError, match="'unbuilt', 'second' have not been"):
        fit(model, kpt.PruneTrainCallback())
    model = Both(unbuilt, part("built"))
    model.compile("sgd", "mse", run_eagerly=True)
    with caplog.at_level(logging.WARNING):
        model.fit(DATA, DATA, verbose=0, callbacks=[kpt.PruneTrainCallback()])
    assert "'unbuilt' of 'both" in caplog.text

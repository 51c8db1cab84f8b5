"""What a trainer with parts may not do is said in time, and nothing is lost."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_prunetrain as kpt
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

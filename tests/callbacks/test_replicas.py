"""Two replicas, on two logical CPUs, train as one device does."""

import contextlib
import json
import logging
import types
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from apps import training
from keras_prunetrain import (
    DynamicBatch,
    PruneTrainCallback,
    multi_worker_strategy,
    training_bytes,
)
from keras_prunetrain.distribution import (
    average_statistics,
    check_strategy,
    is_first_worker,
)
from keras_prunetrain.growth import begin_growth
from tests.callbacks.fits import Kill, examples, network, widths


class Losses(keras.callbacks.Callback):
    """The loss of each step."""

    def on_train_begin(self, logs=None):
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        total = logs["loss"] * (batch + 1)  # The logs have the mean so far.
        self.values.append(total - (self.before if batch else 0.0))
        self.before = total


class Trained(NamedTuple):
    model: keras.Model
    pruning: PruneTrainCallback
    losses: np.ndarray
    history: dict


def train(strategy=None):
    """Trains in batches of 8 that grow to 16, through two reconfigurations."""
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = network(
            synchronized=True, dropout=0.0, compiled={"run_eagerly": False}
        )
    batch = DynamicBatch(8, 4, memory_budget=2**30, maximum=16)
    losses = Losses()
    pruning = PruneTrainCallback(interval=1, batch=batch)
    history = model.fit(
        batch.arrays(*examples(40), shuffle=False),
        epochs=4,
        verbose=0,
        shuffle=False,
        callbacks=[
            Kill({0: {"inner": [0]}, 1: {"stage": [1]}}),
            pruning,
            losses,
        ],
    ).history
    return Trained(model, pruning, np.array(losses.values), history)


@pytest.fixture(scope="module")
def mirrored(strategy):
    """One training by two replicas, at which several tests look."""
    return train(strategy)


@pytest.mark.long
def test_a_growing_batch_and_its_losses_are_those_of_one_device(mirrored):
    one = train()
    assert len(mirrored.pruning.reports) == 2
    assert mirrored.history["batch_size"] == [8, 16, 16, 16]
    assert len(mirrored.losses) == 5 + 3 * 3
    # The last batch has 8 examples: 4 on each replica.
    np.testing.assert_allclose(mirrored.losses, one.losses, rtol=1e-4)
    assert widths(mirrored.model) == widths(one.model)
    assert mirrored.pruning.factor > 0
    # 2 x (2 - 1) / 2 times the gradients, in 3 updates.
    gradients = [w.numpy() for w in mirrored.model.trainable_variables]
    sent = 3 * sum(gradient.nbytes for gradient in gradients)
    assert mirrored.history["communication_bytes"][-1] == sent
    # That of each replica, with half of the batch.
    memory = training_bytes(mirrored.model, 8)
    assert mirrored.history["memory_bytes"][-1] == memory


def test_after_a_reconfiguration_everything_is_still_mirrored(
    mirrored, strategy
):
    model = mirrored.model
    assert mirrored.pruning.reports
    assert model.distribute_strategy is strategy
    for variable in [*model.variables, *model.optimizer.variables]:
        copies = variable.value.values
        assert len({copy.device for copy in copies}) == len(copies) == 2
        np.testing.assert_array_equal(*copies)


def small(strategy):
    """A model with statistics of its own on each replica."""
    with strategy.scope():
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.BatchNormalization()(inputs)
        x = keras.layers.GlobalAveragePooling2D()(x)
        x = keras.layers.Dense(4, "relu")(x)
        model = keras.Model(inputs, keras.layers.Dense(3)(x))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.05), loss)
    return model


@pytest.mark.parametrize("validated", [True, False])
def test_validation_and_later_callbacks_see_the_statistics_of_all_replicas(
    strategy, validated
):
    seen = []

    class Look(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            self.on_epoch_end(batch)

        def on_epoch_end(self, epoch, logs=None):
            seen.append(epoch)
            for weight in self.model.non_trainable_weights:
                np.testing.assert_array_equal(*weight.value.values)

        def on_train_batch_end(self, batch, logs=None):
            mean, _ = self.model.non_trainable_weights
            assert (mean.value.values[0] != mean.value.values[1]).numpy().any()

    data = tf.data.Dataset.from_tensor_slices(examples(16)).batch(8)
    # A first batch that the replicas do not share equally.
    validation = tf.data.Dataset.from_tensor_slices(examples(7)).batch(7)
    small(strategy).fit(
        data,
        validation_data=validation if validated else None,
        verbose=0,
        shuffle=False,
        callbacks=[PruneTrainCallback(), Look()],
    )
    assert len(seen) == 1 + validated


def test_a_scaled_loss_is_warned_of(strategy, caplog):
    with strategy.scope():
        model = network()
        model.compile(
            keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
            "sparse_categorical_crossentropy",
        )
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        check_strategy(model)
    assert "Use `mixed_bfloat16`" in caplog.text


@pytest.mark.parametrize("seconds", [0, -1, "x", float("nan"), True])
def test_impossible_timeouts_are_refused(seconds):
    with pytest.raises(ValueError, match="`timeout_seconds` must be a number"):
        multi_worker_strategy(seconds)


@pytest.mark.parametrize("strategy", ["mirrored", 0, True, object()])
def test_what_has_no_workers_is_refused(strategy):
    with pytest.raises(ValueError, match="`strategy_or_model` must be a `tf.d"):
        is_first_worker(strategy)


@pytest.mark.parametrize(
    ("jobs", "task", "first"),
    [
        (["worker", "worker"], ("worker", 0), True),
        (["worker", "worker"], ("worker", 1), False),
        (["chief", "worker"], ("chief", 0), True),
        (["chief", "worker"], ("worker", 0), False),
    ],
)
def test_one_worker_is_the_first(monkeypatch, jobs, task, first):
    cluster = {}
    for i, job in enumerate(jobs):
        cluster.setdefault(job, []).append(f"127.0.0.1:{1000 + i}")
    config = {
        "cluster": cluster,
        "task": dict(zip(("type", "index"), task, strict=True)),
    }
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    strategy = types.SimpleNamespace(cluster_resolver=resolver)
    model = types.SimpleNamespace(distribute_strategy=strategy)
    assert is_first_worker(model) == first
    folder = training._own_folder(strategy)
    assert folder == ("" if first else f"{task[0]}{task[1]}")


def test_the_programs_leave_no_replica_without_images(strategy):
    model = small(strategy)
    # A last batch of 1 image is left out, one of 5 has 4 and 1 for the two.
    for count, steps in ((41, 5), (45, 6)):
        draws = tf.data.Dataset.from_tensor_slices(examples(count))
        data = training._fixed_batches(draws, 8, strategy)
        assert int(data.cardinality()) == steps
        history = model.fit(data, verbose=0, shuffle=False).history
        assert np.isfinite(history["loss"]).all()
    for weight in model.weights:
        assert np.isfinite(weight.numpy()).all()


@pytest.mark.parametrize("replicas", [2, 3, 4])
def test_a_kept_rest_gives_each_replica_an_image(replicas):
    strategy = types.SimpleNamespace(num_replicas_in_sync=replicas)
    size = 10
    sizes = [size // replicas + (i < size % replicas) for i in range(replicas)]
    for rest in range(1, size):
        draws = tf.data.Dataset.range(size + rest)
        data = training._fixed_batches(draws, size, strategy)
        # TensorFlow fills one after the other.
        has_all = rest > sum(sizes[:-1])
        assert int(data.cardinality()) == 1 + has_all


def test_statistics_become_the_mean_of_what_the_replicas_have(strategy):
    with strategy.scope():
        model = network()
    statistics = [
        w for w in model.non_trainable_weights if w.name.startswith("moving")
    ]
    assert statistics
    for weight in statistics:
        for copy, value in zip(weight.value.values, (1.0, 4.0), strict=True):
            copy.assign(tf.fill(copy.shape, value))
    average_statistics(model)
    for weight in statistics:
        for copy in weight.value.values:
            np.testing.assert_array_equal(copy, 2.5)


def test_replicas_that_do_not_divide_the_batch_are_refused(strategy):
    with pytest.raises(ValueError, match="2 replicas do not divide the first"):
        begin_growth(DynamicBatch(5), small(strategy), 8)


def test_a_last_batch_that_leaves_a_replica_empty_is_refused(strategy):
    batch = DynamicBatch(8)
    data = batch.arrays(*examples(41))
    with pytest.raises(ValueError, match="has 1 examples for 2 replicas"):
        small(strategy).fit(
            data,
            verbose=0,
            shuffle=False,
            callbacks=[PruneTrainCallback(batch=batch)],
        )


def test_the_memory_is_that_of_each_replica(strategy):
    model = small(strategy)
    with strategy.scope():
        model.optimizer.build(model.trainable_variables)
    batch = DynamicBatch(4, 4, memory_budget=training_bytes(model, 10))
    batch(tf.data.Dataset.range(100))
    assert begin_growth(batch, model, batch.steps).grow(model) == 2 * 8


@pytest.mark.parametrize(
    ("maximum", "size"),
    # 65 = 2 x 32 + 1 = 40 + 25 = 2 x 24 + 17.
    [(40, 40), (39, 24)],
)
def test_a_batch_does_not_grow_to_where_a_replica_is_empty(
    strategy, maximum, size
):
    model = small(strategy)
    batch = DynamicBatch(10, 4, memory_budget=2**30, maximum=maximum)
    batch(tf.data.Dataset.range(65))
    assert begin_growth(batch, model, batch.steps).grow(model) == size


def test_a_strategy_that_did_not_build_the_model_is_refused(strategy):
    model = network()
    model.optimizer.build(model.trainable_variables)  # Else TensorFlow fails.
    before = model.get_weights()
    with strategy.scope(), pytest.raises(ValueError, match="was not built in"):
        model.fit(*examples(), verbose=0, callbacks=[PruneTrainCallback()])
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)

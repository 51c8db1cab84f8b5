"""Two replicas, on two logical CPUs, train as one device does."""

import contextlib
import json
import logging
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from apps import training
from keras_prunetrain import (
    DynamicBatch,
    PruneTrainCallback,
    training_bytes,
)
from keras_prunetrain.distribution import (
    average_statistics,
    check_strategy,
    is_first_worker,
)
from keras_prunetrain.growth import begin_growth
from tests.callbacks.fits import Kill, examples, network, widths

DEATHS = {2: {"inner": [0]}, 5: {"stage": [1]}}


class Losses(keras.callbacks.Callback):
    """The loss of each step."""

    def on_train_begin(self, logs=None):
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        total = logs["loss"] * (batch + 1)  # The logs have the mean so far.
        self.values.append(total - (self.before if batch else 0.0))
        self.before = total


def train(
    strategy=None, *, batch=None, synchronized=False, count=40, epochs=10
):
    scope = strategy.scope() if strategy else contextlib.nullcontext()
    with scope:
        model = network(
            synchronized=synchronized,
            dropout=0.0,
            compiled={"run_eagerly": False},
        )
    arrays = examples(count)
    if batch is None:
        data = tf.data.Dataset.from_tensor_slices(arrays).batch(8)
    else:
        data = batch.arrays(*arrays, shuffle=False)
    losses = Losses()
    pruning = PruneTrainCallback(interval=3, batch=batch)
    history = model.fit(
        data,
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=[Kill(DEATHS), pruning, losses],
    )
    return model, pruning, np.array(losses.values), history.history


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_the_losses_are_those_of_one_device(strategy):
    one, _, expected, _ = train(synchronized=True)
    two, pruning, found, history = train(strategy, synchronized=True)
    assert len(pruning.reports) == 2
    assert len(found) == 50
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert widths(two) == widths(one)
    assert pruning.factor > 0
    # 2 x (2 - 1) / 2 times the gradients, in 5 updates.
    sent = sum(w.numpy().nbytes for w in two.trainable_variables) * 5
    assert history["communication_bytes"][-1] == sent


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_a_growing_batch_is_that_of_one_device(strategy):
    runs = []
    for where in (None, strategy):
        batch = DynamicBatch(8, 4, memory_budget=2**30, maximum=16)
        _, pruning, losses, history = train(
            where, batch=batch, synchronized=True
        )
        assert history["batch_size"] == [8] * 3 + [16] * 7
        assert len(losses) == 3 * 5 + 7 * 3
        runs.append(losses)
    # The last batch has 8 examples: 4 on each replica.
    np.testing.assert_allclose(*runs, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_after_a_reconfiguration_everything_is_still_mirrored(strategy):
    model, pruning, *_ = train(strategy, epochs=7)
    assert pruning.reports
    assert model.distribute_strategy is strategy
    variables = [*model.variables, *model.optimizer.variables]
    for variable in variables:
        copies = variable.value.values
        assert len(copies) == 2
        assert len({copy.device for copy in copies}) == 2
        if variable.name not in ("moving_mean", "moving_variance"):
            np.testing.assert_array_equal(copies[0], copies[1])


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_validation_sees_the_statistics_of_all_replicas(strategy):
    class Look(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            for weight in self.model.non_trainable_weights:
                np.testing.assert_array_equal(*weight.value.values)

    with strategy.scope():
        model = network(compiled={"run_eagerly": False})
    data = tf.data.Dataset.from_tensor_slices(examples(16)).batch(8)
    # A first batch that the replicas do not share equally.
    validation = tf.data.Dataset.from_tensor_slices(examples(7)).batch(7)
    model.fit(
        data,
        validation_data=validation,
        verbose=0,
        shuffle=False,
        callbacks=[PruneTrainCallback(), Look()],
    )


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
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


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
@pytest.mark.parametrize(("count", "steps"), [(41, 5), (43, 5), (45, 6)])
def test_the_programs_leave_no_replica_without_images(strategy, count, steps):
    draws = tf.data.Dataset.from_tensor_slices(examples(count))
    data = training._fixed_batches(draws, 8, strategy)
    assert int(data.cardinality()) == steps
    with strategy.scope():
        model = network(compiled={"run_eagerly": False})
    history = model.fit(
        data, verbose=0, shuffle=False, callbacks=[PruneTrainCallback()]
    ).history
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


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
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


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_replicas_that_do_not_divide_the_batch_are_refused(strategy):
    with strategy.scope():
        model = network()
    with pytest.raises(ValueError, match="2 replicas do not divide the first"):
        begin_growth(DynamicBatch(5), model, 8)


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_a_last_batch_that_leaves_a_replica_empty_is_refused(strategy):
    with pytest.raises(ValueError, match="has 1 examples for 2 replicas"):
        train(strategy, batch=DynamicBatch(8), count=41)


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_the_memory_is_that_of_each_replica(strategy):
    with strategy.scope():
        model = network()
        model.optimizer.build(model.trainable_variables)
    batch = DynamicBatch(4, 4, memory_budget=training_bytes(model, 10))
    batch(tf.data.Dataset.range(100))
    assert begin_growth(batch, model, batch.steps).grow(model) == 2 * 8


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_a_batch_does_not_grow_to_where_a_replica_is_empty(strategy):
    batch = DynamicBatch(10, 4, memory_budget=2**30, maximum=40)
    # 65 = 2 x 32 + 1 = 40 + 25.
    train(strategy, batch=batch, count=65, epochs=4)
    assert batch.size == 40
    batch = DynamicBatch(10, 4, memory_budget=2**30, maximum=39)
    # 65 = 2 x 24 + 17.
    train(strategy, batch=batch, count=65, epochs=4)
    assert batch.size == 24


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_a_strategy_that_did_not_build_the_model_is_refused(strategy):
    model = network()
    model.optimizer.build(model.trainable_variables)  # Else TensorFlow fails.
    before = model.get_weights()
    with strategy.scope(), pytest.raises(ValueError, match="was not built in"):
        model.fit(*examples(), verbose=0, callbacks=[PruneTrainCallback()])
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)

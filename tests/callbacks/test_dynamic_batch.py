"""`fit` with a batch that grows: real fits of a tiny network."""

import keras
import numpy as np
import tensorflow as tf

from keras_prunetrain import DynamicBatch, PruneTrainCallback
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
        batch._variable.assign(size)
        for _ in range(2):
            batches = data.take(batch.steps).as_numpy_iterator()
            epochs.append(np.concatenate(list(batches)))
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in epochs}) == 6

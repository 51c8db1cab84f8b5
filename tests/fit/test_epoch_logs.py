"""What the history gains, beside metrics of the same names."""

import logging

import keras
import numpy as np
import pytest

import keras_prunetrain as kpt
from tests.callbacks.fits import examples, network


def largest(labels, logits):
    return keras.ops.max(logits, axis=-1)


def metric(name):
    return keras.metrics.MeanMetricWrapper(largest, name=name)


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


@pytest.mark.parametrize("stopped", [False, True])
def test_a_metric_of_the_same_name_is_kept_and_warned_of(caplog, stopped):
    names = ["density", "training_flops"]
    model = network(compiled={"metrics": [metric(name) for name in names]})
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        history = model.fit(
            *examples(16),
            epochs=2,
            verbose=0,
            callbacks=[
                kpt.PruneTrainCallback(),
                *([Stop()] if stopped else []),
            ],
        ).history
    assert history["density"] == history["training_flops"]
    assert history["density"][-1] not in (1.0, 0.0)
    (record,) = [x for x in caplog.records if "own metrics" in x.getMessage()]
    assert "'density', 'training_flops'" in record.getMessage()
    assert "Rename the metrics" in record.getMessage()


def test_a_metric_is_in_the_way_in_its_own_fit_only():
    pruning = kpt.PruneTrainCallback()
    first, second = (
        network(compiled={"metrics": metrics})
        .fit(*examples(16), verbose=0, callbacks=[pruning])
        .history
        for metrics in ([metric("density")], [])
    )
    assert first["density"] != [1.0]
    assert second["density"] == [1.0]


def test_a_callback_that_logs_the_rate_is_no_metric():
    batch = kpt.DynamicBatch(8)
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.25)
    batch.size = 16
    history = (
        network()
        .fit(
            batch.arrays(*examples(16)),
            verbose=0,
            shuffle=False,
            callbacks=[schedule, kpt.PruneTrainCallback(batch=batch)],
        )
        .history
    )
    # What the optimizer has trained with.
    np.testing.assert_allclose(history["learning_rate"], [0.5])

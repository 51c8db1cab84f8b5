"""A batch that has grown too large for the memory becomes smaller again."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_prunetrain as kpt
from tests.callbacks.fits import TRACED, Kill, examples, graph
from tests.callbacks.test_backup_and_restore import Break, Trained

EPOCHS = 4
DEATHS = {0: {"inner": [0]}, 2: {"stage": [2]}}
BYTES = 2**50  # More than any machine has.
MOST = []  # The batch size that the memory allows, last.


class Hungry(keras.layers.Layer):
    """Needs impossibly much memory for a batch that is too large."""

    def call(self, x):
        is_large = tf.shape(x)[0] > tf.py_function(
            lambda: MOST[-1], [], "int32"
        )
        size = tf.where(is_large, BYTES, 1)
        return x + 0.0 * tf.reduce_sum(tf.random.uniform([size]))


@pytest.fixture
def most():
    MOST[:] = [12]
    yield MOST
    MOST.clear()


def train(folder, maximum, *, stop=None, behind=(), save_freq=1, **compiled):
    keras.utils.set_random_seed(0)
    inputs, outputs = graph()
    model = keras.Model(inputs, Hungry()(outputs))
    model.compile(
        **{
            "optimizer": keras.optimizers.SGD(0.05, momentum=0.9),
            "loss": keras.losses.SparseCategoricalCrossentropy(
                from_logits=True
            ),
            "metrics": ["accuracy"],
            "run_eagerly": True,
            **compiled,
        }
    )
    batch = kpt.DynamicBatch(8, 4, memory_budget=2**30, maximum=maximum)
    pruning = kpt.PruneTrainCallback(interval=1, batch=batch)
    x, y = examples(40)
    history = model.fit(
        batch.arrays(x, y, shuffle=False),
        shuffle=False,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[
            kpt.BackupAndRestore(folder, save_freq),
            Kill(DEATHS),
            pruning,
            Break(stop),
            *behind,
        ],
    )
    return Trained(model, pruning, history)


@pytest.mark.long
@pytest.mark.parametrize("compiled", [TRACED])
def test_a_step_without_memory_is_done_with_the_size_before(
    compiled, most, tmp_path, caplog
):
    """No trace of it is left: statistics, dropout, updates, metrics."""
    steps = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(batch)
    )
    found = train(tmp_path, 16, behind=[count], **compiled)
    assert "batch of 16 examples has run out of memory" in caplog.text
    assert "has 8 examples again" in caplog.text
    found.equals(train(tmp_path, 8, **compiled))
    assert found.history.history["batch_size"] == [8] * EPOCHS
    assert len(found.pruning.reports) == 2
    assert steps == [*range(5)] * EPOCHS
    found.model.fit(*examples(8), verbose=0)  # An ordinary one again.


@pytest.mark.long
def test_the_second_lack_of_memory_ends_the_training(most, tmp_path, caplog):
    class Shrink(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                MOST.append(4)

    with pytest.raises(tf.errors.ResourceExhaustedError):
        train(tmp_path, 16, behind=[Shrink()], save_freq="epoch")
    assert caplog.text.count("has run out of memory") == 1
    most.append(12)  # Where there is more of it, the training goes on.
    pieces = train(tmp_path, 16, save_freq="epoch")
    assert pieces.history.epoch == [*range(EPOCHS)]
    pieces.equals(train(tmp_path, 8))
    assert caplog.text.count("has run out of memory") == 1


@pytest.mark.long
def test_the_first_size_is_not_tried_but_needed(most, tmp_path):
    most.append(4)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        train(tmp_path, 16)


@pytest.mark.long
@pytest.mark.parametrize("stop", [(1, 2)])
def test_another_process_trains_with_the_size_that_worked(
    stop, most, tmp_path, caplog
):
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, 16, stop=stop)
    pieces = train(tmp_path, 16)
    assert caplog.text.count("has run out of memory") == 1
    pieces.equals(train(tmp_path, 8))
    assert pieces.history.history["batch_size"] == [8] * EPOCHS


def test_a_size_that_works_stays(most, tmp_path, caplog):
    most.append(16)
    found = train(tmp_path, 16)
    assert "memory" not in caplog.text
    assert found.history.history["batch_size"] == [8, 16, 16, 16]
    assert np.isfinite(found.history.history["loss"]).all()

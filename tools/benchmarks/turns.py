"""Trains several models in turns, so that they can be timed against each other.

Each trains inside an ordinary `fit` of its own, in a thread of its own; all but
one of them wait. Whatever else the machine does hits all of them alike.
"""

import threading
import time

import keras
import numpy as np
import tensorflow as tf

BATCH_SIZE = 128
STEPS = 10  # Per turn.
WARM_UP = 2  # Turns that are not counted: tracing, calibration, caches.


def in_turns(models, turns, seed, callbacks=None, batch_sizes=None):
    """Returns the seconds per step of each model at each of its turns.

    Args:
        models: List of compiled models for images and classes.
        turns: Turns that are counted, for each model.
        seed: Of the images, noise, and labels: one batch, always the same.
        callbacks: List, for each model, of a list of callbacks. Optional.
        batch_sizes: List, for each model, of the images in a step. Defaults to
            128 for all.

    Returns:
        List, for each model, of `turns` floats.
    """
    semaphores = [threading.Semaphore(i == 0) for i in range(len(models))]
    clocks = [
        _TakesTurns(own, after)
        for own, after in zip(
            semaphores, semaphores[1:] + semaphores[:1], strict=True
        )
    ]
    threads = [
        threading.Thread(
            target=_fit, args=(model, [*extra, clock], turns, seed, size)
        )
        for model, extra, clock, size in zip(
            models,
            callbacks or [[]] * len(models),
            clocks,
            batch_sizes or [BATCH_SIZE] * len(models),
            strict=True,
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [
        [seconds / STEPS for seconds in clock.seconds[WARM_UP:-1]]
        for clock in clocks
    ]


class _TakesTurns(keras.callbacks.Callback):
    """Lets its model train for one epoch whenever it is its turn."""

    def __init__(self, own_turn, next_turn):
        super().__init__()
        self.seconds = []
        self._own_turn = own_turn
        self._next_turn = next_turn

    def on_epoch_begin(self, epoch, logs=None):
        self._own_turn.acquire()
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._started)
        self._next_turn.release()


def _fit(model, callbacks, turns, seed, batch_size):
    rng = np.random.default_rng(seed)
    shape = (batch_size, *model.input_shape[1:])
    images = rng.normal(size=shape).astype("float32")
    labels = rng.integers(0, model.output_shape[-1], batch_size)
    options = tf.data.Options()
    # Its tuner holds up the end of an epoch; see apps/data.py.
    options.autotune.enabled = False
    batches = tf.data.Dataset.from_tensors((images, labels)).repeat()
    model.fit(
        batches.with_options(options),
        steps_per_epoch=STEPS,
        # One more than is counted: PruneTrain's last epoch reconfigures.
        epochs=WARM_UP + turns + 1,
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    )

"""What `reconfigure` makes of a model of `keras.applications`, and how fast."""

import gc
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from applications import SIZES, awaken, build, draw_weights
from masked_trial import (
    SEED,
    Trial,
    compared,
    compile_anew,
    cut,
    difference,
    examples,
)

import keras_prunetrain as kpt
from keras_prunetrain.channels.numbering import number_channels
from tests.masked import leaves, silence, some_alive


def check(name):
    """Returns how the reconfigured model compares with the masked one."""
    keras.config.set_floatx("float64")
    keras.utils.set_random_seed(SEED)
    trial = prepare(name)
    one_sided = check_one_sided(trial)
    smaller, expected = cut(trial)
    return {
        "layers": len(trial.model.operations),
        **one_sided,
        "signal": float(np.ptp(expected, axis=0).max() / expected.std()),
        "flops_agree": flops_by_hand(smaller)
        == kpt.model_cost(smaller).forward_flops,
        **compared(trial, smaller, expected),
    }


def prepare(name):
    """Builds a model with weights that carry a signal; returns the `Trial`."""
    rng = np.random.default_rng(SEED)
    model = build(name)
    size = SIZES.get(name, 32)
    images, labels = examples(model, (size, size), rng)
    draw_weights(model, rng)
    compile_anew(model)
    numbering = number_channels(model)
    alive = some_alive(numbering, rng)
    run = tf.function(model)  # Traced once: it runs often.
    return Trial(model, run, numbering, alive, images, labels, rng)


def check_one_sided(trial):
    """Compares where channels are dead where they are written only.

    What reads them holds them, unless they are folded. The weights are put back
    afterwards.
    """
    model, images = trial.model, trial.images
    weights = model.get_weights()
    silence(trial.numbering, trial.alive, sides=("out",))
    awaken(model, images, trial.rng)
    expected = trial.run(images).numpy()
    row = {
        "one_sided_difference": difference(
            kpt.reconfigure(model)(images), expected
        )
    }
    folded = kpt.reconfigure(model, fold=True)
    row["parameters_folded"] = folded.count_params()
    row["fold_difference"] = difference(folded(images), expected)
    model.set_weights(weights)
    return row


def flops_by_hand(model):
    """Counts 2 x multiplications with kernels, from shapes, once more."""
    total = 0
    for layer in leaves(model):
        for weight in layer.weights:
            if "kernel" in weight.name:
                places = int(np.prod(layer.output.shape[1:-1], dtype=int))
                total += 2 * int(np.prod(weight.shape)) * places
    return total


def measure(name):
    """Returns the seconds that `reconfigure` takes: the median of three.

    In float32, with the slots of SGD with momentum.
    """
    keras.utils.set_random_seed(SEED)
    model = build(name)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    numbering = number_channels(model)
    silence(numbering, some_alive(numbering, np.random.default_rng(SEED)))
    seconds = []
    for _ in range(3):
        gc.collect()  # What the last one made is a cycle, and in the way.
        started = time.perf_counter()
        kpt.reconfigure(model)
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds)}

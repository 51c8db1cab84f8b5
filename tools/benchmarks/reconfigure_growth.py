"""Measures how the time of a cut grows with the size of the network.

    python tools/benchmarks/reconfigure_growth.py

The ResNets of `keras.applications`, basic ones with up to 1,000 weighted
layers, and networks of few layers with up to a million channels in each, with
the slots of SGD with momentum. Measured are the numbering of the channels, the
choice of those that go under a target of half of the inference FLOPs, and
`reconfigure` with half of the removable channels dead. Beside it, the time that
Keras takes to clone the model: it makes as many layers and variables, and looks
at no weight.
"""

import gc
import json
import pathlib
import statistics
import sys
import time

import keras
import numpy as np
from absl import app, flags

import keras_prunetrain as kpt
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.choice import Choice, least_channels
from keras_prunetrain.models.parts import classifier, conv_bn

# `apps` and `tests` are not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import command_line  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402
from tests.masked import silence, some_alive  # noqa: E402

_REPEATS = flags.DEFINE_integer("repeats", 3, "Reconfigurations to time.")
_OUTPUT = flags.DEFINE_string(
    "output",
    str(ROOT / "tools" / "results" / "reconfigure_growth.json"),
    "File to write the result to.",
)

SEED = 0


def main(argv):
    command_line.refuse_words(argv)
    # Keras walks back through a model by recursion, a level for each layer.
    sys.setrecursionlimit(20_000)
    rows = []
    for name, build in MODELS.items():
        keras.backend.clear_session()
        keras.utils.set_random_seed(SEED)
        rows.append({"model": name, **measured(build())})
        print(rows[-1], flush=True)
    record = environment([SEED]) | {"models": rows}
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(record, indent=2) + "\n")


def measured(model):
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    numbering = number_channels(model)
    silence(numbering, some_alive(numbering, np.random.default_rng(SEED)))
    functions = {
        "number_seconds": lambda: number_channels(model),
        "choose_seconds": lambda: choose(model),
        "reconfigure_seconds": lambda: kpt.reconfigure(model),
        "clone_seconds": lambda: keras.models.clone_model(model),
    }
    seconds = {name: [] for name in functions}
    # In turns, so that a slow moment slows them all.
    for _ in range(_REPEATS.value + 1):
        for name, function in functions.items():
            gc.collect()
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {
        "operations": len(model.operations),
        "channels": numbering.size,
        "variables": len(model.variables),
        "parameters": model.count_params(),
        # The first ones warm up.
        **{k: statistics.median(times[1:]) for k, times in seconds.items()},
    }


def choose(model):
    """Chooses channels, by scores drawn at random, under a target."""
    numbering = number_channels(model)
    least = least_channels(numbering, max_layer_cut=0.9)
    choice = Choice(model, numbering, "forward_flops", CutOptions(), least)
    scores = np.random.default_rng(SEED).random(numbering.size)
    return choice.plan(scores, 0.5 * choice.total)


def wide(channels):
    """Builds a network in which few layers share many channels."""
    image = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(channels, 1, use_bias=False)(image)
    for _ in range(2):
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
        x = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    return keras.Model(image, classifier(x, 10, 0.0))


def basic_resnet(blocks):
    """Builds a ResNet of `blocks` residual blocks of two convolutions."""
    image = keras.Input((8, 8, 3))
    x = conv_bn(image, 16, 3, "stem")
    for i in range(blocks):
        branch = conv_bn(x, 16, 3, f"block{i}_conv1")
        branch = conv_bn(branch, 16, 3, f"block{i}_conv2", relu=False)
        x = keras.layers.Add(name=f"block{i}_add")([branch, x])
        x = keras.layers.ReLU(name=f"block{i}_relu")(x)
    return keras.Model(image, classifier(x, 10, 0.0))


MODELS = {
    **{
        name: lambda name=name: getattr(keras.applications, name)(weights=None)
        for name in ("ResNet50", "ResNet101", "ResNet152")
    },
    **{
        f"basic ResNet-{2 * blocks + 2}": lambda n=blocks: basic_resnet(n)
        for blocks in (31, 62, 125, 250, 499)
    },
    **{
        f"wide, {channels:,} channels": lambda n=channels: wide(n)
        for channels in (10_000, 100_000, 1_000_000)
    },
}


if __name__ == "__main__":
    app.run(main)

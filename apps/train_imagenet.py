"""Trains ResNet-50 on ImageNet, dense or shrinking, on one machine or many.

Claim of the paper (Lym et al. 2019, table 1), 90 epochs: 60% of the dense
training FLOPs and 71% of the time for 1.9 points of accuracy. This program has
not been run on ImageNet itself; what was measured of it is in
docs/measurements.md.

    python apps/train_imagenet.py --data_dir=/data --workdir=runs/imagenet
    python apps/train_imagenet.py --dataset=fake --epochs=2 --image_size=32 \
        --workdir=/tmp/smoke
"""

import json
import os
import pathlib
import sys

from absl import app, flags

# TensorFlow's notes on devices that are not there; before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# For `python apps/train_imagenet.py`.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras_prunetrain as kpt  # noqa: E402
from apps import (  # noqa: E402
    command_line,
    compare,
    console,
    imagenet,
    networks,
    recipe_flags,
    records,
    training,
)
from apps.refusal import RefusedError, StoppedError  # noqa: E402
from keras_prunetrain import models  # noqa: E402


def define(values):
    """Defines the flags of this program in `values`."""
    recipe_flags.define(
        values,
        epochs=90,
        batch_size=256,
        weight_decay=1e-4,
        penalty_ratio=0.2,
        interval=5,
        learning_rate_drops=["41", "61", "81"],
    )
    flags.DEFINE_enum(
        *("dataset", "imagenet2012", imagenet.NAMES, "Data set."),
        flag_values=values,
    )
    flags.DEFINE_enum(
        *("network", "ResNet50"),
        [*networks.APPLICATIONS, *models.__all__],
        "Name of a function of keras.applications, or of this package's.",
        flag_values=values,
    )
    recipe_flags.check_width(values)
    command_line.integer(
        *("image_size", 224, 32, 2048, "In pixels."), flag_values=values
    )
    flags.DEFINE_enum(
        "strategy",
        "one",
        ["one", "mirrored", "multiworker"],
        "Devices: one, all of this machine, or those of TF_CONFIG.",
        flag_values=values,
    )
    flags.register_validator(
        "strategy",
        lambda strategy: strategy != "multiworker" or _knows_its_cluster(),
        "each worker needs TF_CONFIG in its environment, such as "
        '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
        '"task": {"type": "worker", "index": 0}}.',
        flag_values=values,
    )


def main(argv, values=flags.FLAGS):
    command_line.refuse_words(argv)
    console.show_reconfigurations()
    folder = command_line.folder
    # Before anything else that TensorFlow does.
    strategy = _strategy(values.strategy)
    try:
        dense = values.dense and records.result(folder(values.dense))
        images = imagenet.load(
            values.dataset,
            values.image_size,
            folder(values.data_dir),
            values.seed,
        )
        result = training.train(
            recipe_flags.recipe(values),
            images,
            folder(values.workdir),
            strategy,
            values.restart,
        )
    except (RefusedError, StoppedError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # As a shell shows it; what to do has been said.
    except imagenet.ERRORS_OF_IMAGES:
        broken = imagenet.broken_image(images)
        if broken is None:
            raise
        sys.exit(
            f"{broken} Replace it or take it away, and start again. What was "
            f"recorded until then is in {folder(values.workdir)}."
        )
    if dense:
        print(compare.table([dense, result]))


def _knows_its_cluster():
    """Whether TF_CONFIG names the workers, and this one among them."""
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        task = config["task"]
        return 0 <= task["index"] < len(config["cluster"][task["type"]])
    except (KeyError, TypeError, ValueError):
        return False


def _strategy(name):
    if name == "one":
        return None
    if name == "multiworker":
        return kpt.multi_worker_strategy()
    import tensorflow as tf

    return tf.distribute.MirroredStrategy()


if __name__ == "__main__":
    define(flags.FLAGS)
    app.run(main)

"""Trains ResNet-50 on ImageNet, dense or shrinking, on one machine or many.

Claim of the paper (Lym et al. 2019, table 1), 90 epochs: 60% of the dense
training FLOPs and 71% of the time for 1.9 points of accuracy. This program has
not been run on ImageNet itself; what was measured of it is in README.md.

    python apps/train_imagenet.py --data_dir=/data --workdir=runs/imagenet
    python apps/train_imagenet.py --dataset=fake --epochs=2 --image_size=32 \
        --workdir=/tmp/smoke
"""

import os
import pathlib
import sys

from absl import app, flags

# TensorFlow's notes on devices that are not there; before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# For `python apps/train_imagenet.py`.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras_prunetrain as kpt  # noqa: E402
from apps import compare, console, imagenet, recipe_flags, training  # noqa: E402

FLAGS = flags.FLAGS
recipe_flags.define(
    epochs=90,
    batch_size=256,
    weight_decay=1e-4,
    penalty_ratio=0.2,
    interval=5,
    learning_rate_drops=["41", "61", "81"],
)
flags.DEFINE_enum("dataset", "imagenet2012", imagenet.NAMES, "Data set.")
flags.DEFINE_string(
    "network", "ResNet50", "Name of a function of keras.applications."
)
flags.DEFINE_integer("image_size", 224, "In pixels.", lower_bound=32)
flags.DEFINE_enum(
    "strategy",
    "one",
    ["one", "mirrored", "multiworker"],
    "Devices: one, all of this machine, or those of TF_CONFIG.",
)


def main(argv):
    del argv
    console.show_reconfigurations()
    dense = FLAGS.dense and compare.read(FLAGS.dense)
    strategy = _strategy()  # Before anything else that TensorFlow does.
    try:
        images = imagenet.load(
            FLAGS.dataset, FLAGS.image_size, FLAGS.data_dir, FLAGS.seed
        )
    except ValueError as error:
        sys.exit(str(error))
    result = training.train(
        recipe_flags.recipe(), images, FLAGS.workdir, strategy
    )
    if dense:
        print(compare.table([dense, result]))


def _strategy():
    if FLAGS.strategy == "one":
        return None
    if FLAGS.strategy == "multiworker":
        return kpt.multi_worker_strategy()
    import tensorflow as tf

    return tf.distribute.MirroredStrategy()


if __name__ == "__main__":
    app.run(main)

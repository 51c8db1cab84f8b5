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
from apps import console, imagenet, training  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_enum("method", "prunetrain", ["dense", "prunetrain"], "Method.")
flags.DEFINE_enum("dataset", "imagenet2012", imagenet.NAMES, "Data set.")
flags.DEFINE_string(
    "network", "ResNet50", "Name of a function of keras.applications."
)
flags.DEFINE_integer("image_size", 224, "In pixels.", lower_bound=32)
flags.DEFINE_integer("epochs", 90, "Epochs.", lower_bound=1)
flags.DEFINE_integer(
    "batch_size", 256, "Images per update, over all devices.", lower_bound=1
)
flags.DEFINE_integer(
    "granularity",
    None,
    "The batch grows with what pruning frees, by multiples of so many images "
    "on each device.",
    lower_bound=1,
)
flags.DEFINE_integer("seed", 0, "Seed of weights, order and augmentation.")
flags.DEFINE_float("learning_rate", 0.1, "Of SGD, before the drops.")
flags.DEFINE_list(
    "learning_rate_drops",
    ["41", "61", "81"],
    "Epochs at which it is divided by 10.",
)
flags.DEFINE_float("momentum", 0.9, "Of SGD.", lower_bound=0.0)
flags.DEFINE_float(
    "weight_decay", 1e-4, "Coupled, on all weights.", lower_bound=0.0
)
flags.DEFINE_enum(
    "dtype_policy",
    "float32",
    ["float32", "mixed_float16", "mixed_bfloat16"],
    "What layers compute in.",
)
flags.DEFINE_enum(
    "strategy",
    "one",
    ["one", "mirrored", "multiworker"],
    "Devices: one, all of this machine, or those of TF_CONFIG.",
)
flags.DEFINE_float("penalty_ratio", 0.2, "Group lasso; see the callback.")
flags.DEFINE_integer(
    "interval", 5, "Epochs between reconfigurations.", lower_bound=1
)
flags.DEFINE_float(
    "threshold", 1e-4, "Channels below it are dead.", lower_bound=0.0
)
flags.DEFINE_integer(
    "finetune_epochs", 0, "Last epochs without group lasso.", lower_bound=0
)
flags.register_validator(
    "learning_rate_drops",
    lambda drops: all(drop.isdecimal() for drop in drops),
    "must be epochs, such as 41,61,81.",
)
flags.register_validator(
    "penalty_ratio",
    lambda ratio: 0.0 < ratio < 1.0,
    "must be above 0 and below 1.",
)
flags.DEFINE_string("data_dir", None, "Where the data lies.")
flags.DEFINE_string("workdir", None, "Where the run's files go.", required=True)


def main(argv):
    del argv
    console.show_reconfigurations()
    strategy = _strategy()  # Before anything else that TensorFlow does.
    settings = {
        name: getattr(FLAGS, name)
        for name in training.Recipe.__dataclass_fields__
        if name in FLAGS
    }
    drops = tuple(map(int, FLAGS.learning_rate_drops))
    recipe = training.Recipe(**settings | {"learning_rate_drops": drops})
    try:
        images = imagenet.load(
            FLAGS.dataset, FLAGS.image_size, FLAGS.data_dir, FLAGS.seed
        )
    except ValueError as error:
        sys.exit(str(error))
    training.train(recipe, images, FLAGS.workdir, strategy)


def _strategy():
    if FLAGS.strategy == "one":
        return None
    if FLAGS.strategy == "multiworker":
        return kpt.multi_worker_strategy()
    import tensorflow as tf

    return tf.distribute.MirroredStrategy()


if __name__ == "__main__":
    app.run(main)

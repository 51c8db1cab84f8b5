"""Trains a network on CIFAR, or on the embedded digits; dense or shrinking.

Claim of the paper (Lym et al. 2019, table 1) for ResNet32 on CIFAR-10, 182
epochs: 47% of the dense training FLOPs, 1.8 points of accuracy lost. What this
program measured is in README.md.

    python apps/train_cifar.py --dataset=cifar10 --network=resnet20 \
        --method=prunetrain --epochs=40 --workdir=runs/resnet20
"""

import os
import pathlib
import sys

from absl import app, flags

# TensorFlow's notes on devices that are not there; before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# For `python apps/train_cifar.py`; `python -m apps.train_cifar` needs it not.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from apps import compare, console, data, recipe_flags, training  # noqa: E402
from keras_prunetrain import models  # noqa: E402

FLAGS = flags.FLAGS
recipe_flags.define(
    epochs=182,
    batch_size=128,
    weight_decay=5e-4,
    penalty_ratio=0.25,
    interval=10,
    learning_rate_drops=[],
)
flags.DEFINE_enum("dataset", "digits", data.NAMES, "Data set.")
flags.DEFINE_enum("network", "resnet20", sorted(models.__all__), "Network.")
flags.DEFINE_integer("width", None, "Of a ResNet's first stage, in channels.")


def main(argv):
    del argv
    console.show_reconfigurations()
    dense = FLAGS.dense and compare.read(FLAGS.dense)
    try:
        examples = data.load(FLAGS.dataset, FLAGS.data_dir)
    except ValueError as error:
        sys.exit(str(error))
    result = training.train(recipe_flags.recipe(), examples, FLAGS.workdir)
    if dense:
        print(compare.table([dense, result]))


if __name__ == "__main__":
    app.run(main)

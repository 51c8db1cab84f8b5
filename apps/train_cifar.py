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

from apps import console, data, training  # noqa: E402
from keras_prunetrain import models  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_enum("method", "prunetrain", ["dense", "prunetrain"], "Method.")
flags.DEFINE_enum("dataset", "digits", data.NAMES, "Data set.")
flags.DEFINE_enum("network", "resnet20", sorted(models.__all__), "Network.")
flags.DEFINE_integer("width", None, "Of a ResNet's first stage, in channels.")
flags.DEFINE_integer("epochs", 182, "Epochs.", lower_bound=1)
flags.DEFINE_integer("batch_size", 128, "Images per update.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of weights, order and augmentation.")
flags.DEFINE_float("learning_rate", 0.1, "Of SGD, before the drops.")
flags.DEFINE_list(
    "learning_rate_drops",
    [],
    "Epochs at which it is divided by 10. Default: half and three quarters.",
)
flags.DEFINE_float("momentum", 0.9, "Of SGD.", lower_bound=0.0)
flags.DEFINE_float(
    "weight_decay", 5e-4, "Coupled, on all weights.", lower_bound=0.0
)
flags.DEFINE_enum(
    "dtype_policy",
    "float32",
    ["float32", "mixed_bfloat16"],
    "What layers compute in.",
)
flags.DEFINE_float("penalty_ratio", 0.25, "Group lasso; see the callback.")
flags.DEFINE_integer(
    "interval", 10, "Epochs between reconfigurations.", lower_bound=1
)
flags.DEFINE_float(
    "threshold", 1e-4, "Channels below it are dead.", lower_bound=0.0
)
flags.DEFINE_integer(
    "finetune_epochs", 0, "Last epochs without group lasso.", lower_bound=0
)
flags.DEFINE_integer(
    "granularity",
    None,
    "The batch grows with what pruning frees, by multiples of so many images.",
    lower_bound=1,
)
flags.register_validator(
    "learning_rate_drops",
    lambda drops: all(drop.isdecimal() for drop in drops),
    "must be epochs, such as 91,136.",
)
flags.register_validator(
    "penalty_ratio",
    lambda ratio: 0.0 < ratio < 1.0,
    "must be above 0 and below 1.",
)
flags.DEFINE_string("data_dir", None, "Of TensorFlow Datasets; its default.")
flags.DEFINE_string("workdir", None, "Where the run's files go.", required=True)


def main(argv):
    del argv
    console.show_reconfigurations()
    drops = FLAGS.learning_rate_drops or [
        FLAGS.epochs // 2,
        FLAGS.epochs * 3 // 4,
    ]
    settings = {
        name: getattr(FLAGS, name)
        for name in training.Recipe.__dataclass_fields__
    }
    recipe = training.Recipe(
        **settings | {"learning_rate_drops": tuple(map(int, drops))}
    )
    try:
        examples = data.load(FLAGS.dataset, FLAGS.data_dir)
    except ValueError as error:
        sys.exit(str(error))
    training.train(recipe, examples, FLAGS.workdir)


if __name__ == "__main__":
    app.run(main)

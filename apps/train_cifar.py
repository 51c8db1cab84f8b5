"""Trains a network on CIFAR, or on digits: dense, shrinking or narrow.

Claim of the paper (Lym et al. 2019, table 1) for ResNet32 on CIFAR-10, 182
epochs: 47% of the dense training FLOPs, 1.8 points of accuracy lost. What this
program measured is in docs/measurements.md.

    python apps/train_cifar.py --dataset=cifar10 --network=resnet20 \
        --method=prunetrain --epochs=40 --workdir=runs/resnet20
    python apps/train_cifar.py --dataset=cifar10 --network=resnet20 \
        --method=narrow --target_flops=0.5 --epochs=40 --workdir=runs/narrow
    python apps/train_cifar.py --dataset=cifar10 --network=resnet20 \
        --method=dense --sdgp=2:4 --epochs=40 --workdir=runs/sdgp

EarlyCroP (Rachwan et al. 2022), 95% of the weights zero, by the recipe of its
authors, who train 80 further epochs behind the cut:

    python apps/train_cifar.py --dataset=cifar10 --network=resnet20 \
        --method=earlycrop --sparsity=0.95 --optimizer=adam \
        --learning_rate=2e-3 --weight_decay=5e-5 --batch_size=256 \
        --global_clipnorm=10 --epochs=80 --workdir=runs/earlycrop
"""

import os
import pathlib
import sys

from absl import app, flags

# TensorFlow's notes on devices that are not there; before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# For `python apps/train_cifar.py`; `python -m apps.train_cifar` needs it not.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from apps import (  # noqa: E402
    command_line,
    compare,
    console,
    data,
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
        epochs=182,
        batch_size=128,
        weight_decay=5e-4,
        penalty_ratio=0.25,
        interval=10,
        learning_rate_drops=[],
    )
    flags.DEFINE_enum(
        *("dataset", "digits", data.NAMES, "Data set."), flag_values=values
    )
    flags.DEFINE_enum(
        *("network", "resnet20", sorted(models.__all__), "Network."),
        flag_values=values,
    )
    command_line.integer(
        *("width", None, 1, 1024),
        "Of the network's first stage, in channels; later stages are multiples "
        "of it. With --method=narrow, of the network at full width.",
        flag_values=values,
    )
    command_line.integer(
        *("image_size", None, 1, 1024),
        "Pixels of a side, for images that are downscaled. It must divide the "
        "size of the images.",
        flag_values=values,
    )


def main(argv, values=flags.FLAGS):
    command_line.refuse_words(argv)
    console.show_reconfigurations()
    folder = command_line.folder
    try:
        dense = values.dense and records.result(folder(values.dense))
        examples = data.load(values.dataset, folder(values.data_dir))
        if values.image_size is not None:
            examples = examples.downscaled(values.image_size)
        result = training.train(
            recipe_flags.recipe(values),
            examples,
            folder(values.workdir),
            restart=values.restart,
        )
    except (RefusedError, StoppedError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # As a shell shows it; what to do has been said.
    if dense:
        print(compare.table([dense, result]))


if __name__ == "__main__":
    define(flags.FLAGS)
    app.run(main)

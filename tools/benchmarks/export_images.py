"""Writes a data set of the training programs into a file that NumPy reads.

    python tools/benchmarks/export_images.py --dataset=cifar10 --image_size=16 \
        --output=/tmp/cifar10_16.npz

Benchmarks of packages that do not run on TensorFlow read it, so that they train
on the very same images.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
from absl import flags  # noqa: E402

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import command_line, data  # noqa: E402

# Their own, so that a test can import several benchmarks.
_FLAGS = flags.FlagValues()
_DATASET = flags.DEFINE_enum(
    "dataset", "cifar10", data.NAMES, "Data set.", flag_values=_FLAGS
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where the data lies.", flag_values=_FLAGS
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels of a side.", 1, flag_values=_FLAGS
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "File to write.", required=True, flag_values=_FLAGS
)


def main(argv):
    command_line.refuse_words(_FLAGS(argv))
    found = data.load(_DATASET.value, _DATA_DIR.value)
    if _IMAGE_SIZE.value is not None:
        found = found.downscaled(_IMAGE_SIZE.value)
    images, labels = found.train
    validation_images, validation_labels = found.validation
    np.savez(
        _OUTPUT.value,
        name=found.name,
        images=images,
        labels=labels,
        validation_images=validation_images,
        validation_labels=validation_labels,
        classes=found.classes,
        mean=found.mean,
        std=found.std,
        padding=found.padding,
        flips=found.flips,
    )
    print(f"Wrote {_OUTPUT.value}.")


if __name__ == "__main__":
    command_line.run(main, _FLAGS)

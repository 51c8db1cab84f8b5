"""Measures how small the file of a ResNet-20 is whose weights are mostly zero.

    python tools/benchmarks/file_size.py

EarlyCroP sets single weights to zero before the first step, by SynFlow's score,
which needs no labels. A `.keras` file keeps its weights as they are, so it is
compressed as a whole.
"""

import argparse
import pathlib
import sys
import tempfile
import zipfile

import keras
import numpy as np
import record_file

import keras_prunetrain as kpt
from keras_prunetrain.models import resnet20

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps.environment import environment  # noqa: E402

SPARSITIES = (0.0, 0.9, 0.95, 0.98)


def sizes(sparsity):
    """Returns the bytes of the file of a model, as it is and compressed."""
    keras.utils.set_random_seed(0)
    model = resnet20((32, 32, 3), 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    x, y = np.random.normal(size=(64, 32, 32, 3)), np.arange(64) % 10
    callbacks = []
    if sparsity:
        callbacks = [
            kpt.EarlyCroPCallback(
                *(sparsity, (x, y)),
                score="synflow",
                when="start",
                structured=False,
            )
        ]
    model.fit(x, y, verbose=0, callbacks=callbacks)
    sent = keras.models.clone_model(model)  # Without an optimizer's slots.
    sent.set_weights(model.get_weights())
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        packed = path.with_suffix(".zip")
        sent.save(path)
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path)
        return {
            "sparsity": sparsity,
            "density": kpt.mask_report(model).density,
            "keras_file_bytes": path.stat().st_size,
            "zipped_bytes": packed.stat().st_size,
        }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output")
    options = parser.parse_args()
    record_file.write(
        environment([0])
        | {"network": "resnet20", "files": [*map(sizes, SPARSITIES)]},
        *("file_size", options.output),
    )


if __name__ == "__main__":
    main()

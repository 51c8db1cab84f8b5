"""Measures how many CIFAR images per second the input pipeline delivers.

    python tools/benchmarks/input_pipeline.py

Training waits for its data unless this is several times the rate at which the
network learns. Run it pinned to one core (`taskset -c 0`) to learn what the
pipeline costs, on an idle machine. CIFAR-10 must have been prepared.
"""

import json
import pathlib
import statistics
import sys
import time

from absl import app, flags

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import command_line, data  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402

_DATA_DIR = flags.DEFINE_string("data_dir", None, "As of `apps.data.load`.")
_PASSES = flags.DEFINE_integer("passes", 7, "Epochs to measure.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
    "output",
    str(ROOT / "tools" / "results" / "input_pipeline.json"),
    "File to write the result to.",
)

BATCH_SIZE = 128
SEED = 0


def main(argv):
    command_line.refuse_words(argv)
    dataset = data.load("cifar10", data_dir=_DATA_DIR.value)
    results = {
        name: images_per_second(
            dataset.training_batches(BATCH_SIZE, SEED, augment=augment),
            dataset.train_size,
        )
        for name, augment in [("augmented", True), ("not_augmented", False)]
    }
    record = environment([SEED]) | {
        "batch_size": BATCH_SIZE,
        "images_per_second": results,
    }
    output = pathlib.Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=2) + "\n")
    for name, result in results.items():
        print(f"{name}: {result['median']:,} images/s")


def images_per_second(batches, images):
    """Times whole epochs of `batches`, which holds `images` images.

    Returns:
        Dict with the `median` and all `passes`, in images per second.
    """
    _read(batches)  # Warm-up: the first epoch traces and allocates.
    passes = []
    for _ in range(_PASSES.value):
        start = time.perf_counter()
        _read(batches)
        passes.append(round(images / (time.perf_counter() - start)))
    return {"median": round(statistics.median(passes)), "passes": passes}


def _read(batches):
    for _ in batches:
        pass


if __name__ == "__main__":
    app.run(main)

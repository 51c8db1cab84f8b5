"""Measures how many JPEGs the input pipeline of ImageNet makes ready.

    python tools/benchmarks/imagenet_pipeline.py --data_dir=FOLDER

The folder has full-size images in `train/CLASS/*.JPEG` and one more folder like
it; `EliSchwartz/imagenet-sample-images` on GitHub has one for each class. No
network is trained: read, decode a random part, resize, mirror, normalize,
batch. The processor's seconds tell what one core does.
"""

import json
import os
import pathlib
import statistics
import sys
import time

# TensorFlow's notes on devices that are not there; before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import command_line, imagenet  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Images.", required=True)
_PASSES = flags.DEFINE_integer("passes", 5, "Passes to time, after one more.")
_OUTPUT = flags.DEFINE_string(
    "output",
    str(ROOT / "tools" / "results" / "imagenet_pipeline.json"),
    "File to write the result to.",
)

SEED = 0
BATCH_SIZE = 64


def main(argv):
    command_line.refuse_words(argv)
    images = imagenet.load("folder", 224, _DATA_DIR.value, SEED)
    batches = images.drawn_batches(
        images.training_draws(SEED).batch(BATCH_SIZE)
    )
    seconds, core_seconds = [], []
    for _ in range(_PASSES.value + 1):  # The first one warms up.
        started, used = time.perf_counter(), time.process_time()
        count = sum(len(labels) for _, labels in batches)
        seconds.append(time.perf_counter() - started)
        core_seconds.append(time.process_time() - used)
    record = environment([SEED]) | {
        "images": count,
        "image_bytes_mean": mean_size(_DATA_DIR.value),
        "passes": _PASSES.value,
        "images_per_second": count / statistics.median(seconds[1:]),
        "images_per_core_second": count / statistics.median(core_seconds[1:]),
    }
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def mean_size(folder):
    files = list(pathlib.Path(folder, "train").glob("*/*"))
    return sum(file.stat().st_size for file in files) / len(files)


if __name__ == "__main__":
    app.run(main)

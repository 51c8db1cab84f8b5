"""Compares `training_bytes` with the memory that training really takes.

    python tools/benchmarks/memory.py

Each network trains some steps at each of two batch sizes, in a process of its
own, and tells its peak: the resident memory of the process on a CPU, what
TensorFlow had allocated on a GPU. A process also holds TensorFlow itself, so
what is compared is the growth from one batch to the other.
"""

import json
import os
import pathlib
import subprocess
import sys

# TensorFlow's notes on devices that are not there; before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from absl import app, flags

import keras_prunetrain as kpt

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import command_line  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402

_OUTPUT = flags.DEFINE_string(
    "output",
    str(ROOT / "tools" / "results" / "memory.json"),
    "File to write the result to.",
)
_MEASURE = flags.DEFINE_list(
    "measure", [], "NETWORK,BATCH: only this, in this process."
)

SEED = 0
STEPS = 4
# Network -> how it is built, its image size, and two batch sizes.
NETWORKS = {
    "resnet20": (kpt.models.resnet20, 32, (64, 256)),
    "resnet50_cifar": (kpt.models.resnet50_cifar, 32, (32, 128)),
    "vgg13": (kpt.models.vgg13, 32, (64, 256)),
    "applications.ResNet50": (
        lambda shape, classes: keras.applications.ResNet50(
            weights=None, input_shape=shape, classes=classes
        ),
        64,
        (16, 64),
    ),
}


def main(argv):
    command_line.refuse_words(argv)
    if _MEASURE.value:
        name, batch_size = _MEASURE.value
        print(json.dumps(measure(name, int(batch_size))))
        return
    rows = []
    for name, (_, _, sizes) in NETWORKS.items():
        small, large = (in_a_process(name, size) for size in sizes)
        measured, modelled = (
            large[key] - small[key] for key in ("peak_bytes", "training_bytes")
        )
        rows.append(
            {
                "network": name,
                "batch_sizes": sizes,
                "measured_growth_bytes": measured,
                "modelled_growth_bytes": modelled,
                "ratio": modelled / measured,
                "runs": [small, large],
            }
        )
        print(f"{name}: {rows[-1]['ratio']:.3f}", flush=True)
    record = environment([SEED]) | {"networks": rows}
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(record, indent=1) + "\n")


def in_a_process(name, batch_size):
    process = subprocess.run(
        [sys.executable, __file__, f"--measure={name},{batch_size}"],
        capture_output=True,
        text=True,
        check=True,
        # What is freed goes back at once, so that the peak is what was in use.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    return json.loads(process.stdout.splitlines()[-1])


def measure(name, batch_size):
    """Trains some steps; returns the peak of the memory and its model."""
    keras.utils.set_random_seed(SEED)
    build, size, _ = NETWORKS[name]
    model = build((size, size, 3), 10)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    data = tf.data.Dataset.range(STEPS).map(
        lambda _: (
            tf.zeros((batch_size, size, size, 3)),
            tf.zeros(batch_size, "int32"),
        )
    )
    model.fit(data, verbose=0, shuffle=False)
    return {
        "batch_size": batch_size,
        "peak_bytes": peak_bytes(),
        "training_bytes": kpt.training_bytes(model, batch_size),
    }


def peak_bytes():
    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    (line,) = (
        line
        for line in pathlib.Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    app.run(main)

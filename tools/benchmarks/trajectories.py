"""Records what training computes, to the last bit, and compares two records.

    python tools/benchmarks/trajectories.py before.json
    python tools/benchmarks/trajectories.py after.json --compare=before.json

A change of the code that is to leave training as it is leaves these records
equal. ResNet-8 learns the digits from a fixed seed and loses channels at least
three times, in several settings, each in a process of its own. Written down
are the metrics of each epoch as hexadecimal floats, the channels of each layer
at each reconfiguration, and in the end a digest of each weight and each
variable of the optimizer. With `--compare`, the first difference of each case
is printed, and the exit status is 1 if there is one.

The file uses public names only, so that it can be copied into an earlier or
later checkout; it tests the one that it lies in. Another processor or another
TensorFlow rounds differently: records are comparable only if they were made on
one machine, and `tools/results/trajectories.json` on the one that it names.
Nothing is timed; a record takes some two minutes of a core.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import textwrap

# TensorFlow's notes on devices that are not there; before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The package of this checkout, also if that of another one is installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402

import keras_prunetrain as kpt  # noqa: E402
from apps import data  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402

_COMPARE = flags.DEFINE_string(
    "compare", None, "Record that this one is to be equal to."
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of initial weights, order of images and augmentation."
)
_CASE = flags.DEFINE_string("case", None, "Only this, in this process.")

BATCH_SIZE = 64
RECONFIGURATIONS = 3  # At least so many, or the record would show little.
METRICS = (
    *("loss", "accuracy", "val_loss", "val_accuracy"),
    *("density", "training_flops", "batch_size", "learning_rate"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """How one of the networks is trained.

    Attributes:
        epochs: Passes over the images.
        pruning: Arguments of `PruneTrainCallback`.
        adam: Learning rate of Adam; `None` for SGD with momentum.
        replicas: On so many logical CPUs.
        granularity: That of a `DynamicBatch`; `None` for a fixed batch size.
        dtype_policy: Keras's.
    """

    epochs: int
    pruning: dict
    adam: float | None = None
    replicas: int = 1
    granularity: int | None = None
    dtype_policy: str = "float32"


# A large penalty and threshold, so that a few epochs are enough; with Adam a
# residual branch leaves as well.
_EAGER = {"penalty_ratio": 0.9, "interval": 2, "threshold": 0.07}
CASES = {
    "sgd": Case(8, _EAGER),
    # Each epoch takes several times as long.
    "two_replicas": Case(4, _EAGER | {"interval": 1}, replicas=2),
    "growing_batch": Case(10, _EAGER | {"finetune_epochs": 2}, granularity=8),
    "adam": Case(8, _EAGER, adam=3e-3),
    "mixed_bfloat16": Case(8, _EAGER, dtype_policy="mixed_bfloat16"),
}


def main(argv):
    if _CASE.value:
        print(json.dumps(trajectory(CASES[_CASE.value], _SEED.value)))
        return
    if len(argv) != 2:
        sys.exit(f"{__doc__}\nExpected: the file to write the record to.")
    # At once, and before it is overwritten if it is the same file.
    reference = _COMPARE.value and _read(_COMPARE.value)
    record = environment([_SEED.value]) | {"cases": {}}
    for name in CASES:
        record["cases"][name] = in_a_process(name)
        print(f"{name}: recorded", flush=True)
    pathlib.Path(argv[1]).write_text(json.dumps(record, indent=1) + "\n")
    if reference:
        sys.exit(compare(reference, record))


def _read(path):
    return json.loads(pathlib.Path(path).read_text())


def in_a_process(name):
    process = subprocess.run(
        [
            *(sys.executable, __file__),
            *(f"--case={name}", f"--seed={_SEED.value}"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def trajectory(case, seed):
    """Trains as `case` says; returns what came of it, a dict for JSON."""
    strategy = _prepare(case, seed)
    digits = data.load("digits")
    draws = digits.training_draws(seed)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = _compiled_model(case, digits)
    if case.granularity is None:
        # With replicas, one might get no image of a short last batch.
        batch = None
        draws = draws.batch(BATCH_SIZE, drop_remainder=case.replicas > 1)
    else:
        batch = kpt.DynamicBatch(BATCH_SIZE, case.granularity)
        draws = batch(draws)
    pruning = kpt.PruneTrainCallback(**case.pruning, batch=batch)
    history = model.fit(
        digits.drawn_batches(draws),
        validation_data=digits.validation_batches(BATCH_SIZE),
        epochs=case.epochs,
        callbacks=[pruning],
        shuffle=False,
        verbose=0,
    ).history
    _check(case, pruning)
    return {
        "epochs": [
            {
                name: float(history[name][epoch]).hex()
                for name in METRICS
                if name in history
            }
            for epoch in range(case.epochs)
        ],
        "reconfigurations": [
            {
                "epoch": report.epoch,
                "channels_before": report.channels_before,
                "channels_after": report.channels_after,
                "removed_layers": report.removed_layers,
                "batch_size_after": report.batch_size_after,
                "penalty_ratio": float(report.penalty_ratio).hex(),
            }
            for report in pruning.reports
        ],
        "factor": float(pruning.factor).hex(),
        "iterations": int(
            keras.ops.convert_to_numpy(model.optimizer.iterations)
        ),
        # Sorted: which comes first is no part of what training computes.
        "weights": sorted(f"{w.path} {_digest(w)}" for w in model.weights),
        "optimizer": sorted(map(_digest, model.optimizer.variables)),
    }


def _prepare(case, seed):
    """Makes this process compute the same each time; returns its strategy."""
    # Sums over parts, one of each thread, depend on how many there are.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    tf.config.experimental.enable_op_determinism()
    strategy = None
    if case.replicas > 1:
        (cpu,) = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration()] * case.replicas
        tf.config.set_logical_device_configuration(cpu, parts)
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{i}" for i in range(case.replicas)]
        )
    keras.config.set_dtype_policy(case.dtype_policy)
    keras.utils.set_random_seed(seed)
    return strategy


def _compiled_model(case, digits):
    model = kpt.models.resnet8(
        digits.image_shape, digits.classes, weight_decay=5e-4
    )
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9)
        if case.adam is None
        else keras.optimizers.Adam(case.adam),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _check(case, pruning):
    """Exits if the training did not do what it is to show."""
    count = len(pruning.reports)
    if count < RECONFIGURATIONS:
        sys.exit(f"Only {count} reconfigurations removed channels: {case}")
    if pruning.batch and pruning.batch.size == BATCH_SIZE:
        sys.exit(f"The batch did not grow: {case}")


def _digest(variable):
    """Describes a variable: its type and shape, and a hash of its bytes."""
    value = keras.ops.convert_to_numpy(variable)
    digest = hashlib.sha256(value.tobytes()).hexdigest()
    return f"{value.dtype}{list(value.shape)} {digest}"


def compare(reference, record):
    """Prints the first difference of each case; returns the exit status."""
    known = reference["machine"].keys() & record["machine"].keys()
    if any(reference["machine"][x] != record["machine"][x] for x in known):
        print(
            "The records are of different machines, which may round "
            f"differently: {reference['machine']} and {record['machine']}"
        )
    status = 0
    for name in reference["cases"] | record["cases"]:
        pair = (each["cases"].get(name) for each in (reference, record))
        found = next(differences(*pair), None)
        if found is None:
            print(f"{name}: equal")
            continue
        status = 1
        where, expected, received = found
        print(f"{name}: differs first at {where or 'the whole case'}")
        for title, value in (("expected", expected), ("received", received)):
            print(f"    {title} {textwrap.shorten(str(value), 120)}")
    return status


def differences(expected, received, where=""):
    """Yields (where, expected, received), in the order of the record.

    Args:
        expected: What is in a JSON file, or a part of it.
        received: The same of another file.
        where: String. Which part it is.
    """
    both = expected, received
    if all(isinstance(each, dict) for each in both):
        for key in expected | received:
            pair = (each.get(key) for each in both)
            yield from differences(*pair, f"{where} {key}".strip())
    elif all(isinstance(each, list) for each in both):
        for index, pair in enumerate(itertools.zip_longest(*both)):
            yield from differences(*pair, f"{where}[{index}]")
    elif expected != received:
        yield where, expected, received


if __name__ == "__main__":
    if ROOT not in pathlib.Path(kpt.__file__).parents:
        sys.exit(f"The package is not that of this checkout: {kpt.__file__}")
    app.run(main)

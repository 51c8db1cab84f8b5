"""Trains a small network dense, shrinking and narrow, and compares the three.

Aim: on 1,797 real images of handwritten digits (embedded in scikit-learn), in
under 4 minutes on 2 idle cores with AVX-512, the shrinking network comes within
one point of the dense one's accuracy on the held-out fifth, at no more than 40%
of its training FLOPs and 80% of its seconds. The narrow network, every width
times one factor, is trained last: it costs at inference what the shrunk one
costs, and shows what this cost buys without pruning. All have the same seed,
epochs and schedule. What was measured is in docs/measurements.md.

    python apps/quickstart.py
"""

import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # For `python apps/quickstart.py`.

from apps import compare, records  # noqa: E402

RUNS = ROOT / "runs" / "quickstart"
RECIPE = [
    "--dataset=digits",
    "--network=resnet8",
    # Wide, because a CPU saves little time on fewer than 16 channels.
    "--width=64",
    "--epochs=60",
    "--learning_rate_drops=46,54",
    "--batch_size=32",
    "--seed=0",
]
# Each reconfiguration takes some seconds, as the step is traced again: two are
# few enough for a training of one minute.
SHRINKING = ["--target_flops=0.2", "--rounds=2"]


def main(words):
    """Runs all; exits if one fails, or if there are `words` behind the name.

    Args:
        words: List of strings.
    """
    if words:
        sys.exit(
            f"The quick start takes no arguments: {' '.join(words)}. "
            "apps/train_cifar.py does."
        )
    started = time.perf_counter()
    dense, shrunk, narrow = (
        RUNS / method for method in ("dense", "targetprune", "narrow")
    )
    _train(dense)
    _train(shrunk, *SHRINKING)
    target = target_flops(records.result(dense), records.result(shrunk))
    _train(narrow, f"--target_flops={target}")
    print()
    compare.main([dense, shrunk, narrow])
    print(f"\n{verdict(records.result(shrunk), records.result(narrow))}")
    print(
        f"All of it took {time.perf_counter() - started:.0f} s. To look at "
        f"the runs: tensorboard --logdir {RUNS}"
    )


def _train(folder, *flags):
    """Trains by the method that `folder` is named after."""
    method = folder.name
    print(f"\n{method}: recorded in {folder}", flush=True)
    started = time.perf_counter()
    # A process each, so that no run inherits what an earlier one has warmed up.
    command = [
        *(sys.executable, str(ROOT / "apps" / "train_cifar.py")),
        *(f"--method={method}", f"--workdir={folder}", *RECIPE, *flags),
        "--restart",
    ]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"The {method} run failed: {' '.join(command)}")
    seconds = time.perf_counter() - started
    print(f"{method}: {seconds:.0f} s, with start and validation", flush=True)


def target_flops(dense, shrunk):
    """Returns at which fraction of the inference FLOPs a run has arrived.

    Args:
        dense: What `result.json` of the run at full width holds, a dict.
        shrunk: What that of the shrinking run holds.
    """
    return shrunk["forward_flops"] / dense["forward_flops"]


def verdict(shrunk, narrow):
    """Returns a sentence: what the pruning was worth in accuracy.

    Args:
        shrunk: What `result.json` of the shrinking run holds, a dict.
        narrow: What that of the narrow run holds.
    """
    points = 100 * (shrunk["val_accuracy"] - narrow["val_accuracy"])
    relation = "above" if points > 0 else "below"
    found = f"{abs(points):.2f} points {relation}" if points else "equal to"
    flops = narrow["forward_flops"] / shrunk["forward_flops"]
    return (
        f"The shrunk network is {found} the narrow one, which takes "
        f"{flops:.0%} of its inference FLOPs and was trained from scratch (one "
        "seed)."
    )


if __name__ == "__main__":
    main(sys.argv[1:])

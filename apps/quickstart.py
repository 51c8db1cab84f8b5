"""Trains the same small network twice, dense and shrinking, and compares.

Aim: on 1,797 real images of handwritten digits (embedded in scikit-learn), in
under 5 minutes on 2 cores, the shrinking network comes within 1.5 points of the
dense one's accuracy on the held-out fifth, at no more than 60% of its training
FLOPs and 80% of its seconds. Same seed, same epochs, same schedule. What was
measured is in docs/measurements.md.

    python apps/quickstart.py
"""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # For `python apps/quickstart.py`.

from apps import compare  # noqa: E402

RECIPE = [
    "--dataset=digits",
    "--network=resnet8",
    # Wide, because CPUs compute 16 channels in the time of one.
    "--width=64",
    "--epochs=90",
    "--learning_rate_drops=58,76",
    "--batch_size=32",
    # Channels shrink by learning rate / (1 - momentum) per update: with 0.9,
    # the epochs in which some are gone would be few.
    "--momentum=0.95",
    "--penalty_ratio=0.65",
    "--interval=10",
    # Late reconfigurations find little and cost the same.
    "--finetune_epochs=20",
    "--seed=0",
]


def main(words):
    """Runs both; exits if one fails, or if there are `words` behind the name.

    Args:
        words: List of strings.
    """
    if words:
        sys.exit(
            f"The quick start takes no arguments: {' '.join(words)}. "
            "apps/train_cifar.py does."
        )
    folders = []
    for method in ("dense", "prunetrain"):
        folder = ROOT / "runs" / "quickstart" / method
        print(f"\n{method}: recorded in {folder}", flush=True)
        # A process each, so that the second run inherits nothing that the
        # first has warmed up.
        command = [
            *(sys.executable, str(ROOT / "apps" / "train_cifar.py")),
            *(f"--method={method}", f"--workdir={folder}", *RECIPE),
            "--restart",
        ]
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"The {method} run failed: {' '.join(command)}")
        folders.append(folder)
    print()
    compare.main(folders)
    print(f"\nTo look at them: tensorboard --logdir {folders[0].parent}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Draws the README's picture from the kept records of two CIFAR-10 runs.

    python tools/readme_picture.py

writes `docs/shrinking.png`: how many channels each layer of a ResNet-20 has
left after each epoch, the training FLOPs of each epoch, and the validation
accuracy, beside those of the same training without pruning.
"""

import pathlib
import sys

import numpy as np
from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # For `python tools/readme_picture.py`.

from tools import run_records  # noqa: E402

RESULTS = ROOT / "tools" / "results"


def shares(run):
    """Returns the share of channels left, shape `(layers, epochs)`, and names.

    The reports of the reconfigurations hold the channels of every layer before
    and after; the channels do not change in between.
    """
    first = run.reconfigurations[0]["channels_before"]
    left = np.ones((len(first), len(run.metrics)))
    for report in run.reconfigurations:
        for row, (layer, channels) in enumerate(first.items()):
            after = report["channels_after"].get(layer, 0)
            left[row, report["epoch"] + 1 :] = after / channels
    return left, list(first)


def picture(dense, pruned):
    """Returns the `Figure`: channels, training FLOPs, validation accuracy."""
    figure = Figure((11, 3.6), dpi=110, layout="constrained")
    channels, flops, accuracy = figure.subplots(1, 3, width_ratios=(1.35, 1, 1))
    left, layers = shares(pruned)
    epochs = np.arange(1, len(pruned.metrics) + 1)
    image = channels.imshow(
        left,
        vmin=0,
        vmax=1,
        cmap="viridis",
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, len(epochs) + 0.5, len(layers) - 0.5, -0.5),
    )
    channels.set_yticks(range(len(layers)), layers, fontsize=5)
    channels.set_title("channels left, each layer", fontsize=10)
    figure.colorbar(image, ax=channels)
    dense_flops = dense.column("training_flops")
    for run, colour, name in (
        (dense, "#bbbbbb", "dense"),
        (pruned, "#0072b2", "PruneTrain"),
    ):
        relative = run.column("training_flops") / dense_flops
        flops.step(epochs, relative, color=colour, where="mid", label=name)
        accuracy.plot(epochs, run.column("val_accuracy"), color=colour)
    flops.set_ylim(0, 1.05)
    flops.set_title("training FLOPs of an epoch / dense", fontsize=10)
    flops.legend(loc="lower left")
    accuracy.set_ylim(0.4, 1)
    accuracy.set_title("validation accuracy", fontsize=10)
    for place in (channels, flops, accuracy):
        place.set_xlabel("epoch")
    return figure


def main():
    runs = [
        run_records.read(RESULTS / f"cifar10_resnet20_{name}.json")
        for name in ("dense", "ratio35")
    ]
    picture(*runs).savefig(ROOT / "docs" / "shrinking.png")


if __name__ == "__main__":
    main()

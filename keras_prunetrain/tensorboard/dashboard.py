"""What TensorBoard shows: which curves belong together, and a heat map."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from keras_prunetrain.channels.labels import Numbering

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from tensorboard.plugins.custom_scalar import layout_pb2

# More lines in one chart cannot be told apart.
_LINES = 6
# A curve of zeros, so that TensorBoard's axes begin at 0.
ZERO = "reference/zero"
# How far the weights are from the first ones, until EarlyCroP prunes.
DISTANCE = "training/weight_distance"


def stages(numbering: Numbering) -> dict[str, list[str]]:
    """Groups the layers with a kernel by the spatial size of their outputs.

    Args:
        numbering: The `Numbering` of a model.

    Returns:
        Dict from a title (`"32x32"`; `"vectors"` for layers whose outputs have
        no spatial axes) to a list of layers, in running order. A size that
        comes again later in the model is a further stage: `"32x32 (2)"`.
    """
    groups = {}
    written = {
        name: numbering.outputs[label.layer][0]
        for name, label in numbering.computed().items()
    }
    for size, layers in itertools.groupby(
        written, lambda layer: _size(written[layer])
    ):
        title, number = size, 1
        while title in groups:
            number += 1
            title = f"{size} ({number})"
        groups[title] = list(layers)
    return groups


def _size(channels):
    places = [
        size
        for axis, size in enumerate(channels.shape)
        if axis not in (0, channels.axis)
    ]
    return "x".join(str(size or "any") for size in places) or "vectors"


def layout(
    groups: Mapping[str, Sequence[str]],
    with_distance: bool = False,
    kept: Sequence[str] = (),
) -> "layout_pb2.Layout":
    """Returns the layout of TensorBoard's custom-scalars tab.

    Args:
        groups: As `stages` returns them.
        with_distance: Boolean. Whether there is a curve of the distance of the
            weights from the first ones.
        kept: The tags of what SDGP keeps of gradients.

    Returns:
        A `tensorboard.plugins.custom_scalar.layout_pb2.Layout`.
    """
    from tensorboard.plugins.custom_scalar import layout_pb2

    layers = [
        each
        for title, names in groups.items()
        for each in _charts(
            f"Channels left / first: {title}", [f"channels/{x}" for x in names]
        )
    ]
    categories = {
        "What training costs": [
            _chart(title, [tag, ZERO])
            for title, tag in _costs(with_distance, bool(kept)).items()
        ],
        "Channels by layer": layers,
    }
    if kept:
        title = "Kept of the gradients (SDGP, emulation)"
        categories[title] = _charts(title, kept)
    return layout_pb2.Layout(
        category=[
            layout_pb2.Category(title=title, chart=drawn)
            for title, drawn in categories.items()
        ]
    )


def _costs(with_distance, with_sdgp):
    """Returns the titles and tags of the curves of what training costs."""
    hardware = ", on n:m hardware" if with_sdgp else ""
    cost = {
        "Channels left / first: all layers": "density/model",
        f"Training FLOPs of an epoch / dense{hardware}": (
            "cost/relative_training_flops"
        ),
        "Parameters": "cost/parameters",
        "Seconds of an epoch": "time/epoch_seconds",
        "Batch size": "training/batch_size",
        "Learning rate": "training/learning_rate",
    }
    if with_sdgp:
        cost["FLOPs of an epoch that only n:m hardware leaves out"] = (
            "cost/emulated_flops"
        )
    if with_distance:
        cost["Distance from the first weights, until pruned"] = DISTANCE
    return cost


def _charts(title, tags):
    """Yields as many charts as are needed for the curves `tags`."""
    parts = -(-len(tags) // _LINES)
    for number, part in enumerate(np.array_split(tags, parts), start=1):
        count = f", {number} of {parts}" if parts > 1 else ""
        yield _chart(f"{title}{count}", [*map(str, part), ZERO])


def _chart(title, tags):
    from tensorboard.plugins.custom_scalar import layout_pb2

    patterns = [f"^{re.escape(tag)}$" for tag in tags]
    content = layout_pb2.MultilineChartContent(tag=patterns)
    return layout_pb2.Chart(title=title, multiline=content)


def heat_map(densities: ArrayLike, names: Sequence[str]) -> np.ndarray:
    """Returns `heat_map_figure` as `uint8`, shape `(height, width, 3)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(heat_map_figure(densities, names))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def heat_map_figure(densities: ArrayLike, names: Sequence[str]) -> "Figure":
    """Draws how many channels each layer has left, epoch by epoch.

    Args:
        densities: Array of fractions, shape `(epochs, layers)`.
        names: The layers' names.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    shares = np.asarray(densities)
    epochs, layers = shares.shape
    figure = Figure((8, 1.6 + 0.17 * layers), dpi=100, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(
        shares.T,
        vmin=0,
        vmax=1,
        cmap="viridis",
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, epochs + 0.5, layers - 0.5, -0.5),
    )
    axes.set_yticks(range(layers), names, fontsize=7)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epochs trained")
    axes.set_title("Channels left in each layer")
    bar = figure.colorbar(picture, ax=axes)
    bar.set_label("channels / channels at first")
    return figure

"""A picture of which layers compute and read the same channels."""

import collections
import os
import pathlib
import textwrap

import keras
import numpy as np

from keras_prunetrain.channels.liveness import Plan, plan_cut
from keras_prunetrain.channels.numbers import merge
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.channels.scores import Score, magnitude
from keras_prunetrain.checks import is_path

# These colours differ for the colour-blind, and in black-and-white print.
_GOES = "#56b4e9"
_STAYS = "#ffffff"
_FROZEN = "#cccccc"
_FORMATS = ("dot", "pdf", "png", "svg")


def plot_channels(
    model: keras.Model,
    to_file: str | os.PathLike = "channels.png",
    threshold: float = 1e-4,
    score: Score = magnitude,
) -> None:
    """Draws which layers share their channels, and which channels could go.

    A box is a layer with a kernel, an ellipse a set of channels. Arrows lead
    from the layers that compute the channels to the set, and from the set to
    the layers that read them; layers that are added, or multiplied, compute
    one set. A set is blue if some of its channels can go, and grey if all of
    them are frozen; the reason is written in it.

    Args:
        model: A functional or `Sequential` model.
        to_file: Path of the file to write. Its suffix says the format: `.dot`,
            or `.pdf`, `.png` or `.svg`, which Graphviz draws.
        threshold: As in `channel_report`.
        score: As in `channel_report`.

    Raises:
        ImportError: If pydot is not installed; or if Graphviz is not, unless
            the file is a `.dot` file.
        ValueError: If `to_file` is no path, has another suffix or cannot be
            written; otherwise as `channel_report`.
    """
    path = _checked_path(to_file)
    kind = path.suffix.removeprefix(".")
    try:
        import pydot
    except ImportError as error:
        raise ImportError(
            "`plot_channels` needs pydot: pip install keras-prunetrain[plot]"
        ) from error
    plan = plan_cut(model, CutOptions(threshold=threshold, score=score))
    nodes, edges = _nodes(plan), _edges(plan)
    for source, _ in edges:  # A source without a kernel, such as an input.
        if source not in nodes:
            nodes[source] = _ellipse(source, _FROZEN)
    dot = pydot.Dot(_quoted(model.name), rankdir="TB")
    # Nodes are called n0, n1, ..., because the name of a layer may contain
    # special characters of DOT, or equal the name of another node.
    ids = {node: f"n{i}" for i, node in enumerate(nodes)}
    for node, attributes in nodes.items():
        dot.add_node(pydot.Node(ids[node], **attributes))
    for source, target in edges:
        dot.add_edge(pydot.Edge(ids[source], ids[target]))
    picture = dot.to_string().encode() if kind == "dot" else _drawn(dot, kind)
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise ValueError(
            f"`to_file` cannot be written: {error}. Received: "
            f"to_file={str(path)!r}"
        ) from error


def _drawn(dot, kind):
    """Returns the bytes of the picture that Graphviz draws."""
    try:
        return dot.create(format=kind, encoding="utf-8")
    except FileNotFoundError as error:
        raise ImportError(
            f"To draw a .{kind} file, `plot_channels` needs Graphviz, see "
            "https://graphviz.org/download. A .dot file needs nothing."
        ) from error


def _checked_path(to_file):
    """Returns `to_file` as a path, whose suffix names one of the formats."""
    if is_path(to_file):
        path = pathlib.Path(to_file).expanduser()
        if path.suffix.removeprefix(".") in _FORMATS:
            return path
    raise ValueError(
        f"`to_file` must be a path that ends with one of {_FORMATS}. "
        f"Received: to_file={to_file!r}"
    )


def _sets(plan):
    """Returns the set that each channel number belongs to.

    All channels that one layer computes are in one set. Channels that no
    kernel computes have -1 in the place of a set: the channels of the model's
    inputs, and of layers that cannot be followed.
    """
    written = [label.numbers for label in plan.numbering.kernels("out")]
    sets = merge(plan.numbering.size, [(x[:-1], x[1:]) for x in written])
    computed = np.zeros(len(sets), bool)
    for numbers in written:
        computed[numbers] = True
    return np.where(computed, sets, -1)


def _nodes(plan: Plan) -> dict[str | int, dict[str, str]]:
    """Returns a dict from each node to its attributes.

    A node is the name of a layer, or the number of a set of channels.
    """
    nodes = {}
    for layer in dict.fromkeys(x.layer for x in plan.numbering.kernels()):
        nodes[layer] = {"shape": "box", "label": _quoted(layer)}
    sets = _sets(plan)
    inner = {
        int(sets[numbers[0]]): argument
        for kinds in plan.numbering.inner.values()
        for argument, numbers in kinds.items()
    }
    for one in np.unique(sets[sets >= 0]).tolist():
        numbers = np.flatnonzero(sets == one)
        going = int((~plan.alive[numbers]).sum())
        reasons = collections.Counter(
            plan.numbering.frozen.get(number) for number in numbers.tolist()
        )
        text, colour = f"{len(numbers)} {inner.get(one, 'channels')}", _STAYS
        if going:
            text, colour = f"{text}, {going} can go", _GOES
        elif None not in reasons:
            ((reason, _),) = reasons.most_common(1)
            lines = textwrap.wrap(reason, 40)
            text, colour = "\n".join([text, *lines]), _FROZEN
        nodes[one] = _ellipse(text, colour)
    return nodes


def _ellipse(text, colour):
    return {
        "label": _quoted(text),
        "style": "filled",
        "fillcolor": f'"{colour}"',
    }


def _edges(plan: Plan) -> list[tuple[str | int, str | int]]:
    """Returns the edges, each a pair of nodes, in the order of the model."""
    sets, sources = _sets(plan), _sources(plan.numbering)
    edges = {}
    for label in plan.numbering.kernels():
        for one in np.unique(sets[label.numbers]).tolist():
            if one >= 0:
                pair = (label.layer, one)
                edges[pair if label.side == "out" else pair[::-1]] = None
        if label.side == "in":
            for number in label.numbers[sets[label.numbers] < 0].tolist():
                edges[sources[number], label.layer] = None
    return list(edges)


def _sources(numbering):
    """Returns a dict from each number to the name of its channel's source."""
    sources = {}
    for key, outputs in numbering.outputs.items():
        for channels in outputs:
            for number in channels.numbers.tolist():
                sources.setdefault(number, key)
    for number, reason in numbering.frozen.items():
        # `reason` is "mixing (Softmax): it mixes channels", or "model input".
        sources[number] = reason.partition(":")[0]
    return sources


def _quoted(text):
    """Returns `text` as a string of the DOT language."""
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(character, escaped)
    return f'"{text}"'

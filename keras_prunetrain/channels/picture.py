"""A picture of which layers compute and read the same channels."""

import collections
import pathlib
import textwrap

import numpy as np

from keras_prunetrain.channels.liveness import plan_cut
from keras_prunetrain.channels.numbers import merge

# To be told apart by the colour-blind, and in print.
_GOES = "#56b4e9"
_STAYS = "#ffffff"
_HELD = "#cccccc"
_FORMATS = ("dot", "pdf", "png", "svg")


def plot_channels(model, to_file="channels.png", threshold=1e-4):
    """Draws what is coupled to what, and what could go.

    A box is a layer with a kernel, an ellipse a set of channels: arrows lead
    from the layers that compute them, coupled by additions and the like, to
    those that read them. Blue are those of which some can go; grey are those
    that are held whole, with what holds them.

    Args:
        model: A functional or `Sequential` model.
        to_file: Path of the file to write. Its suffix says the format: `.dot`,
            or `.pdf`, `.png` or `.svg`, which Graphviz draws.
        threshold: As in `channel_report`.

    Raises:
        ImportError: If pydot is not installed, or, unless for a `.dot` file,
            Graphviz is not.
        ValueError: If `model` has no known graph, `threshold` is negative or
            the suffix another one.
    """
    path = pathlib.Path(to_file)
    kind = path.suffix.removeprefix(".")
    if kind not in _FORMATS:
        raise ValueError(
            f"`to_file` must end with one of {_FORMATS}. Received: "
            f"to_file={str(to_file)!r}"
        )
    try:
        import pydot
    except ImportError as error:
        raise ImportError(
            "`plot_channels` needs pydot: pip install keras-prunetrain[plot]"
        ) from error
    plan = plan_cut(model, threshold)
    nodes, edges = _nodes(plan), _edges(plan)
    for source, _ in edges:  # What no layer computes: the model's input.
        nodes.setdefault(source, _ellipse(source, _HELD))
    dot = pydot.Dot(model.name, rankdir="TB")
    # With quotes: Graphviz takes names with slashes, or "node", for its own.
    for name, attributes in nodes.items():
        dot.add_node(pydot.Node(f'"{name}"', **attributes))
    for source, target in edges:
        dot.add_edge(pydot.Edge(f'"{source}"', f'"{target}"'))
    if kind == "dot":
        dot.write(path, encoding="utf-8")
        return
    try:
        picture = dot.create(format=kind, encoding="utf-8")
    except FileNotFoundError as error:
        raise ImportError(
            f"To draw a .{kind} file, `plot_channels` needs Graphviz, see "
            "https://graphviz.org/download. A .dot file needs nothing."
        ) from error
    path.write_bytes(picture)


def _groups(plan):
    """Returns the sets of channels: for each channel number, that of its set.

    All channels that one layer computes are in one set. -1: nothing computes
    them; they are of the model's input, or nothing is known of them.
    """
    written = [label.numbers for label in plan.numbering.kernels("out")]
    ties = [(x[:-1], x[1:]) for x in written]
    groups = merge(plan.numbering.size, ties)
    groups[
        np.setdiff1d(
            np.arange(len(groups)), np.concatenate([np.arange(0), *written])
        )
    ] = -1
    return groups


def _nodes(plan):
    """Returns a dict from the name of each node to its attributes."""
    nodes = {}
    for layer in dict.fromkeys(x.layer for x in plan.numbering.kernels()):
        nodes[layer] = {"shape": "box", "label": f'"{layer}"'}
    groups = _groups(plan)
    for group in np.unique(groups[groups >= 0]):
        numbers = np.flatnonzero(groups == group)
        going = int((~plan.alive[numbers]).sum())
        reasons = collections.Counter(
            plan.numbering.frozen.get(number) for number in numbers.tolist()
        )
        text, colour = f"{len(numbers)} channels", _STAYS
        if going:
            text, colour = f"{text}, {going} can go", _GOES
        elif None not in reasons:
            ((reason, _),) = reasons.most_common(1)
            text, colour = f"{text}\n{_wrapped(reason)}", _HELD
        nodes[_name(group)] = _ellipse(text, colour)
    return nodes


def _ellipse(text, colour):
    return {
        "label": f'"{text}"',
        "style": "filled",
        "fillcolor": f'"{colour}"',
    }


def _edges(plan):
    """Returns pairs of names of nodes, each once, in the order of the model."""
    groups = _groups(plan)
    edges = {}
    for label in plan.numbering.kernels():
        for group in np.unique(groups[label.numbers]):
            if group >= 0:
                pair = (label.layer, _name(group))
                edges[pair if label.side == "out" else pair[::-1]] = None
        if label.side == "in":
            for number in label.numbers[groups[label.numbers] < 0].tolist():
                reason = plan.numbering.frozen[number].partition(":")[0]
                edges[reason, label.layer] = None
    return list(edges)


def _name(group):
    return f"channels {group}"


def _wrapped(text):
    return "\n".join(textwrap.wrap(text.replace('"', "'"), 40))

"""The pictures of `tools/report.py`, drawn from the records of runs."""

import numpy as np
from matplotlib.figure import Figure

from keras_prunetrain.tensorboard.dashboard import heat_map_figure

# Okabe and Ito's: the colour-blind tell them apart. Styles for print.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLES = ("-", "--", "-.", ":")
_FIRST, _LEFT = "#bbbbbb", "#0072b2"


def accuracy(runs):
    """Validation accuracy against epochs, seconds and training FLOPs."""
    abscissas = _known(
        runs,
        {
            "epoch": ("epochs", lambda x: x + 1),
            "seconds": ("minutes of training", lambda x: np.cumsum(x) / 60),
            "training_flops": (
                "training TFLOP so far",
                lambda x: np.cumsum(x) / 1e12,
            ),
        },
    )
    figure = _figure(4 * len(abscissas), 3.6)
    (axes,) = figure.subplots(1, len(abscissas), sharey=True, squeeze=False)
    for place, (key, (title, convert)) in zip(
        axes, abscissas.items(), strict=True
    ):
        for i, run in enumerate(runs):
            values = 100 * run.column("val_accuracy")
            abscissa = convert(_values(run, key))
            place.plot(
                abscissa, values, label=_literal(run.name), **_line(i, run)
            )
        place.set_xlabel(title)
    _whole_numbers(axes[0])
    axes[0].set_ylabel("validation accuracy, %")
    axes[0].legend()
    return figure


def cost(runs):
    """What an epoch costs, over the epochs."""
    titles = _known(
        runs,
        {
            "training_flops": ("training TFLOP of an epoch", 1e12),
            "seconds": ("seconds of an epoch", 1),
            "parameters": ("parameters, thousands", 1e3),
        },
    )
    figure = _figure(4 * len(titles), 3.6)
    (axes,) = figure.subplots(1, len(titles), squeeze=False)
    for place, (key, (title, unit)) in zip(axes, titles.items(), strict=True):
        columns = [_values(run, key) / unit for run in runs]
        _steps(place, runs, columns, title)
    _legend(axes[0])
    return figure


def _values(run, key):
    # What an emulation computes counts, though n:m hardware would not.
    return run.training_flops if key == "training_flops" else run.column(key)


def _known(runs, titles):
    """Returns those of `titles` whose key any of `runs` has."""
    return {
        key: title
        for key, title in titles.items()
        if any(run.has(key) for run in runs)
    }


def schedule(runs):
    """Batch size and learning rate over the epochs."""
    figure = _figure(12, 3.2)
    left, right = figure.subplots(1, 2)
    batches = [run.column("batch_size") for run in runs]
    _steps(left, runs, batches, "batch size, images")
    rates = [run.column("learning_rate") for run in runs]
    _steps(right, runs, rates, "learning rate", "log")
    _legend(left)
    return figure


def distance(runs):
    """How far the weights are from the first ones, until they are pruned."""
    figure = _figure(6, 3.4)
    place = figure.subplots()
    for i, run in enumerate(runs):
        values = run.column("weight_distance")
        if np.isnan(values).all():
            continue
        line = _line(i, run)
        epochs = run.column("epoch") + 1
        place.plot(epochs, values, label=_literal(run.name), **line)
        last = run.pruned_after
        if last:
            place.plot(last, values[last - 1], "o", color=line["color"])
    place.set_xlabel("epoch")
    _whole_numbers(place)
    place.set_ylabel("distance / norm of the first weights")
    place.set_ylim(bottom=0)
    _legend(place)
    return figure


def kept_gradient(runs):
    """Which part of the data gradients SDGP keeps, over the epochs."""
    figure = _figure(6, 3.4)
    place = figure.subplots()
    for i, run in enumerate(runs):
        values = run.column("kept_gradient")
        if not np.isnan(values).all():
            epochs = run.column("epoch") + 1
            place.plot(
                epochs, values, label=_literal(run.name), **_line(i, run)
            )
    place.set_xlabel("epoch")
    _whole_numbers(place)
    place.set_ylabel("kept of the L1 mass, mean over the layers")
    place.set_ylim(0, 1.05)
    _legend(place)
    return figure


def memory(runs):
    """Memory of a training iteration over the epochs (figure 9)."""
    figure = _figure(6, 3.4)
    place = figure.subplots()
    columns = [run.column("memory_bytes") / 1e6 for run in runs]
    _steps(place, runs, columns, "MB of a training iteration")
    _legend(place)
    return figure


def communication(runs):
    """What each of many devices would send in an epoch (figure 11)."""
    figure = _figure(6, 3.4)
    place = figure.subplots()
    columns = [
        2 * run.column("gradient_bytes") * run.column("updates") / 1e6
        for run in runs
    ]
    title = "MB that each of many devices\nsends in an epoch"
    _steps(place, runs, columns, title)
    _legend(place)
    return figure


def channels(run):
    """Channels of each layer, at first and in the end."""
    layers = list(run.channels)
    first = [run.channels[layer].shape[1] for layer in layers]
    left = [len(run.left(layer, -1)) for layer in layers]
    figure = _figure(8, 1.4 + 0.2 * len(layers))
    place = figure.subplots()
    rows = np.arange(len(layers))
    place.barh(rows, first, color=_FIRST, label="at first")
    place.barh(rows, left, color=_LEFT, height=0.45, label="in the end")
    place.set_yticks(rows, list(map(_literal, layers)), fontsize=7)
    place.invert_yaxis()
    place.set_ylim(len(layers) - 0.4, -0.6)
    place.set_xlabel("channels")
    place.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def heat_map(run):
    """Share of its channels that each layer has left, epoch by epoch."""
    densities = [
        [
            len(run.left(layer, epoch)) / history.shape[1]
            for layer, history in run.channels.items()
        ]
        for epoch in range(len(run.metrics))
    ]
    return heat_map_figure(densities, list(map(_literal, run.channels)))


def weight_density(run, shares):
    """How many weights of what is left are alive themselves (figure 12)."""
    figure = _figure(8, 1.4 + 0.2 * len(shares))
    place = figure.subplots()
    rows = np.arange(len(shares))
    place.barh(rows, list(shares.values()), color=_LEFT)
    place.set_yticks(rows, list(map(_literal, shares)), fontsize=7)
    place.set_ylim(len(shares) - 0.4, -0.6)
    place.set_xlim(0, 1)
    place.set_xlabel(f"share of weights of at least {run.threshold:g}")
    return figure


def revival(run, layers):
    """Largest weight of each channel over the epochs (figure 4)."""
    figure = _figure(12, 3.6)
    axes = np.atleast_1d(figure.subplots(1, len(layers), sharey=True))
    for place, layer in zip(axes, layers, strict=True):
        _lines_of_channels(place, run, layer)
        place.axhline(run.threshold, color="black", linestyle=":")
        place.set_yscale("log")
        place.set_title(_literal(layer), fontsize=9)
        place.set_xlabel("epoch")
        _whole_numbers(place)
    axes[0].set_ylabel("largest |weight| of a channel")
    handles = {}
    for place in axes:
        for handle, label in zip(
            *place.get_legend_handles_labels(), strict=True
        ):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper right", ncols=2
    )
    return figure


def _lines_of_channels(place, run, layer):
    epochs = run.column("epoch") + 1
    history = run.channels[layer][: len(epochs)]
    stays = ~np.isnan(history[-1])
    for mask, colour, label in (
        (~stays, _COLOURS[1], "removed in the end"),
        (stays, _COLOURS[0], "left in the end"),
    ):
        lines = place.plot(
            epochs,
            np.maximum(history[:, mask], 1e-9),
            color=colour,
            linewidth=0.8,
            marker=_marker(run),
            alpha=0.7,
        )
        if lines:
            lines[0].set_label(label)


def _literal(text):
    """Returns `text` so that matplotlib draws it as it is.

    It takes what stands between two "$" for mathematics, and leaves out of a
    legend what begins with "_".
    """
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _figure(width, height):
    return Figure((width, height), dpi=110, layout="constrained")


def _legend(place):
    if place.get_legend_handles_labels()[0]:
        place.legend(loc="lower left")


def _whole_numbers(place):
    place.xaxis.get_major_locator().set_params(integer=True)


def _marker(run):
    # A line of one point is nothing to see.
    return "o" if len(run.metrics) == 1 else None


def _line(i, run):
    return {
        "marker": _marker(run),
        "color": _COLOURS[i % len(_COLOURS)],
        "linestyle": _STYLES[i % len(_STYLES)],
    }


def _steps(place, runs, columns, title, scale="linear"):
    if not any((values > 0).any() for values in columns):
        scale = "linear"  # On another one there is nothing to show.
    for i, (run, values) in enumerate(zip(runs, columns, strict=True)):
        if np.isnan(values).all():
            continue  # Not known of this run; the others keep their colours.
        place.plot(
            run.column("epoch") + 1,
            values,
            drawstyle="steps-mid",
            label=_literal(run.name),
            **_line(i, run),
        )
    place.set_xlabel("epoch")
    _whole_numbers(place)
    place.set_ylabel(title)
    place.set_yscale(scale)
    if scale == "linear":
        place.set_ylim(0, 1.05 * place.get_ylim()[1])

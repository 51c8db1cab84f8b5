"""Makes one page of pictures from the folders of runs.

    python tools/report.py runs/quickstart/dense runs/quickstart/targetprune

writes `report/index.html`, which needs nothing else, and the same pictures as
PNG files beside it. A run is what `apps/train_*.py` leaves in its `--workdir`,
or a file that `tools/record_run.py` made of it; one that is not finished is
shown as far as it got. If one of the runs is dense, all others are compared
with it. `--output` names another folder. `--without_seconds` leaves out the
times of runs that were taken on different machines.
"""

import argparse
import base64
import html
import io
import os
import pathlib
import sys

import numpy as np
import PIL.Image

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import figures  # noqa: E402
import run_records  # noqa: E402

from apps import compare  # noqa: E402

# Of which the revival picture shows the channels.
_CHOSEN_LAYERS = 3


def pictures(runs):
    """Yields the title, caption, file name and figure of each picture."""
    yield from _pictures_of_training(runs)
    yield from _pictures_of_moments(runs)
    yield from _pictures_of_gradients(runs)
    yield from _pictures_of_devices(runs)
    for run in runs:
        if run.channels and run.may_shrink:
            yield from _pictures_of(run)


def _pictures_of_training(runs):
    of_times = of_seconds = ""
    if any(run.has("seconds") for run in runs):
        of_times = "; times without validation"
        of_seconds = (
            " Its seconds contain the surgery, those of the next epoch the "
            "tracing of a new step."
        )
    yield (
        "Accuracy",
        f"The same accuracy against what it took{of_times}. Further left is "
        "cheaper.",
        "accuracy",
        figures.accuracy(runs),
    )
    yield (
        "What an epoch costs",
        "Steps down are reconfigurations, each at the end of an epoch. The "
        "FLOPs are those that the epoch took, the parameters those that it "
        f"left.{of_seconds}",
        "cost",
        figures.cost(runs),
    )
    yield (
        "Batch size and learning rate",
        "The learning rate is the one that the optimizer trained with.",
        "schedule",
        figures.schedule(runs),
    )


def _pictures_of_moments(runs):
    """Yields when EarlyCroP has pruned, and by what it has seen that."""
    measured = [run for run in runs if run.has("weight_distance")]
    if any(
        np.isfinite(run.column("weight_distance")).any() for run in measured
    ):
        moments = "; ".join(
            f"{run.name} {_moment(run.pruned_after)}" for run in measured
        )
        yield (
            "When the network was pruned",
            "The distance of the weights from the first ones. A point marks "
            f"the epoch after which a network was pruned: {moments}.",
            "distance",
            figures.distance(runs),
        )


def _pictures_of_gradients(runs):
    if any(run.has("kept_gradient") for run in runs):
        yield (
            "What is kept of the data gradients",
            "An emulation of n:m hardware. Measured in the first step of each "
            "epoch; 1 where the gradients are dense.",
            "kept_gradient",
            figures.kept_gradient(runs),
        )


def _moment(epochs):
    if epochs is None:
        return "not yet"
    return f"after epoch {epochs}" if epochs else "before the first epoch"


def _pictures_of_devices(runs):
    if any(run.has("memory_bytes") for run in runs):
        yield (
            "Memory",
            "Activations, weights, gradients and slots of one iteration, by "
            "the model of keras_prunetrain.training_bytes (figure 9 of the "
            "paper).",
            "memory",
            figures.memory(runs),
        )
    if any(run.has("gradient_bytes", "updates") for run in runs):
        yield (
            "Communication",
            "Computed: twice the gradients at each update, as in a ring "
            "all-reduce of many devices (figure 11 of the paper).",
            "communication",
            figures.communication(runs),
        )


def _pictures_of(run):
    yield (
        f"{run.name}: channels of each layer",
        "What training has left of each layer.",
        f"{run.name}_channels",
        figures.channels(run),
    )
    yield (
        f"{run.name}: where the channels went, and when",
        "Share of its channels that each layer has left after each epoch.",
        f"{run.name}_heat_map",
        figures.heat_map(run),
    )
    yield (
        f"{run.name}: do removed channels come back?",
        "Each line is a channel: its largest weight over the epochs, in the "
        "layers that lost most. It ends where the channel is removed. Below "
        f"the dotted threshold ({run.threshold:g}) it is dead, and kept only "
        "if another layer that shares it needs it (figure 4 of the paper).",
        f"{run.name}_revival",
        figures.revival(run, _most_changed(run)),
    )
    shares = _weight_shares(run)
    if shares:
        yield (
            f"{run.name}: weights inside the channels that are left",
            "Whole channels go; single weights below the threshold stay, and "
            "are computed with (figure 12 of the paper).",
            f"{run.name}_weights",
            figures.weight_density(run, shares),
        )


def _most_changed(run):
    lost = {
        layer: history.shape[1] - len(run.left(layer, -1))
        for layer, history in run.channels.items()
    }
    chosen = sorted(lost, key=lost.get, reverse=True)[:_CHOSEN_LAYERS]
    return [layer for layer in run.channels if layer in chosen]


def _weight_shares(run):
    """Dict from each layer to the share of its weights above the threshold.

    Empty if the model is not there, or cannot be read.
    """
    path = run.path / "model.keras"
    if not path.exists():
        return {}
    import keras

    try:
        model = keras.saving.load_model(path, compile=False)
        kernels = {
            layer.name: _kernel(layer)
            for layer in model.layers
            if layer.name in run.channels
        }
    except Exception:  # Whatever a broken archive leads Keras and zlib to.
        run.remarks.append("model.keras cannot be read: none of its weights")
        return {}
    return {
        name: float(np.mean(np.abs(kernel.numpy()) >= run.threshold))
        for name, kernel in kernels.items()
    }


def _kernel(layer):
    # Of a separable convolution the part whose channels are in the records.
    if hasattr(layer, "pointwise_kernel"):
        return layer.pointwise_kernel
    return layer.kernel


def summary_table(runs):
    """Returns the last figures of the finished runs as rows of HTML."""
    dense = next((run for run in runs if run.is_dense and run.result), None)
    rows = compare.rows([run.result for run in runs], dense and dense.result)
    return "\n".join(
        [
            _row("th", ["", *(run.name for run in runs)]),
            *(_row("td", row) for row in rows),
        ]
    )


def reconfiguration_table(run):
    """Returns what each reconfiguration of a run did as rows of HTML."""
    titles = ["after epoch", "channels", "training MFLOP per image"]
    titles += ["batch", "learning rate", "seconds", "removed layers"]
    lines = [_row("th", titles)]
    for report in run.reconfigurations:
        before, after = (
            sum(report[f"channels_{when}"].values())
            for when in ("before", "after")
        )
        flops = "-"
        if report["cost_before"] and report["cost_after"]:
            flops = " → ".join(
                f"{report[f'cost_{when}']['training_flops'] / 1e6:,.1f}"
                for when in ("before", "after")
            )
        rate = report["learning_rate"]
        cells = [
            report["epoch"] + 1,
            f"{before} → {after}",
            flops,
            report.get("batch_size_after") or report["batch_size"] or "-",
            "-" if rate is None else f"{rate:.3g}",
            _seconds(report),
            ", ".join(report["removed_layers"]) or "-",
        ]
        lines.append(_row("td", cells))
    return "\n".join(lines)


def _seconds(report):
    parts = [report.get(key) for key in ("seconds", "first_step_seconds")]
    return "-" if None in parts else f"{sum(parts):.1f}"


def _row(kind, cells):
    content = "".join(
        f"<{kind}>{html.escape(str(cell))}</{kind}>" for cell in cells
    )
    return f"<tr>{content}</tr>"


_TITLE = "Training: "
_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222;
       max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ border-bottom: 1px solid #ccc; padding: .25rem .9rem .25rem 0;
         text-align: left; }}
figure {{ margin: 2.5rem 0; }}
img {{ max-width: 100%; }}
h2 {{ margin: 2.5rem 0 .5rem; font-size: 1.25rem; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def page(runs, images):
    """Returns the page.

    Args:
        runs: List of `Run`s.
        images: List of title, caption and PNG bytes of each picture.
    """
    parts = [f"<table>{summary_table(runs)}</table>"]
    for run in runs:
        parts += [
            f"<p>{html.escape(run.name)}: {html.escape(remark)}.</p>"
            for remark in run.remarks
        ]
    if not any(run.is_dense for run in runs):
        parts.append(
            "<p>No dense run is among these: nothing to compare with.</p>"
        )
    for title, caption, png in images:
        data = base64.b64encode(png).decode()
        parts.append(
            f"<h2>{html.escape(title)}</h2><p>{html.escape(caption)}</p>"
            f'<img alt="{html.escape(title)}" '
            f'src="data:image/png;base64,{data}">'
        )
    for run in runs:
        if run.reconfigurations:
            parts.append(
                f"<h2>{html.escape(run.name)}: reconfigurations</h2>"
                f"<table>{reconfiguration_table(run)}</table>"
            )
    title = _TITLE + ", ".join(run.name for run in runs)
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    small = io.BytesIO()  # With 64 colours a third of the size.
    picture = PIL.Image.open(buffer).convert("RGB").quantize(64)
    picture.save(small, format="png", optimize=True)
    return small.getvalue()


def write(paths, output, *, without_seconds=False):
    """Writes the page and the pictures of the runs in `paths`.

    Raises:
        ValueError: If there is no run in one of them, if a record of one cannot
            be used, or if `output` has a page of something else.
        OSError: If a file cannot be read or written.
    """
    runs = _told_apart([run_records.read(path) for path in paths])
    if without_seconds:
        runs = [run.without_seconds() for run in runs]
    output = pathlib.Path(output)
    _check_output(output)
    output.mkdir(parents=True, exist_ok=True)
    images = []
    for title, caption, name, figure in pictures(runs):
        png = _png(figure)
        (output / f"{name}.png").write_bytes(png)
        images.append((title, caption, png))
    path = output / "index.html"
    path.write_text(page(runs, images), encoding="utf-8")
    return path


def _check_output(folder):
    path = folder / "index.html"
    if path.exists() and _TITLE not in path.read_text(errors="replace"):
        raise ValueError(
            f"{path} was not written by this program. Choose another --output."
        )


def _told_apart(runs):
    """Names runs by more of their path where two have the same name."""
    names = [run.name for run in runs]
    parents = [run.path.resolve().parent for run in runs]
    shared = len(pathlib.Path(os.path.commonpath(parents)).parts)
    return [
        run._replace(
            name=run_records.readable(
                "_".join(run.path.resolve().parts[shared:])
            )
        )
        if names.count(run.name) > 1
        else run
        for run in runs
    ]


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", help="Folders or files of runs.")
    parser.add_argument("--output", default="report", help="A folder.")
    parser.add_argument("--without_seconds", action="store_true")
    arguments = parser.parse_args(words)
    if not arguments.output:
        parser.error("--output must be a folder, such as --output=report.")
    try:
        path = write(
            arguments.runs,
            arguments.output,
            without_seconds=arguments.without_seconds,
        )
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(f"Wrote {path}.")


if __name__ == "__main__":
    main()

"""Makes one page of pictures from the folders of runs.

    python tools/report.py runs/quickstart/dense runs/quickstart/prunetrain

writes `report/index.html`, which needs nothing else, and the same pictures as
PNG files beside it. A run is what `apps/train_*.py` leaves in its `--workdir`;
one that is not finished is shown as far as it got. If one of the runs is dense,
all others are compared with it. `--output` names another folder.
"""

import argparse
import base64
import html
import io
import json
import pathlib
import sys
import zipfile
from typing import NamedTuple

import figures
import numpy as np
import PIL.Image

# Of which the revival picture shows the channels.
_CHOSEN_LAYERS = 3


class Run(NamedTuple):
    """The records of one run.

    Attributes:
        name: The name of its folder.
        folder: Path.
        metrics: List of dicts, one for each epoch.
        reconfigurations: List of dicts.
        channels: Dict from a layer to the largest magnitude of each channel,
            shape `(epochs, channels)`, NaN once it is gone. Empty if unknown.
        result: Dict; empty while the run is not finished.
        remarks: List of strings: what is missing.
    """

    name: str
    folder: pathlib.Path
    metrics: list
    reconfigurations: list
    channels: dict
    result: dict
    remarks: list

    @property
    def is_dense(self):
        if self.result:
            return self.result["method"] == "dense"
        return all(row.get("density", 1.0) == 1.0 for row in self.metrics)

    @property
    def threshold(self):
        return self.result.get("recipe", {}).get("threshold", 1e-4)

    def column(self, key):
        """Returns what `metrics` has under `key`, NaN where it has not."""
        return np.array([row.get(key, np.nan) for row in self.metrics], float)

    def has(self, *keys):
        """Whether any epoch has all of these `keys`."""
        return any(all(key in row for key in keys) for row in self.metrics)

    def left(self, layer, epoch):
        """Returns the positions of the channels that are left."""
        history = self.channels[layer][: len(self.metrics)]
        return np.flatnonzero(~np.isnan(history[epoch]))


def read(folder):
    """Returns the `Run` in `folder`.

    Raises:
        ValueError: If `folder` has no epoch of a run.
    """
    folder = pathlib.Path(folder)
    path = folder / "metrics.jsonl"
    if not path.exists():
        raise ValueError(f"There is no run in '{folder}': expected {path}.")
    remarks = []
    metrics = _lines(path, remarks)
    if not metrics:
        raise ValueError(f"The run in '{folder}' has not finished an epoch.")
    reconfigurations = []
    if (folder / "reconfigurations.jsonl").exists():
        reconfigurations = _lines(folder / "reconfigurations.jsonl", remarks)
    result, channels = {}, {}
    try:
        result = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        remarks.append(f"not finished: {len(metrics)} epochs so far")
    except json.JSONDecodeError:
        remarks.append("result.json breaks off")
    try:
        file = io.BytesIO((folder / "channels.npz").read_bytes())
        with np.load(file) as arrays:
            channels = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        remarks.append("no channels.npz: no pictures of its layers")
    except (ValueError, OSError, zipfile.BadZipFile):
        remarks.append("channels.npz breaks off: no pictures of its layers")
    name = folder.resolve().name
    return Run(
        name, folder, metrics, reconfigurations, channels, result, remarks
    )


def _lines(path, remarks):
    """Returns the JSON objects in the lines of a file, without a cut one."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            remarks.append(f"{path.name} breaks off in line {number}")
            break
    return rows


def pictures(runs):
    """Yields the title, caption, file name and figure of each picture."""
    yield (
        "Accuracy",
        "The same accuracy against epochs, training time (validation aside) "
        "and training FLOPs. Further left is cheaper.",
        "accuracy",
        figures.accuracy(runs),
    )
    yield (
        "What an epoch costs",
        "Steps down are reconfigurations. An epoch behind one contains the "
        "surgery and the tracing of a new step.",
        "cost",
        figures.cost(runs),
    )
    yield (
        "Batch size and learning rate",
        "The learning rate is the one that the optimizer trained with.",
        "schedule",
        figures.schedule(runs),
    )
    with_memory = [run for run in runs if run.has("memory_bytes")]
    if with_memory:
        yield (
            "Memory",
            "Activations, weights, gradients and slots of one iteration, by "
            "the model of keras_prunetrain.training_bytes (figure 9 of the "
            "paper).",
            "memory",
            figures.memory(with_memory),
        )
    with_bytes = [run for run in runs if run.has("gradient_bytes", "updates")]
    if with_bytes:
        yield (
            "Communication",
            "Computed: twice the gradients at each update, as in a ring "
            "all-reduce of many devices (figure 11 of the paper).",
            "communication",
            figures.communication(with_bytes),
        )
    for run in runs:
        if run.channels and not run.is_dense:
            yield from _pictures_of(run)


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
    if (run.folder / "model.keras").exists():
        yield (
            f"{run.name}: weights inside the channels that are left",
            "Whole channels go; single weights below the threshold stay, and "
            "are computed with (figure 12 of the paper).",
            f"{run.name}_weights",
            figures.weight_density(run, _weight_shares(run)),
        )


def _most_changed(run):
    lost = {
        layer: history.shape[1] - len(run.left(layer, -1))
        for layer, history in run.channels.items()
    }
    chosen = sorted(lost, key=lost.get, reverse=True)[:_CHOSEN_LAYERS]
    return [layer for layer in run.channels if layer in chosen]


def _weight_shares(run):
    """Dict from each layer to the share of its weights above the threshold."""
    import keras

    model = keras.saving.load_model(run.folder / "model.keras", compile=False)
    return {
        layer.name: float(
            np.mean(np.abs(layer.get_weights()[0]) >= run.threshold)
        )
        for layer in model.layers
        if layer.name in run.channels
    }


_ROWS = {  # Key of result.json: title, format, divisor.
    "val_accuracy": ("validation accuracy", "{:.2%}", 1),
    "parameters": ("parameters", "{:,.0f}", 1),
    "forward_flops": ("inference MFLOP per image", "{:,.2f}", 1e6),
    "total_training_flops": ("training TFLOP", "{:,.1f}", 1e12),
    "seconds": ("training minutes", "{:,.1f}", 60),
    "reconfiguration_seconds": (
        "of them reconfiguring, seconds",
        "{:,.1f}",
        1,
    ),
    "reconfigurations": ("reconfigurations", "{:,.0f}", 1),
}


def summary_table(runs):
    """Returns the last figures of the finished runs as rows of HTML."""
    dense = next((run for run in runs if run.is_dense and run.result), None)
    lines = [_row("th", ["", *(run.name for run in runs)])]
    for key, (title, form, unit) in _ROWS.items():
        cells = [title]
        for run in runs:
            if key not in run.result:
                cells.append("-")
                continue
            cell = form.format(run.result[key] / unit)
            if dense is not None and run is not dense:
                cell += _relation(key, run.result, dense.result)
            cells.append(cell)
        lines.append(_row("td", cells))
    return "\n".join(lines)


def _relation(key, result, dense):
    if key == "val_accuracy":
        return f" ({100 * (result[key] - dense[key]):+.2f} points)"
    return f" ({result[key] / dense[key]:.0%})" if dense[key] else ""


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
        if report["cost_before"]:
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
            f"{report['seconds'] + report['first_step_seconds']:.1f}",
            ", ".join(report["removed_layers"]) or "-",
        ]
        lines.append(_row("td", cells))
    return "\n".join(lines)


def _row(kind, cells):
    content = "".join(
        f"<{kind}>{html.escape(str(cell))}</{kind}>" for cell in cells
    )
    return f"<tr>{content}</tr>"


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
    title = "Training: " + ", ".join(run.name for run in runs)
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    small = io.BytesIO()  # With 64 colours a third of the size.
    picture = PIL.Image.open(buffer).convert("RGB").quantize(64)
    picture.save(small, format="png", optimize=True)
    return small.getvalue()


def write(folders, output):
    """Writes the page and the pictures of the runs in `folders`.

    Raises:
        ValueError: If there is no run in one of them.
    """
    runs = _told_apart([read(folder) for folder in folders])
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    images = []
    for title, caption, name, figure in pictures(runs):
        png = _png(figure)
        (output / f"{name}.png").write_bytes(png)
        images.append((title, caption, png))
    path = output / "index.html"
    path.write_text(page(runs, images), encoding="utf-8")
    return path


def _told_apart(runs):
    """Names runs by their whole path where two folders have the same name."""
    names = [run.name for run in runs]
    return [
        run._replace(name="_".join(run.folder.resolve().parts[1:]))
        if names.count(run.name) > 1
        else run
        for run in runs
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", help="Folders of runs.")
    parser.add_argument("--output", default="report", help="A folder.")
    arguments = parser.parse_args()
    try:
        path = write(arguments.folders, arguments.output)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(f"Wrote {path}.")


if __name__ == "__main__":
    main()

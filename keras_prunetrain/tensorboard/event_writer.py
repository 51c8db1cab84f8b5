"""Writes what TensorBoard shows of a run into event files."""

import contextlib
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_prunetrain.channels.scores import Score, magnitude
from keras_prunetrain.fit.record import Reconfiguration
from keras_prunetrain.tensorboard import dashboard

_LOG = logging.getLogger("keras_prunetrain")
_SMALLEST = 1e-12  # Smaller scores are shown as this one.
# The tags of the histograms.
MAGNITUDES = "log10_of_magnitude_over_threshold"
SCORES = "log10_of_score_over_threshold"


def check_installed() -> None:
    """Raises a `ValueError` if tensorboard is not installed."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "DensityLog needs tensorboard: pip install tensorboard"
        ) from error


def curve_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of `values`, a dict, that a curve can show."""
    return {k: v for k, v in values.items() if curve_value(v) is not None}


def curve_value(value: Any) -> float | None:
    """Returns `value` as a point of a curve, `None` if it is no number.

    Metrics may be vectors (`F1Score()` has a value for each class), and
    callbacks put strings into `logs`: curves can show neither.

    Args:
        value: Whatever `logs` holds: a number, an array, a tensor, a string.
    """
    try:
        number = float(value) if np.ndim(value) == 0 else math.nan
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def write_errors() -> tuple[type[Exception], ...]:
    """Returns the errors of a disk that is full or a folder that is gone."""
    import tensorflow as tf

    return (OSError, tf.errors.OpError)


class EventWriter:
    """Writes event files into a folder; call its methods inside `at`.

    Args:
        folder: Path of a local folder.
    """

    def __init__(self, folder: str | os.PathLike):
        import tensorflow as tf

        self._writer = tf.summary.create_file_writer(str(folder))
        self._said_no_heat_map = False

    @contextlib.contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Assigns all that is written inside to `step`; flushes the file."""
        import tensorflow as tf

        # Keras's own TensorBoard callback leaves its `record_if` in effect.
        with self._writer.as_default(step), tf.summary.record_if(True):
            yield
        self._writer.flush()

    def values(self, values: Mapping[str, Any]) -> None:
        """Writes each value of a dict that has a `curve_value`."""
        import tensorflow as tf

        for tag, value in values.items():
            point = curve_value(value)
            if point is not None:
                tf.summary.scalar(tag, point)

    def layout(
        self,
        stages: Mapping[str, Sequence[str]],
        logs: Mapping[str, Any],
        kept: Iterable[str],
    ) -> None:
        """Writes which curves the *Custom Scalars* tab shows together.

        Args:
            stages: As `dashboard.stages` returns them.
            logs: The logs of the first epoch.
            kept: The tags of what SDGP keeps of gradients.
        """
        import tensorflow as tf
        from tensorboard.plugins.custom_scalar import summary

        with_distance = "weight_distance" in logs
        layout = dashboard.layout(stages, with_distance, list(kept))
        layout = summary.pb(layout)
        tf.summary.experimental.write_raw_pb(layout.SerializeToString())

    def settings(
        self, values: Mapping[str, Any], results: Sequence[str], run: str
    ) -> None:
        """Writes the settings of a run, and which curves are its results.

        Args:
            values: Dict of settings; `None` for settings that the run lacks.
                TensorBoard shows the columns of one run for all runs.
            results: List of tags of scalars.
            run: String that identifies this run.
        """
        from tensorboard.plugins.hparams import api

        api.hparams(
            {k: v for k, v in values.items() if v is not None}, trial_id=run
        )
        api.hparams_config(
            hparams=[api.HParam(name) for name in values],
            metrics=[api.Metric(tag) for tag in results],
        )

    def histograms(
        self, scores: Mapping[str, np.ndarray], score: Score, threshold: float
    ) -> None:
        """Writes a histogram of the channels of each layer.

        Args:
            scores: As `scores_of_layers` returns them.
            score: The function that computed the scores.
            threshold: Float above 0. The score that is shown as 0.
        """
        import tensorflow as tf
        from tensorboard.plugins.histogram import summary

        tag, what = MAGNITUDES, "the largest |w| in each channel"
        if score is not magnitude:
            name = getattr(score, "__qualname__", type(score).__name__)
            tag, what = SCORES, f"the score of each channel ({name})"
        text = (
            f"Decimal logarithm of {what}, over {threshold:g}. With this "
            "threshold, what is below 0 is dead."
        )
        for layer, values in scores.items():
            # After a training has diverged, some scores are not finite.
            shown = np.maximum(values[np.isfinite(values)], _SMALLEST)
            # `tf.summary.histogram` takes many times as long.
            histogram = summary.histogram_pb(
                f"{tag}/{layer}",
                np.log10(shown / threshold),
                description=text,
            )
            tf.summary.experimental.write_raw_pb(histogram.SerializeToString())

    def reconfiguration(self, report: Reconfiguration) -> None:
        """Writes a `Reconfiguration` as a table, and its seconds."""
        import tensorflow as tf

        tf.summary.text("reconfigurations", _markdown(report))
        self.values({"time/reconfiguration_seconds": report.seconds})

    def notes(self, texts: Sequence[str]) -> None:
        """Writes a list of `texts`, if there is any, as one text."""
        import tensorflow as tf

        if texts:
            tf.summary.text("notes", "\n\n".join(texts))

    def heat_map(
        self, densities: Sequence[Sequence[float]], layers: Sequence[str]
    ) -> None:
        """Writes `dashboard.heat_map`, if matplotlib is there to draw it."""
        import tensorflow as tf

        if not layers:
            return
        try:
            picture = dashboard.heat_map(densities, layers)
        except ImportError:
            if not self._said_no_heat_map:
                self._said_no_heat_map = True
                _LOG.warning(
                    "No heat map in TensorBoard: it needs matplotlib. "
                    "pip install matplotlib"
                )
            return
        tf.summary.image("channels_of_layers", picture[None])


def _markdown(report):
    """Returns a `Reconfiguration` as a table in Markdown."""
    lines = [
        str(report),
        "",
        "| layer | channels before | after | held by |",
        "| --- | ---: | ---: | --- |",
    ]
    for layer, before in report.channels_before.items():
        held = ", ".join(report.held.get(layer, []))
        after = report.channels_after.get(layer, 0)
        lines.append(f"| {layer} | {before} | {after} | {held} |")
    return "\n".join(lines)

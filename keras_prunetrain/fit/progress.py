"""How far a model has shrunk, and what it was at first."""

import dataclasses
import math
from typing import Any

from keras_prunetrain.cost import Cost
from keras_prunetrain.fit.record import Reconfiguration


class Progress:
    """How one model has shrunk, over every `fit` with one callback.

    Attributes:
        reports: List of a `Reconfiguration` for each that took place.
        size: Integer. Number of the model's channel numbers now.
    """

    def __init__(self):
        self.reports: list[Reconfiguration] = []
        self.size = self._first_size = 0
        self._first_seconds = math.inf
        self._epoch_seconds = 0.0
        self._awaits_first_step = False

    @property
    def density(self) -> float:
        """The model's channels over those that it had at first."""
        return self.size / self._first_size

    def begin_fit(self, size: int) -> None:
        """Takes note of the model's channel numbers before a `fit`."""
        self.size = size
        self._first_size = self._first_size or size
        self._awaits_first_step = False

    def end_step(self, seconds: float) -> None:
        """Takes note of a step, and of its seconds."""
        if self._awaits_first_step:
            self._awaits_first_step = False
            self.reports[-1].first_step_seconds = seconds

    def end_epoch(self, seconds: float) -> None:
        """Takes note of an epoch's seconds, before its reconfiguration."""
        self._epoch_seconds = seconds
        if not self.reports:  # The shortest: the first one traces.
            self._first_seconds = min(self._first_seconds, seconds)

    def get_state(self) -> dict[str, Any]:
        """Returns the state, as numbers, strings, lists and dicts."""
        return {
            "reports": [dataclasses.asdict(report) for report in self.reports],
            "size": self.size,
            "first_size": self._first_size,
            "first_seconds": self._first_seconds,
            "epoch_seconds": self._epoch_seconds,
            "awaits_first_step": self._awaits_first_step,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the state that `get_state` returned."""
        self.reports = [_report(values) for values in state["reports"]]
        self.size = state["size"]
        self._first_size = state["first_size"]
        self._first_seconds = state["first_seconds"]
        self._epoch_seconds = state["epoch_seconds"]
        self._awaits_first_step = state["awaits_first_step"]

    def add(self, report: Reconfiguration) -> None:
        """Adds the report of the reconfiguration that has just been done."""
        if self.reports and math.isfinite(self._first_seconds):
            report.seconds_saved = self._first_seconds - self._epoch_seconds
        self.reports.append(report)
        self._awaits_first_step = True


def _report(values):
    costs = {
        name: values[name] and _cost(values[name])
        for name in ("cost_before", "cost_after")
    }
    return Reconfiguration(**values | costs)


def _cost(values):
    # The others are computed.
    names = [field.name for field in dataclasses.fields(Cost) if field.init]
    return Cost(**{name: values[name] for name in names})

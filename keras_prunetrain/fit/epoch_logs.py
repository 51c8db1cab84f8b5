"""What a callback that makes the model smaller adds to the history of `fit`."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import keras

from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.cost import communication_bytes
from keras_prunetrain.distribution import replica_count
from keras_prunetrain.fit.meter import EpochMeter, trained_rate
from keras_prunetrain.lasso.attach import all_finite
from keras_prunetrain.memory import iteration_bytes
from keras_prunetrain.sdgp.attach import sdgp_layers
from keras_prunetrain.variables import gradient_bytes

_LOG = logging.getLogger("keras_prunetrain")
_NAMES = (
    *("density", "training_flops", "batch_size", "memory_bytes"),
    *("learning_rate", "communication_bytes", "weight_distance"),
    *("kept_gradient", "emulated_flops"),
)


class EpochLogs:
    """Adds values to the logs of epochs; never replaces a metric."""

    def __init__(self):
        self._taken = None

    def note_metrics(self, logs: Mapping[str, Any]) -> None:
        """Warns, at the first step, of metrics that have a name of `_NAMES`.

        The metrics are not known before: the model's own `train_step` may
        return any.

        Args:
            logs: Dict. The metrics of a step.
        """
        if self._taken is not None:
            return
        self._taken = {name for name in _NAMES if name in logs}
        if self._taken:
            _LOG.warning(
                "The history keeps the model's own metrics %s, and does not "
                "show what this package would log under these names. Rename "
                "the metrics to see both.",
                ", ".join(map(repr, sorted(self._taken))),
            )

    def add(self, logs: dict[str, Any], values: Mapping[str, float]) -> None:
        """Adds a dict of `values` to `logs`, the dict of an epoch."""
        for name, value in values.items():
            if name not in (self._taken or ()):
                logs[name] = value

    def correct(
        self, history: Mapping[str, list[float]], name: str, value: float
    ) -> None:
        """Replaces the last value of a name in `history`.

        Args:
            history: Dict from a name to the list of the values of all epochs.
            name: String.
            value: The right value.
        """
        if history.get(name) and name not in (self._taken or ()):
            history[name][-1] = value


def values_of_epoch(
    model: keras.Model,
    meter: EpochMeter,
    batch: DynamicBatch | None,
    steps: int | None,
) -> dict[str, float]:
    """Returns the values of an epoch for the history, a dict.

    Args:
        model: The model that was trained, before its reconfiguration.
        meter: The `EpochMeter`.
        batch: A `DynamicBatch`, or `None`.
        steps: Integer, the steps of an epoch; `None` if not known.
    """
    values = {"training_flops": meter.training_flops}
    if sdgp_layers(model):
        values["emulated_flops"] = meter.emulated_flops
    replicas = replica_count(model)
    if batch is not None:
        cost = meter.current_cost()
        fixed, per_example = iteration_bytes(model, cost=cost)
        values["batch_size"] = batch.size
        values["memory_bytes"] = fixed + batch.size // replicas * per_example
        learning_rate = trained_rate(meter, batch)
        if learning_rate is not None:
            values["learning_rate"] = learning_rate
    if replicas > 1:
        sent = communication_bytes(gradient_bytes(model), replicas)
        values["communication_bytes"] = sent * (steps or math.nan)
    return values


def has_diverged(model: keras.Model, logs: Mapping[str, float] | None) -> bool:
    """Whether the loss in `logs`, or a weight of `model`, is not finite.

    Args:
        model: The model.
        logs: Dict of an epoch, or `None`.
    """
    loss = (logs or {}).get("loss", 0.0)
    return not (math.isfinite(loss) and all_finite(model))


def cannot_be_cut(
    model: keras.Model, epoch: int, logs: Mapping[str, float] | None
) -> bool:
    """Whether the model `has_diverged`, so that no cut is right; warns then.

    Args:
        model: The model.
        epoch: Integer, the epoch that is over.
        logs: Dict of this epoch, or `None`.
    """
    diverged = has_diverged(model, logs)
    if diverged:
        _LOG.warning(
            "No reconfiguration after epoch %d: the loss (%s) or a weight of "
            "'%s' is not finite. If that lasts, the training has diverged: "
            "lower the learning rate.",
            epoch,
            loss_in(logs),
            model.name,
        )
    return diverged


def loss_in(logs: Mapping[str, float] | None) -> float:
    """Returns the `loss` in the `logs` of an epoch; NaN if there is none."""
    return (logs or {}).get("loss", math.nan)

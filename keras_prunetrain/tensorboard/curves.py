"""The points of an epoch on each of TensorBoard's curves."""

import math
from collections.abc import Mapping
from typing import Any

import keras

from keras_prunetrain.cost import Cost
from keras_prunetrain.sdgp.attach import kept_masses
from keras_prunetrain.tensorboard.dashboard import DISTANCE, ZERO
from keras_prunetrain.tensorboard.logged_run import LoggedRun


def channel_points(run: LoggedRun, channels: int) -> dict[str, float]:
    """Returns the shares of channels left in the model and in each layer.

    Args:
        run: The `LoggedRun`, which has noted the epoch.
        channels: The channels of the whole model after the epoch.
    """
    shares = zip(run.layers, run.densities[-1], strict=True)
    return {
        "density/model": channels / run.channels,
        **{f"channels/{layer}": share for layer, share in shares},
        ZERO: 0.0,
    }


def dense_flops(cost: Cost | None) -> int | None:
    """Returns the FLOPs of a training step without SDGP; `None` if unknown."""
    return cost and cost.training_flops + cost.emulated_flops


def cost_points(
    run: LoggedRun, cost: Cost | None, examples: int | None
) -> dict[str, float | None]:
    """Returns the costs of training one epoch; `None` for an unknown cost.

    Args:
        run: The `LoggedRun`.
        cost: The `Cost` of the model that was trained, `None` if unknown.
        examples: The number of examples in the epoch, `None` if unknown.
    """
    if cost is None:
        return {}
    flops, dense = cost.training_flops, run.training_flops
    return {
        "cost/training_flops": examples and flops * examples,
        "cost/relative_training_flops": flops / dense if dense else None,
        # Only of a training that has some.
        "cost/emulated_flops": (
            cost.emulated_flops * examples
            if examples and cost.emulated_flops
            else None
        ),
        "memory/activation_bytes_per_example": cost.activation_bytes,
    }


def kept_points(model: keras.Model) -> dict[str, float]:
    """Returns which part of each gradient's mass `SDGPCallback` has kept.

    Args:
        model: The model that was trained; without SDGP, the dict is empty.
    """
    masses = kept_masses(model)
    return {f"kept_gradient/{layer}": mass for layer, mass in masses.items()}


def log_points(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the points that the logs of an epoch contain.

    Args:
        logs: The logs of the epoch.
    """
    curves = {
        "training/batch_size": "batch_size",
        "training/learning_rate": "learning_rate",
        "memory/training_bytes": "memory_bytes",
        "communication/bytes": "communication_bytes",
        DISTANCE: "weight_distance",
    }
    return {tag: logs[name] for tag, name in curves.items() if name in logs}


def training_points(
    run: LoggedRun, training: Any, rate: float | None, logs: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the points of how an epoch was trained, and at which cost.

    Args:
        run: The `LoggedRun`.
        training: A `ReconfiguringCallback` or a `DenseTraining`.
        rate: Float, the learning rate that the optimizer shows, or `None`.
        logs: The logs of the epoch, whose values go before.
    """
    meter = training.meter
    share = training.penalty_share(logs.get("loss", math.nan))
    return {
        **cost_points(run, meter.cost, meter.examples),
        "time/epoch_seconds": meter.seconds,
        "training/penalty_ratio": share,
        "training/batch_size": meter.batch_size,
        "training/learning_rate": rate,
        **kept_points(training.model),
        **log_points(logs),
    }

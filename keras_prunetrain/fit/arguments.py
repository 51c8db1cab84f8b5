"""Checks of what a pruning callback is given and of what it returns."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.channels.liveness import Plan
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.checks import is_count, is_number
from keras_prunetrain.cost import Cost
from keras_prunetrain.devices import AUTO
from keras_prunetrain.saliency import ON_DATA


def check_schedule(
    penalty_ratio: float,
    interval: int,
    finetune_epochs: int,
    factor: float | None,
) -> None:
    """Raises a `ValueError` if one of them is out of its range."""
    # It is kept in float32, in which 1e-320 would be 0, no lasso at all.
    kept = np.finfo("float32")
    least, most = float(kept.smallest_normal), float(kept.max)
    if factor is not None and not (
        is_number(factor) and least <= factor <= most
    ):
        raise ValueError(
            "`factor` must be a number above 0 that a float32 can hold, or "
            "`None` to compute the factor from the first batch. Received: "
            f"factor={factor!r}"
        )
    if not is_number(penalty_ratio) or not 0.0 < penalty_ratio < 1.0:
        raise ValueError(
            "`penalty_ratio` is the lasso's share of the loss, a fraction "
            f"between 0 and 1. Received: penalty_ratio={penalty_ratio}"
        )
    if not is_count(interval, 1):
        raise ValueError(
            "`interval` must be a number of epochs, an integer of at least 1. "
            f"Received: interval={interval}"
        )
    if not is_count(finetune_epochs):
        raise ValueError(
            "`finetune_epochs` must be an integer, at least 0. "
            f"Received: finetune_epochs={finetune_epochs}"
        )


def check_solver(solver: str, coupled: bool) -> None:
    """Raises a `ValueError` if one of them is none."""
    if solver not in ("auto", "subgradient", "proximal"):
        raise ValueError(
            "`solver` must be 'auto', 'subgradient' or 'proximal'. Received: "
            f"solver={solver!r}"
        )
    if not isinstance(coupled, bool):
        raise ValueError(
            f"`coupled` must be True or False. Received: coupled={coupled!r}"
        )


def check_batch(batch: DynamicBatch | None) -> None:
    """Raises a `ValueError` if `batch` is neither `None` nor a batch."""
    if not isinstance(batch, DynamicBatch | None):
        raise ValueError(
            "`batch` must be a `DynamicBatch`; a fixed batch size belongs "
            f"into `fit` or the data set. Received: batch={batch!r}"
        )


def options_of(
    threshold: float, reconfigure: Mapping[str, Any] | None
) -> CutOptions:
    """Returns what a callback was asked for, the `CutOptions` of its cuts.

    Args:
        threshold: As in `reconfigure`.
        reconfigure: Further arguments of `reconfigure`, by their names, or
            `None`.

    Raises:
        ValueError: If `threshold`, or anything in `reconfigure`, is nothing
            that `reconfigure` takes.
    """
    if not isinstance(reconfigure, dict | None):
        raise ValueError(
            "`reconfigure` must be a dict of arguments. "
            f"Received: reconfigure={reconfigure!r}"
        )
    arguments = reconfigure or {}
    names = [x.name for x in dataclasses.fields(CutOptions)]
    names.remove("threshold")  # An argument of its own.
    unknown = [repr(name) for name in arguments if name not in names]
    if unknown:
        raise ValueError(
            f"`reconfigure` takes {', '.join(map(repr, names))}. "
            f"Received: {', '.join(sorted(unknown))}"
        )
    return CutOptions(threshold=threshold, **arguments)


def check_no_score(reconfigure: Mapping[str, Any] | None) -> None:
    """Raises a `ValueError` for options that only a threshold uses."""
    unused = sorted({"fold", "score"} & set(reconfigure or ()))
    if unused:
        raise ValueError(
            "`reconfigure` takes 'channel_multiple', 'min_channels' and 'skip' "
            "here: the target decides which channels go, by the callback's "
            f"own `score`. Received: {', '.join(map(repr, unused))}"
        )


def target_options(reconfigure: Any) -> Any:
    """Returns the arguments of `reconfigure` for a target of the cost.

    Counts of channels that the device computes fast meet the target, unless
    the caller says otherwise.

    Args:
        reconfigure: As of `options_of`, which refuses what is no dict.

    Raises:
        ValueError: As `check_no_score`.
    """
    if not isinstance(reconfigure, dict | None):
        return reconfigure
    check_no_score(reconfigure)
    return {"channel_multiple": AUTO} | (reconfigure or {})


def check_what_goes(
    sparsity: float,
    target: str,
    targets: tuple[str, ...],
    score: str,
) -> None:
    """Raises a `ValueError` for a wrong argument of `EarlyCroPCallback`.

    Args:
        sparsity: As passed.
        target: As passed.
        targets: The targets that there are.
        score: As passed.
    """
    if not is_number(sparsity) or not 0.0 < sparsity < 1.0:
        raise ValueError(
            "`sparsity` is the part of the model that goes, a number above 0 "
            f"and below 1. Received: sparsity={sparsity!r}"
        )
    if target not in targets:
        raise ValueError(
            f"`target` must be one of {', '.join(map(repr, targets))}. "
            f"Received: target={target!r}"
        )
    if score not in ON_DATA:
        raise ValueError(
            f"`score` must be one of {', '.join(map(repr, ON_DATA))}. "
            f"Received: score={score!r}"
        )


def check_iterations(iterations: int, interval: int) -> None:
    """Raises a `ValueError` for wrong iterations of `EarlyCroPCallback`."""
    for name, value, least in (
        ("iterations", iterations, 1),
        ("interval", interval, 0),
    ):
        if not is_count(value, least):
            raise ValueError(
                f"`{name}` must be an integer of at least {least}. Received: "
                f"{name}={value!r}"
            )
    if interval and iterations == 1:
        raise ValueError(
            "`interval` is the number of epochs between several cuts. Pass "
            "`iterations`, the number of cuts, as well, or leave `interval` "
            f"out. Received: iterations=1, interval={interval}"
        )


def check_backend(name: str) -> None:
    """Raises a `ValueError` unless Keras runs on TensorFlow.

    Args:
        name: The class of the callback that needs it.
    """
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ValueError(
            f"{name} acts inside the train step of the TensorFlow backend. "
            f"Received: keras.backend.backend()={backend!r}"
        )


def check_first_cost(cost: Cost | None) -> None:
    """Raises a `ValueError` if `cost` is neither `None` nor a `Cost`."""
    if not isinstance(cost, Cost | None):
        raise ValueError(
            "`of` must be a `Cost`, of `keras_prunetrain.model_cost`, or "
            f"`None` for that of the model. Received: of={cost!r}"
        )


def planned_by(callback: Any) -> Plan:
    """Returns the `Plan` of a callback.

    Raises:
        ValueError: If its `plan` returns something else.
    """
    plan = callback.plan()
    if not isinstance(plan, Plan):
        raise ValueError(
            f"`plan` of {type(callback).__name__} must return a `Plan`, as "
            "`plan_cut` and `plan_of` in keras_prunetrain.channels.liveness "
            f"do. Received: {plan!r}"
        )
    return plan


def agreed_by(callback: Any, log: Any) -> dict[str, Any]:
    """Returns all that workers must agree on, for a callback.

    Args:
        callback: The callback.
        log: Its own `DensityLog`, or `None`.

    Raises:
        ValueError: As `settings_of`.
    """
    return {
        **settings_of(callback),
        "batch": callback.batch,
        "log_dir given": log is not None,
        "submodels": callback.submodels,
    }


def settings_of(callback: Any) -> dict[str, Any]:
    """Returns the settings of a callback.

    Raises:
        ValueError: If its `settings` returns something that a log cannot show.
    """
    settings = callback.settings()
    where = f"`settings` of {type(callback).__name__} must return a dict"
    if not isinstance(settings, dict):
        raise ValueError(f"{where}. Received: {settings!r}")
    for name, value in settings.items():
        fits = is_number(value) or isinstance(value, str | bool | None)
        if not isinstance(name, str) or not fits:
            raise ValueError(
                f"{where} from names to numbers, strings, booleans or `None`, "
                f"which logs can show. Received: {name}={value!r}"
            )
    return settings


def check_backups(
    backup_dir: Any, save_freq: Any, keep: Any, delete_checkpoint: Any
) -> None:
    """Raises a `ValueError` for a wrong argument of `BackupAndRestore`."""
    if not isinstance(backup_dir, str | os.PathLike) or not str(backup_dir):
        raise ValueError(
            "`backup_dir` must be the path of a local folder. Received: "
            f"backup_dir={backup_dir!r}"
        )
    if save_freq != "epoch" and not is_count(save_freq, 1):
        raise ValueError(
            "`save_freq` must be 'epoch', or an integer of at least 1, a "
            f"number of steps. Received: save_freq={save_freq!r}"
        )
    if not is_count(keep, 1):
        raise ValueError(
            "`keep` must be an integer of at least 1, the number of "
            f"backups that stay. Received: keep={keep!r}"
        )
    if not isinstance(delete_checkpoint, bool):
        raise ValueError(
            "`delete_checkpoint` must be True or False. Received: "
            f"delete_checkpoint={delete_checkpoint!r}"
        )


def check_hooks(callback: Any, has_begun: bool, epoch: int) -> None:
    """Raises a `ValueError` if a subclass replaces a hook of its base.

    Args:
        callback: A callback that makes the model smaller.
        has_begun: Boolean. Whether the `on_train_begin` of the base was called.
        epoch: Integer, the epoch that ends.
    """
    if has_begun and callback.epoch == epoch:
        return
    hook, argument = "on_epoch_begin", "epoch, "
    if not has_begun:
        hook, argument = "on_train_begin", ""
    raise ValueError(
        f"`{hook}` of {type(callback).__name__} must call "
        f"`super().{hook}({argument}logs)`: the base class prepares the "
        "training there."
    )

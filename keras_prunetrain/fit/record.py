"""The record of one reconfiguration."""

import dataclasses

import keras

from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.channels.liveness import Plan
from keras_prunetrain.channels.report import report_of
from keras_prunetrain.cost import Cost
from keras_prunetrain.fit.meter import EpochMeter, trained_rate
from keras_prunetrain.lasso import attach


@dataclasses.dataclass
class Reconfiguration:
    """What one reconfiguration changed, and how long it took.

    Attributes:
        epoch: The epoch after which it took place, from 0.
        channels_before: Dict from each layer with a kernel to the number of
            channels that it computed. Layers of a nested model are named
            `"model/layer"`, here and below.
        channels_after: The same afterwards; 0 for layers that are gone.
        keep: Dict from each of these layers to the sorted positions, among the
            channels before, of those that stayed; an empty list for layers
            that are gone.
        removed_layers: Names of the layers that left with a branch, sorted.
        constants_kept: Names of the additions that still add the constant of
            a branch that left; the constant is not trained any further.
        held: Dict from each layer to the list of reasons why channels stayed
            that are dead in the layer or may not go; without the layers that
            kept no such channel.
        cost_before: `Cost` per example, without `per_layer`; `None` if the
            size of an example is not known.
        cost_after: The same afterwards.
        batch_size: Number of examples over all replicas; `None` if it is not
            known.
        batch_size_after: The same afterwards; larger if a `DynamicBatch` grew.
        learning_rate: The rate of the last step, scaled with the batch; `None`
            if the optimizer has several.
        penalty_ratio: Share of the lasso in (task loss + lasso), from the lasso
            at the end of the epoch and the mean loss of the epoch; 0 for a
            method without a penalty, and if the logs have no loss.
        seconds_saved: Seconds by which this epoch was shorter than the fastest
            one of the first architecture, validation apart; 0 in the first
            report, and negative if it was longer.
        seconds: Seconds from the choice of the channels until the memory of the
            old weights was free.
        first_step_seconds: Seconds of the next training step, in which the step
            is traced again; 0 until that step is done, and if there is none.
    """

    epoch: int
    channels_before: dict[str, int]
    channels_after: dict[str, int]
    keep: dict[str, list[int]]
    removed_layers: list[str]
    constants_kept: list[str]
    held: dict[str, list[str]]
    cost_before: Cost | None
    cost_after: Cost | None
    batch_size: int | None
    batch_size_after: int | None
    learning_rate: float | None
    penalty_ratio: float
    seconds_saved: float = 0.0
    seconds: float = 0.0
    first_step_seconds: float = 0.0

    def __str__(self):
        parts = [
            f"Epoch {self.epoch + 1}: channels "
            f"{sum(self.channels_before.values())} -> "
            f"{sum(self.channels_after.values())}"
        ]
        before, after = self.cost_before, self.cost_after
        if before is not None:
            saved = before.forward_flops - after.forward_flops
            parts += [
                f"parameters {before.parameters:,} -> {after.parameters:,}",
                f"forward MFLOP {before.forward_flops / 1e6:,.1f} -> "
                f"{after.forward_flops / 1e6:,.1f} "
                f"(-{saved / max(before.forward_flops, 1):.0%})",
            ]
        if self.batch_size_after != self.batch_size:
            parts.append(f"batch {self.batch_size} -> {self.batch_size_after}")
        elif self.batch_size is not None:
            parts.append(f"batch {self.batch_size}")
        if self.learning_rate is not None:
            parts.append(f"learning rate {self.learning_rate:.3g}")
        if round(self.seconds_saved, 1):
            change = "shorter" if self.seconds_saved > 0 else "longer"
            parts.append(
                f"epochs {abs(self.seconds_saved):.1f} s {change} than at first"
            )
        text = ", ".join([*parts, f"took {self.seconds:.1f} s"])
        if self.removed_layers:
            text += f"; removed: {', '.join(self.removed_layers)}"
        return text


def record_of(
    plan: Plan,
    epoch: int,
    meter: EpochMeter,
    batch: DynamicBatch | None,
    penalty_ratio: float,
) -> Reconfiguration:
    """Returns the `Reconfiguration` that `plan` is about to do.

    Values that are known only after the cut are those from before it.

    Args:
        plan: The `Plan`.
        epoch: As in `Reconfiguration`.
        meter: The `EpochMeter` of the `fit`.
        batch: The batch that grows, or `None`.
        penalty_ratio: As in `Reconfiguration`.
    """
    batch_size = batch.size if batch else meter.batch_size
    cost = totals(meter.current_cost())
    keep = {
        name: (
            []
            if label.layer in plan.removed
            else plan.keep(label.numbers).tolist()
        )
        for name, label in plan.numbering.computed().items()
    }
    rows = [row for row in report_of(plan) if row.layer in keep]
    return Reconfiguration(
        epoch=epoch,
        channels_before={row.layer: row.channels for row in rows},
        channels_after={name: len(kept) for name, kept in keep.items()},
        keep=keep,
        removed_layers=sorted(plan.removed),
        constants_kept=sorted(
            addition.key
            for addition in plan.additions.values()
            if addition.constant.any()
        ),
        held={row.layer: list(row.held_by) for row in rows if row.held_by},
        cost_before=cost,
        cost_after=cost,
        batch_size=batch_size,
        batch_size_after=batch_size,
        learning_rate=trained_rate(meter, batch),
        penalty_ratio=penalty_ratio,
    )


def totals(cost: Cost | None) -> Cost | None:
    """Returns `cost` without that of each layer."""
    return cost and dataclasses.replace(cost, per_layer={})


def penalty_share(
    model: keras.Model, loss: float, lasso: float | None = None
) -> float:
    """Returns the share of the lasso in (task loss + lasso), a fraction.

    Args:
        model: The model, with a lasso or without.
        loss: Float. Mean loss of the epoch, with the penalties that are in it.
        lasso: Float. The penalty of the lasso; `None` for that of the lassos
            that are on the kernels.
    """
    if lasso is None:
        lasso = attach.lasso_penalty(model)
    whole = loss - attach.weight_penalties(model) + lasso
    return lasso / whole if whole > 0.0 else 0.0

"""The scores that are measured on training data, and whether they can be."""

import re
from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np

from keras_prunetrain.gradient_flow import (
    Batch,
    Flow,
    differentiated_twice,
    gradient_flow,
    loss_gradient,
    state_kept,
    synaptic_flow,
    task_loss,
)


def measured_flow(
    model: keras.Model,
    batches: Iterable[Batch],
    rule: str,
    masks: Mapping[int, np.ndarray] | None = None,
) -> Flow:
    """Returns the `Flow` that `rule` needs.

    Args:
        model: A compiled model, not inside a traced function.
        batches: `Batch`es of training data, read twice: a list.
        rule: One of `saliency.ON_DATA`.
        masks: As of `gradient_flow`; the other rules need none.

    Raises:
        ValueError: As the function that measures it.
    """
    if rule == "synflow":
        return synaptic_flow(model, batches)
    if rule == "snip":
        return loss_gradient(model, batches)
    return gradient_flow(model, batches, masks)


def check_batches(
    model: keras.Model,
    batches: Sequence[Batch],
    rule: str,
    derivatives: bool = True,
) -> None:
    """Raises a `ValueError` if `rule` cannot be measured on the batches.

    So that no training is lost that has come to the moment of the measurement.

    Args:
        model: A compiled model.
        batches: List of `Batch`es, at least one.
        rule: One of `saliency.ON_DATA`.
        derivatives: Whether the second derivatives are tried as well, where
            `rule` needs them, on the first batch. Not needed where the
            measurement follows at once.
    """
    if rule == "synflow":  # Takes one example, and no targets.
        batches = batches[:1]
    for number, batch in enumerate(batches, start=1):
        where = f"batch {number} of the scoring data"
        try:
            with state_kept(model):
                if rule == "synflow":
                    model(batch.x, training=False)
                    continue
                loss = task_loss(model, batch)
        except Exception as error:  # Layers and losses raise what they like.
            raise ValueError(
                f"The loss of '{model.name}' cannot be measured on {where}. "
                "The data must be what `fit` takes, and a model with a "
                "`train_step` of its own needs `compile(loss=...)` or a "
                f"`compute_loss`. {type(error).__name__}: {_said_by(error)}"
            ) from error
        if not np.isfinite(keras.ops.convert_to_numpy(loss)):
            raise ValueError(
                f"The loss of '{model.name}' is not finite on {where}. Look "
                "for values in the data that are not finite, sample weights "
                f"included. Received: loss={float(loss)}"
            )
    if derivatives and rule in ("gradient_flow", "grasp"):
        differentiated_twice(model, batches[:1])


def _said_by(error):
    """Returns the text of an error of Keras in one line, without its colors."""
    text = re.sub("\x1b\\[[0-9;]*m", "", str(error))
    return " ".join(text.split("\n\nArguments received by")[0].split())

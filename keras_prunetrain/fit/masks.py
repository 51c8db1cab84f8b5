"""Weights that stay zero through a training, one by one."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras.optimizers import Optimizer

from keras_prunetrain import keras_internals
from keras_prunetrain.distribution import mean_over_workers
from keras_prunetrain.gradient_flow import Batch
from keras_prunetrain.scoring import measured_flow
from keras_prunetrain.trainers import updating_optimizers
from keras_prunetrain.variables import is_kernel

_NAME = "masks"


class Masks:
    """Keeps chosen weights of a model at exactly zero.

    Inside the train step, the masked entries of the gradients are zero before
    the optimizer sees them, so that they count in no norm. After its step, the
    entries of the weights and of their slots are set to zero. The shapes stay,
    so a step takes as long as before.

    Args:
        model: The model that trains; compiled, for TensorFlow.
        masks: Dict from a name of `kernels_of` to a bool array of the weight's
            shape: which entries stay.
    """

    def __init__(self, model: keras.Model, masks: dict[str, np.ndarray]):
        self.masks = masks
        # Held, so that no other variable takes the `id` of one that is gone.
        self._weights = weights = kernels_of(model)
        with keras_internals.strategy_scope(model):
            self._variables = {
                id(weights[name]): keras.Variable(
                    mask.astype("float32"), trainable=False, name="mask"
                )
                for name, mask in masks.items()
            }

    def by_weight(self) -> dict[int, np.ndarray]:
        """Returns the masks by the `id` of their weights."""
        return {id(self._weights[k]): mask for k, mask in self.masks.items()}

    def attach(self, model: keras.Model) -> None:
        """Acts in every step of the optimizer, which is traced anew.

        Raises:
            ValueError: If a masked weight is no longer a weight of the model.
        """
        now = {id(weight) for weight in model.weights}
        gone = [x.path for x in self._weights.values() if id(x) not in now]
        if gone:
            raise ValueError(
                "The masks of an earlier `fit` are of weights that "
                f"'{model.name}' no longer has: {', '.join(gone)}. The model "
                "was reconfigured in between. Call `forget()` of the callback "
                "to choose weights anew, or train without it."
            )
        for name, mask in self.masks.items():
            value = keras_internals.values_of(self._weights[name])
            self._weights[name].assign(np.where(mask, value, 0.0))
        for optimizer in updating_optimizers(model):
            hook = _Hook(self._variables, optimizer)
            keras_internals.add_step_hook(optimizer, _NAME, hook)
        model.make_train_function(force=True)

    def detach(self, model: keras.Model) -> None:
        """Acts no more."""
        for optimizer in updating_optimizers(model):
            keras_internals.remove_step_hook(optimizer, _NAME)
        model.make_train_function(force=True)


class _Hook:
    """A hook around the step of one optimizer."""

    def __init__(self, masks, optimizer: Optimizer):
        self._masks = masks
        self._optimizer = optimizer

    def __call__(self, step, gradients, variables):
        factors = {
            key: keras.ops.convert_to_tensor(mask)
            for key, mask in self._masks.items()
        }
        gradients = [
            keras_internals.masked_gradient(gradient, factors[id(variable)])
            if id(variable) in factors
            else gradient
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        result = step(gradients, variables)
        keras_internals.scale_in_step(self._optimizer, variables, factors)
        return result


def prune_weights(
    model: keras.Model,
    batches: Sequence[Batch],
    rule: str,
    fraction: float,
    earlier: Masks | None,
) -> Masks:
    """Sets the weights to zero that matter least; returns the attached masks.

    Args:
        model: The model that trains.
        batches: List of `Batch`es, on which the weights are scored.
        rule: One of `saliency.ON_DATA`.
        fraction: As of `next_masks`.
        earlier: The attached `Masks` so far, or `None`.
    """
    gone = None if earlier is None else earlier.by_weight()
    flow = measured_flow(model, batches, rule, gone)
    if earlier is not None:
        earlier.detach(model)
    masks = next_masks(model, flow.weight_scores(rule), fraction, earlier)
    masks.attach(model)
    return masks


def next_masks(
    model: keras.Model,
    scores: Mapping[int, np.ndarray],
    fraction: float,
    earlier: Masks | None = None,
) -> Masks:
    """Returns the masks of the weights that matter most; not yet attached.

    Args:
        model: The model that trains.
        scores: Dict from the `id` of a weight to the scores of its entries, at
            least 0, as measured on this worker.
        fraction: Float in (0, 1], the part of all weights of kernels to keep.
        earlier: The `Masks` so far: what they leave out stays out.
    """
    kernels = kernels_of(model)
    by_name = {
        name: mean_over_workers(model, scores[id(weight)])
        for name, weight in kernels.items()
    }
    for name, score in by_name.items():
        # Zeros, such as those of masks that a file has kept, go before others.
        is_zero = keras_internals.values_of(kernels[name]) == 0.0
        score = np.where(is_zero & (score == 0.0), -1.0, score)
        if earlier is not None:
            # A score may be above 0 where a weight is 0.
            score = np.where(earlier.masks.get(name, True), score, -2.0)
        by_name[name] = score
    return Masks(model, largest(by_name, kept_count(kernels, fraction)))


def kept_count(kernels: dict[str, keras.Variable], fraction: float) -> int:
    """Returns how many entries of all kernels stay.

    Args:
        kernels: As of `kernels_of`.
        fraction: Float in (0, 1], the part of all entries.
    """
    return round(fraction * sum(math.prod(v.shape) for v in kernels.values()))


def check_masked(model: keras.Model, sparsity: float) -> None:
    """Raises a `ValueError` if so many weights of kernels cannot go.

    Args:
        model: The model that trains.
        sparsity: Float in (0, 1), the part of all weights of kernels that goes.
    """
    kernels = kernels_of(model)
    if not kernels:
        raise ValueError(
            f"'{model.name}' has no kernel that trains, of which weights could "
            "go. Set `trainable` of a layer that has one."
        )
    count = kept_count(kernels, 1.0 - sparsity)
    if count < len(kernels):
        raise ValueError(
            f"`sparsity` leaves {count} weights to the {len(kernels)} kernels "
            f"of '{model.name}', of which each keeps at least one. Received: "
            f"sparsity={sparsity}"
        )


def check_structured(
    structured: bool, target: str, reconfigure: Any, batch: Any
) -> None:
    """Raises a `ValueError` for what `EarlyCroPCallback` cannot use.

    Args:
        structured: As passed.
        target: As passed.
        reconfigure: As passed.
        batch: As passed.
    """
    if not isinstance(structured, bool):
        raise ValueError(
            "`structured` must be True or False. Received: "
            f"structured={structured!r}"
        )
    if structured:
        return
    if target != "channels":
        raise ValueError(
            "`target` says what whole channels are to save. Leave it out with "
            "structured=False, where `sparsity` is the part of all weights of "
            f"kernels. Received: target={target!r}"
        )
    for name, value in (("reconfigure", reconfigure), ("batch", batch)):
        if value:
            raise ValueError(
                f"`{name}` is for a model that becomes smaller. Leave it out "
                "with structured=False, where the shapes stay. Received: "
                f"{name}={value!r}"
            )


def largest(scores: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Returns which entries of all arrays together are the `count` largest.

    The largest entry of each array is among them, so that no layer is empty.

    Args:
        scores: Dict from a name to a float array.
        count: Integer, at least the number of arrays. Of equal entries, the
            first ones count.

    Returns:
        Dict from each name to a bool array.
    """
    flat = np.concatenate([x.ravel() for x in scores.values()])
    ends = np.cumsum([x.size for x in scores.values()])
    best = [x.argmax() for x in scores.values()] + np.append(0, ends[:-1])
    rank = -flat
    rank[best] = -np.inf
    kept = np.zeros(len(flat), bool)
    kept[np.argsort(rank, kind="stable")[:count]] = True
    pieces = np.split(kept, ends[:-1])
    return {
        name: piece.reshape(scores[name].shape)
        for name, piece in zip(scores, pieces, strict=True)
    }


def kernels_of(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the weights whose entries may go, by their names.

    A name is the weight's path. Layers of two inner models may share one, so
    the second has `#2` behind it.
    """
    found, times = {}, collections.Counter()
    for weight in model.trainable_variables:
        if is_kernel(weight):
            times[weight.path] += 1
            count = times[weight.path]
            found[weight.path + (f"#{count}" if count > 1 else "")] = weight
    return found

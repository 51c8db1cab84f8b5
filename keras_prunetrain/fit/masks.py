"""Weights that stay zero through a training, one by one."""

import collections
from collections.abc import Mapping

import keras
import numpy as np
from keras.optimizers import Optimizer

from keras_prunetrain import keras_internals
from keras_prunetrain.distribution import mean_over_workers
from keras_prunetrain.trainers import updating_optimizers

_NAME = "masks"


class Masks:
    """Keeps chosen weights of a model at exactly zero.

    After each step of the optimizer, the masked entries of the weights and of
    their slots are set to zero, inside the train step. The shapes stay, so a
    step takes as long as before.

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
        result = step(gradients, variables)
        factors = {
            key: keras.ops.convert_to_tensor(mask)
            for key, mask in self._masks.items()
        }
        keras_internals.scale_in_step(self._optimizer, variables, factors)
        return result


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
    if earlier is not None:
        # Behind all others. A score may be above 0 where a weight is 0.
        by_name = {
            name: np.where(earlier.masks.get(name, True), x, -1.0)
            for name, x in by_name.items()
        }
    total = sum(x.size for x in by_name.values())
    return Masks(model, largest(by_name, max(1, round(fraction * total))))


def largest(scores: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Returns which entries of all arrays together are the `count` largest.

    Args:
        scores: Dict from a name to a float array.
        count: Integer, at least 1. Of equal entries, the first ones count.

    Returns:
        Dict from each name to a bool array.
    """
    flat = np.concatenate([x.ravel() for x in scores.values()])
    kept = np.zeros(len(flat), bool)
    kept[np.argsort(-flat, kind="stable")[:count]] = True
    ends = np.cumsum([x.size for x in scores.values()])
    pieces = np.split(kept, ends[:-1])
    return {
        name: piece.reshape(scores[name].shape)
        for name, piece in zip(scores, pieces, strict=True)
    }


def kernels_of(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the weights whose entries may go, by their names.

    These are the trainable weights of two axes and more: kernels, without
    biases and the vectors of normalization. A name is the weight's path. Layers
    of two inner models may share one, so the second has `#2` behind it.
    """
    found, times = {}, collections.Counter()
    for weight in model.trainable_variables:
        if len(weight.shape) >= 2:
            times[weight.path] += 1
            count = times[weight.path]
            found[weight.path + (f"#{count}" if count > 1 else "")] = weight
    return found

"""How much each weight and channel matters to the flow of the gradient.

The gradient flow of a network is the squared norm of the gradient `g` of its
loss: to first order, it is how fast the loss falls. A weight matters to it by
`w * Hg`, where `H` is the Hessian of the loss. With a gate (a factor of 1) on
all reads of a channel, the gradient flow `<g, grad loss>` has, by the gate, the
gradient `sum(w * Hg + g * g)` over the slices that read the channel.

Source: EarlyCroP (Rachwan et al., ICML 2022, section 4), where each layer has
gates of its own. Layers that share channels share the gate here: a channel of a
residual stage stays in all layers, or goes from all.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.saliency import gate_gradients, readers


class Batch(NamedTuple):
    """Examples on which the loss is measured.

    Attributes:
        x: What the model takes: a tensor, or a structure of tensors.
        y: The targets, likewise.
        sample_weight: Tensor, or `None`.
    """

    x: Any
    y: Any
    sample_weight: Any = None


class Flow(NamedTuple):
    """The gradient of the loss, and what the Hessian makes of it.

    Attributes:
        weights: List of the weights that train.
        gradients: List of arrays, `g`, one for each weight.
        products: List of arrays, `Hg`, likewise.
    """

    weights: list[keras.Variable]
    gradients: list[np.ndarray]
    products: list[np.ndarray]

    def weight_scores(self) -> dict[int, np.ndarray]:
        """Returns `|w * Hg|` by the `id` of each weight."""
        return {
            id(weight): np.abs(keras_internals.values_of(weight) * product)
            for weight, product in zip(self.weights, self.products, strict=True)
        }

    def channel_scores(self, numbering: Numbering) -> np.ndarray:
        """Returns the score of each channel number.

        Args:
            numbering: The `Numbering` of the model.

        Returns:
            Float array, shape `(numbering.size,)`, at least 0.
        """
        # `gate_gradients` multiplies with the weight: sum(w * Hg + g * g).
        by_products, by_gradients = (
            {id(w): v for w, v in zip(self.weights, values, strict=True)}
            for values in (self.products, self.gradients)
        )
        reading = readers(numbering)
        flow = gate_gradients(reading, by_products, numbering.size)
        squares = gate_gradients(
            reading, by_gradients, numbering.size, by_gradients
        )
        return np.abs(keras.ops.convert_to_numpy(flow + squares)).astype(float)


def gradient_flow(model: keras.Model, batches: Iterable[Batch]) -> Flow:
    """Returns the gradient and the Hessian's product with it.

    The loss is the sum over the batches, without penalties on weights, and with
    normalization as at inference. It is differentiated twice, so a batch takes
    about twice the memory of a training step.

    Args:
        model: A compiled model, not inside a traced function.
        batches: `Batch`es of training data, read twice: a list.

    Raises:
        ValueError: If there is no batch, if the data do not fit the model, if
            a part of it cannot be differentiated twice, or if a result is not
            finite.
    """
    batches = list(batches)
    if not batches:
        raise ValueError(
            "The scoring data have no batch. Pass at least one batch of "
            "training data."
        )
    weights = list(model.trainable_variables)
    try:
        gradients, products = keras_internals.hessian_products(
            lambda batch: _task_loss(model, batch), weights, batches
        )
    except LookupError as error:
        raise ValueError(
            f"The gradient flow of '{model.name}' needs second derivatives, "
            f"which an operation of it does not have. TensorFlow says: {error}"
        ) from error
    for values in (*gradients, *products):
        if not np.isfinite(values).all():
            raise ValueError(
                f"The gradient flow of '{model.name}' is not finite on the "
                "scoring data. The training has diverged (lower the learning "
                "rate), or the data are not finite."
            )
    return Flow(weights, gradients, products)


def _task_loss(model, batch):
    """Returns the loss of a batch without the penalties on weights."""
    x, y, sample_weight = batch
    loss = model.compute_loss(
        x=x,
        y=y,
        y_pred=model(x, training=False),
        sample_weight=sample_weight,
        training=False,
    )
    penalties = [
        v.regularizer(v) for v in model.trainable_variables if v.regularizer
    ]
    return loss - sum(penalties) if penalties else loss

"""How much each weight and channel matters to the flow of the gradient.

The gradient flow of a network is the squared norm of the gradient `g` of its
loss: to first order, it is how fast the loss falls. A weight matters to it by
`w * Hg`, where `H` is the Hessian of the loss. With a gate (a factor of 1) on
all reads of a channel, the gradient flow `<g, grad loss>` has, by the gate, the
gradient `sum(w * Hg + g * g)` over the slices that read the channel.

Source: EarlyCroP (Rachwan et al., ICML 2022, section 4), where each layer has
gates of its own. Layers that share channels share the gate here: a channel of a
residual stage stays in all layers, or goes from all.

Three scores that were made for networks before their training use the same
gates: SNIP (Lee et al., ICLR 2019) `|w * g|`, GraSP (Wang et al., ICLR 2020)
`w * Hg` with its sign, and SynFlow (Tanaka et al., NeurIPS 2020) `|w * dR/dw|`,
where `R` is the sum of the outputs for an input of ones, with the magnitudes of
all weights in the place of the weights.
"""

import contextlib
import re
from collections.abc import Iterable, Sequence
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

    def weight_scores(self, rule: str) -> dict[int, np.ndarray]:
        """Returns the scores of all weights, one by one.

        Args:
            rule: One of `saliency.ON_DATA`.

        Returns:
            Dict from the `id` of a weight to an array of its shape, at least 0.
        """
        factors = (
            self.gradients if rule in ("snip", "synflow") else self.products
        )
        values = [
            keras_internals.values_of(weight) * factor
            for weight, factor in zip(self.weights, factors, strict=True)
        ]
        if rule == "grasp":
            least = min(x.min() for x in values)
            values = [x - least for x in values]
        return {
            id(weight): np.abs(x)
            for weight, x in zip(self.weights, values, strict=True)
        }

    def channel_scores(self, numbering: Numbering, rule: str) -> np.ndarray:
        """Returns the scores of channel numbers, by a gate on all their reads.

        Args:
            numbering: The `Numbering` of the model.
            rule: One of `saliency.ON_DATA`.

        Returns:
            Float array, shape `(numbering.size,)`; at least 0, but for
            `"grasp"`, whose sign counts.
        """
        reading, size = readers(numbering), numbering.size
        by_products, by_gradients = (
            {id(w): v for w, v in zip(self.weights, values, strict=True)}
            for values in (self.products, self.gradients)
        )
        # `gate_gradients` multiplies with the weight.
        if rule in ("snip", "synflow"):
            gates = gate_gradients(reading, by_gradients, size)
        else:
            gates = gate_gradients(reading, by_products, size)
        if rule == "gradient_flow":  # sum(w * Hg + g * g)
            gates += gate_gradients(reading, by_gradients, size, by_gradients)
        scores = keras.ops.convert_to_numpy(gates).astype("float64")
        # GraSP's sign stays: the scores are divided by shares of the cost, by
        # which an offset would outweigh them.
        return scores if rule == "grasp" else np.abs(scores)


def measured_flow(
    model: keras.Model, batches: Iterable[Batch], rule: str
) -> Flow:
    """Returns the `Flow` that `rule` needs.

    Args:
        model: A compiled model, not inside a traced function.
        batches: `Batch`es of training data, read twice: a list.
        rule: One of `saliency.ON_DATA`.

    Raises:
        ValueError: As the function that measures it.
    """
    if rule == "synflow":
        return synaptic_flow(model, batches)
    if rule == "snip":
        return loss_gradient(model, batches)
    return gradient_flow(model, batches)


def check_batches(
    model: keras.Model, batches: Sequence[Batch], rule: str
) -> None:
    """Raises a `ValueError` if `rule` cannot be measured on the first batch.

    Args:
        model: A compiled model.
        batches: List of `Batch`es, at least one.
        rule: One of `saliency.ON_DATA`.
    """
    try:
        with _metrics_kept(model):
            if rule == "synflow":  # Takes no targets.
                model(batches[0].x, training=False)
            else:
                _task_loss(model, batches[0])
    except Exception as error:  # Layers and losses raise what they like.
        raise ValueError(
            f"The loss of '{model.name}' cannot be measured on the first batch "
            "of the scoring data. They must be what `fit` takes, and a model "
            "with a `train_step` of its own needs `compile(loss=...)` or a "
            f"`compute_loss`. {type(error).__name__}: {_said_by(error)}"
        ) from error


def _said_by(error):
    """Returns the text of an error of Keras in one line, without its colors."""
    text = re.sub("\x1b\\[[0-9;]*m", "", str(error))
    return " ".join(text.split("\n\nArguments received by")[0].split())


@contextlib.contextmanager
def _metrics_kept(model):
    """Brings back the metrics, which a loss of several outputs counts into."""
    before = [
        (v, keras_internals.values_of(v)) for v in model.metrics_variables
    ]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


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
    batches = _listed(batches)
    weights = list(model.trainable_variables)
    try:
        with _metrics_kept(model):
            gradients, products = keras_internals.hessian_products(
                lambda batch: _task_loss(model, batch), weights, batches
            )
    except LookupError as error:
        raise ValueError(
            f"The gradient flow of '{model.name}' needs second derivatives, "
            f"which an operation of it does not have. TensorFlow says: {error}"
        ) from error
    _check_finite(model, (*gradients, *products))
    return Flow(weights, gradients, products)


def loss_gradient(model: keras.Model, batches: Iterable[Batch]) -> Flow:
    """Returns the gradient alone; the products of the `Flow` are zeros.

    The loss is that of `gradient_flow`, and is differentiated once.

    Args:
        model: A compiled model, not inside a traced function.
        batches: `Batch`es of training data.

    Raises:
        ValueError: If there is no batch, if the data do not fit the model, or
            if the gradient is not finite.
    """
    batches = _listed(batches)
    weights = list(model.trainable_variables)
    with _metrics_kept(model):
        gradients = keras_internals.loss_gradients(
            lambda batch: _task_loss(model, batch), weights, batches
        )
    _check_finite(model, gradients)
    return Flow(weights, gradients, [np.zeros_like(g) for g in gradients])


def _listed(batches):
    """Returns a list of the batches, if there are any."""
    batches = list(batches)
    if not batches:
        raise ValueError(
            "The scoring data have no batch. Pass at least one batch of "
            "training data."
        )
    return batches


def _check_finite(model, arrays):
    if not all(np.isfinite(x).all() for x in arrays):
        raise ValueError(
            f"The gradient flow of '{model.name}' is not finite on the "
            "scoring data. The training has diverged (lower the learning "
            "rate), or the data are not finite."
        )


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


def synaptic_flow(model: keras.Model, batches: Iterable[Batch]) -> Flow:
    """Returns the gradient of SynFlow's sum of outputs.

    While it is measured, the weights of the model are their magnitudes; they
    come back whatever happens.

    Args:
        model: A model, not inside a traced function.
        batches: `Batch`es, of which only the shapes of one example count.

    Returns:
        A `Flow` whose gradients have the signs of the weights, so that weight
        times gradient is at least 0, and whose products are zeros.

    Raises:
        ValueError: If there is no batch, or if the sum is not finite.
    """
    first = _listed(batches)[0]
    ones = keras.tree.map_structure(
        lambda x: keras.ops.ones((1, *x.shape[1:]), x.dtype), first.x
    )
    weights = list(model.trainable_variables)
    before = [keras_internals.values_of(v).copy() for v in weights]
    try:
        for weight, value in zip(weights, before, strict=True):
            weight.assign(np.abs(value))
        gradients = keras_internals.loss_gradients(
            lambda x: sum(
                keras.ops.sum(y)
                for y in keras.tree.flatten(model(x, training=False))
            ),
            weights,
            [ones],
        )
    finally:
        for weight, value in zip(weights, before, strict=True):
            weight.assign(value)
    if not all(np.isfinite(g).all() for g in gradients):
        raise ValueError(
            f"SynFlow's sum of the outputs of '{model.name}' is larger than "
            "its numbers can be: of magnitudes of weights, it grows with every "
            "layer. Choose another score for a network of so many layers."
        )
    return Flow(
        weights,
        [np.sign(w) * g for w, g in zip(before, gradients, strict=True)],
        [np.zeros_like(g) for g in gradients],
    )

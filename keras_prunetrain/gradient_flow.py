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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.saliency import gate_gradients, readers

# By which the loss is multiplied, the first one for which all is finite:
# float16 holds neither very small derivatives nor very large ones. In float32,
# a power of two changes no digit.
_SCALES = tuple(2.0**power for power in (12, 6, 0, -6, -12))


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


@contextlib.contextmanager
def state_kept(model: keras.Model) -> Iterator[None]:
    """Brings back what a call of the model and its loss change.

    These are the metrics, which a loss of several outputs counts into, the
    random generators, and the states of stateful `RNN`s.
    """
    weights = {id(v) for v in model.non_trainable_weights}
    changed = [v for v in model.non_trainable_variables if id(v) not in weights]
    changed += [*model.metrics_variables, *_recurrent_states(model)]
    before = [(v, keras_internals.values_of(v)) for v in changed]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _recurrent_states(layer):
    """Returns the states of all `RNN`s in a layer, which are no weights."""
    states = []
    if isinstance(layer, keras.layers.RNN):
        states += keras.tree.flatten(layer.states or [])
    for inner in keras_internals.inner_layers(layer):
        states += _recurrent_states(inner)
    return states


def gradient_flow(
    model: keras.Model,
    batches: Iterable[Batch],
    masks: Mapping[int, np.ndarray] | None = None,
) -> Flow:
    """Returns the gradient and the Hessian's product with it.

    The loss is the sum over the batches, without penalties on weights, and with
    normalization as at inference. It is differentiated twice, so a batch takes
    about twice the memory of a training step.

    Args:
        model: A compiled model, not inside a traced function.
        batches: `Batch`es of training data, read twice: a list.
        masks: Dict from the `id` of a weight to an array of zeros and ones, of
            its shape: where it is zero, the weight is none of the network. The
            gradients of the `Flow` are zero there.

    Raises:
        ValueError: If there is no batch, if the data do not fit the model, if
            a part of it cannot be differentiated twice, or if a result is not
            finite.
    """
    batches = _listed(batches)
    weights = list(model.trainable_variables)
    for scale in _SCALES:
        found = differentiated_twice(model, batches, masks, scale)
        gradients = [g / scale for g in found[0]]
        products = [x / scale**2 for x in found[1]]
        if _are_finite((*gradients, *products)):
            break
    _check_finite(model, (*gradients, *products))
    return Flow(weights, gradients, products)


def differentiated_twice(
    model: keras.Model,
    batches: Sequence[Batch],
    masks: Mapping[int, np.ndarray] | None = None,
    scale: float = 1.0,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns gradients and products of the loss, finite or not: two lists.

    Args:
        model: A compiled model.
        batches: List of `Batch`es.
        masks: As of `gradient_flow`.
        scale: Float, by which the loss is multiplied.

    Raises:
        ValueError: If a part of it cannot be differentiated twice.
    """
    weights = list(model.trainable_variables)
    try:
        with state_kept(model):
            return keras_internals.hessian_products(
                lambda batch: scale * task_loss(model, batch),
                weights,
                batches,
                [(masks or {}).get(id(weight)) for weight in weights],
            )
    except LookupError as error:
        raise ValueError(
            f"The gradient flow of '{model.name}' needs second derivatives, "
            "which an operation of the model or of its loss does not have. "
            f"TensorFlow says: {error}"
        ) from error


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
    for scale in _SCALES:
        with state_kept(model):
            found = keras_internals.loss_gradients(
                lambda batch, scale=scale: scale * task_loss(model, batch),
                weights,
                batches,
            )
        gradients = [g / scale for g in found]
        if _are_finite(gradients):
            break
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


def _are_finite(arrays):
    return all(np.isfinite(x).all() for x in arrays)


def _check_finite(model, arrays):
    if not _are_finite(arrays):
        raise ValueError(
            f"The gradient flow of '{model.name}' is not finite on the "
            "scoring data. The training has diverged (lower the learning "
            "rate), or the data are not finite."
        )


def task_loss(model: keras.Model, batch: Batch) -> Any:
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
    if not _are_finite(gradients):
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

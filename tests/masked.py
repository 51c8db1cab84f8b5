"""Dead channels drawn at random, and what is left of each weight after a cut.

The model whose dead weights are zero is what a reconfigured one must equal.
Unlike `tests.networks`, this asks the package which channels belong together:
it serves where no hand can write that out.
"""

import numpy as np
import tensorflow as tf


def some_alive(numbering, rng, among=None):
    """Half of the channels that may go are dead, but no tensor is empty.

    An attention keeps one of its heads. Two channels stay where a bias is added
    by head.

    With `among`, a bool array, half of those that are alive there.
    """
    if among is None:
        among = np.ones(numbering.size, bool)
    alive = among & (rng.random(numbering.size) < 0.5)
    alive[list(numbering.frozen)] = True
    vectors = [x.numbers for y in numbering.outputs.values() for x in y]
    for numbers in (*vectors, *numbering.inner_numbers()):
        if not alive[numbers].any():
            alive[numbers[among[numbers]][:1]] = True
    for numbers in numbering.added_by_head():
        if alive[numbers].sum() < 2:
            alive[numbers[among[numbers]][:2]] = True
    return alive


def silence(numbering, alive, sides=("in", "out")):
    """Sets the kernels' weights of channels that are not `alive` to zero."""
    for label in numbering.labels:
        if label.is_kernel and label.side in sides:
            kernel = np.moveaxis(label.weight.numpy(), label.axis, 0).copy()
            kernel[~alive[label.numbers]] = 0.0
            label.weight.assign(np.moveaxis(kernel, 0, label.axis))


def silence_more(model, smaller, numbering, alive, later):
    """Sets the kernels' weights of channels that die later to zero.

    Args:
        model: The model before the first cut.
        smaller: The model after it: some of its channels die.
        numbering: The `Numbering` of `model`.
        alive: Bool array, shape `(numbering.size,)`: what the cut left.
        later: The same for the channels that are to be alive then.
    """
    twins = places(smaller)
    twins = {id(w): twins[place] for place, w in places(model).items()}
    for label in numbering.kernels():
        left = label.numbers[alive[label.numbers]]
        twin = twins[id(label.weight)]
        kernel = np.moveaxis(twin.numpy(), label.axis, 0).copy()
        kernel[~later[left]] = 0.0
        twin.assign(np.moveaxis(kernel, 0, label.axis))


def leaves(model):
    """Yields the layers of a model, those of nested models among them."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from leaves(layer)
        else:
            yield layer


def places(model):
    """Weights by layer and index: paths of weights need not be unique."""
    return {
        (layer.name, i): weight
        for layer in leaves(model)
        for i, weight in enumerate(layer.weights)
    }


def kept(numbering, alive):
    """Dict from the id of a weight to its axes and what stays on them."""
    keep = {}
    for label in numbering.labels:
        positions = np.flatnonzero(alive[label.numbers])
        keep.setdefault(id(label.weight), {})[label.axis] = positions
    return keep


def gradients(model, x, y, training):
    """Returns a dict from the place of each weight to its gradient."""
    weights = {k: w for k, w in places(model).items() if w.trainable}
    with tf.GradientTape() as tape:
        loss = model.compute_loss(
            x, y, model(x, training=training), training=training
        )
    values = tape.gradient(
        loss,
        {k: w.value for k, w in weights.items()},
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return {k: np.asarray(value) for k, value in values.items()}


def gradient_pairs(model, smaller, numbering, alive, x, y, training):
    """Yields place, new gradient, and what is left of the old one."""
    keep = kept(numbering, alive)
    weights = places(model)
    new = gradients(smaller, x, y, training)
    for place, expected in gradients(model, x, y, training).items():
        for axis, positions in keep.get(id(weights[place]), {}).items():
            expected = np.take(expected, positions, axis)
        yield place, new[place], expected

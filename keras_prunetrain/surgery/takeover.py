"""Lets the objects that a caller holds go on as parts of a smaller model."""

from typing import NamedTuple

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.surgery.copying import rebind


class Smaller(NamedTuple):
    """What a model is to become.

    Attributes:
        model: The smaller model, not compiled.
        optimizer: The optimizer for it; `None` if the model has none.
        clones: Dict from the `id` of a layer of the model to its counterpart.
    """

    model: keras.Model
    optimizer: keras.optimizers.Optimizer | None
    clones: dict[int, keras.Operation]


def adopt_class(smaller, model, clones):
    """Makes `smaller` an object of `model`'s class, with what that one holds.

    A user's subclass has methods (`train_step`) and attributes of its own; its
    `__init__` takes who knows what, so it cannot be asked for a new object.

    Args:
        smaller: The rebuilt model; modified.
        model: The original.
        clones: Dict from the `id` of a layer of `model` to its counterpart.

    Raises:
        ValueError: If an attribute is a model on the same layers.
    """
    if type(smaller) is not type(model):
        smaller.__class__ = type(model)
    for name, value in _own_attributes(model, smaller).items():
        if keras_internals.is_graph(value) and id(value) not in clones:
            shared = [x.name for x in value.layers if id(x) in clones]
            if shared:
                raise ValueError(
                    f"'{model.name}.{name}' is a model that shares layers with "
                    f"'{model.name}' ({', '.join(shared[:3])}, ...) and would "
                    "go on with the old ones. Make it anew when it is needed, "
                    "or nest it in the model."
                )
        setattr(smaller, name, _with_clones(value, clones))


def _own_attributes(model, smaller):
    names = set(vars(model)) - set(vars(smaller))
    names -= keras_internals.TRAINER_ATTRIBUTES
    return {name: vars(model)[name] for name in names}


def _with_clones(value, clones):
    if isinstance(value, list | tuple | dict):
        return keras.tree.map_structure(
            lambda leaf: clones.get(id(leaf), leaf), value
        )
    return clones.get(id(value), value)


def take_over(model, smaller):
    """Lets the object `model` go on as a smaller one, inside a running `fit`.

    So do all objects that the user, `fit` and the callbacks may hold: models
    nested in it, its layers, its optimizer and what that one wraps. Another
    model on the same layers, made before, computes with the smaller ones. What
    belongs to the run stays: loss, metrics with their values, learning rate and
    step count, the loop's own flags.

    All is prepared beside the old objects and exchanged at once. Whatever is
    raised meanwhile, they are the old model afterwards, or the smaller one.

    Args:
        model: The model that is being trained; modified.
        smaller: A `Smaller` of it; of no use afterwards.
    """
    keras_internals.set_states(_successors(model, smaller))
    model.make_train_function(force=True)


def check_take_over(model, smaller):
    """Raises what `take_over` would raise; changes `smaller` only."""
    _successors(model, smaller)


def _successors(model, smaller):
    """Returns pairs of an object that goes on and its new `__dict__`."""
    pairs = [(model, smaller.model)] + [
        (old, smaller.clones[id(old)])
        for old in keras_internals.operations_in(model)
        if id(old) in smaller.clones
    ]
    pairs += [
        (keras_internals.producer(x), keras_internals.producer(y))
        for old, new in pairs
        if keras_internals.is_graph(old)
        for x, y in zip(old.inputs, new.inputs, strict=True)
    ]
    states = keras_internals.successors(pairs)
    twins = {id(new): old for old, new in pairs}
    for old, new in pairs:
        if not keras_internals.is_graph(old):
            rebind(new, twins)
    if smaller.optimizer is not None:
        states += keras_internals.optimizer_successors(
            model.optimizer, smaller.optimizer
        )
    return states

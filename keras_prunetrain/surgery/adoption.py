"""Gives a smaller model the class and the attributes of the old one.

`twins` is a dict from the `id` of an old object (a layer, a variable, a
symbolic tensor, a model) to its counterpart.
"""

from typing import Any

import keras
from keras import tree

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.rules import rule_for
from keras_prunetrain.surgery.copying import Twins, references


class CannotFollow(Exception):
    """Why a model cannot be made anew on smaller layers, in words."""


def adopt_class(
    smaller: keras.Model, model: keras.Model, twins: Twins
) -> list[str]:
    """Makes `smaller` an object of `model`'s class, with its attributes.

    A user's subclass has methods (`train_step`) and attributes of its own. The
    arguments of its `__init__` are unknown, so no new object can be made.
    Models among the attributes that have layers of `model` are made anew.

    Args:
        smaller: The rebuilt model; modified.
        model: The original.
        twins: The `twins` that are known; models that are made are added.

    Returns:
        The names of the attributes, sorted.

    Raises:
        ValueError: If a model among the attributes cannot be made anew, or if
            an attribute holds a weight in an object of its own.
    """
    if type(smaller) is not type(model):
        smaller.__class__ = type(model)
    names = vars(model).keys() - vars(smaller).keys()
    names = sorted(names - keras_internals.TRAINER_ATTRIBUTES)
    for name in names:
        value = vars(model)[name]
        for part in tree.flatten(value):
            _check_attribute(part, f"{model.name}.{name}", model, twins)
        setattr(smaller, name, with_twins(value, twins))
    return names


def _check_attribute(value, where, model, twins):
    """Makes a model among the attributes anew; refuses a hidden weight.

    Args:
        value: An attribute of the user's subclass, or a member of one.
        where: Its name, for the error.
        model: The original.
        twins: The `twins` that are known; a model that is made is added.
    """
    if keras_internals.is_graph(value) and shares_layers(value, twins):
        try:
            follow(value, twins)
        except CannotFollow as reason:
            raise ValueError(
                f"'{where}' is a model on layers of '{model.name}' and cannot "
                f"go on with smaller ones: {reason}. Make it when it is "
                "needed, nest it in the model, or name the layers that it "
                "reads in `skip`."
            ) from reason
    if id(value) in twins:
        return
    for weight in references(value, twins):
        if isinstance(weight, keras.Variable):
            raise ValueError(
                f"'{where}', a {type(value).__name__}, holds the weight "
                f"'{weight.path}', which is another variable once the model is "
                "smaller. Let it ask the model for the weight each time, or "
                "keep the weight in a list or dict among the model's "
                "attributes."
            )


def with_twins(value: Any, twins: Twins) -> Any:
    """Returns `value`, or a copy of a list, tuple or dict that holds twins."""
    if isinstance(value, list | tuple | dict):
        return tree.map_structure(lambda x: twins.get(id(x), x), value)
    return twins.get(id(value), value)


def shares_layers(model: keras.Operation, twins: Twins) -> bool:
    """Whether `model` has layers that have a twin."""
    return any(id(x) in twins for x in keras_internals.operations_in(model))


def follow(
    model: keras.Model, twins: Twins, with_own_weights: bool = False
) -> keras.Model:
    """Returns a model like the functional `model` on the smaller layers.

    Tensors that the original model has as well are replaced by their
    counterparts. All other calls are made again.

    Args:
        model: A functional model that has layers with a twin; not modified.
        twins: The `twins` that are known; models that are made are added.
        with_own_weights: Boolean. Whether layers that only `model` has may have
            weights. The new model has the same layers, and so the same weights.

    Raises:
        CannotFollow: If that is impossible, or if the package cannot tell.
    """
    if id(model) not in twins:
        is_sequential = isinstance(model, keras.Sequential)
        again = _Again(twins, with_own_weights)
        new = (again.sequential if is_sequential else again.graph)(model)
        adopt_class(new, model, twins)
        twins[id(model)] = new
    return twins[id(model)]


class _Again:
    """Makes the graph of one follower again."""

    def __init__(self, twins, with_own_weights):
        self._twins = twins
        self._with_own_weights = with_own_weights
        self._values = {}  # id of a tensor of the follower -> the new one.
        # id of a tensor of the follower -> one of the original that has the
        # same channels, because the same layers compute it.
        self._same = {}

    def graph(self, model):
        """Returns a functional model like `model` on the smaller layers."""
        self._start(model, model.inputs)
        for call in _needed(model, self._twins):
            operation = self._operation(call)
            args, kwargs = keras_internals.arguments_with(call, self._values)
            self._note(call, tree.flatten(operation(*args, **kwargs)))
        inputs, outputs = (
            tree.map_structure(lambda x: self._values[id(x)], structure)
            for structure in keras_internals.structures(model)
        )
        return keras.Model(inputs, outputs, name=model.name)

    def sequential(self, model):
        """Returns a `Sequential` like `model` on the smaller layers."""
        (x,) = model.inputs
        x = keras.Input(batch_shape=x.shape, dtype=x.dtype, sparse=x.sparse)
        self._start(model, [x])
        new = keras.Sequential([x], name=model.name)
        for call in keras_internals.calls(model):
            new.add(self._operation(call))
            self._note(call, new.outputs)
        return new

    def _start(self, model, inputs):
        self._values = dict(self._twins)
        for old, new in zip(model.inputs, inputs, strict=True):
            self._values.setdefault(id(old), new)

    def _note(self, call, outputs):
        self._values.update(zip(map(id, call.outputs), outputs, strict=True))

    def _operation(self, call):
        """Returns what computes a call of the follower again."""
        operation = call.operation
        is_shared = id(operation) in self._twins
        has_weights = bool(getattr(operation, "weights", ()))
        if keras_internals.is_graph(operation) and shares_layers(
            operation, self._twins
        ):
            new = follow(operation, self._twins, self._with_own_weights)
            if self._fits(call, operation.inputs):
                return new
        elif has_weights and not is_shared and not self._with_own_weights:
            raise CannotFollow(
                f"layer '{operation.name}' is not of both models"
            )
        if not (
            self._is_a_call_of_the_original(call)
            or (self._is_as_before(call) and not (has_weights and is_shared))
            or (_is_of_any_size(operation) and not has_weights)
        ):
            raise CannotFollow(
                f"layer '{operation.name}' reads channels that may go, in a "
                "place that only this model has"
            )
        return self._twins.get(id(operation), operation)

    def _is_a_call_of_the_original(self, call):
        """Whether the original calls this layer with the same channels."""
        for other in keras_internals.calls_of(call.operation):
            known = all(id(x) in self._twins for x in other.outputs)
            if known and self._fits(call, other.inputs):
                pairs = zip(call.outputs, other.outputs, strict=True)
                self._same.update({id(x): id(y) for x, y in pairs})
                return True
        return False

    def _fits(self, call, tensors):
        """Whether `call` reads the channels of these tensors of the original.

        Where all channels stay, these are the same.
        """
        pairs = zip(call.inputs, tensors, strict=False)  # A mask may follow.
        return all(
            x is y
            or self._same.get(id(x)) == id(y)
            or (
                x.shape == y.shape
                and self._values[id(x)].shape == x.shape
                and self._twins.get(id(y), y).shape == y.shape
            )
            for x, y in pairs
        )

    def _is_as_before(self, call):
        return all(x.shape == self._values[id(x)].shape for x in call.inputs)


def _needed(model, twins):
    """Returns the calls of `model` whose results have no twin, in order."""
    wanted = set(map(id, model.outputs))
    calls = []
    for call in reversed(keras_internals.calls(model)):
        outputs = set(map(id, call.outputs))
        if outputs & wanted and not outputs <= twins.keys():
            calls.append(call)
            wanted |= set(map(id, call.inputs))
    return calls[::-1]


def _is_of_any_size(operation):
    """Whether an operation takes any number of channels, as an activation."""
    rule = rule_for(operation)
    return rule is not None and not (
        rule.in_axis
        or rule.out_axis
        or rule.size_arguments
        or rule.resize
        or rule.reindex
    )

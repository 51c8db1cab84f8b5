"""The table with the rules of all classes, and functions to read and extend it.

The package knows a layer class only by its rule. If a layer has no rule, all
channels that the layer reads or writes stay.
"""

import dataclasses
import functools
import logging

import keras
from keras import layers

from keras_prunetrain.channels.layer_rule import (
    CARRIES,
    MOVES,
    PRODUCES,
    READS,
    LayerRule,
    Saved,
    refused,
)
from keras_prunetrain.channels.layers import LAYER_RULES
from keras_prunetrain.channels.macs import Shapes
from keras_prunetrain.channels.operations import operation_rules


def _inner(wrapper, extra_axes):
    """Returns the wrapped layer's rule, adapted to the wrapper, or `None`.

    Args:
        wrapper: A layer that wraps another one, `wrapper.layer`.
        extra_axes: Number of axes of the wrapper's input, after the batch,
            that the wrapped layer's input lacks.
    """
    layer = wrapper.layer
    rule = rule_for(layer)
    if rule is not None and rule.flow == MOVES and rule.resize is None:
        return LayerRule(MOVES)  # It is run on numbers, in the wrapper.
    if (
        rule is None
        or rule.flow not in (PRODUCES, CARRIES)
        or None in rule.out_axis.values()  # A weight shaped like the input.
    ):
        return None

    def of_layer(function):
        return function and (lambda wrapper: function(wrapper.layer))

    def channel_axis(wrapper, rank):
        axis = rule.channel_axis(wrapper.layer, rank - extra_axes)
        return axis if axis is None or axis < 0 else axis + extra_axes

    return LayerRule(
        rule.flow,
        in_axis=rule.in_axis,
        out_axis=rule.out_axis,
        channel_axis=rule.channel_axis and channel_axis,
        **{
            name: of_layer(getattr(rule, name))
            for name in ("repeats", "groups", "freezes", "refuses")
        },
    )


def _as_both_directions(wrapper):
    """Returns the rule of the layer that reads in both directions, or `None`.

    Both have kernels of one name, which read the same channels.
    """
    rule = rule_for(wrapper.forward_layer)
    if (
        rule is None
        or rule != rule_for(wrapper.backward_layer)
        or rule.flow != READS
    ):
        return None

    def of_forward(name):
        if getattr(rule, name) is None:
            return None
        return lambda wrapper, *rank: rule.ask(
            name, wrapper.forward_layer, *rank
        )

    return dataclasses.replace(
        rule,
        **{
            name: of_forward(name)
            for name in ("channel_axis", "freezes", "refuses")
        },
    )


def _spectrally_normalized(wrapper):
    """Returns the wrapped layer's rule, extended to `vector_u`.

    The wrapper divides the kernel by its largest singular value, which is the
    same without rows and columns of zeros. The result is `None` for a depthwise
    kernel, whose channels may be removed before their weights are zero.
    """
    rule = _inner(wrapper, 0)
    if rule is None or "kernel" not in rule.in_axis.keys() & rule.out_axis:
        return None
    ndim = len(wrapper.layer.kernel.shape)
    sides = {
        name: {**axes, "vector_u": -1}
        for name in ("in_axis", "out_axis")
        if "kernel" in (axes := getattr(rule, name))
        and axes["kernel"] % ndim == ndim - 1
    }
    return dataclasses.replace(rule, **sides)


def _macs_of_steps(wrapper, read, written):
    steps = read[0][0]
    step = [[shape[1:] for shape in shapes] for shapes in (read, written)]
    return steps * macs_of(wrapper.layer, *step)


def _macs_of_inner(wrapper, read, written):
    return macs_of(wrapper.layer, read, written)


def _macs_of_directions(wrapper, read, written):
    directions = wrapper.forward_layer, wrapper.backward_layer
    return sum(macs_of(layer, read, written) for layer in directions)


_NOT_FOLLOWED = "the layer in it cannot be followed there"

_RULES = {
    **operation_rules(),
    **LAYER_RULES,
    layers.TimeDistributed: dataclasses.replace(
        refused(_NOT_FOLLOWED),
        variant=functools.partial(_inner, extra_axes=1),
        macs=_macs_of_steps,
    ),
    layers.SpectralNormalization: dataclasses.replace(
        refused(_NOT_FOLLOWED),
        variant=_spectrally_normalized,
        macs=_macs_of_inner,
    ),
    layers.Bidirectional: dataclasses.replace(
        refused(_NOT_FOLLOWED),
        variant=_as_both_directions,
        macs=_macs_of_directions,
    ),
}


def rule_for(operation: keras.Operation) -> LayerRule | None:
    """Returns the `LayerRule` for a layer, or other operation, or `None`.

    A subclass does not inherit the rule, because it may treat its channels
    differently.
    """
    rule = _RULES.get(type(operation))
    if rule is not None:
        return rule.ask("variant", operation) or rule
    return rule


def macs_of(operation: keras.Operation, read: Shapes, written: Shapes) -> int:
    """Returns the multiply-accumulates of one call, for one example.

    A class whose rule has no `macs` counts like its base class. Where no base
    class has a rule with `macs` either, the result is 0, with a warning if the
    operation has a weight that might be a kernel.

    Args:
        operation: A layer, or an operation of `keras.ops`.
        read: List of the shapes that this call reads, without the batch.
        written: List of the shapes that this call writes, likewise.

    Raises:
        ValueError: If `LayerRule.macs` fails, or returns no integer of at
            least 0.
    """
    rule = _that_says("macs", operation)
    if rule is None:
        if any(len(x.shape) >= 2 for x in getattr(operation, "weights", ())):
            _warn_unknown(type(operation))
        return 0
    return int(rule.ask("macs", operation, read, written))


def saved_by(operation: keras.Operation) -> Saved:
    """Returns which values of a call the gradient needs.

    The default is the inputs, if neither the class nor a base class has a rule
    with `saved`.

    Raises:
        ValueError: If `LayerRule.saved` fails, or returns none of the three
            words.
    """
    rule = _that_says("saved", operation)
    if rule is None:
        return "inputs"
    if callable(rule.saved):
        return rule.ask("saved", operation)
    return rule.saved


def _that_says(field, operation):
    """Returns the rule that sets `field`, of the class or its nearest base."""
    for layer_class in type(operation).__mro__:
        rule = _RULES.get(layer_class)
        if getattr(rule, field, None) is not None:
            return rule
    return None


@functools.cache
def _warn_unknown(layer_class):
    """Warns that nothing is counted for a class, once in a process.

    A training would otherwise warn after each reconfiguration.
    """
    log = logging.getLogger("keras_prunetrain")
    if issubclass(layer_class, keras.Model):
        log.warning(
            "`model_cost` does not look into a model that stands in a wrapper, "
            "such as `TimeDistributed`, and counts 0 flops for it."
        )
        return
    log.warning(
        "`model_cost` does not know how many flops a `%s` takes and counts 0. "
        "A `LayerRule` with `macs` tells, see `register_rule`.",
        layer_class.__name__,
    )


def register_rule(layer_class: type[layers.Layer], rule: LayerRule) -> None:
    """Teaches the package about a layer class, or replaces what it knew.

    Args:
        layer_class: A subclass of `keras.layers.Layer`. Its subclasses inherit
            only `macs` and `saved`, and otherwise need rules of their own.
        rule: A `LayerRule`.

    Raises:
        ValueError: If `layer_class` is no layer class or `rule` no
            `LayerRule`.

    Example:

    >>> class Scale(keras.layers.Layer):  # One learned factor per channel.
    ...     def build(self, shape):
    ...         self.scale = self.add_weight((shape[-1],), name="scale")
    ...
    ...     def call(self, x):
    ...         return x * self.scale
    >>> register_rule(Scale, LayerRule("carries", out_axis={"scale": -1}))
    """
    if not (
        isinstance(layer_class, type) and issubclass(layer_class, layers.Layer)
    ):
        raise ValueError(
            "`register_rule` expects a subclass of keras.layers.Layer, the "
            f"class itself and no instance. Received: {layer_class!r}"
        )
    if not isinstance(rule, LayerRule):
        raise ValueError(
            f"The rule for {layer_class.__name__} must be a "
            f"keras_prunetrain.LayerRule. Received: {rule!r}"
        )
    _RULES[layer_class] = rule

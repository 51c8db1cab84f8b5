"""The table of what is known of each class, and how to add to it.

Everything else in the package reads the rules; nothing else knows a layer
class. A layer without a rule is never guessed at: the channels that it touches
stay.
"""

from keras import layers

from keras_prunetrain.channels.layer_rule import LayerRule
from keras_prunetrain.channels.layers import LAYER_RULES
from keras_prunetrain.channels.operations import operation_rules

_RULES = {**operation_rules(), **LAYER_RULES}


def rule_for(operation):
    """Returns the `LayerRule` for `operation`, or `None`.

    The very class counts: a subclass may do something else with its channels.
    """
    rule = _RULES.get(type(operation))
    if rule is not None and rule.variant is not None:
        return rule.variant(operation) or rule
    return rule


def register_rule(layer_class, rule):
    """Teaches the package about `layer_class`, or replaces what it knew.

    Args:
        layer_class: A subclass of `keras.layers.Layer`. Its subclasses need
            rules of their own.
        rule: A `LayerRule`.

    Raises:
        ValueError: If `layer_class` is not a layer class or `rule` not a
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

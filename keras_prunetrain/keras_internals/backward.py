"""A layer with another gradient of its input, and the same weight gradients.

Keras has no hook in the backward pass. A layer object gets a `call` of its own
in the place of that of its class. In training, this `call` computes what the
class's computes, as a function of the input and of the weights whose gradient
is written by hand.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

# Takes the gradient of a layer's output; returns the one from which the
# gradient of the input is computed.
DataGradient = Callable[[Any], Any]

# Classes of Keras whose `call` reads nothing but these attributes besides
# settings, and applies `activation` last.
_CLASSES = (
    *(layers.Conv1D, layers.Conv2D, layers.Conv3D),
    *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
    *(layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    layers.Dense,
)


def has_known_call(layer: keras.Operation) -> bool:
    """Whether `replace_data_gradient` knows what the class of `layer` computes.

    A subclass with a `call` of its own is not known; one that overrides
    `convolution_op` is.
    """
    return any(
        isinstance(layer, kind) and type(layer).call is kind.call
        for kind in _CLASSES
    )


def is_rematerialized(layer: keras.Operation) -> bool:
    """Whether the backward pass calls `layer` again (`keras.RematScope`).

    It does so outside of `Layer.__call__`, where nothing says that the call is
    one in training.
    """
    return bool(getattr(layer, "_remat_mode", None))


def replace_data_gradient(
    layer: keras.layers.Layer, gradient: DataGradient
) -> None:
    """Lets the input of `layer` get its gradient by way of `gradient`.

    The forward pass and the gradients of the weights stay as they are, and so
    does everything where the layer is not called in training. A layer that has
    taken the place of `layer` in surgery behaves alike. A step that is traced
    already does not change.

    Args:
        layer: A built layer for which `has_known_call`.
        gradient: Function of the gradient of the layer's output before its
            activation. It is called whenever a backward pass is traced, or run
            eagerly, and returns a tensor of the same shape and dtype.
    """
    # Not by `setattr`, so that Keras does not track it.
    vars(layer)["call"] = functools.partial(_call, layer, gradient)


def data_gradient_of(layer: keras.Operation) -> DataGradient | None:
    """Returns what `replace_data_gradient` was given, `None` if nothing."""
    call = vars(layer).get("call")
    if isinstance(call, functools.partial) and call.func is _call:
        return call.args[1]
    return None


def restore_data_gradient(layer: keras.Operation) -> None:
    """Undoes `replace_data_gradient`; does nothing if there is nothing."""
    if data_gradient_of(layer) is not None:
        del vars(layer)["call"]


def _call(layer, gradient, inputs, **arguments):
    """Stands in for `layer.call`."""
    if not layer._get_call_context().get_value("training"):
        return type(layer).call(layer, inputs, **arguments)
    names = ["kernel"] if layer.bias is None else ["kernel", "bias"]
    weights = [getattr(layer, name) for name in names]

    def linear(inputs, *weights):
        twin = _linear(layer, names, weights)
        return type(layer).call(twin, inputs, **arguments)

    outputs = _with_gradient(linear, gradient, inputs, weights)
    if layer.activation is not None:
        outputs = layer.activation(outputs)
    return outputs


def _linear(layer, names, weights):
    """Returns `layer` without its activation, with tensors for weights.

    It shares all other attributes, is used for one call, and unknown to Keras.
    """
    twin = object.__new__(type(layer))
    vars(twin).update(vars(layer))
    vars(twin)["activation"] = None
    # `kernel` has the low-rank update of `enable_lora` already.
    vars(twin)["lora_enabled"] = False
    # `kernel` is an attribute of some classes and a property of others, which
    # reads `_kernel`.
    for name, weight in zip(names, weights, strict=True):
        vars(twin)[name] = vars(twin)[f"_{name}"] = weight
    return twin


def _with_gradient(linear, gradient, inputs, weights):
    """Returns `linear(inputs, *weights)`, with another gradient of `inputs`.

    The function runs once: its own tape computes both gradients. The tape goes
    with the backward pass, because Python cannot free a traced graph that a
    tape refers to. For a gradient that is asked for again, it runs again.
    """
    import tensorflow as tf

    def function(inputs, *weights):
        def recorded():
            with tf.GradientTape(persistent=True) as tape:
                tape.watch([inputs, *weights])
                return tape, linear(inputs, *weights)

        records = [recorded()]

        # `variables`: those that a `convolution_op` of the layer reads besides.
        def backward(upstream, variables=None):
            tape, outputs = records.pop() if records else recorded()
            of_inputs = tape.gradient(outputs, inputs, gradient(upstream))
            found = of_inputs, *tape.gradient(outputs, weights, upstream)
            if variables is None:
                return found
            return found, tape.gradient(outputs, variables, upstream)

        return records[0][1], backward

    # As tensors, in the dtype in which the layer computes. Those of variables
    # would be the variables themselves, as Keras converts them.
    weights = map(tf.convert_to_tensor, weights)
    return tf.custom_gradient(function)(inputs, *weights)

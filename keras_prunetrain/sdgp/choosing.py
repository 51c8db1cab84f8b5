"""Which layers of a model get a pruned data gradient, and which cannot."""

from collections.abc import Iterator

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.selection import Skip, selected
from keras_prunetrain.checks import check_model, is_count
from keras_prunetrain.sdgp.emulation import channels_of
from keras_prunetrain.sdgp.pattern import Pattern

# More input channels than the colours of an image.
_LEAST_INPUTS = 4


def layers_of(
    model: keras.Model, prefix: str = ""
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields all layers, those of nested models instead of these."""
    for layer in model.layers:
        key = prefix + layer.name
        if keras_internals.is_graph(layer):
            yield from layers_of(layer, f"{key}/")
        else:
            yield key, layer


def chosen_layers(
    model: keras.Model,
    pattern: Pattern,
    layers: Skip | None,
    seed: int | None,
) -> list[str]:
    """Returns the keys of the layers that `with_sdgp` is to change.

    Args:
        model: As of `with_sdgp`.
        pattern: The `Pattern`.
        layers: As of `with_sdgp`.
        seed: As of `with_sdgp`.

    Raises:
        ValueError: Those of `with_sdgp`.
    """
    check_model(model)
    _check(model, seed)
    known = dict(layers_of(model))
    if layers is None:
        found = _by_default(model, known, pattern)
    else:
        keys = selected(known, layers, "layers")
        found = {key: known[key] for key in keys}
        if not found:
            raise ValueError(
                "`layers` names no layer. Leave it out for all convolutions "
                "with more than 3 input channels. Received: "
                f"layers={layers!r}"
            )
    for key, layer in found.items():
        _check_layer(key, layer, pattern)
    return list(found)


def _check(model, seed):
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "`with_sdgp` changes the backward pass of TensorFlow, and Keras "
            f"runs on {keras.backend.backend()!r}. Set the environment "
            "variable KERAS_BACKEND=tensorflow before Keras is imported."
        )
    if not keras_internals.is_graph(model):
        raise ValueError(
            "`with_sdgp` finds the layers in a model's graph, which only "
            "functional and built Sequential models have. Build the model "
            "with `keras.Model(inputs, outputs)`, or give the Sequential an "
            f"`Input`. Received: model={model}"
        )
    if seed is not None and not (is_count(seed) and seed < 2**63):
        raise ValueError(
            "`seed` must be an integer of at least 0 and below 2**63, or "
            f"`None`. Received: seed={seed!r}"
        )


def _by_default(model, known, pattern):
    """Returns the convolutions that are changed if no layers are named."""
    kinds = keras.layers.Conv1D | keras.layers.Conv2D | keras.layers.Conv3D
    convolutions = {
        key: layer
        for key, layer in known.items()
        if isinstance(layer, kinds)
        and keras_internals.has_known_call(layer)
        and layer.groups == 1
        and layer.kernel.shape[-2] >= _LEAST_INPUTS
    }
    found = {
        key: layer
        for key, layer in convolutions.items()
        if layer.filters >= pattern.m
    }
    if not convolutions:
        raise ValueError(
            f"'{model.name}' has no convolution with more than 3 input "
            "channels, whose data gradient could be pruned. `layers` can name "
            "dense layers, and grouped, depthwise or transposed convolutions. "
            f"Layers: {', '.join(sorted(known))}."
        )
    if not found:
        most = max(layer.filters for layer in convolutions.values())
        raise ValueError(
            f"`m` is above the {most} channels that the widest convolution of "
            f"'{model.name}' has. Received: m={pattern.m}"
        )
    return found


def _check_layer(key, layer, pattern):
    """Raises a `ValueError` if a layer cannot have pruned data gradients."""
    where = f"The data gradient of '{key}' cannot be pruned"
    if not keras_internals.has_known_call(layer):
        raise ValueError(
            f"{where}: it is a {type(layer).__name__}. Keras's convolutions, "
            "but no separable ones, and `Dense` can have it, and subclasses "
            "that keep their `call`. Leave it out of `layers`."
        )
    if not keras.backend.is_float_dtype(layer.compute_dtype) or _is_quantized(
        layer
    ):
        raise ValueError(
            f"{where}: it computes in {_dtype_of(layer)}, and gradients are "
            "real numbers with a fraction. Leave it out of `layers`, or build "
            "it with a dtype such as 'float32'."
        )
    if keras_internals.is_rematerialized(layer):
        raise ValueError(
            f"{where}: it was made in a `keras.RematScope`, and its backward "
            "pass calls it anew, out of training. Leave it out of `layers`, or "
            "build it outside of the scope."
        )
    channels = channels_of(layer) // getattr(layer, "groups", 1)
    if channels < pattern.m:
        raise ValueError(
            f"{where}: `m` is above the {channels} channels of its output, or "
            "of one of its groups. Leave it out of `layers`, or choose a "
            f"smaller m. Received: m={pattern.m}"
        )


def _is_quantized(layer):
    return getattr(layer, "quantization_mode", None) is not None


def _dtype_of(layer):
    return getattr(layer, "quantization_mode", None) or layer.compute_dtype

"""Gives the layers of a model a pruned data gradient, and takes it off."""

import math
from collections.abc import Iterator

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.selection import Skip, selected
from keras_prunetrain.checks import check_model, is_count
from keras_prunetrain.sdgp.emulation import (
    Emulation,
    LayerGradient,
    Phase,
    channels_of,
    layer_gradient,
)
from keras_prunetrain.sdgp.pattern import Mode, Pattern

# More input channels than the colours of an image.
_LEAST_INPUTS = 4


def with_sdgp(
    model: keras.Model,
    n: int = 2,
    m: int = 4,
    mode: Mode = "rescaled",
    layers: Skip | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Lets a model train with pruned data gradients (SDGP), and returns it.

    Of the gradient of each layer's output, n of every m consecutive channels
    at a pixel are kept for the product that gives the gradient of the layer's
    input. The forward pass and the gradients of weights and biases are exact,
    but for what the pruning in later layers changes. Hardware for n:m sparsity
    computes that product in n / m of the time. Everywhere else, and in this
    package, the product runs with zeros: an emulation, which shows what happens
    to the accuracy and saves no time. `model_cost` counts what the hardware
    would compute.

    The model itself is changed: its layers get another backward pass. Names,
    weights, optimizer and slots stay. A saved or exported model knows nothing
    of it, and neither does a clone. The gradients are pruned where the model is
    called in training (`fit`, or `model(x, training=True)`), in every step,
    until `without_sdgp`; `SDGPCallback` does so for one `fit`. Surgery
    (`reconfigure`, the callbacks) keeps it.

    Example:

    ```python
    model = keras_prunetrain.with_sdgp(model, 2, 4)
    model.fit(images, labels, epochs=90)
    ```

    Args:
        model: A functional or `Sequential` model.
        n: Integer from 1 to `m`: the channels that are kept of a block.
        m: Integer, at least 2: the consecutive channels of a block. Where the
            channels are no multiple of `m`, the last block is smaller, and as
            many of it are kept if it has them. The groups of a grouped
            convolution have blocks of their own.
        mode: How channels are kept. `"magnitude"`: those of the largest
            magnitude, the first ones of equal ones. `"rescaled"`: the same,
            and each channel of each sample is scaled so that its sum of
            magnitudes over the pixels is what it was. `"random"`: with equal
            probabilities, divided by these, so that the mean is the dense
            gradient; `"random_biased"`: not divided, as in the authors' code.
            `"mvue"`: at random, the larger the likelier, with the least
            variance of all choices whose mean is the dense gradient.
        layers: Layers, or names or patterns of names (`"stage1_*"`), or
            functions of a layer that return whether it is meant. Defaults to
            `None`: `Conv1D`, `Conv2D` and `Conv3D` with more than 3 input
            channels, at least `m` output channels, and one group. On request,
            also `Dense`, and grouped, depthwise and transposed convolutions.
        seed: Integer of the modes that draw. Defaults to `None`, a number from
            Python's random generator.

    Returns:
        `model`.

    Raises:
        ValueError: If an argument is out of its range, if the model has no
            graph, no such layer, or pruned data gradients already, or if a
            layer cannot have them.

    Reference:
        - [McDanel et al., 2022](https://arxiv.org/abs/2202.00774),
          Accelerating DNN Training with Structured Data Gradient Pruning.
        - [Chmiel et al., 2023](https://arxiv.org/abs/2203.10991), Minimum
          Variance Unbiased N:M Sparsity for the Neural Gradients.
    """
    pattern = Pattern(n, m, mode)
    chosen = chosen_layers(model, pattern, layers, seed)
    emulation = Emulation(model, pattern, seed)
    for layer in chosen.values():
        gradient = LayerGradient(model, emulation, layer)
        keras_internals.replace_data_gradient(layer, gradient)
    _renew_steps(model)
    return model


def without_sdgp(model: keras.Model) -> keras.Model:
    """Undoes `with_sdgp`, and returns `model`: it trains densely again.

    Args:
        model: A model; one without pruned data gradients stays as it is.

    Raises:
        ValueError: If `model` is no model.
    """
    check_model(model)
    if sdgp_layers(model):
        for layer in sdgp_layers(model).values():
            keras_internals.restore_data_gradient(layer)
        _renew_steps(model)
    return model


def _renew_steps(model):
    if model.compiled:
        keras_internals.renew_steps(model)


def sdgp_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Returns the layers with a pruned data gradient, by their keys."""
    return {
        key: layer
        for key, layer in _layers_of(model)
        if layer_gradient(layer) is not None
    }


def emulation_of(model: keras.Model) -> Emulation | None:
    """Returns the `Emulation` of a model, `None` if it trains densely."""
    for layer in sdgp_layers(model).values():
        return layer_gradient(layer).emulation
    return None


def is_sparse(model: keras.Model) -> bool:
    """Whether the data gradients of the next step of `model` are pruned."""
    emulation = emulation_of(model)
    return emulation is not None and emulation.phase != Phase.DENSE


def kept_masses(model: keras.Model) -> dict[str, float]:
    """Returns which part of each gradient's L1 mass was kept, by layers.

    Layers whose gradient has not been measured are left out.
    """
    found = {
        key: layer_gradient(layer).kept_mass
        for key, layer in sdgp_layers(model).items()
    }
    return {key: mass for key, mass in found.items() if not math.isnan(mass)}


def _layers_of(
    model: keras.Model, prefix: str = ""
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields all layers, those of nested models instead of these."""
    for layer in model.layers:
        key = prefix + layer.name
        if keras_internals.is_graph(layer):
            yield from _layers_of(layer, f"{key}/")
        else:
            yield key, layer


def chosen_layers(
    model: keras.Model,
    pattern: Pattern,
    layers: Skip | None,
    seed: int | None,
) -> dict[str, keras.layers.Layer]:
    """Returns the layers that `with_sdgp` is to change, by their keys.

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
    known = dict(_layers_of(model))
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
    return found


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
    if emulation_of(model) is not None:
        raise ValueError(
            f"'{model.name}' has pruned data gradients already. Call "
            "`keras_prunetrain.without_sdgp(model)` before others are set."
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
        and _is_quantized(layer) is False
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

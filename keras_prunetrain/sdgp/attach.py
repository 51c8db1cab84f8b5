"""Gives the layers of a model a pruned data gradient, and takes it off."""

import math
from collections.abc import Iterable

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.selection import Skip
from keras_prunetrain.checks import check_model
from keras_prunetrain.sdgp.choosing import chosen_layers, layers_of
from keras_prunetrain.sdgp.emulation import (
    Emulation,
    LayerGradient,
    Phase,
    layer_gradient,
)
from keras_prunetrain.sdgp.pattern import Mode, Pattern


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

    A part of the epochs with dense gradients needs a callback:
    `SDGPCallback(dense_last=0.2)`.

    Args:
        model: A functional or `Sequential` model, the one that is trained: a
            step of another model on the same layers does not change if it is
            traced already.
        n: Integer from 1 to `m`: the channels that are kept of a block.
        m: Integer from 2 to 16: the consecutive channels of a block. Where the
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
            Layers of nested models are named `"model/layer"`; those inside of
            another layer (`TimeDistributed`) stay dense.
        seed: Integer of at least 0 for the modes that draw. Defaults to `None`,
            a number from Python's random generator.

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
    attach(model, pattern, chosen_layers(model, pattern, layers, seed), seed)
    return model


def attach(
    model: keras.Model,
    pattern: Pattern,
    keys: Iterable[str],
    seed: int | None,
) -> Emulation:
    """Prunes the data gradients of layers; returns their `Emulation`.

    Args:
        model: As of `with_sdgp`.
        pattern: The `Pattern`.
        keys: Those of the layers, as of `chosen_layers`. Keys that surgery has
            taken out of the model since then are left out.
        seed: As of `with_sdgp`.

    Raises:
        ValueError: If the model has pruned data gradients already.
    """
    if emulation_of(model) is not None:
        raise ValueError(
            f"'{model.name}' has pruned data gradients already. Call "
            "`keras_prunetrain.without_sdgp(model)` before others are set."
        )
    emulation = Emulation(model, pattern, seed)
    keys = set(keys)
    for key, layer in layers_of(model):
        if key in keys:
            gradient = LayerGradient(model, emulation, layer)
            keras_internals.replace_data_gradient(layer, gradient)
    _renew_steps(model)
    return emulation


def without_sdgp(model: keras.Model) -> keras.Model:
    """Undoes `with_sdgp`, and returns `model`: it trains densely again.

    A step of another model on the same layers that is traced already goes on
    with pruned gradients.

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
        for key, layer in layers_of(model)
        if layer_gradient(layer) is not None
    }


def layer_places(model: keras.Model, keys: Iterable[str]) -> list[int]:
    """Returns the places of layers among all.

    They are the same in each process that builds the model, where the names
    that Keras gives depend on what was built before.

    Args:
        model: The model.
        keys: The keys of the layers.
    """
    keys = set(keys)
    return [i for i, (key, _) in enumerate(layers_of(model)) if key in keys]


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

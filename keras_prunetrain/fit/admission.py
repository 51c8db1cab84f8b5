"""All that can be checked about a training before its first step."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.channels.scores import label_scores
from keras_prunetrain.channels.selection import matching_layers
from keras_prunetrain.devices import AUTO, device_kind
from keras_prunetrain.distribution import check_agreement, prepare_strategy
from keras_prunetrain.surgery.reconfigure import check_reconfigurable
from keras_prunetrain.trainers import check_built, optimizer_of


def admit(
    model: keras.Model,
    network: keras.Model,
    options: CutOptions,
    settings: Mapping[str, Any],
    params: Mapping[str, Any],
) -> tuple[Numbering, CutOptions]:
    """Checks that a model can be made smaller while it trains.

    Args:
        model: The model that trains, compiled and built.
        network: Its `network_of`.
        options: The `CutOptions`.
        settings: Dict of all else that workers must agree on.
        params: Dict, the `params` of a callback.

    Returns:
        The network's `Numbering`, and `options` with the keys of layers in
        `skip`.

    Raises:
        ValueError: If the model was not built under the strategy that trains
            it, if it has no known graph or holds only models that were not
            built, if `skip` matches no layer, if `score` fails, if a layer or
            the optimizer cannot be made anew, or if the workers are not started
            alike.
    """
    prepare_strategy(model)
    if network is model:
        check_built(model)
    numbering = number_channels(network)
    skip = tuple(matching_layers(numbering, options.skip))
    options = dataclasses.replace(options, skip=skip)
    label_scores(numbering, options.score)
    check_reconfigurable(network, options.skip, model)
    check_agreement(model, _description(model, options, settings, params))
    return numbering, options


def _description(model, options, settings, params):
    """Says all that decides what a training does and when, a string."""
    optimizer = optimizer_of(model)
    facts = {
        **settings,
        # Apart from a method's own settings, which may have the same names.
        "reconfigure": _written_options(options),
        "epochs": params["epochs"],
        "steps": params["steps"],
        "optimizer": type(optimizer).__name__,
        "learning_rate": keras_internals.shown_rate(optimizer),
        "weights": [tuple(weight.shape) for weight in model.weights],
    }
    if options.channel_multiple == AUTO:
        facts["device"] = device_kind()
    return ", ".join(f"{name}={value}" for name, value in facts.items())


def options_of_fit(
    model: keras.Model, options: CutOptions
) -> dict[str, str | list[int]]:
    """Returns `options`, but for the threshold, for another process to compare.

    A dict whose names are for messages. `skip` becomes the places of its layers
    among all, since the names that Keras gives differ between models.

    Raises:
        ValueError: If `skip` matches no layer.
    """
    places = []
    if options.skip:
        numbering = number_channels(model)
        keys = set(matching_layers(numbering, options.skip))
        places = [i for i, key in enumerate(numbering.layers) if key in keys]
    found = _written_options(options) | {"skip": places}
    del found["threshold"]  # A setting of the callback.
    return {f"reconfigure[{k!r}]": v for k, v in found.items()}


def _written_options(options):
    """Returns a text for each of `options`, the same in each process."""
    return {k: _written(v) for k, v in vars(options).items()}


def _written(value):
    # A function without its address, which differs between processes.
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return str(value)  # `repr` tells a NumPy number from a Python one.

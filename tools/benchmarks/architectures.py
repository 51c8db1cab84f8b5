"""The architectures that a recorded run went through, built once more."""

import keras
import numpy as np

import keras_prunetrain as kpt
from keras_prunetrain import models
from keras_prunetrain.channels.numbering import number_channels

SEED = 0


# That of the ResNets on CIFAR-10.
USUAL = {"momentum": 0.9, "weight_decay": 5e-4}


def first_architecture(recipe):
    keras.utils.set_random_seed(SEED)
    given = {}
    if recipe.get("image_size"):  # Otherwise that of the data set.
        given["input_shape"] = (recipe["image_size"], recipe["image_size"], 3)
    if recipe.get("width"):
        given["width"] = recipe["width"]
    model = getattr(models, recipe["network"])(
        weight_decay=recipe["weight_decay"], **given
    )
    model.compile(
        keras.optimizers.SGD(0.1, momentum=recipe["momentum"]),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    return model


def architectures(run):
    """Returns the networks of a `RecordedRun`, from the first to the last."""
    stages = [first_architecture(run.recipe)]
    for report in run.reports:
        stages.append(cut_like(report, stages[-1]))
    return stages


def rounded_up(run):
    """Returns the last network with the channel counts of `"auto"`."""
    keep = {}  # Of the first network's channels.
    for report in run.reports:
        for layer, kept in report["keep"].items():
            before = keep.get(layer)
            keep[layer] = [before[i] for i in kept] if before else kept
    return cut_like({"keep": keep}, first_architecture(run.recipe), "auto")


def cut_like(report, model, channel_multiple=1):
    """Returns `model` after the reconfiguration that `report` describes.

    Args:
        report: The record of a reconfiguration, a dict.
        model: The network before it.
        channel_multiple: As of `reconfigure`; above 1, more channels may stay
            than the report says.

    Raises:
        ValueError: If it describes that of another model.
    """
    numbering = number_channels(model)
    written = {
        name: label.numbers for name, label in numbering.computed().items()
    }
    alive = np.zeros(numbering.size, bool)
    alive[list(numbering.frozen)] = True
    for layer, keep in report["keep"].items():
        if max(keep, default=-1) >= len(written.get(layer, ())):
            raise ValueError(
                f"The records do not describe this cut: there is no layer "
                f"'{layer}' with more than {max(keep)} channels."
            )
        if keep:
            alive[written[layer][keep]] = True
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    twin.compile(keras.optimizers.SGD(0.1, momentum=0.9), model.loss)
    for label in number_channels(twin).kernels():
        kernel = np.moveaxis(label.weight.numpy(), label.axis, 0).copy()
        kernel[~alive[label.numbers]] = 0.0
        label.weight.assign(np.moveaxis(kernel, 0, label.axis))
    smaller = kpt.reconfigure(twin, channel_multiple=channel_multiple)
    if channel_multiple != 1:
        return smaller
    found = {
        layer.name: layer.kernel.shape[-1]
        for layer in smaller.layers
        if hasattr(layer, "kernel")
    }
    expected = {k: n for k, n in report["channels_after"].items() if n}
    if found != expected:
        raise ValueError(
            f"The records do not describe this cut: expected {expected}, "
            f"got {found}."
        )
    return smaller

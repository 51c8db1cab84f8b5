"""The network of a run, built and compiled."""

import inspect
import re

import keras

from apps.refusal import RefusedError
from keras_prunetrain import models

APPLICATIONS = sorted(
    name
    for name, value in vars(keras.applications).items()
    if inspect.isfunction(value) and name[0].isupper()
)


def compiled(recipe, data):
    """Returns the compiled network.

    Args:
        recipe: A `training.Recipe`.
        data: A `data.Dataset` or `imagenet.Images`.

    Raises:
        RefusedError: If there is no such network for images of this size.
    """
    try:
        model = _built(recipe, data)
    except ValueError as error:
        height, width, _ = data.image_shape
        raise RefusedError(
            f"--network={recipe.network} cannot be built for images of "
            f"{height}x{width} pixels: {_in_a_line(error)} Choose another "
            "network, or other images."
        ) from error
    model.compile(
        keras.optimizers.SGD(recipe.learning_rate, momentum=recipe.momentum),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[
            "accuracy",
            # The loss that Keras reports contains the penalties.
            keras.metrics.SparseCategoricalCrossentropy(
                from_logits=True, name="task_loss"
            ),
        ],
    )
    return model


def _in_a_line(error):
    """Returns what Keras says, without colours and the list of arguments."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    text = " ".join(text.partition("Arguments received")[0].split())
    return text if text.endswith(".") else f"{text}."


def _built(recipe, data):
    if recipe.network in models.__all__:
        build = getattr(models, recipe.network)
        width = {} if recipe.width is None else {"width": recipe.width}
        shape, decay = data.image_shape, recipe.weight_decay
        return build(shape, data.classes, decay, **width)
    model = getattr(keras.applications, recipe.network)(
        weights=None,
        input_shape=data.image_shape,
        classes=data.classes,
        classifier_activation=None,
    )
    for weight in model.trainable_variables:
        weight.regularizer = keras.regularizers.L2(recipe.weight_decay / 2)
    return model

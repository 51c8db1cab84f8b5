"""The network of a run, built and compiled, at full width or narrower."""

import bisect
import functools
import inspect
import math
import pathlib
import re
from typing import NamedTuple

import keras

import keras_prunetrain as kpt
from apps.refusal import RefusedError
from keras_prunetrain import models

APPLICATIONS = sorted(
    name
    for name, value in vars(keras.applications).items()
    if inspect.isfunction(value) and name[0].isupper()
)
# A target may be a quotient of FLOPs, rounded.
_ROUNDING = 1e-9


class Narrow(NamedTuple):
    """A network with every width times the same factor.

    Attributes:
        network: Its name.
        width: Channels of its first stage.
        full_width: Those of the full network.
        forward_flops: Of its inference, per image.
        full_forward_flops: Those of the full network.
    """

    network: str
    width: int
    full_width: int
    forward_flops: int
    full_forward_flops: int

    @property
    def figures(self):
        """What `result.json` says about it, a dict."""
        return {
            "width": self.width,
            "full_width": self.full_width,
            "width_factor": self.width / self.full_width,
            "full_forward_flops": self.full_forward_flops,
        }

    def __str__(self):
        return (
            f"{self.network} with {self.width} channels in its first stage "
            f"instead of {self.full_width}, and with every other width times "
            f"the same factor, {self.width / self.full_width:.3f}: "
            f"{self.forward_flops / 1e6:,.2f} MFLOP of inference per image, "
            f"{self.forward_flops / self.full_forward_flops:.1%} of "
            f"{self.full_forward_flops / 1e6:,.2f}."
        )


def has_width(network):
    """Whether all stages of `network` can be made wider or narrower."""
    return network in models.__all__


def narrowed(recipe, data):
    """Returns the widest network that costs no more than a recipe's target.

    Args:
        recipe: A `training.Recipe` of a network that has a width, with
            `target_flops`.
        data: As for `compiled`.

    Returns:
        A `Narrow`; no wider than the full network.

    Raises:
        RefusedError: If even a width of one channel costs more.
    """

    @functools.cache
    def flops(width):
        return kpt.model_cost(_built(recipe, data, width)).forward_flops

    full_width = recipe.width or own_width(recipe.network)
    full_flops = flops(full_width)
    most = recipe.target_flops * full_flops * (1 + _ROUNDING)
    # Each of them costs more than the one before.
    width = bisect.bisect_right(range(1, full_width + 1), most, key=flops)
    if width == 0:
        least = math.ceil(1e4 * flops(1) / full_flops) / 1e4
        raise RefusedError(
            f"--target_flops={recipe.target_flops} cannot be met: with one "
            f"channel in its first stage, {recipe.network} takes {least} of "
            f"the inference FLOPs that it takes with {full_width}. Choose at "
            "least that."
        )
    return Narrow(recipe.network, width, full_width, flops(width), full_flops)


def compiled(recipe, data, narrow=None):
    """Returns the compiled network.

    Args:
        recipe: A `training.Recipe`.
        data: A `data.Dataset` or `imagenet.Images`.
        narrow: The `Narrow` to build; `None` for the full network.

    Raises:
        RefusedError: If there is no such network for images of this size.
    """
    width = narrow.width if narrow else recipe.width
    try:
        model = _built(recipe, data, width)
    except ValueError as error:  # The images are too small.
        height, width, _ = data.image_shape
        raise RefusedError(
            f"--network={recipe.network} cannot be built for images of "
            f"{height}x{width} pixels: {_in_a_line(error)} Choose another "
            "network, or other images."
        ) from error
    model.compile(
        _optimizer(recipe),
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


def take_weights(model, folder):
    """Gives `model` the last weights of a finished run.

    Args:
        model: The model, as `compiled` returns it.
        folder: The run's folder.

    Raises:
        RefusedError: If the run's model cannot be read, or has other layers
            or other widths.
    """
    path = pathlib.Path(folder, "model.keras")
    try:
        trained = keras.saving.load_model(path, compile=False)
        model.set_weights(trained.get_weights())
    except Exception as error:  # Whatever a broken archive leads Keras to.
        raise RefusedError(
            f"--initial_run={folder} has no weights for this network: "
            f"{_in_a_line(error)} Choose a finished run of the same network, "
            "as wide as this one."
        ) from error


def _optimizer(recipe):
    rate = recipe.learning_rate
    clipping = {"global_clipnorm": recipe.global_clipnorm}
    if recipe.optimizer == "sgd":
        momentum = recipe.momentum
        return keras.optimizers.SGD(rate, momentum=momentum, **clipping)
    if recipe.optimizer == "adam":
        return keras.optimizers.Adam(rate, **clipping)
    # Its decay is its own, and not in the loss; see `_coupled_decay`.
    decay = recipe.weight_decay
    return keras.optimizers.AdamW(rate, weight_decay=decay, **clipping)


def _coupled_decay(recipe):
    return 0.0 if recipe.optimizer == "adamw" else recipe.weight_decay


def _in_a_line(error):
    """Returns what Keras says, without colours and the list of arguments."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    text = " ".join(text.partition("Arguments received")[0].split())
    return text if text.endswith(".") else f"{text}."


def own_width(network):
    """Returns how many channels the first stage of a `network` has unasked."""
    parameters = inspect.signature(getattr(models, network)).parameters
    return parameters["width"].default


def _built(recipe, data, width):
    if has_width(recipe.network):
        return getattr(models, recipe.network)(
            data.image_shape,
            data.classes,
            _coupled_decay(recipe),
            width or own_width(recipe.network),
        )
    model = getattr(keras.applications, recipe.network)(
        weights=None,
        input_shape=data.image_shape,
        classes=data.classes,
        classifier_activation=None,
    )
    for weight in model.trainable_variables:
        weight.regularizer = keras.regularizers.L2(_coupled_decay(recipe) / 2)
    return model

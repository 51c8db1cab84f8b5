"""A model of `keras.applications` as the backbone of a fine-tuned model.

The model is that of Keras's guide to transfer learning: a backbone for images
of any size, nested and called with `training=False`, and a head. The backbone
is frozen at first, then it is trained as well. (In Keras 3 a training step
calls all layers with `training=True`, whatever the call of a nested model says:
the batch normalizations of the unfrozen backbone then read the batch.)
"""

import keras
import numpy as np
from applications import SIZES, awaken, draw_weights
from keras import layers
from masked_trial import (
    SEED,
    Trial,
    compared,
    compile_anew,
    cut,
    difference,
    examples,
    loaded,
    misses,
)

import keras_prunetrain as kpt
from keras_prunetrain.channels.numbering import number_channels
from tests.masked import some_alive

# Keras compares sizes when it builds them, and `None` is equal to `None`: built
# for images of any size, they compute no image.
ONE_SIZE = {"NASNetLarge", "NASNetMobile"}


def nested(name):
    """Returns what is left of the model, and how far its equal is from it."""
    keras.config.set_floatx("float64")
    keras.utils.set_random_seed(SEED)
    trial = prepare(name)
    row = {"frozen_difference": frozen_difference(trial)} | unfrozen(trial)
    differences = [
        value
        for key, value in row.items()
        if key.endswith("difference") and key != "living_channel_difference"
    ]
    found = {
        "parameters": row["parameters"],
        "parameters_after": row["parameters_after"],
        "difference": float(np.max(differences)),  # A NaN stays one.
        "misses": misses(row),
        "any_size": name not in ONE_SIZE,
    }
    return {"nested": found}


def prepare(name):
    """Builds the model, with weights that carry a signal; returns a `Trial`."""
    rng = np.random.default_rng(SEED)
    size = SIZES.get(name, 32)
    # The larger ones of the images are those that batch normalization takes its
    # statistics from. Behind those of the smaller ones, where kernels read
    # padding, outputs for the larger ones would explode, with all rounding.
    shape, sizes = (None, None, 3), (size + 16, size)
    if name in ONE_SIZE:
        shape, sizes = (size, size, 3), (size, size)
    backbone = getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=shape
    )
    image = keras.Input(shape)
    x = backbone(image, training=False)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(10, name="logits")(x))
    images, labels = examples(model, sizes, rng)
    draw_weights(model, rng)
    awaken(model, images, rng)
    numbering = number_channels(model)
    alive = some_alive(numbering, rng)
    return Trial(model, model, numbering, alive, images, labels, rng)


def backbone_of(model):
    return model.layers[1]  # Behind the input.


def frozen_difference(trial):
    """Trains the head for a step; returns what `reconfigure` then changes.

    The head no longer reads half of the features, but the frozen backbone goes
    on computing them: it must stay as it was.
    """
    model = trial.model
    backbone = backbone_of(model)
    before = backbone.get_weights()
    backbone.trainable = False
    compile_anew(model)
    model.train_on_batch(trial.images, trial.labels)
    kernel = model.get_layer("logits").kernel
    trained = kernel.numpy()
    kernel.assign(np.where(np.arange(len(trained))[:, None] % 2, trained, 0.0))
    smaller = kpt.reconfigure(model)
    after = backbone_of(smaller).get_weights()
    if [x.shape for x in before] != [x.shape for x in after] or not all(
        map(np.array_equal, before, after)
    ):
        return float("inf")
    found = difference(smaller(trial.images), model(trial.images))
    kernel.assign(trained)
    return found


def unfrozen(trial):
    """Trains the backbone as well; compares the smaller model."""
    backbone_of(trial.model).trainable = True
    compile_anew(trial.model)
    smaller, expected = cut(trial)
    again = loaded(smaller)
    size = trial.images.shape[2]
    others = trial.rng.uniform(0.0, 255.0, (2, size, size, 3))
    of_others = trial.model(others)
    return {
        "other_size_difference": difference(smaller(others), of_others),
        "loaded_other_size_difference": difference(again(others), of_others),
        **compared(trial, smaller, expected),
    }

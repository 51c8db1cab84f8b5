"""A tiny residual network whose channels die on command, and data for it."""

import keras
import numpy as np
from keras import layers

# A channel lives in several kernels: (layer, axis) of each.
PLACES = {
    "inner": [("inner", -1), ("last", -2)],
    "stage": [("stem", -1), ("last", -1), ("inner", -2), ("logits", -2)],
}
KERNELS = {"stem": (-1,), "inner": (-2, -1), "last": (-2, -1), "logits": (-2,)}


def graph(
    l2=0.0, dropout=0.2, regularizers=None, dtype=None, synchronized=False
):
    """Returns inputs and outputs."""
    own = {
        name: keras.regularizers.L2(l2) if l2 else None for name in KERNELS
    } | (regularizers or {})
    common = {"padding": "same", "use_bias": False, "dtype": dtype}
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(
        6, 3, name="stem", kernel_regularizer=own["stem"], **common
    )(inputs)
    x = layers.BatchNormalization(
        name="stem_bn", dtype=dtype, synchronized=synchronized
    )(x)
    x = layers.ReLU(dtype=dtype)(x)
    y = layers.Conv2D(
        6, 3, name="inner", kernel_regularizer=own["inner"], **common
    )(x)
    y = layers.ReLU(dtype=dtype)(y)
    y = layers.Conv2D(
        6, 3, name="last", kernel_regularizer=own["last"], **common
    )(y)
    x = layers.Add(dtype=dtype)([x, y])
    x = layers.GlobalAveragePooling2D(dtype=dtype)(x)
    x = layers.Dropout(dropout, seed=1, dtype=dtype)(x)
    outputs = layers.Dense(
        3, name="logits", kernel_regularizer=own["logits"], dtype=dtype
    )(x)
    return inputs, outputs


TRACED = {"run_eagerly": False}


def network(model_class=keras.Model, compiled=None, **kwargs):
    """Compiled to run eagerly: tracing takes most of the time of such fits."""
    keras.utils.set_random_seed(0)
    model = model_class(*graph(**kwargs))
    model.compile(
        **{
            "optimizer": keras.optimizers.SGD(0.05, momentum=0.9),
            "loss": keras.losses.SparseCategoricalCrossentropy(
                from_logits=True
            ),
            "metrics": ["accuracy"],
            "run_eagerly": True,
            **(compiled or {}),
        }
    )
    return model


def examples(count=40, seed=0):
    """Images whose class is the strongest colour."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    images = rng.normal(size=(count, 8, 8, 3))
    images += 0.5 * np.eye(3)[labels][:, None, None, :]
    return images.astype("float32"), labels.astype("int32")


class Kill(keras.callbacks.Callback):
    """Sets channels to zero at the ends of epochs.

    Args:
        plan: Dict from an epoch to a dict from a key of `PLACES` to positions.
    """

    def __init__(self, plan):
        super().__init__()
        self.plan = plan

    def on_epoch_end(self, epoch, logs=None):
        for places, positions in self.plan.get(epoch, {}).items():
            kill(self.model, places, positions)


def kill(model, places, positions, value=0.0):
    for name, axis in PLACES[places]:
        kernel = model.get_layer(name).kernel
        array = np.moveaxis(kernel.numpy(), axis, 0)
        array[positions] = value
        kernel.assign(np.moveaxis(array, 0, axis))


def norms(model):
    """The sum of the norms of all groups, by NumPy."""
    total = 0.0
    for name, axes in KERNELS.items():
        kernel = model.get_layer(name).get_weights()[0].astype("float64")
        for axis in axes:
            others = tuple(
                i for i in range(kernel.ndim) if i != axis % kernel.ndim
            )
            total += np.sqrt(np.square(kernel).sum(others) + 1e-8).sum()
    return total


def squares(model):
    """The sum of the squares of all kernels."""
    return sum(
        np.square(model.get_layer(name).get_weights()[0]).sum()
        for name in KERNELS
    )


def widths(model):
    return {name: model.get_layer(name).kernel.shape[-1] for name in KERNELS}


def factors(model):
    """The factors of the lassos on the kernels, attached or own; 0 if none."""
    found = []
    for name in KERNELS:
        regularizer = model.get_layer(name).kernel.regularizer
        lasso = getattr(regularizer, "lasso", regularizer)
        found.append(getattr(lasso, "factor", 0.0))
    return found

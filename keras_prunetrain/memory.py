"""The memory that a training iteration takes, and the memory of a device."""

import contextlib
import os
import pathlib

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.checks import check_model, is_count
from keras_prunetrain.cost import Cost, model_cost
from keras_prunetrain.example_shapes import InputShapes
from keras_prunetrain.variables import gradient_bytes, variable_bytes


def training_bytes(
    model: keras.Model,
    batch_size: int,
    input_shapes: InputShapes = None,
) -> int:
    """Returns the bytes that a training iteration keeps at its peak.

    Each example adds the activations that the backward pass needs. All examples
    share the weights, one gradient for each weight that trains, and the
    optimizer's slots. The bytes are counted, not measured: TensorFlow took 9 to
    14% more as the batch grew (`tools/benchmarks/memory.py`).

    Args:
        model: A compiled functional model.
        batch_size: Integer, at least 0: the examples on one replica; 0 for the
            part that all examples share.
        input_shapes: Shape of one example, as of `model_cost`. Defaults to
            `None`, the shapes of the model's inputs.

    Returns:
        Integer.

    Raises:
        ValueError: If `model` is no model or not compiled, if `batch_size` is
            out of its range, and as `model_cost`.
    """
    if not is_count(batch_size):
        raise ValueError(
            "`batch_size` must be an integer of at least 0. Received: "
            f"batch_size={batch_size}"
        )
    fixed, per_example = iteration_bytes(model, input_shapes)
    return fixed + int(batch_size) * per_example


def iteration_bytes(
    model: keras.Model,
    input_shapes: InputShapes = None,
    cost: Cost | None = None,
) -> tuple[int, int]:
    """Returns the two parts of `training_bytes`.

    Args:
        model: A compiled functional model.
        input_shapes: Shape of one example, as of `model_cost`.
        cost: The model's `Cost`, if it has been counted already.

    Returns:
        The bytes of weights, gradients and slots, and those of the activations
        of one example.
    """
    check_model(model)
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            "The slots of the optimizer take memory as well: call "
            "`model.compile(...)` first. Received: model="
            f"'{model.name}', which has no optimizer"
        )
    cost = cost or model_cost(model, input_shapes)
    fixed = gradient_bytes(model) + variable_bytes(model.variables)
    return fixed + _optimizer_bytes(model), cost.activation_bytes


def _optimizer_bytes(model):
    """Returns the bytes of the slots, even if they are not made yet."""
    optimizer = model.optimizer
    if not optimizer.built:
        # Keras makes the slots in the first step, for the weights that train by
        # then. Before that step, only a copy may make slots.
        with keras_internals.strategy_scope(model):
            optimizer = keras_internals.copy_optimizer(optimizer)
            optimizer.build(model.trainable_variables)
    return variable_bytes(optimizer.variables)


def device_bytes() -> int:
    """Returns the bytes of memory that one replica has on its device.

    On a GPU, that is the memory which TensorFlow may allocate; only
    `device_lib` tells it. On a CPU, it is the machine's memory, or the limit of
    the container, divided by the number of logical CPUs.
    """
    import tensorflow as tf
    from tensorflow.python.client import device_lib

    limits = [
        device.memory_limit
        for device in device_lib.list_local_devices()
        if device.device_type == "GPU"
    ]
    if limits:
        return min(limits)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # No file, or "max" in it.
        limit = pathlib.Path("/sys/fs/cgroup/memory.max").read_text()
        total = min(total, int(limit))
    return total // len(tf.config.list_logical_devices("CPU"))

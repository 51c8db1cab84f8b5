"""The memory that a training iteration takes, and that a device has."""

import contextlib
import os
import pathlib

from keras_prunetrain.cost import model_cost
from keras_prunetrain.variables import gradient_bytes, variable_bytes


def training_bytes(model, batch_size):
    """Returns how many bytes a training iteration keeps at its peak.

    The activations that the backward pass needs, for each example, and for all
    of them the weights, one gradient for each weight that trains, and the
    optimizer's slots.

    Args:
        model: A compiled functional model; its sizes but the batch are fixed.
        batch_size: Integer. Examples on one replica.
    """
    fixed, per_example = iteration_bytes(model)
    return fixed + batch_size * per_example


def iteration_bytes(model, cost=None):
    """Returns the bytes of a model's variables, and those of an example.

    Args:
        model: A compiled functional model.
        cost: Its `Cost`, if it has been counted already.
    """
    variables = [*model.variables, *model.optimizer.variables]
    fixed = gradient_bytes(model) + variable_bytes(variables)
    return fixed, (cost or model_cost(model)).activation_bytes


def device_bytes():
    """Returns the memory that one replica has on its device.

    Of a GPU what TensorFlow may allocate there, which only `device_lib` tells;
    of the machine a CPU's share, if there are several logical ones.
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
    with contextlib.suppress(OSError, ValueError):  # "max", or no such limit.
        limit = pathlib.Path("/sys/fs/cgroup/memory.max").read_text()
        total = min(total, int(limit))
    return total // len(tf.config.list_logical_devices("CPU"))

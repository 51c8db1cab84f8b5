import functools
import gc

import keras
import pytest
import tensorflow as tf

from tests import eager

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

eager.split_grouped_convolutions()


@functools.cache  # A second MirroredStrategy in one process fails in `fit`.
def _mirrored():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def strategy(request):
    """Two replicas; `parametrize(..., indirect=True)` with "default": one."""
    if getattr(request, "param", "mirrored") == "mirrored":
        return _mirrored()
    return tf.distribute.get_strategy()


@pytest.fixture
def float64():
    """Builds and computes in float64 for the length of one test."""
    before = keras.config.floatx()
    policy = keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


def pytest_addoption(parser):
    parser.addoption(
        "--graphs",
        type=int,
        default=100,
        help="How many random networks to cut and compare.",
    )


def pytest_collection_finish():
    # What is imported stays. Whoever collects garbage, as surgery does, need
    # not look through it again and again: it is most of what there is.
    gc.collect()
    gc.freeze()

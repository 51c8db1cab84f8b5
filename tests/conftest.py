import functools
import gc
import time

import pytest

_STARTED = time.monotonic()


# Imported only where tests are collected: the process that hands out the files
# of tests waits for its own imports before it starts the processes that run
# them.
def pytest_pycollect_makemodule():
    _prepare()


@functools.cache
def _prepare():
    import tensorflow as tf

    from tests import eager

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    eager.split_grouped_convolutions()


@functools.cache  # A second MirroredStrategy in one process fails in `fit`.
def _mirrored():
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def strategy(request):
    """Two replicas; `parametrize(..., indirect=True)` with "default": one."""
    if getattr(request, "param", "mirrored") == "mirrored":
        return _mirrored()
    import tensorflow as tf

    return tf.distribute.get_strategy()


@pytest.fixture
def float64():
    """Builds and computes in float64 for the length of one test."""
    import keras

    before = keras.config.floatx()
    policy = keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)


@pytest.fixture(autouse=True)
def _seed():
    import keras

    keras.utils.set_random_seed(0)


def pytest_addoption(parser):
    parser.addoption(
        "--graphs",
        type=int,
        default=100,
        help="How many random networks to cut and compare.",
    )
    parser.addoption(
        "--seconds",
        type=float,
        help="Skip the tests that would begin later.",
    )


def pytest_collection_finish():
    _set_aside()


def pytest_runtest_setup(item):
    seconds = item.config.getoption("--seconds")
    if seconds is not None and time.monotonic() - _STARTED > seconds:
        # The name makes a line of its own in the summary of `-rs`.
        pytest.skip(
            f"{item.nodeid}: the {seconds:.0f} seconds of --seconds are over."
        )
    _set_aside()


def _set_aside():
    """Spares the search for garbage all objects that there are by now.

    Surgery collects garbage and looks for live models, so it goes through all
    objects. After the imports, most of them are those of TensorFlow; and
    programs that ran inside of a test, and broken off ones, leave more behind.
    After a few files of tests, half of the time went into these searches.
    """
    gc.collect()
    gc.freeze()

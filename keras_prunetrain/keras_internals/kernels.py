"""The private part of TensorFlow that keeps the operations that it has run.

TensorFlow keeps what it prepared in order to run an operation outside of a
traced function, one of each for all attributes and inputs. The operations that
make, read and write a variable have its shape, its type and its name among
them. What is kept takes about 35 kB each, and stays for good: every smaller
model of 34 variables and slots would leave 1.8 MB behind.
"""

import contextlib
import importlib

import keras

# None of these holds a state of its own.
_OPERATIONS = ("VarHandleOp", "ReadVariableOp", "AssignVariableOp")


def release_kernels() -> None:
    """Lets TensorFlow forget how variables of former shapes are used.

    It prepares the operations anew when they are next run, which takes about a
    millisecond each. All operations can be forgotten by
    `keras.utils.clear_session`, but that also resets names and seeds.
    """
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    eager = importlib.import_module("tensorflow.python.eager.context")
    context = eager.context()
    # An operation is run as a function of this name; with that function goes
    # all that was prepared for it.
    prefixes = tuple(f"__wrapped__{name}_device_" for name in _OPERATIONS)
    for name in context.list_function_names():
        if name.startswith(prefixes):
            # Another thread may have been faster.
            with contextlib.suppress(tf.errors.InvalidArgumentError):
                context.remove_function(name)

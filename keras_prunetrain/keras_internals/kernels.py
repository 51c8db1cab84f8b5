"""The private part of TensorFlow that caches the kernels of operations.

TensorFlow caches a kernel for each operation that runs outside of a traced
function, one for each combination of attributes and inputs. If the operation
makes, reads or writes a variable, the variable's shape, type and name are part
of this combination. A kernel takes about 35 kB and is never freed: a smaller
model of 34 variables and slots would leave 53 kernels behind, 1.8 MB.
"""

import contextlib
import importlib

import keras

# None of these operations holds a state of its own.
_OPERATIONS = ("VarHandleOp", "ReadVariableOp", "AssignVariableOp")


def release_kernels() -> None:
    """Frees the kernels that make, read and write variables.

    TensorFlow makes a kernel anew when its operation runs next, in about a
    millisecond. `keras.utils.clear_session` would free the kernels of all
    operations, but also reset names and seeds.
    """
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    eager = importlib.import_module("tensorflow.python.eager.context")
    context = eager.context()
    # TensorFlow runs an operation as a function with such a name; removing the
    # function frees its kernels.
    prefixes = tuple(f"__wrapped__{name}_device_" for name in _OPERATIONS)
    for name in context.list_function_names():
        if name.startswith(prefixes):
            # Another thread may have removed the function already.
            with contextlib.suppress(tf.errors.InvalidArgumentError):
                context.remove_function(name)

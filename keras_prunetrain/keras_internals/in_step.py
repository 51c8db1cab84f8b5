"""What a hook of the train step does on one replica or on several."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras.optimizers import Optimizer

from keras_prunetrain.keras_internals.optimizer import optimizer_variables


def update_in_step(
    optimizer: Optimizer,
    variables: Sequence[keras.Variable],
    function: Callable[[Any, Any], Any],
    arguments: Sequence[Any],
) -> None:
    """Assigns `function(value, argument)` to each of `variables`.

    Call this from a hook of `add_step_hook`. A replica of `tf.distribute` must
    not assign a variable by itself; Keras's optimizers leave their replicas for
    it with the same two functions, and no public method of theirs does only
    that.

    Args:
        optimizer: The optimizer whose step calls the hook.
        variables: List of variables.
        function: Takes the value of a variable and its argument; returns the
            new value.
        arguments: List of tensors, one for each variable, equal on all
            replicas.
    """
    import tensorflow as tf

    def assign(strategy, arguments):
        for variable, argument in zip(variables, arguments, strict=True):
            strategy.extended.update(
                variable.value,
                lambda value, x: value.assign(function(value, x)),
                args=(argument,),
                group=False,
            )

    tf.__internal__.distribute.interim.maybe_merge_call(
        assign, optimizer._distribution_strategy, list(arguments)
    )


def sum_over_replicas(value: Any) -> Any:
    """Returns the sum of a tensor over all replicas; inside the train step."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def gradient_of(
    function: Callable[[keras.Variable], Any], variable: keras.Variable
) -> Any:
    """Returns the gradient of a scalar function at the value of `variable`.

    Args:
        function: Takes the variable itself, as Keras hands it to a
            regularizer, and not a tensor.
        variable: A variable; a replica reads its own copy.

    Returns:
        Tensor of the same shape; zeros if the function does not depend on it.
    """
    import tensorflow as tf

    with tf.GradientTape() as tape:
        # A variable that was made in a frozen layer is not watched by itself.
        tape.watch(variable.value)
        result = tf.convert_to_tensor(function(variable))
    return tape.gradient(
        result,
        variable.value,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )


def masked_gradient(gradient: Any, mask: Any) -> Any:
    """Returns a gradient times a mask of its variable's shape; a NaN stays NaN.

    Args:
        gradient: Tensor, or the rows that an `Embedding` has looked up, which
            stay rows; or `None`.
        mask: Tensor of zeros and ones.
    """
    import tensorflow as tf

    if gradient is None:
        return None
    mask = tf.cast(mask, gradient.dtype)
    if isinstance(gradient, tf.IndexedSlices):
        rows = gradient.values * tf.gather(mask, gradient.indices)
        return tf.IndexedSlices(rows, gradient.indices, gradient.dense_shape)
    return gradient * mask


def scale_in_step(
    optimizer: Optimizer,
    variables: Sequence[keras.Variable],
    factors: Mapping[int, Any],
) -> None:
    """Multiplies variables, and their slots, by factors of at least 0.

    Call this from a hook of `add_step_hook`. Where a factor is 0, the result is
    0, even of a NaN (`multiplied`).

    Args:
        optimizer: The optimizer whose step calls the hook.
        variables: List of variables that the optimizer updates.
        factors: Dict from the `id` of a variable to a tensor that can be
            broadcast to its shape. Other variables stay as they are.
    """
    updated, slots, _ = optimizer_variables(optimizer)
    place = {id(variable): i for i, variable in enumerate(updated)}
    scaled, arguments = [], []
    for variable in variables:
        if id(variable) not in factors:
            continue
        of_variable = (x[place[id(variable)]] for x in slots.values())
        own = [variable] + [
            slot
            for slot in of_variable
            if slot is not None and slot.shape == variable.shape
        ]
        scaled += own
        arguments += [factors[id(variable)]] * len(own)
    update_in_step(optimizer, scaled, multiplied, arguments)


def multiplied(value: Any, factor: Any) -> Any:
    """Returns `value * factor`, and 0 where `factor` is, in one operation.

    Ftrl divides by the root of a slot, and so makes zeros NaN.

    Args:
        value: A tensor.
        factor: A tensor whose shape can be broadcast to that of `value`.
    """
    import tensorflow as tf

    return tf.math.multiply_no_nan(value, tf.cast(factor, value.dtype))

"""The private parts of Keras's optimizers: their state."""

import contextlib

import keras

from keras_prunetrain.keras_internals.variables import Unfilled


def inner_optimizers(optimizer):
    """Returns the optimizers that `optimizer` wraps, a dict.

    `LossScaleOptimizer` has an attribute of its own for it, `MultiOptimizer` a
    list; nothing public names both.
    """
    inner = {}
    for name, value in vars(optimizer).items():
        members = value if isinstance(value, list) else [value]
        for i, member in enumerate(members):
            if isinstance(member, keras.optimizers.Optimizer):
                inner[f"{name}[{i}]"] = member
    return inner


def copy_optimizer(optimizer):
    """Returns a new optimizer with the settings of `optimizer`, no slots.

    A learning rate that is a schedule or a function is passed as an object:
    serialized, it would have to be registered.
    """
    rate = vars(optimizer).get("_learning_rate")
    is_object = rate is not None and not isinstance(rate, keras.Variable)
    try:
        if is_object:
            vars(optimizer)["_learning_rate"] = keras.ops.convert_to_tensor(0.0)
        config = optimizer.get_config()
        if is_object:
            config["learning_rate"] = rate
        return type(optimizer).from_config(config)
    except Exception as error:
        raise ValueError(
            f"Cannot make a second {type(optimizer).__name__} for the smaller "
            "model. Check that its `get_config` returns all that its "
            "`__init__` takes, and register its class and those that it wraps "
            "with `keras.saving.register_keras_serializable`. Keras says: "
            f"{error}"
        ) from error
    finally:
        if is_object:
            vars(optimizer)["_learning_rate"] = rate


@contextlib.contextmanager
def unfilled_slots(optimizer):
    """Lets `optimizer` and those in it make slots that are `Unfilled`.

    Which initializer a slot gets is written in `Optimizer.build`; all of them
    make it by `Optimizer.add_variable`.
    """
    optimizers = [optimizer, *_wrapped_optimizers(optimizer)]
    for one in optimizers:
        vars(one)["add_variable"] = _without_initializer(one.add_variable)
    try:
        yield
    finally:
        for one in optimizers:
            del vars(one)["add_variable"]


def _without_initializer(add_variable):
    def add_unfilled(shape, initializer="zeros", **kwargs):
        return add_variable(shape, initializer=Unfilled(), **kwargs)

    return add_unfilled


def _wrapped_optimizers(optimizer):
    for inner in inner_optimizers(optimizer).values():
        yield inner
        yield from _wrapped_optimizers(inner)


def leaf_optimizers(optimizer):
    """Returns the optimizers that update variables, a list.

    That is `optimizer` itself, or those that it wraps, however deep.
    """
    inner = inner_optimizers(optimizer)
    if not inner:
        return [optimizer]
    return [leaf for x in inner.values() for leaf in leaf_optimizers(x)]


def carry_exclusions(optimizer, smaller, pairs):
    """Excludes from weight decay what `exclude_from_weight_decay` excluded.

    That is in no config. The variables are kept by a key of their own.

    Args:
        optimizer: The optimizer of the model.
        smaller: That of the smaller model; modified.
        pairs: Pairs of a variable and its counterpart in the smaller model.
    """
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    keys = getattr(optimizer, "_exclude_from_weight_decay", set())
    if pattern is not None or keys:
        smaller._exclude_from_weight_decay_pattern = pattern
        smaller._exclude_from_weight_decay = {
            smaller._var_key(new)
            for old, new in pairs
            if optimizer._var_key(old) in keys
        }
        smaller._exclude_from_weight_decay_cache = {}


def optimizer_variables(optimizer):
    """Returns what an optimizer holds, by attribute name.

    Names of slots differ from class to class (`momentums`, `_velocities`), and
    the order of `Optimizer.variables` from version to version; the lists among
    the attributes, one entry for each trainable variable, do not.

    Returns:
        The list of the variables that it updates; a dict from attribute name
        to a list of slots, in the same order, each a variable or `None`; and
        a dict from attribute name to a single variable.
    """
    updated = list(optimizer._trainable_variables)
    slots, singles = {}, {}
    for name, value in vars(optimizer).items():
        if name in ("_variables", "_trainable_variables"):
            continue
        if isinstance(value, keras.Variable):
            singles[name] = value
        elif (
            isinstance(value, list)
            and len(value) == len(updated)
            and any(isinstance(slot, keras.Variable) for slot in value)
        ):
            slots[name] = value
    return updated, slots, singles

"""The private parts of Keras's optimizers: their state."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import keras
from keras.optimizers import Optimizer

from keras_prunetrain.keras_internals.variables import Unfilled


def inner_optimizers(optimizer: Optimizer) -> dict[str, Optimizer]:
    """Returns the optimizers that `optimizer` wraps, a dict.

    `LossScaleOptimizer` holds one in an attribute, `MultiOptimizer` several in
    a list; no public attribute covers both.
    """
    inner = {}
    for name, value in vars(optimizer).items():
        members = value if isinstance(value, list) else [value]
        for i, member in enumerate(members):
            if isinstance(member, Optimizer):
                inner[f"{name}[{i}]"] = member
    return inner


def optimizer_pairs(
    optimizer: Optimizer, copy: Optimizer
) -> Iterator[tuple[Optimizer, Optimizer]]:
    """Yields `(optimizer, copy)`, then the pairs of optimizers in them.

    Args:
        optimizer: An optimizer.
        copy: A `copy_optimizer` of it, built or not.
    """
    yield optimizer, copy
    inner = inner_optimizers(copy)
    for name, member in inner_optimizers(optimizer).items():
        yield from optimizer_pairs(member, inner[name])


def copy_optimizer(optimizer: Optimizer) -> Optimizer:
    """Returns a new optimizer with the settings of `optimizer`, no slots.

    The wrapped optimizers are copied as well. A learning rate that is a
    schedule or a function is passed on as an object, and so is the function by
    which a `MultiOptimizer` chooses a member: serialization would require that
    the user registers them.

    Raises:
        ValueError: If the config of `optimizer` does not make a second one.
    """
    try:
        if isinstance(optimizer, keras.optimizers.MultiOptimizer):
            return _copy_multi_optimizer(optimizer)
        config = _with_plain_rate(optimizer).get_config()
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            config["inner_optimizer"] = copy_optimizer(
                optimizer.inner_optimizer
            )
            return type(optimizer)(**config)
        if _rate_is_object(optimizer):
            config["learning_rate"] = optimizer._learning_rate
        return type(optimizer).from_config(config)
    except Exception as error:
        raise ValueError(
            f"Cannot make a second {type(optimizer).__name__} for the smaller "
            "model. Check that its `get_config` returns all that its "
            "`__init__` takes, and register its class and those that it wraps "
            "with `keras.saving.register_keras_serializable`. Keras says: "
            f"{error}"
        ) from error


def _rate_is_object(optimizer):
    rate = vars(optimizer).get("_learning_rate")
    return rate is not None and not isinstance(rate, keras.Variable)


def _with_plain_rate(optimizer):
    """Returns a shallow copy of `optimizer` whose `get_config` always works.

    The original is not modified, so an interrupt does not harm its training.
    """
    plain = object.__new__(type(optimizer))
    for name, value in vars(optimizer).items():
        if isinstance(value, Optimizer):
            value = _with_plain_rate(value)
        vars(plain)[name] = value
    if _rate_is_object(optimizer):
        vars(plain)["_learning_rate"] = keras.ops.convert_to_tensor(0.0)
    return plain


def _copy_multi_optimizer(optimizer):
    """Copies a `MultiOptimizer`, its members in the same order.

    Its `_optimizer_map` is an `OptimizerMap` or a function of a variable. The
    members that a function chooses are known only once they are in use.
    """
    members = {id(x): copy_optimizer(x) for x in optimizer.optimizers}
    choose = optimizer._optimizer_map
    if isinstance(choose, keras.optimizers.OptimizerMap):
        choose = keras.optimizers.OptimizerMap(
            members[id(choose.default_optimizer)],
            {pattern: members[id(x)] for pattern, x in choose.items()},
        )
    copy = type(optimizer)(
        choose,
        loss_scale_factor=optimizer.loss_scale_factor,
        name=optimizer.name,
    )
    for member in members.values():
        if not any(member is x for x in copy._inner_optimizers):
            copy._inner_optimizers.append(member)
    return copy


def build_copy(
    optimizer: Optimizer,
    copy: Optimizer,
    pairs: Sequence[tuple[keras.Variable, keras.Variable]],
) -> None:
    """Makes the slots of `copy`, without values.

    In a `MultiOptimizer`, each weight stays with the member that updated it.

    Args:
        optimizer: An optimizer that has been built.
        copy: A `copy_optimizer` of it; modified.
        pairs: Pairs of a variable that `optimizer` updates and its counterpart
            for `copy`, in the order in which `copy` is to hold them.
    """
    choices = []
    for old, new in optimizer_pairs(optimizer, copy):
        if isinstance(old, keras.optimizers.MultiOptimizer):
            members = {
                id(after): new._inner_optimizers[
                    old._var_to_optimizer_idx[old._var_key(before)]
                ]
                for before, after in pairs
            }
            choices.append((new, new._optimizer_map))
            new._optimizer_map = lambda v, members=members: members[id(v)]
    with _unfilled_slots(copy):
        copy.build([after for _, after in pairs])
    for new, choose in choices:
        new._optimizer_map = choose


@contextlib.contextmanager
def _unfilled_slots(optimizer):
    """Lets `optimizer` and the optimizers in it make slots by `Unfilled`.

    `Optimizer.build` has the initializers in its code, and makes every slot by
    `Optimizer.add_variable`, which is replaced here.
    """
    optimizers = [x for x, _ in optimizer_pairs(optimizer, optimizer)]
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


def leaf_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """Returns the optimizers that update variables, a list.

    This is `optimizer` itself, or the innermost optimizers that it wraps.
    """
    inner = inner_optimizers(optimizer)
    if not inner:
        return [optimizer]
    return [leaf for x in inner.values() for leaf in leaf_optimizers(x)]


def carry_exclusions(
    optimizer: Optimizer,
    smaller: Optimizer,
    pairs: Iterable[tuple[keras.Variable, keras.Variable]],
) -> None:
    """Copies the exclusions that `exclude_from_weight_decay` has made.

    No config has these exclusions. Optimizers store the variables by key.

    Args:
        optimizer: The optimizer of the model.
        smaller: The optimizer of the smaller model; modified.
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


def optimizer_variables(
    optimizer: Optimizer,
) -> tuple[
    list[keras.Variable],
    dict[str, list[keras.Variable | None]],
    dict[str, keras.Variable],
]:
    """Returns the variables of an optimizer, by attribute name.

    The names of slots differ between classes (`momentums`, `_velocities`), and
    the order of `Optimizer.variables` between versions of Keras. In all of
    them, slots are lists with one entry for each trainable variable.

    Returns:
        The list of the variables to update; a dict from attribute name
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

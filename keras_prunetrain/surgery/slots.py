"""The optimizer's state, cut like the weights that it belongs to."""

from keras_prunetrain import keras_internals
from keras_prunetrain.surgery.rebuild import sliced


def carry_optimizer(optimizer, cuts):
    """Returns `optimizer` for the smaller model, where it was in its training.

    Args:
        optimizer: A Keras optimizer. It is not modified.
        cuts: List of the `Cut`s of all variables of the smaller model.

    Returns:
        An optimizer of the same class and settings, with its step count,
        learning rate and, for every weight that is left, its slots.

    Raises:
        ValueError: If it has a state that cannot be cut like its weight.
    """
    copy = keras_internals.copy_optimizer(optimizer)
    _carry_exclusions(optimizer, copy, [(cut.old, cut.new) for cut in cuts])
    if not optimizer.built:  # Before the first step there are no slots.
        _carry_singles(optimizer, copy)
        return copy
    by_old = {id(cut.old): cut for cut in cuts}
    updated = keras_internals.optimizer_variables(optimizer)[0]
    weights = [by_old[id(v)].new for v in updated if id(v) in by_old]
    with keras_internals.unfilled_slots(copy):  # All are carried, or it raises.
        copy.build(weights)
    carried = _carry(optimizer, copy, by_old)
    left = [v.path for v in copy.variables if id(v) not in carried]
    if left:
        raise ValueError(
            f"Cannot carry the state of {type(optimizer).__name__} over to the "
            f"smaller model: nothing known fills {', '.join(left[:3])}."
        )
    return copy


def _carry(old, new, by_old):
    """Fills the variables of `new`; returns the `id`s of those it filled."""
    updated, slots, _ = keras_internals.optimizer_variables(old)
    filled = _carry_singles(old, new)
    stay = [i for i, weight in enumerate(updated) if id(weight) in by_old]
    for name, old_slots in slots.items():
        new_slots = vars(new)[name]
        for i, new_slot in zip(stay, new_slots, strict=True):
            if new_slot is not None:
                cut = by_old[id(updated[i])]
                _assign(new_slot, old_slots[i], cut, old)
                filled.add(id(new_slot))
    inner = keras_internals.inner_optimizers(new)
    for name, optimizer in keras_internals.inner_optimizers(old).items():
        filled |= _carry(optimizer, inner[name], by_old)
    return filled


def _carry_exclusions(old, new, pairs):
    keras_internals.carry_exclusions(old, new, pairs)
    inner = keras_internals.inner_optimizers(new)
    for name, optimizer in keras_internals.inner_optimizers(old).items():
        _carry_exclusions(optimizer, inner[name], pairs)


def _carry_singles(old, new):
    """Copies step count, learning rate and the like."""
    singles = keras_internals.optimizer_variables(old)[2]
    for name, variable in singles.items():
        vars(new)[name].assign(variable)
    filled = {id(vars(new)[name]) for name in singles}
    inner = keras_internals.inner_optimizers(new)
    for name, optimizer in keras_internals.inner_optimizers(old).items():
        filled |= _carry_singles(optimizer, inner[name])
    return filled


def _assign(new_slot, old_slot, cut, optimizer):
    keep = cut.keep
    if old_slot.shape != cut.old.shape:
        keep = {}  # A scalar, or a summary of the whole weight.
    if cut.keep and not keep and old_slot.shape:
        raise ValueError(
            f"Cannot carry the state of {type(optimizer).__name__} over to the "
            f"smaller model: the slot '{old_slot.path}' has shape "
            f"{tuple(old_slot.shape)}, its weight {tuple(cut.old.shape)}."
        )
    new_slot.assign(sliced(old_slot, keep))

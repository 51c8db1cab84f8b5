"""The optimizer's state, cut like the weights that it belongs to."""

from collections.abc import Sequence

import keras
from keras.optimizers import Optimizer

from keras_prunetrain import keras_internals
from keras_prunetrain.surgery.cut import Cut, sliced


def carry_optimizer(
    optimizer: Optimizer, cuts: Sequence[Cut], order: Sequence[keras.Variable]
) -> Optimizer:
    """Returns `optimizer` for the smaller model, with its state so far.

    The slots are in the order of the smaller model's weights, because Keras
    loads files, and finalizes an average of the weights (`use_ema`), by
    position. A branch that leaves can change this order.

    Args:
        optimizer: A Keras optimizer. It is not modified.
        cuts: List of the `Cut`s of all variables of the smaller model.
        order: List of the trainable variables of the smaller model.

    Returns:
        An optimizer of the same class and settings, with its step count,
        learning rate and, for every weight that is left, its slots.

    Raises:
        ValueError: If no second optimizer can be made from its config, or if it
            has a state that cannot be cut like its weight.
    """
    copy = keras_internals.copy_optimizer(optimizer)
    pairs = [(cut.old, cut.new) for cut in cuts]
    for old, new in keras_internals.optimizer_pairs(optimizer, copy):
        keras_internals.carry_exclusions(old, new, pairs)
    if optimizer.built:  # Before the first step there are no slots.
        cuts = _updated(optimizer, cuts, order)
        pairs = [(cut.old, cut.new) for cut in cuts]
        keras_internals.build_copy(optimizer, copy, pairs)
    carried = set()
    for old, new in keras_internals.optimizer_pairs(optimizer, copy):
        carried |= _carry_singles(old, new) | _carry_slots(old, new, cuts)
    left = [v.path for v in copy.variables if id(v) not in carried]
    if left:
        raise ValueError(
            f"Cannot carry the state of {type(optimizer).__name__} over to the "
            f"smaller model: nothing known fills {', '.join(left[:3])}."
        )
    return copy


def _updated(optimizer, cuts, order):
    """Returns the `Cut`s of what `optimizer` updates, those in `order` first.

    After them come weights that were frozen once the optimizer was built: their
    slots are kept in case these weights train again.
    """
    updated = set(map(id, keras_internals.optimizer_variables(optimizer)[0]))
    place = {id(variable): i for i, variable in enumerate(order)}
    known = [cut for cut in cuts if id(cut.old) in updated]
    return sorted(known, key=lambda cut: place.get(id(cut.new), len(place)))


def _carry_singles(old, new):
    """Copies step count, learning rate and the like; returns their `id`s."""
    carried = set()
    for name, variable in keras_internals.optimizer_variables(old)[2].items():
        # The member of a `MultiOptimizer` that has no weight left is not built.
        if name in vars(new):
            vars(new)[name].assign(variable)
            carried.add(id(vars(new)[name]))
    return carried


def _carry_slots(old, new, cuts):
    """Cuts the slots of `old`, each for its weight; returns the new `id`s."""
    carried = set()
    updated, slots, _ = keras_internals.optimizer_variables(old)
    place = {id(weight): i for i, weight in enumerate(updated)}
    cut_of = {id(cut.new): cut for cut in cuts}
    weights = keras_internals.optimizer_variables(new)[0]
    for name, old_slots in slots.items():
        new_slots = vars(new).get(name, ())
        if len(new_slots) != len(weights):
            raise ValueError(
                f"Cannot carry the state of {type(old).__name__} over to the "
                f"smaller model: its `build` makes no '{name}' for the weights "
                "that it is given. Make all slots there."
            )
        for weight, slot in zip(weights, new_slots, strict=True):
            cut = cut_of[id(weight)]
            old_slot = old_slots[place[id(cut.old)]]
            if slot is not None and old_slot is not None:
                slot.assign(_cut_slot(old_slot, cut, old))
                carried.add(id(slot))
    return carried


def _cut_slot(slot, cut, optimizer):
    """Returns the value of a slot at the positions that its weight keeps.

    Raises:
        ValueError: If the slot has another shape than its weight.
    """
    keep = cut.keep
    if slot.shape != cut.old.shape:
        keep = {}  # A scalar, or a summary of the whole weight.
    if cut.keep and not keep and slot.shape:
        raise ValueError(
            f"Cannot carry the state of {type(optimizer).__name__} over to the "
            f"smaller model: the slot '{slot.path}' has shape "
            f"{tuple(slot.shape)}, its weight {tuple(cut.old.shape)}."
        )
    return sliced(slot, keep)

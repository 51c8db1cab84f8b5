"""Lets the objects that a caller holds go on as parts of a smaller model."""

import gc
import logging
from typing import NamedTuple

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.surgery.copying import Twins, rebind
from keras_prunetrain.surgery.cut import Cut
from keras_prunetrain.surgery.followers import (
    check_followers,
    followers_of,
    note_made,
)
from keras_prunetrain.surgery.slots import carry_optimizer
from keras_prunetrain.trainers import optimizers_of

_LOG = logging.getLogger("keras_prunetrain")


class Smaller(NamedTuple):
    """What a model is to become.

    Attributes:
        model: The smaller model, not compiled.
        optimizers: Pairs of an optimizer and its counterpart: that of the model
            if it is compiled, and those among its attributes.
        cuts: List of the `Cut`s of all variables.
        twins: Dict from the `id` of a part of the model (a layer, a variable, a
            symbolic tensor) to its counterpart.
    """

    model: keras.Model
    optimizers: list[
        tuple[keras.optimizers.Optimizer, keras.optimizers.Optimizer]
    ]
    cuts: list[Cut]
    twins: Twins


def take_over(model: keras.Model, smaller: Smaller) -> None:
    """Lets the object `model` go on as a smaller one, inside a running `fit`.

    All other objects that the user, `fit` and the callbacks may hold go on as
    well: nested models, layers, the optimizer and optimizers inside it, and
    other live models on these layers. The state of the run stays: loss, metrics
    with their values, learning rate, step count, and the flags of the loop.

    The new states are prepared first and then exchanged at once. After an
    exception, the objects are the old model or the smaller one, never a
    mixture.

    Args:
        model: The model that is being trained; modified.
        smaller: A `Smaller` of `model`; not usable afterwards.
    """
    followers = followers_of(model, smaller.twins)
    keras_internals.set_states(_states(model, smaller, followers))
    for one in (model, *(x.old for x in followers)):
        keras_internals.renew_steps(one)
    for follower in followers:
        if follower.reason is not None:
            _LOG.warning(_LOST, *_names(follower, model))


def free_replaced() -> None:
    """Frees the memory of the models that others have replaced."""
    # Layers and graph refer to each other: without this the old weights would
    # stay in memory until Python happens to look for cycles.
    gc.collect()
    keras_internals.release_kernels()


def check_take_over(model: keras.Model, smaller: Smaller) -> None:
    """Raises the errors of `take_over`; changes nothing but `smaller`.

    A warning names live models on the same layers that cannot follow.
    """
    followers = check_followers(model, smaller.twins)
    _states(model, smaller, followers)
    for follower in followers:
        if follower.reason is not None:
            _LOG.warning(_CANNOT_FOLLOW, *_names(follower, model))


_CANNOT_FOLLOW = (
    "The model '%s' shares layers with '%s' and may not be able to go on once "
    "these are smaller: %s. Make it anew then, or name the layers whose "
    "channels it reads in `skip`."
)
_LOST = (
    "The model '%s' shares layers with '%s', which are smaller now, and cannot "
    "go on with them: %s. Make it anew."
)


def _names(follower, model):
    return follower.old.name, model.name, follower.reason


def _states(model, smaller, followers):
    """Returns pairs of an object that goes on and its new `__dict__`."""
    twins = smaller.twins
    pairs = [(model, smaller.model)]
    pairs += [(x.old, x.new) for x in followers if x.new is not None]
    pairs += [
        (old, twins[id(old)])
        for old in keras_internals.operations_in(model)
        if id(old) in twins
    ]
    pairs += [
        (keras_internals.producer(x), keras_internals.producer(y))
        for old, new in pairs
        if keras_internals.is_graph(old)
        for x, y in zip(old.inputs, new.inputs, strict=True)
    ]
    note_made(new for _, new in pairs if isinstance(new, keras.Model))
    pairs = list({id(x): (x, y) for x, y in pairs if x is not y}.values())
    optimizers = [*smaller.optimizers]
    for trainer in [*(old for old, _ in pairs), *(x.old for x in followers)]:
        if isinstance(trainer, keras.Model) and trainer is not model:
            for one in optimizers_of(trainer):
                optimizers += _other_optimizer(
                    one, trainer, model, smaller, optimizers
                )
    states = keras_internals.successors(pairs, optimizers)
    originals = {id(new): old for old, new in pairs}
    for _, new in pairs:
        if not keras_internals.is_graph(new):
            rebind(new, originals)
    for old, new in optimizers:
        states += keras_internals.optimizer_successors(old, new)
    return states + [
        (x.old, keras_internals.broken_state(x.old, _LOST % _names(x, model)))
        for x in followers
        if x.reason is not None
    ]


def _other_optimizer(optimizer, trainer, model, smaller, known):
    """Returns the pair of another trainer's optimizer, a list of one or none.

    A nested model may have an optimizer from its own earlier training; a
    follower may be trained in turns with the model.
    """
    if not optimizer.built or any(optimizer is old for old, _ in known):
        return []
    updated = keras_internals.optimizer_variables(optimizer)[0]
    shared = set(map(id, model.variables))
    own = [Cut(v, v, {}) for v in updated if id(v) not in shared]
    if len(own) == len(updated):
        return []
    twins = smaller.twins
    order = [twins.get(id(v), v) for v in trainer.trainable_variables]
    try:
        with keras_internals.strategy_scope(model):
            new = carry_optimizer(optimizer, [*smaller.cuts, *own], order)
    except ValueError as error:
        _LOG.warning(
            "The model '%s' trains weights of '%s' with an optimizer that "
            "cannot go on with smaller ones. Compile it anew before it trains "
            "again. %s",
            trainer.name,
            model.name,
            error,
        )
        return []
    return [(optimizer, new)]

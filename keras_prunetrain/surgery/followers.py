"""Other live models on the layers of a model that becomes smaller."""

import gc
import itertools
import weakref
from collections.abc import Iterable
from typing import NamedTuple

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.surgery.adoption import (
    CannotFollow,
    follow,
    shares_layers,
)
from keras_prunetrain.surgery.copying import Twins
from keras_prunetrain.trainers import is_network


class Follower(NamedTuple):
    """A model on layers of a model that becomes smaller.

    Attributes:
        old: The model.
        new: The new model whose state `old` takes over; `None` if `old` has no
            graph of its own and stays as it is, or if it cannot follow.
        reason: Why `old` cannot follow, in words; `None` if it can.
    """

    old: keras.Model
    new: keras.Model | None = None
    reason: str | None = None


def followers_of(model: keras.Model, twins: Twins) -> list[Follower]:
    """Returns a `Follower` for each live model on layers of `model`, a list.

    Args:
        model: The model that becomes smaller.
        twins: Dict from the `id` of its parts to their counterparts; those of
            the followers are added.
    """
    found = _search(model, twins)
    if found:
        gc.collect()  # Some of them may be dead, and wait to be collected.
        found = _search(model, twins)
    return [_follower(x, twins) for x in found]


def _search(model, twins):
    """Returns the live models that have layers with a twin.

    Layers and calls do not refer to the models that contain them, so Python's
    list of all objects is searched.
    """
    objects = gc.get_objects()
    classes = list(map(type, objects))
    wanted = {x for x in set(classes) if issubclass(x, keras.Model)}
    # Some hundred thousand objects: loops inside of Python's own functions.
    are_models = map(wanted.__contains__, classes)
    models = list(itertools.compress(objects, are_models))
    known = {id(model), *twins}
    known |= {
        id(keras_internals.graph_of(x))
        for x in models
        if isinstance(x, keras.Sequential)
    }
    return [
        x
        for x in models
        if id(x) not in known
        and not (x in _MADE or is_network(x))
        and shares_layers(x, twins)
    ]


def note_made(models: Iterable[keras.Model]) -> None:
    """Notes models that a takeover has made, which are no followers.

    An interrupted takeover may leave such models in memory, for example in a
    traceback.
    """
    _MADE.update(models)


_MADE = weakref.WeakSet()


def _follower(model, twins):
    """Returns the `Follower` of a live `model`, made anew if it can be."""
    if not keras_internals.is_graph(model):
        return Follower(model)
    try:
        return Follower(model, follow(model, twins, with_own_weights=True))
    except CannotFollow as reason:
        return Follower(model, reason=str(reason))
    except Exception as error:  # A layer does not take its smaller input.
        return Follower(model, reason=f"Keras says: {error}")


def check_followers(model: keras.Model, twins: Twins) -> list[Follower]:
    """Does as `followers_of`, and removes the new calls from all layers.

    Args:
        model: The model that becomes smaller.
        twins: Dict from the `id` of its parts to their counterparts.
    """
    followers = followers_of(model, twins)
    for follower in followers:
        if follower.new is not None:
            keras_internals.forget_calls(follower.new)
    return followers

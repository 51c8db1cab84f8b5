"""Trainers: subclasses of `keras.Model` that hold functional models.

A GAN, a VAE or a distiller has functional models as attributes, and calls them
in code that cannot be looked into. Side by side, these parts make up one
functional model, the network of the trainer: each part is nested in it and is
called once, with inputs of its own, and all that it returns is an output of the
network. What a part reads and returns therefore keeps its channels, and all
that takes a functional model takes the network: numbering, surgery, cost,
reports. Models that are nested go on as the same objects when they shrink, and
so do the parts.
"""

import functools
import logging
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import keras
from keras.optimizers import Optimizer

from keras_prunetrain import keras_internals

_LOG = logging.getLogger("keras_prunetrain")

# Networks, which are no models of the user's.
_MADE = weakref.WeakSet()

# Names of attributes that hold functional models; `None` for all of them.
Submodels = Iterable[str] | None


def network_of(model: keras.Model, submodels: Submodels = None) -> keras.Model:
    """Returns the functional model whose channels may go when `model` trains.

    Args:
        model: The model that `fit` trains.
        submodels: Names of attributes of a trainer: only the functional models
            in them become parts. Defaults to `None`, all that train.

    Returns:
        `model` itself, unless it has no graph and holds functional models that
        train. Then a new model, of which these are the parts; `forget_calls`
        removes its calls from them.

    Raises:
        ValueError: If `submodels` names no such attribute, or if two parts have
            the same name.
    """
    if keras_internals.is_graph(model):
        if submodels is not None:
            raise ValueError(
                "`submodels` names attributes of a model that holds functional "
                f"models. '{model.name}' is a functional model itself: leave "
                f"`submodels` out. Received: submodels={submodels!r}"
            )
        return model
    parts = _parts(model, submodels)
    if not parts:
        return model
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"'{model.name}' holds two models of the name '{name}', and "
                "reports would not tell their layers apart. Give each a name "
                "of its own, `keras.Model(inputs, outputs, name=...)`, or name "
                "the attribute of one of them in `submodels`."
            )
    with keras_internals.strategy_scope(model):
        network = _side_by_side(parts, model.name)
    _MADE.add(network)
    return network


def is_network(model: keras.Model) -> bool:
    """Whether `network_of` has made `model`."""
    return model in _MADE


def unbuilt_in(model: keras.Model) -> list[str]:
    """Returns the names of the `Sequential`s in a trainer without a graph.

    They have none before they see their first input.
    """
    if keras_internals.is_graph(model):
        return []
    held = _members(keras_internals.own_attributes(model).values())
    unbuilt = [
        x.name
        for x in held
        if isinstance(x, keras.Sequential)
        and x.layers
        and not keras_internals.is_graph(x)
    ]
    return list(dict.fromkeys(unbuilt))


def check_built(model: keras.Model) -> None:
    """Raises a `ValueError` if a trainer has nothing but `unbuilt_in` models.

    Args:
        model: A model that is its own `network_of`.
    """
    unbuilt = unbuilt_in(model)
    if unbuilt:
        raise ValueError(
            f"Cannot follow the channels of '{model.name}': of the models that "
            f"it holds, {', '.join(map(repr, unbuilt))} have not been built, "
            "so nothing is known of their layers. Let each begin with "
            "`keras.Input(shape)`, or call it with some examples before `fit`."
        )


def names_of(submodels: Submodels | str) -> tuple[str, ...] | None:
    """Returns the names of `submodels`, a tuple, or `None`.

    Raises:
        ValueError: If they are no names.
    """
    if submodels is None:
        return None
    names = (submodels,) if isinstance(submodels, str) else submodels
    names = tuple(names) if isinstance(names, Iterable) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            "`submodels` must be a list of names of attributes, at least one, "
            f"or `None`. Received: submodels={submodels!r}"
        )
    return names


def optimizers_of(model: keras.Model) -> list[Optimizer]:
    """Returns the optimizer of a model, and those among its attributes.

    Those of a trainer are followed by the optimizers of the models that it
    holds, whose own `optimizer` its `train_step` may use.
    """
    attributes = keras_internals.own_attributes(model).values()
    held = list(_members(list(attributes)))
    models = [model]
    if not keras_internals.is_graph(model):
        models += [x for x in held if isinstance(x, keras.Model)]
    # Before `compile`, a model has no optimizer.
    first, *others = [getattr(x, "optimizer", None) for x in models]
    optimizers = [
        x for x in (first, *held, *others) if isinstance(x, Optimizer)
    ]
    return list({id(x): x for x in optimizers}.values())


def updated_by(optimizers: Iterable[Optimizer]) -> dict[int, keras.Variable]:
    """Returns the variables that optimizers update, by their `id`s.

    An optimizer may learn of them in its first step.
    """
    return {
        id(v): v
        for optimizer in optimizers
        for v in keras_internals.optimizer_variables(optimizer)[0]
    }


def updating_optimizers(model: keras.Model) -> list[Optimizer]:
    """Returns those of `optimizers_of` that update weights, a list.

    An optimizer that wraps others is replaced by these.
    """
    leaves = [
        leaf
        for x in optimizers_of(model)
        for leaf in keras_internals.leaf_optimizers(x)
    ]
    return list({id(x): x for x in leaves}.values())


def optimizer_of(model: keras.Model) -> Optimizer | None:
    """Returns the optimizer whose learning rate is that of the training.

    `None` for a model without one, and for a trainer with several.
    """
    if keras_internals.is_graph(model):
        return getattr(model, "optimizer", None)
    optimizers = optimizers_of(model)
    return optimizers[0] if len(optimizers) == 1 else None


def _parts(model, submodels):
    """Returns a list of the functional models that `model` holds and trains."""
    held = {
        name: [x for x in _members([value]) if isinstance(x, keras.Model)]
        for name, value in keras_internals.own_attributes(model).items()
    }
    if submodels is not None:
        names = names_of(submodels)
        _check_names(model, held, names)
        held = {name: held[name] for name in names}
    found = {id(x): x for models in held.values() for x in models}
    reasons = {key: _reason_against(x) for key, x in found.items()}
    for key, reason in reasons.items():
        if reason:
            _LOG.info("'%s' keeps its channels: %s.", found[key].name, reason)
    return [x for key, x in found.items() if not reasons[key]]


def _check_names(model, held, names):
    """Raises a `ValueError` if one of `names` holds nothing that can shrink.

    Args:
        model: A trainer.
        held: Dict from the name of an attribute to the models in it.
        names: Names of attributes.
    """
    fit = [k for k, v in held.items() if any(not _reason_against(x) for x in v)]
    for name in names:
        if name not in fit:
            reasons = [
                f" '{x.name}' is none: {_reason_against(x)}."
                for x in held.get(name, ())
            ]
            raise ValueError(
                "`submodels` must name attributes that hold functional models "
                f"that train. Those of '{model.name}' are "
                f"{', '.join(map(repr, fit)) or 'none'}.{''.join(reasons)} "
                f"Received: submodels={list(names)}"
            )


def _reason_against(model):
    """Returns why a model is no part of a network; empty if it is one."""
    if not keras_internals.is_graph(model):
        return "it is not functional, or has not been built"
    if not model.trainable_weights:
        return "it has no weights that train"
    return ""


def _members(
    values: Iterable[Any], known: frozenset[int] = frozenset()
) -> Iterator[Any]:
    """Yields `values`, and all that is held by those among them.

    Lists, tuples and dicts hold something, and so do layers and models of
    which no graph is known: a trainer may be a part of another one.

    Args:
        values: Any objects.
        known: The `id`s of the layers that hold `values`.
    """
    for value in values:
        if isinstance(value, dict):
            yield from _members(value.values(), known)
        elif isinstance(value, list | tuple):
            yield from _members(value, known)
        else:
            yield value
            is_layer = isinstance(value, keras.layers.Layer)
            is_open = is_layer and not keras_internals.is_graph(value)
            if is_open and id(value) not in known:
                inner = keras_internals.own_attributes(value).values()
                yield from _members(inner, known | {id(value)})


def _side_by_side(parts, name):
    """Returns a functional model that calls each of `parts` once."""
    inputs = [
        keras.tree.map_structure(
            functools.partial(_like, part), keras_internals.structures(part)[0]
        )
        for part in parts
    ]
    outputs = [part(read) for part, read in zip(parts, inputs, strict=True)]
    return keras.Model(inputs, outputs, name=name)


def _like(part, tensor):
    """Returns a new input like one of `part`, a symbolic tensor."""
    layer = keras_internals.producer(tensor)
    config = layer.get_config()
    config["name"] = f"{part.name}.{layer.name}"  # Unique in the network.
    return type(layer).from_config(config).output

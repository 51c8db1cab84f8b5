"""Refuses functions and objects that would keep using a weight's old shape."""

from collections.abc import Iterable, Mapping
from typing import NoReturn

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.surgery.copying import references
from keras_prunetrain.surgery.cut import Cut, Keep

# Their regularizers and constraints take any number of channels.
_OF_ANY_SIZE = {"keras", "keras_prunetrain"}


def check_uses(numbering: Numbering, keep: Mapping[int, Keep]) -> None:
    """Checks that no function uses a weight that is cut from outside.

    A `Lambda` may close over another layer, to tie its weights. The numbering
    knows which layers hold a weight, but not which functions use it.

    Args:
        numbering: The `Numbering` of a model.
        keep: Dict from the `id` of a variable that is cut to its `Cut.keep`.

    Raises:
        ValueError: If a function does.
    """
    layers = [
        (key, layer)
        for key, layer in numbering.layers.items()
        if not keras_internals.is_graph(layer)
    ]
    owners = {id(label.weight): label.layer for label in numbering.labels}
    cut_in = {  # id of a layer or of a weight -> a weight in it that is cut.
        id(holder): weight
        for _, layer in layers
        for weight in getattr(layer, "variables", ())
        if id(weight) in keep
        for holder in (layer, weight)
    }
    for key, layer in layers:
        for weight in _weights_used(layer, cut_in):
            refuse_use(f"Layer '{key}'", weight, owners[id(weight)])


def refuse_use(user: str, weight: keras.Variable, owner: str) -> NoReturn:
    """Raises that `user`, in words, uses a `weight` of layer `owner`."""
    raise ValueError(
        f"{user} uses '{weight.path}' of layer '{owner}' in a way that is not "
        "known, and that weight loses channels. Keep them with "
        f"`skip='{owner}'`."
    )


def _weights_used(layer, cut_in):
    """Yields the weights of other layers that functions of `layer` use."""
    own = {id(layer), *map(id, getattr(layer, "variables", ()))}
    for value in keras_internals.own_attributes(layer).values():
        for used in references(value, cut_in):
            if id(used) not in own and not _is_inside(used, layer):
                yield cut_in[id(used)]


def _is_inside(part, layer):
    inside = keras_internals.parts(layer).values()
    return any(
        part is x or (isinstance(x, keras.layers.Layer) and _is_inside(part, x))
        for x in inside
    )


def check_takes(
    cuts: Iterable[Cut],
    layers: Iterable[tuple[keras.layers.Layer, keras.layers.Layer]],
) -> None:
    """Checks that regularizers and constraints take the smaller weights.

    A regularizer with an entry for each channel does not. Without this check,
    the next step of the training would raise an error.

    Args:
        cuts: List of `Cut`s whose new variables have their values.
        layers: Pairs of a layer of the graph and its clone.

    Raises:
        ValueError: If one of them does not.
    """
    for cut in cuts:
        if cut.keep:
            name, old = f"'{cut.old.path}'", tuple(cut.old.shape)
            _check_one("regularizer", cut.new.regularizer, name, cut.new, old)
            _check_one("constraint", cut.new.constraint, name, cut.new, old)
    for layer, clone in layers:
        # A layer inside another one has no output in the graph.
        if _may_hold_channels(clone.activity_regularizer) and hasattr(
            clone, "output"
        ):
            outputs = map(keras.tree.flatten, (layer.output, clone.output))
            for x, y in zip(*outputs, strict=True):
                if x.shape != y.shape:
                    _check_one(
                        "activity regularizer",
                        clone.activity_regularizer,
                        f"layer '{layer.name}'",
                        keras.ops.zeros([n or 1 for n in y.shape], y.dtype),
                        x.shape,
                    )


def _may_hold_channels(function):
    package = (getattr(function, "__module__", None) or "").partition(".")[0]
    return function is not None and package not in _OF_ANY_SIZE


def _check_one(kind, function, name, value, old_shape):
    """Checks that a function takes a `value` that had the `old_shape`."""
    if not _may_hold_channels(function):
        return
    shape, problem = tuple(value.shape), None
    try:
        result = tuple(keras.ops.shape(function(value)))
    except Exception as error:
        problem = f"It raises: {error}"
    else:
        if result != (shape if kind == "constraint" else ()):
            problem = f"It returns the shape {result}."
    if problem is not None:
        raise ValueError(
            f"The {kind} of {name} does not take the smaller shape {shape}, "
            f"which was {old_shape}. Let it compute from its argument what it "
            "has for each channel, or keep the channels of the layer with "
            f"`skip`. {problem}"
        )

"""Refuses what uses a weight that is cut, and does not know of the cut."""

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.rules import rule_for
from keras_prunetrain.surgery.copying import references

# Their regularizers and constraints take a weight of any size.
_OF_ANY_SIZE = {"keras", "keras_prunetrain"}


def check_uses(numbering, keep):
    """Checks that a weight that is cut is used by the layers that label it.

    A layer may hold a weight of another one, to tie both, and a function may
    use it from outside. The numbering of the channels does not see that.

    Args:
        numbering: The `Numbering` of a model.
        keep: Dict from the `id` of a variable that is cut to its `Cut.keep`.

    Raises:
        ValueError: If such a weight is used otherwise.
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


def refuse_use(user, weight, owner):
    """Raises that `user`, in words, uses a `weight` of layer `owner`."""
    raise ValueError(
        f"{user} uses '{weight.path}' of layer '{owner}' in a way that is not "
        "known, and that weight loses channels. Keep them with "
        f"`skip='{owner}'`."
    )


def _weights_used(layer, cut_in):
    """Yields the weights that are cut and that no rule labels in `layer`."""
    weights = getattr(layer, "variables", ())
    rule = rule_for(layer)
    labelled = set()
    if rule is not None and (rule.refuses is None or not rule.refuses(layer)):
        labelled = {*rule.in_axis, *rule.out_axis}
    for weight in weights:
        name = keras_internals.weight_name(weight)
        if id(weight) in cut_in and name not in labelled:
            yield weight
    own = {id(layer), *map(id, weights)}
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


def check_takes(cuts):
    """Checks that regularizers and constraints take the smaller weights.

    One that holds an entry for each channel does not; without this check, the
    next step of the training would raise.

    Args:
        cuts: List of `Cut`s whose new variables have their values.

    Raises:
        ValueError: If one of them does not.
    """
    for cut in cuts:
        if cut.keep:
            for kind in ("regularizer", "constraint"):
                _check_one(kind, getattr(cut.new, kind), cut)


def _check_one(kind, function, cut):
    package = (getattr(function, "__module__", None) or "").partition(".")[0]
    if function is None or package in _OF_ANY_SIZE:
        return
    problem = None
    try:
        result = keras.ops.shape(function(cut.new))
    except Exception as error:
        problem = f"It raises: {error}"
    else:
        expected = cut.shape if kind == "constraint" else ()
        if tuple(result) != expected:
            problem = f"It returns the shape {tuple(result)}."
    if problem is not None:
        layer = cut.old.path.rpartition("/")[0]
        raise ValueError(
            f"The {kind} of '{cut.old.path}' does not take the smaller weight, "
            f"of shape {cut.shape} where {tuple(cut.old.shape)} was. Let it "
            "compute from the weight what it has for each channel, or keep the "
            f"channels with `skip='{layer.rpartition('/')[2]}'`. {problem}"
        )

"""Lets a model that is being trained go on as a smaller one."""

import keras

from keras_prunetrain.keras_internals import inner_optimizers, is_graph


def adopt_class(smaller, model, clones):
    """Makes `smaller` an object of `model`'s class, with what that one holds.

    A user's subclass has methods (`train_step`) and attributes of its own; its
    `__init__` takes who knows what, so it cannot be asked for a new object.

    Args:
        smaller: The rebuilt model; modified.
        model: The original.
        clones: Dict from the `id` of a layer of `model` to its counterpart.
    """
    if type(smaller) is not type(model):
        smaller.__class__ = type(model)
    for name, value in _own_attributes(model, smaller).items():
        if is_graph(value) and id(value) not in clones:
            shared = [x.name for x in value.layers if id(x) in clones]
            if shared:
                raise ValueError(
                    f"'{model.name}.{name}' is a model that shares layers with "
                    f"'{model.name}' ({', '.join(shared[:3])}, ...) and would "
                    "go on with the old ones. Make it anew when it is needed, "
                    "or nest it in the model."
                )
        setattr(smaller, name, _with_clones(value, clones))


def take_over(model, smaller):
    """Lets the object `model` go on as `smaller`, inside a running `fit`.

    The user, `fit` and the callbacks hold `model`; re-initializing a functional
    model leaves its old layers tracked beside the new ones, so the object gets
    the attributes of the other one. What belongs to the run stays: its metrics
    with their values, the optimizer object, and the loop's own flags.

    Args:
        model: The model that is being trained; modified.
        smaller: A compiled model of the same class; useless afterwards.
    """
    optimizer = model.optimizer
    # Loss and metrics have this list as well. Keras lets it know the tracker of
    # the model that it comes from, and so it would keep all the old layers.
    names = getattr(model, "output_names", None)
    if hasattr(names, "tracker"):
        names.tracker = None
    _adopt_optimizer(optimizer, smaller.optimizer)
    kept = {name: vars(model)[name] for name in _OF_THE_RUN & set(vars(model))}
    vars(model).clear()
    vars(model).update(vars(smaller))
    vars(model).update(kept)
    vars(model)["optimizer"] = optimizer
    model.make_train_function(force=True)


# Attributes that do not change when the model shrinks. `build` and `quantize`
# are closures over the object itself, made by `Layer.__new__`.
_OF_THE_RUN = {
    "_compile_config",
    "_compile_loss",
    "_compile_metrics",
    "_eval_epoch_iterator",
    "_initial_epoch",
    "_loss_tracker",
    "build",
    "history",
    "quantize",
    "stop_training",
}


def _own_attributes(model, smaller):
    names = set(vars(model)) - set(vars(smaller)) - _OF_THE_RUN
    return {name: vars(model)[name] for name in names}


def _with_clones(value, clones):
    if isinstance(value, list | tuple | dict):
        return keras.tree.map_structure(
            lambda leaf: clones.get(id(leaf), leaf), value
        )
    return clones.get(id(value), value)


def _adopt_optimizer(optimizer, smaller):
    """Gives `optimizer` the variables of its counterpart `smaller`.

    Callbacks and users hold the object, and those of the optimizers that it
    wraps.
    """
    inner = inner_optimizers(optimizer)
    for name, counterpart in inner_optimizers(smaller).items():
        _adopt_optimizer(inner[name], counterpart)
    kept = {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, keras.optimizers.Optimizer)
        # Of `MultiOptimizer`: its members, and which weight is whose.
        or name in ("_inner_optimizers", "_optimizer_map")
    }
    vars(optimizer).update(vars(smaller))
    vars(optimizer).update(kept)

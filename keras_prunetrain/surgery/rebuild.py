"""The smaller clone of a model, and its weights."""

import warnings
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.branches import needed_calls
from keras_prunetrain.channels.rules import rule_for
from keras_prunetrain.surgery.takeover import adopt_class


class Cut(NamedTuple):
    """A variable of the smaller model and where its value comes from.

    Attributes:
        old: The variable of the model.
        new: Its counterpart in the smaller model.
        keep: Dict from an axis of `old` to the positions that stay.
    """

    old: Any
    new: Any
    keep: dict


def rebuild(model, plan):
    """Returns the smaller model, uncompiled, and how each variable was cut.

    Args:
        model: A functional model. It is not modified.
        plan: The `Plan` for it.

    Returns:
        A functional or `Sequential` model with the same layer names, without
        the channels and layers that `plan` drops; the list of its `Cut`s; and
        a dict from the `id` of each old layer to its clone.

    Raises:
        ValueError: If a layer cannot be made anew from its config.
    """
    builder = _Builder(plan)
    smaller = builder.graph(model, "", [x.shape for x in model.inputs])
    builder.restore_initializers()
    builder.carry_flags()
    cuts = builder.cuts()
    for cut in cuts:
        value = sliced(cut.old, cut.keep)
        offset = plan.offsets.get(id(cut.old))
        if offset is not None:
            value = ops.convert_to_numpy(value) + sliced(offset, cut.keep)
        cut.new.assign(value)
        # Not in any config: flag and regularizer of the variable itself.
        if cut.new.trainable != cut.old.trainable:
            cut.new.trainable = cut.old.trainable
        cut.new.regularizer = cut.old.regularizer
    return smaller, cuts, builder.clones


def sliced(variable, keep):
    """Returns the value of `variable` at the positions `keep`, per axis."""
    if not keep:
        return variable
    value = keras_internals.values_of(variable)
    for axis, positions in keep.items():
        value = np.take(value, positions, axis)
    return value


class _Builder:
    """Clones each layer once, however often it is called."""

    def __init__(self, plan):
        self.clones = {}  # id of a layer -> its clone
        self._plan = plan
        self._leaves = []  # Pairs of layers that are no graphs.
        self._graphs = []  # Pairs of the others, nested ones first.
        self._initializers = []  # Their owner, name, and they themselves.

    def restore_initializers(self):
        for clone, name, initializer in self._initializers:
            setattr(clone, name, initializer)

    def carry_flags(self):
        # Outer models first: a model's flag spreads to all that is in it.
        for layer, clone in [*reversed(self._graphs), *self._leaves]:
            if clone.trainable != layer.trainable:
                clone.trainable = layer.trainable

    def cuts(self):
        keep = {}
        for label in self._plan.numbering.labels:
            positions = self._plan.keep(label.numbers)
            if len(positions) < len(label.numbers):
                keep.setdefault(id(label.weight), {})[label.axis] = positions
        return [
            Cut(old, new, keep.get(id(old), {}))
            for layer, clone in self._leaves
            # Beside the weights, these are the states of random seeds.
            for old, new in zip(layer.variables, clone.variables, strict=True)
        ]

    def graph(self, model, prefix, shapes):
        """Returns `model`, or one nested in it, for inputs of new `shapes`."""
        smaller = self._graph(model, prefix, shapes)
        self._graphs.append((model, smaller))
        return smaller

    def _graph(self, model, prefix, shapes):
        inputs = [
            _clone_input(keras_internals.producer(x), shape)
            for x, shape in zip(model.inputs, shapes, strict=True)
        ]
        if isinstance(model, keras.Sequential):
            smaller = keras.Sequential(inputs, name=model.name)
            for layer in model.layers:
                smaller.add(self._clone(layer, prefix, inputs))
                inputs = smaller.outputs
            return smaller
        values = dict(zip(map(id, model.inputs), inputs, strict=True))
        for call in needed_calls(model, self._plan.branches):
            outputs = tree.flatten(self._call(call, prefix, values))
            values.update(zip(map(id, call.outputs), outputs, strict=True))
        return keras.Model(
            *(
                tree.map_structure(lambda x: values[id(x)], structure)
                for structure in keras_internals.structures(model)
            ),
            name=model.name,
        )

    def _call(self, call, prefix, values):
        branch = self._plan.branches.get(id(call.outputs[0]))
        if branch is not None:
            inputs = [values[id(call.inputs[i])] for i in branch.stay]
            return self._without_branch(call, prefix, inputs, branch)
        inputs = [values[id(x)] for x in call.inputs]
        args, kwargs = keras_internals.arguments_with(call, values)
        rule = rule_for(call.operation)
        if rule is not None and rule.indexes:
            args, kwargs = self._reindexed(call, prefix, *args, **kwargs)
        return self._clone(call.operation, prefix, inputs)(*args, **kwargs)

    def _reindexed(self, call, prefix, x, key):
        """Returns the arguments of `x[key]` for what is left of the channels.

        Where those do not lie evenly any more, they are first taken out of `x`.
        """
        read = self._plan.numbering.inputs[prefix + call.operation.name][0]
        alive = self._plan.alive[read.numbers]
        if alive.all():
            return (x, key), {}
        key = _key_per_axis(key, len(read.shape))
        place = [i for i, k in enumerate(key) if k is not None][read.axis]
        new_places = np.cumsum(alive) - 1
        if isinstance(key[place], int):
            key[place] = int(new_places[key[place]])
            return (x, tuple(key)), {}
        wanted = np.arange(len(alive))[key[place]]
        wanted = new_places[wanted[alive[wanted]]]
        key[place] = _as_slice(wanted)
        if key[place] is None:
            x = ops.take(x, wanted.tolist(), axis=read.axis)
            key[place] = slice(None)
        return (x, tuple(key)), {}

    def _without_branch(self, call, prefix, inputs, branch):
        layer = call.operation
        x = inputs[0]
        if len(inputs) > 1:
            x = self._clone(layer, prefix, inputs)(inputs)
        numbers = self._plan.numbering.outputs[prefix + layer.name][0].numbers
        constant = branch.constant[self._plan.keep(numbers)]
        if constant.any():
            # Takes over the name where the addition itself is gone.
            name = layer.name
            if len(inputs) > 1:
                name = self._free_name(f"{name}_constant")
            # As an array: Keras makes float32 of a list, also in float64.
            dtype = getattr(layer, "dtype_policy", x.dtype)  # `x + y` has none.
            x = keras.layers.Rescaling(1.0, constant, name=name, dtype=dtype)(x)
        return x

    def _free_name(self, name):
        taken = {x.name for x in self._plan.numbering.layers.values()}
        while name in taken:
            name += "_"
        return name

    def _clone(self, layer, prefix, inputs):
        if id(layer) not in self.clones:
            key = prefix + layer.name
            if keras_internals.is_graph(layer):
                shapes = [x.shape for x in inputs]
                clone = self.graph(layer, f"{key}/", shapes)
                adopt_class(clone, layer, self.clones)
            else:
                clone = self._leaf(layer, key)
                # `x + y` is an operation, too, and no layer.
                if isinstance(layer, keras.layers.Layer):
                    self._leaves.append((layer, clone))
            self.clones[id(layer)] = clone
        return self.clones[id(layer)]

    def _leaf(self, layer, key):
        rule = rule_for(layer)
        try:
            with warnings.catch_warnings():
                # Of lambdas that could not be loaded. Nothing is saved here.
                warnings.simplefilter("ignore")
                config = layer.get_config()
            if rule is not None:
                self._cut_config(config, layer, rule, key)
            if isinstance(layer, keras.layers.Wrapper) and not (
                keras_internals.is_graph(layer.layer)
            ):
                # It may also be called outside, or stand in two wrappers.
                inner = layer.layer
                if id(inner) not in self.clones:
                    self.clones[id(inner)] = self._leaf(inner, key)
                config["layer"] = self.clones[id(inner)]
            clone = _from_config(layer, config)
        except Exception as error:
            raise ValueError(
                f"Cannot make layer '{key}' anew from its config. Check that "
                f"`get_config` of {type(layer).__name__} returns all that its "
                f"`__init__` takes. Keras says: {error}"
            ) from error
        # `SpatialDropout2D` writes only the dtype of its variables.
        policy = getattr(layer, "dtype_policy", None)
        if policy is not None and clone.dtype_policy != policy:
            clone.dtype_policy = policy
        # The objects themselves: a lasso's factor is not to be held twice.
        for name, value in vars(layer).items():
            if isinstance(value, keras.regularizers.Regularizer):
                setattr(clone, name, value)
        # No time for weights that are then overwritten.
        for name, value in list(vars(clone).items()):
            if isinstance(value, keras.initializers.Initializer):
                self._initializers.append((clone, name, value))
                setattr(clone, name, keras_internals.Unfilled())
        return clone

    def _cut_config(self, config, layer, rule, key):
        """Writes the sizes that are left into the `config` of a layer."""
        outputs = self._plan.numbering.outputs[key]
        keeps = [self._plan.keep(x.numbers) for x in outputs]
        channels, keep = outputs[0], keeps[0]
        total = len(channels.numbers)
        if all(
            len(kept) == len(x.numbers)
            for kept, x in zip(keeps, outputs, strict=True)
        ):
            return
        if rule.cuts_argument is not None and (
            layer.axis % len(channels.shape) == channels.axis
        ):
            cuts = np.cumsum([len(kept) for kept in keeps])[:-1]
            config[rule.cuts_argument] = cuts.tolist()
        for name in rule.size_arguments:
            config[name] = config[name] * len(keep) // total
        if rule.shape_argument is not None:
            shape = config[rule.shape_argument]
            shape = [shape] if isinstance(shape, int) else list(shape)
            place = channels.axis - len(channels.shape)
            if shape[place] != -1:  # -1: inferred anyway.
                shape[place] = len(keep)
            config[rule.shape_argument] = shape
        for name in rule.channel_arguments:
            value = getattr(layer, name)
            if np.shape(value) == channels.numbers.shape:
                value = np.asarray(value)[keep]
                if isinstance(config[name], list):
                    value = value.tolist()
                config[name] = keras.saving.serialize_keras_object(value)


def _from_config(layer, config):
    """Makes a layer like `layer`, with its functions as the objects they are.

    Serialized, an activation, an initializer or a lambda would have to be
    registered.
    """
    for name in config:
        live = getattr(layer, name, None)
        if callable(live) and not isinstance(live, keras.Operation):
            config[name] = live
    try:
        return type(layer).from_config(dict(config))
    except Exception as error:
        # `Lambda.from_config` takes serialized functions only, that of a
        # wrapper a serialized layer.
        try:
            return type(layer)(**config)
        except TypeError:
            raise error from None


def _key_per_axis(key, rank):
    """Returns an index as a list, an entry for each of `rank` axes.

    Beside these, `None` stands for each new axis.
    """
    key = list(key) if isinstance(key, tuple | list) else [key]
    if Ellipsis not in key:
        key.append(Ellipsis)
    place = key.index(Ellipsis)
    missing = rank - sum(k is not None and k is not Ellipsis for k in key)
    return key[:place] + [slice(None)] * missing + key[place + 1 :]


def _as_slice(positions):
    """Returns the slice that has these `positions`, `None` if none has."""
    steps = np.unique(np.diff(positions))
    if len(steps) > 1:
        return None
    step = int(steps[0]) if len(steps) else 1
    stop = int(positions[-1]) + step
    return slice(int(positions[0]), stop if stop >= 0 else None, step)


def _clone_input(layer, shape):
    """Returns a new input of `shape`, free where the old one was free."""
    config = layer.get_config()
    config["batch_shape"] = tuple(
        size and new
        for size, new in zip(config["batch_shape"], shape, strict=True)
    )
    return type(layer).from_config(config).output

"""The smaller clone of a model, and its weights."""

import keras
from keras import ops, tree

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.branches import needed_calls
from keras_prunetrain.channels.liveness import Plan
from keras_prunetrain.channels.rules import rule_for
from keras_prunetrain.surgery.adoption import adopt_class
from keras_prunetrain.surgery.carried import carry_variable
from keras_prunetrain.surgery.copying import Twins
from keras_prunetrain.surgery.cut import Cut, sliced
from keras_prunetrain.surgery.leaves import Leaves
from keras_prunetrain.surgery.uses import check_takes, check_uses

__all__ = ["Cut", "rebuild", "sliced"]


def rebuild(
    model: keras.Model, plan: Plan
) -> tuple[keras.Model, list[Cut], Twins]:
    """Returns the smaller model, uncompiled, and how each variable was cut.

    Args:
        model: A functional model. It is not modified.
        plan: The `Plan` for it.

    Returns:
        A functional or `Sequential` model with the same layer names, without
        the channels and layers that `plan` drops; the list of its `Cut`s; and
        a dict from the `id` of each old layer, part of a layer and symbolic
        tensor to its counterpart.

    Raises:
        ValueError: If a layer cannot be made anew, if a weight that is cut is
            used in a way that is not known, or if its regularizer or its
            constraint does not take the smaller weight.
    """
    builder = _Builder(plan)
    check_uses(plan.numbering, builder.leaves.keep)
    smaller = builder.graph(model, "", [x.shape for x in model.inputs])
    cuts = builder.leaves.pair(builder.graphs)
    for cut in cuts:
        value = sliced(cut.old, cut.keep)
        offset = plan.offsets.get(id(cut.old))
        if offset is not None:
            value = ops.convert_to_numpy(value) + sliced(offset, cut.keep)
        cut.new.assign(value)
        carry_variable(cut, builder.clones)
    check_takes(cuts, builder.leaves.pairs)
    builder.leaves.carry()
    return smaller, cuts, builder.clones


class _Builder:
    """Builds the graph again from clones of its layers.

    Attributes:
        clones: Dict from the `id` of a layer to its clone, one for each layer
            however often it is called, and from the `id` of a symbolic tensor
            to its counterpart.
        graphs: Pairs of a nested model and its clone, inner ones first.
        leaves: The `Leaves` of the graph.
    """

    def __init__(self, plan):
        self.clones = {}
        self.graphs = []
        self.leaves = Leaves(plan, self.clones, self._nested)
        self._plan = plan

    def graph(self, model, prefix, shapes):
        """Returns `model`, or one nested in it, for inputs of new `shapes`."""
        smaller = self._graph(model, prefix, shapes)
        self.graphs.append((model, smaller))
        return smaller

    def _nested(self, model, key, shapes):
        clone = self.graph(model, f"{key}/", shapes)
        adopt_class(clone, model, self.clones)
        return clone

    def _graph(self, model, prefix, shapes):
        """Calls the clones of the layers as the layers were called.

        A `Sequential` stays one. Calls that no output needs any more, because
        their branch leaves an addition, are left out.
        """
        inputs = [
            _clone_input(keras_internals.producer(x), shape)
            for x, shape in zip(model.inputs, shapes, strict=True)
        ]
        if isinstance(model, keras.Sequential):
            smaller = keras.Sequential(inputs, name=model.name)
            for layer in model.layers:
                smaller.add(self._clone(layer, prefix, inputs))
                inputs = smaller.outputs
            self._pair_tensors(model, smaller)
            return smaller
        values = dict(zip(map(id, model.inputs), inputs, strict=True))
        for call in needed_calls(model, self._plan.additions):
            outputs = tree.flatten(self._call(call, prefix, values))
            values.update(zip(map(id, call.outputs), outputs, strict=True))
        self.clones.update(values)
        return keras.Model(
            *(
                tree.map_structure(lambda x: values[id(x)], structure)
                for structure in keras_internals.structures(model)
            ),
            name=model.name,
        )

    def _pair_tensors(self, model, smaller):
        """Pairs the tensors of two `Sequential` models in `clones`."""
        pairs = list(zip(model.inputs, smaller.inputs, strict=True))
        for old, new in zip(
            keras_internals.calls(model),
            keras_internals.calls(smaller),
            strict=True,
        ):
            pairs += zip(old.outputs, new.outputs, strict=True)
        self.clones.update({id(old): new for old, new in pairs})

    def _call(self, call, prefix, values):
        """Returns what the clone of a call's layer makes of `values`.

        Args:
            call: The `Call` in the old graph.
            prefix: String that the keys of this graph's layers begin with.
            values: Dict from the `id` of a tensor of the old graph to its
                counterpart in the new one.
        """
        addition = self._plan.additions.get(id(call.outputs[0]))
        if addition is not None:
            inputs = [values[id(call.inputs[i])] for i in addition.keep]
            return self._without_branch(call, prefix, inputs, addition)
        inputs = [values[id(x)] for x in call.inputs]
        args, kwargs = tree.map_structure(
            self.leaves.counterpart,
            keras_internals.arguments_with(call, values),
        )
        rule = rule_for(call.operation)
        # The numbering does not look into models that stand in a wrapper.
        key = prefix + call.operation.name
        known = self._plan.numbering.inputs
        if rule is not None and rule.reindex is not None and key in known:
            read = known[key][0]
            alive = self._plan.alive[read.numbers]
            if not alive.all():
                args = rule.ask(
                    *("reindex", call.operation, *args),
                    **kwargs | {"read": read, "alive": alive},
                )
                kwargs = {}
        return self._clone(call.operation, prefix, inputs)(*args, **kwargs)

    def _without_branch(self, call, prefix, inputs, addition):
        """Returns what an addition computes once a branch of it has left.

        Args:
            call: The `Call` of the addition.
            prefix: String that the keys of this graph's layers begin with.
            inputs: List of the tensors that are still added.
            addition: The `Addition`, with the constant of the branch.
        """
        layer = call.operation
        x = inputs[0]
        if len(inputs) > 1:
            x = self._clone(layer, prefix, inputs)(inputs)
        numbers = self._plan.numbering.outputs[prefix + layer.name][0].numbers
        constant = addition.constant[self._plan.keep(numbers)]
        if constant.any():
            # It takes the name of the addition if the addition is gone.
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
        """Returns the clone of a layer or model, made at its first call."""
        if id(layer) not in self.clones:
            key = prefix + layer.name
            if keras_internals.is_graph(layer):
                # Masks, which come last, are no inputs of the model.
                shapes = [x.shape for x in inputs[: len(layer.inputs)]]
                self.clones[id(layer)] = self._nested(layer, key, shapes)
            else:
                self.clones[id(layer)] = self.leaves.clone(layer, key)
        return self.clones[id(layer)]


def _clone_input(layer, shape):
    """Returns a new input of `shape`; a size stays `None` where it was."""
    config = layer.get_config()
    config["batch_shape"] = tuple(
        size and new
        for size, new in zip(config["batch_shape"], shape, strict=True)
    )
    return type(layer).from_config(config).output

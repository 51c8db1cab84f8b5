"""Numbers every channel of a model and follows it through the graph.

Every channel that a layer computes gets a number. A tensor's channel axis is
then a vector of numbers. `Conv2D` makes new numbers; `ReLU` passes its input's
numbers on; `Add` ties the numbers of its inputs, which declares them equal (the
paper's channel union); `Concatenate` concatenates them; a layer that only moves
values is run on the numbers, which shows where the layer puts each value. In
the end every channel axis of every weight has a `Label`, and a cut only selects
positions along these axes, whatever the classes of the layers.
"""

import collections

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.flows import (
    FLOWS,
    NotFollowed,
    read_positions,
)
from keras_prunetrain.channels.labelling import (
    inner_labels,
    reads_with_kernel,
    seen_outside,
    weight_labels,
)
from keras_prunetrain.channels.labels import CallChannels, Numbering
from keras_prunetrain.channels.layer_rule import (
    CONCATENATES,
    JOINS,
    MIXES,
    PRODUCES,
)
from keras_prunetrain.channels.numbers import Channels, Numbers
from keras_prunetrain.channels.rules import rule_for
from keras_prunetrain.channels.walk import run_graph
from keras_prunetrain.checks import check_model

# Flows through a layer that may read several tensors.
_OF_SEVERAL = JOINS, CONCATENATES, MIXES


def number_channels(model: keras.Model) -> Numbering:
    """Returns the `Numbering` of a functional `model`.

    Raises:
        ValueError: If `model` is no model, or its layers form no known graph.
    """
    check_model(model)
    if not keras_internals.is_graph(model):
        raise ValueError(
            f"Cannot follow the channels of '{model.name}', a "
            f"{type(model).__name__}: its layers form no graph that Keras "
            "knows. Build it with the functional API, "
            "`keras.Model(inputs, outputs)`, or as a `keras.Sequential` that "
            "begins with `keras.Input(shape)`. A subclass of `keras.Model` "
            "works if its `__init__` calls `super().__init__(inputs, "
            "outputs)`. Of a model that trains functional models that it "
            "holds, pass one of these."
        )
    return _Numberer().number(model)


class _Numberer:
    """Follows the channels through a model, call by call."""

    def __init__(self):
        self._numbers = Numbers()
        self._layers = {}
        self._labels = {}  # By the id of the weight, and the axis.
        self._inputs = {}
        self._outputs = {}
        self._inner = collections.defaultdict(dict)
        self._calls = {}
        self._first_reads = {}  # By the layer's id.
        self._passed = collections.defaultdict(list)  # By an id of `_parts`.
        self._given_up = {}  # From such an id to why it cannot be followed.

    def number(self, model):
        """Runs the graph of `model` on channel numbers; returns a `Numbering`.

        The model's inputs and outputs are frozen: callers rely on their shapes.
        """
        numbers = self._numbers
        inputs = [
            numbers.unknown(x.shape, "model input", first=True)
            for x in model.inputs
        ]
        for channels in run_graph(model, inputs, self._visit):
            numbers.freeze(channels.numbers, "model output", first=True)
        merged = numbers.merged()

        def after_ties(channels):
            return [x._replace(numbers=merged[x.numbers]) for x in channels]

        return Numbering(
            size=int(merged.max(initial=-1)) + 1,
            layers=self._layers,
            labels=[
                label._replace(numbers=merged[label.numbers])
                for label in self._labels.values()
            ],
            inputs={key: after_ties(x) for key, x in self._inputs.items()},
            outputs={key: after_ties(x) for key, x in self._outputs.items()},
            inner={
                key: {name: merged[x] for name, x in kinds.items()}
                for key, kinds in self._inner.items()
            },
            calls={
                site: CallChannels(*map(after_ties, call))
                for site, call in self._calls.items()
            },
            frozen=numbers.frozen(merged),
        )

    def _visit(self, visit):
        """Returns the `Channels` that a call writes, `None` for a model."""
        visit = _with_sizes(visit)
        layer, key = visit.call.operation, visit.key
        self._layers[key] = layer
        self._inputs.setdefault(key, visit.inputs)
        if keras_internals.is_graph(layer):
            # All calls of a model share one set of input channels.
            self._tie_calls(layer, visit.inputs)
            return None
        rule = rule_for(layer)
        parts = _parts(layer, rule)
        read, written = visit.inputs, []
        try:
            for part in self._given_up.keys() & parts:
                raise NotFollowed(self._given_up[part])
            visit = visit._replace(inputs=self._as_expected(visit, rule))
            _check_followed(visit, rule)
            inner = self._inner_labels(visit, rule)
            written = self._written(visit, rule)
            self._label(weight_labels(visit, rule, written))
            self._label(inner)
        except NotFollowed as problem:
            written = self._give_up(visit, written, parts, problem)
        else:
            self._freeze_by_rule(visit, rule, written)
            touched = [*visit.inputs, *written, *self._inner_channels(key)]
            for part in parts:
                self._passed[part] += touched
        self._outputs.setdefault(key, written)
        read = _with_mask(visit, read)
        self._calls[visit.site] = CallChannels(read, written)
        if (
            rule is not None
            and (rule.resize or rule.reindex)
            and rule.flow != MIXES  # Their weights tie the calls.
        ):
            self._tie_calls(layer, visit.inputs)
        return written

    def _give_up(self, visit, written, parts, problem):
        """Freezes the channels of a call that cannot be followed.

        Other calls with the same layer or weight are frozen, too: a layer is
        cut for all its calls at once.

        Returns:
            List of new, frozen `Channels` for the outputs.
        """
        reason = visit.because(problem)
        # Freeze the outputs too: their numbers may already be in use.
        touched = [*visit.inputs, *written, *self._inner_channels(visit.key)]
        for part in parts:
            touched += self._passed.pop(part, ())
            self._given_up[part] = str(problem)
        for channels in touched:
            self._numbers.freeze(channels.numbers, reason)
        return [
            self._numbers.unknown(x.shape, reason) for x in visit.call.outputs
        ]

    def _tie_calls(self, layer, channels):
        """Ties the input channels of all calls, which share one config."""
        # By the layer's id: a layer in two models has two keys.
        first = self._first_reads.setdefault(id(layer), channels)
        for a, b in zip(first, channels, strict=False):
            if len(a.numbers) == len(b.numbers):
                self._numbers.tie(a.numbers, b.numbers)

    def _as_expected(self, visit, rule):
        """Returns the inputs' `Channels`, on the axes that the rule expects."""
        if rule is None:
            raise NotFollowed("no rule for this class, see register_rule")
        if rule.flow == MIXES:
            inputs = visit.inputs
            positions = read_positions(visit, rule).values()
        else:
            inputs = self._without_mask(visit)
            positions = range(len(inputs))
        read = []
        for i, x in enumerate(inputs):
            if i not in positions:  # A mask has no channels.
                read.append(x)
                continue
            rank = len(x.shape)
            axis = rule.ask("channel_axis", visit.call.operation, rank)
            if axis is not None and -rank <= axis < rank:
                axis %= rank
            if axis not in (None, x.axis):
                if not x.any_axis or not 0 < axis < rank:
                    raise NotFollowed(
                        "its channel axis is not that of its input: "
                        f"{axis}, not {x.axis}"
                    )
                x = self._numbers.unknown(x.shape, "unknown layout", axis)
            read.append(x)
        return read

    def _without_mask(self, visit):
        """Returns the inputs without a mask of steps, which has no channels."""
        i = keras_internals.mask_position(visit.call)
        if not i or len(visit.inputs[i].shape) >= len(visit.inputs[0].shape):
            return visit.inputs  # It may have an entry for each channel.
        reason = visit.because("its mask has an entry for each step")
        self._numbers.freeze(visit.inputs[i].numbers, reason)
        return visit.inputs[:i] + visit.inputs[i + 1 :]

    def _written(self, visit, rule):
        """Returns the `Channels` of the outputs, by the flow of the rule."""
        call = visit.call
        if len(visit.inputs) > 1 and rule.flow not in _OF_SEVERAL:
            raise NotFollowed("its rule is for one input, and it reads several")
        earlier = self._outputs.get(visit.key)
        written = FLOWS[rule.flow](self._numbers, visit, rule, earlier)
        if len(written) != len(call.outputs):
            raise NotFollowed("its rule is for one output, and it has several")
        if any(x.shape[x.axis] != len(x.numbers) for x in written):
            raise NotFollowed("its rule gives a wrong number of outputs")
        return written

    def _inner_channels(self, key):
        kinds = self._inner.get(key, {})
        return [Channels(numbers, 0, ()) for numbers in kinds.values()]

    def _inner_labels(self, visit, rule):
        """Returns the labels of what a layer computes and reads itself."""

        def numbers(argument, size):
            kinds = self._inner[visit.key]
            if argument not in kinds:
                kinds[argument] = self._numbers.new(size)
            return kinds[argument]

        labels = inner_labels(visit, rule, numbers)
        for i, kind in enumerate(self._inner_channels(visit.key)):
            reason = seen_outside(visit, rule, len(kind.numbers), i == 0)
            if reason is not None:
                self._numbers.freeze(kind.numbers, visit.because(reason))
        return labels

    def _label(self, labels):
        """Adds the labels of a call, tied to the labels of earlier calls."""
        for label in labels:
            axis = (id(label.weight), label.axis)
            known = self._labels.setdefault(axis, label)
            # A weight that is used twice has the same channels in both uses.
            self._numbers.tie(known.numbers, label.numbers)

    def _freeze_by_rule(self, visit, rule, written):
        """Freezes the channels that the layer's rule says must stay.

        Args:
            visit: The `Visit` of a call.
            rule: The `LayerRule` of its layer.
            written: List of the `Channels` that the call writes.
        """
        if rule.flow == PRODUCES and not reads_with_kernel(visit, rule):
            # No weight tells how much an input channel matters.
            reason, channels = "it reads without a kernel", visit.inputs
        else:
            reason = rule.ask("freezes", visit.call.operation)
            channels = written
        if reason is not None:
            for x in channels:
                self._numbers.freeze(x.numbers, visit.because(reason))


def _with_sizes(visit):
    """Returns the visit with the sizes that its call knows of its inputs.

    In a nested model of any size, the sizes of its own tensors are unknown.
    """

    def sized(channels, tensor):
        sizes = zip(channels.shape, tensor.shape, strict=True)
        shape = tuple(y if x is None else x for x, y in sizes)
        return channels._replace(shape=shape)

    pairs = zip(visit.inputs, visit.call.inputs, strict=True)
    return visit._replace(inputs=[sized(*pair) for pair in pairs])


def _parts(layer, rule):
    """Returns the ids of a layer and its weights; none if no cut changes it."""
    weights = getattr(layer, "weights", ())
    if weights or (rule and (rule.size_arguments or rule.resize)):
        return {id(layer), *map(id, weights)}
    return set()


def _check_followed(visit, rule):
    """Raises `NotFollowed` if the arguments or the rule refuse a call."""
    call = visit.call
    if keras_internals.has_array_arguments(call):
        raise NotFollowed("an array of fixed size is among its arguments")
    refusal = rule.ask("refuses", call.operation)
    if refusal is not None:
        raise NotFollowed(refusal)


def _with_mask(visit, read):
    """Returns the `Channels` of all inputs of a call, that of a mask included.

    Args:
        visit: The `Visit` of the call, with or without the mask.
        read: List of the `Channels` with the mask.
    """
    if len(visit.inputs) == len(read):
        return visit.inputs
    i = keras_internals.mask_position(visit.call)
    return [*visit.inputs[:i], read[i], *visit.inputs[i:]]

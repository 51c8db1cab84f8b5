"""What must hold of every program: nothing is lost by a cut.

Each program trains a model of a kind that users have, with one line added. The
callbacks here also compare, at each cut, what the parts of the model compute
with what they computed once their dead weights were zero, and the slots of all
optimizers with what is to be left of them.
"""

import keras
import numpy as np
import pytest

import keras_prunetrain as kpt
from keras_prunetrain import keras_internals
from tests.masked import kept, silence


class _Watching:
    """Compares the parts of a model before and behind each cut."""

    def watch(self, parts, optimizers):
        self.parts, self.optimizers = parts, optimizers
        return self

    def plan(self):
        plan = super().plan()
        silence(plan.numbering, plan.alive)
        self.outputs = [outputs(part) for part in self.parts]
        keep = kept(plan.numbering, plan.alive)
        self.slots = [slots(x, keep) for x in self.optimizers]
        self.steps = [int(x.iterations) for x in self.optimizers]
        return plan

    def after_cut(self, report):
        for part, before in zip(self.parts, self.outputs, strict=True):
            for one, other in zip(outputs(part), before, strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
        for x, before in zip(self.optimizers, self.slots, strict=True):
            after = slots(x, {})
            # A branch that has left takes its weights along.
            assert after and after.keys() <= before.keys()
            for key, value in after.items():
                np.testing.assert_array_equal(value, before[key], str(key))
        assert self.steps == [int(x.iterations) for x in self.optimizers]
        super().after_cut(report)


class Target(_Watching, kpt.TargetPruneCallback):
    """Meets a target within three epochs."""

    def __init__(self, **kwargs):
        kwargs = {"score": "magnitude", "flops": 0.5} | kwargs
        kwargs["reconfigure"] = {"channel_multiple": 1}
        super().__init__(warmup=1, decay=1, rounds=1, **kwargs)


class PruneTrain(_Watching, kpt.PruneTrainCallback):
    """Cuts after each epoch what is smaller than a large threshold."""


def outputs(part):
    """What a part returns for some inputs, as at inference."""
    rng = np.random.default_rng(0)

    def draw(tensor):
        shape = (3, *example_shape(tensor))
        if "int" in tensor.dtype:
            return rng.integers(0, 5, shape)
        return rng.normal(size=shape)

    x = keras.tree.map_structure(draw, keras_internals.structures(part)[0])
    # A layer that draws numbers is to draw the same ones again.
    states = [(v, v.numpy()) for v in part.non_trainable_variables]
    results = keras.tree.flatten(part(x, training=False))
    for variable, state in states:
        variable.assign(state)
    return [np.asarray(y) for y in results]


def cost(part):
    """The cost of a part, at some size if it takes images of any."""
    return kpt.model_cost(part, [example_shape(x) for x in part.inputs])


def example_shape(tensor):
    return tuple(size or 6 for size in tensor.shape[1:])


def slots(optimizer, keep):
    """The slots of an optimizer at the positions that `keep` says."""
    found = {}
    for leaf in keras_internals.leaf_optimizers(optimizer):
        updated, named, _ = keras_internals.optimizer_variables(leaf)
        for name, values in named.items():
            for weight, slot in zip(updated, values, strict=True):
                value = slot.numpy()
                for axis, positions in keep.get(id(weight), {}).items():
                    value = np.take(value, positions, axis)
                found[name, weight.path] = value
    return found


def trained(callback, model, held, *data, optimizers=None, most=0.5, **kwargs):
    """Trains `model`, and checks that its parts have shrunk in their places.

    Args:
        callback: A `Target` or a `PruneTrain`.
        model: The model that `fit` trains, compiled.
        held: Function of `model` that returns the parts that become smaller.
        data: What `fit` takes.
        optimizers: Those that train the parts. Defaults to that of the model.
        most: The target of a `Target`, a fraction of the flops.
        kwargs: Further arguments of `fit`.

    Returns:
        The history of `fit`.
    """
    parts = held(model)
    callback.watch(parts, optimizers or [model.optimizer])
    layers = [{x.name: x for x in part.layers} for part in parts]
    before = [cost(part) for part in parts]
    kwargs = {"epochs": 3, "batch_size": 16, "verbose": 0} | kwargs

    # Tracing takes most of the time.
    model.run_eagerly |= isinstance(callback, PruneTrain)
    history = model.fit(*data, callbacks=[callback], **kwargs).history

    assert history["density"][-1] < 1.0
    for part, again, own in zip(parts, held(model), layers, strict=True):
        assert again is part
        assert all(x is own[x.name] for x in part.layers if x.weights)
    after = [cost(part) for part in parts]
    if isinstance(callback, Target):
        flops = [sum(x.forward_flops for x in y) for y in (before, after)]
        assert 0.6 * most < flops[1] / flops[0] <= most
    else:
        for one, other in zip(before, after, strict=True):
            assert other.parameters < one.parameters
    return history


def images(*shape, seed=0):
    """Random images, or other arrays, between 0 and 1."""
    return np.random.default_rng(seed).random(shape)


def kinds(**kwargs):
    """Both callbacks, the second one with arguments of its own."""
    prune_train = {"interval": 2, "threshold": 0.25, **kwargs}
    return pytest.mark.parametrize(
        "callback",
        [Target(), PruneTrain(**prune_train)],
        ids=["target", "prune_train"],
    )


def descend(tape, loss, weights, optimizer):
    """Takes a step of `optimizer`."""
    gradients = tape.gradient(loss, [w.value for w in weights])
    optimizer.apply_gradients(zip(gradients, weights, strict=True))

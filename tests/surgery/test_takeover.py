"""What the caller holds goes on as the smaller model, whole or not at all."""

import gc
import pathlib
import sys
import weakref

import keras
import numpy as np
import pytest

import keras_prunetrain
from keras_prunetrain import keras_internals, reconfigure
from keras_prunetrain.channels.liveness import plan_cut
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.surgery.reconfigure import prepare_cut
from keras_prunetrain.surgery.takeover import take_over
from tests import networks
from tests.networks import conv, images, kill, kill_all, outputs, shake, targets


def trained(network, optimizer=None):
    """`network`'s model after a step, with channels that die after it."""
    model = network.model
    optimizer = optimizer or keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, "mse", metrics=["mae"], run_eagerly=True)
    shake(model)
    step(model)
    shake(model)
    kill_all(network)
    return model


def step(model):
    return model.train_on_batch(images(), targets(), return_dict=True)


def shrink(model):
    take_over(model, prepare_cut(model, plan_cut(model, CutOptions())))


def kinds(one):
    """The attributes of an object and their types."""
    return {name: type(value) for name, value in vars(one).items()}


@pytest.mark.parametrize("build", networks.sampled())
def test_every_object_stays_the_same_and_does_what_a_new_model_does(
    build, tmp_path
):
    network = build()
    model = trained(network)
    operations = keras_internals.operations_in(model)
    optimizer, single = model.optimizer, model.optimizer.variables[:2]
    before = {id(x): kinds(x) for x in (model, optimizer)}
    other = reconfigure(model)
    metrics = model.get_metrics_result()

    shrink(model)

    for one, expected in zip(
        keras_internals.operations_in(model), operations, strict=True
    ):
        assert one is expected, one.name
    assert {id(x): kinds(x) for x in (model, optimizer)} == before
    assert model.optimizer is optimizer
    for found, expected in zip(optimizer.variables, single, strict=False):
        assert found is expected
    assert model.get_metrics_result() == metrics
    assert model.count_params() == other.count_params()
    assert model.get_config() == other.get_config()
    for m in (model, other):
        m.reset_metrics()
    assert step(model) == step(other)
    for found, expected in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=found.path)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for found, expected in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=expected.path)


def test_it_can_be_repeated_and_no_old_weight_is_left():
    model = trained(networks.nested())
    held = keras_internals.operations_in(model)
    old = []
    for dead in (0, 0, 1):
        variables = [*model.trainable_variables, *model.optimizer.variables[2:]]
        old += [weakref.ref(v) for v in variables]
        del variables
        shrink(model)
        kill(model, {"inner/a": [dead]}, {"inner/b": [dead]})
    assert keras_internals.operations_in(model) == held
    assert networks.find(model, "inner/a").filters == 2
    gc.collect()
    assert not [v for v in old if v() is not None]


def transfer():
    """A classifier behind a `base` that is trained in a second phase."""
    image = keras.Input((6, 6, 2))
    x = conv(image, 5, "a", activation="tanh")
    base = keras.Model(image, conv(x, 4, "b", activation="tanh"), name="base")
    image = keras.Input((6, 6, 2))
    model = keras.Model(image, networks.head(base(image)))
    return base, networks.Network(
        model,
        writes={"base/a": [1], "base/b": [2]},
        reads={"base/b": [1], "logits": [2]},
        carries={},
    )


def test_the_base_of_a_transfer_is_live_in_the_second_phase():
    base, network = transfer()
    base.trainable = False
    model = trained(network)
    shrink(model)
    assert model.get_layer("base") is base
    assert base.get_layer("a").filters == 4

    base.trainable = True
    model.compile("sgd", "mse", run_eagerly=True)
    before = [w.numpy() for w in base.weights]
    step(model)

    assert len(model.trainable_variables) == 6
    for weight, value in zip(base.weights, before, strict=True):
        assert np.abs(weight - value).max() > 0.0
    expected = outputs(model.get_layer("base"), images())
    np.testing.assert_array_equal(base.predict(images(), verbose=0), expected)


def test_hooks_around_the_step_and_wrapped_optimizers_stay():
    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer = keras.optimizers.LossScaleOptimizer(inner)
    model = trained(networks.plain(), optimizer)
    steps = []

    def hook(step, gradients, variables):
        steps.append(len(gradients))
        return step(gradients, variables)

    keras_internals.add_step_hook(inner, "count", hook)
    rate, scale = inner.learning_rate, optimizer.dynamic_scale

    shrink(model)
    step(model)

    assert model.optimizer.inner_optimizer is inner
    assert steps == [len(model.trainable_variables)]
    assert inner.learning_rate is rate
    assert optimizer.dynamic_scale is scale
    assert int(optimizer.iterations) == int(inner.iterations) == 2


def test_members_of_a_multi_optimizer_stay_and_share_no_old_weight():
    first, rest = keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.1, 0.9)
    optimizer = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(rest, {"conv1/.*": first})
    )
    network = networks.residual()
    model = trained(network, optimizer)
    for places in ({"conv1": range(4)}, {}), ({}, {"conv2": range(4)}):
        kill(model, *({k: list(v) for k, v in x.items()} for x in places))

    shrink(model)  # The branch leaves: `first` has no weight any more.
    step(model)

    assert optimizer.optimizers == [first, rest]
    assert int(rest.iterations) == 2
    held = {id(v) for x in optimizer.optimizers for v in x._trainable_variables}
    assert held == {id(v) for v in model.trainable_variables}
    slots = [
        v for v in vars(first).values() if isinstance(v, list) and len(v) > 2
    ]
    assert not [x for x in slots if isinstance(x[0], keras.Variable)]


class Interrupted(BaseException):
    """What Ctrl-C raises, at a line of our choice."""


PACKAGE = pathlib.Path(keras_prunetrain.__file__).parent
SURGERY = tuple(str(PACKAGE / x) for x in ("surgery", "keras_internals"))


def lines_of(function):
    """Returns the lines of the surgery that `function` runs, each once."""
    lines = {}

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(SURGERY):
            return None
        if event == "line":
            lines[frame.f_code.co_filename, frame.f_lineno] = True
        return trace

    run_traced(function, trace)
    return list(lines)


def interrupt(function, line):
    """Runs `function`, but raises when it comes to a line of the surgery."""

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(SURGERY):
            return None
        here = frame.f_code.co_filename, frame.f_lineno
        if event == "line" and here == line:
            raise Interrupted
        return trace

    with pytest.raises(Interrupted):
        run_traced(function, trace)


def run_traced(function, trace):
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
        assert gc.isenabled()


def state(model):
    """All attributes of all objects of a model, shallow."""
    objects = keras_internals.operations_in(model)
    pairs = keras_internals.optimizer_pairs(model.optimizer, model.optimizer)
    objects += [x for x, _ in pairs]
    return [
        (
            id(one),
            name,
            id(value),
            len(value) if hasattr(value, "__len__") else 0,
        )
        for one in objects
        for name, value in vars(one).items()
    ]


def tiny():
    image = keras.Input((6, 6, 2))
    inner = keras.Model(image, conv(image, 4, "a", activation="tanh"))
    inner.name = "inner"
    image = keras.Input((6, 6, 2))
    x = conv(inner(image), 3, "b", activation="tanh")
    return networks.Network(
        keras.Model(image, networks.head(x)),
        writes={"inner/a": [1], "b": [2]},
        reads={"b": [1], "logits": [2]},
        carries={},
    )


def assert_whole(model, expected):
    """Asserts that `model` is the one from before, or the smaller one."""
    sizes = {w.path: tuple(w.shape) for w in model.weights}
    assert sizes["b/kernel"] in ((3, 3, 4, 3), (3, 3, 3, 2))
    assert sizes["a/kernel"][-1] == sizes["b/kernel"][-2]
    np.testing.assert_allclose(outputs(model, images()), expected, atol=1e-6)
    model.evaluate(images(), targets(), verbose=0)
    model.fit(images(), targets(), verbose=0)
    assert len(model.optimizer.variables) == 2 + len(model.trainable_variables)


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.long)])
def test_a_takeover_that_is_interrupted_leaves_a_whole_model(stride, tmp_path):
    model = trained(tiny())
    expected = outputs(model, images())
    smaller = prepare_cut(model, plan_cut(model, CutOptions()))
    lines = lines_of(lambda: take_over(model, smaller))[::stride]
    interrupted = []
    model = trained(tiny())
    for line in lines:
        smaller = prepare_cut(model, plan_cut(model, CutOptions()))
        before = state(model)
        interrupt(lambda: take_over(model, smaller), line)  # noqa: B023
        interrupted.append(state(model) != before)
        if interrupted[-1]:
            break
    assert not any(interrupted[:-1])
    assert_whole(model, expected)
    model.save(tmp_path / "model.keras")
    keras.saving.load_model(tmp_path / "model.keras")
    # From here on the smaller model is there.
    for line in lines[len(interrupted) :: 4]:
        model = trained(tiny())
        smaller = prepare_cut(model, plan_cut(model, CutOptions()))
        interrupt(lambda: take_over(model, smaller), line)  # noqa: B023
        assert_whole(model, expected)


@pytest.mark.long
def test_surgery_that_is_interrupted_before_leaves_the_old_model():
    model = trained(networks.nested(), keras.optimizers.Adam(0.01))
    plan = plan_cut(model, CutOptions())
    lines = lines_of(lambda: prepare_cut(model, plan))
    before = state(model)
    for line in lines:
        interrupt(lambda: prepare_cut(model, plan), line)
        assert state(model) == before
    step(model)

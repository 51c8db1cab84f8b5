"""Random networks, random dead channels: the cut network is the same one.

`make fuzz` runs thousands of them; a seed that fails once stays in `FAILED`.
"""

import keras
import numpy as np
import pytest

from keras_prunetrain import keras_internals, reconfigure
from keras_prunetrain.channels.numbering import number_channels
from tests import networks
from tests.masked import kept, places, silence, silence_more, some_alive
from tests.networks import shake, take
from tests.random_graphs import BLOCK, SIZE, random_model

FAILED = []  # Seeds that once found a bug.
LONG = 0.5  # The share of the networks that is left to `make test-long`.


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        count = metafunc.config.getoption("--graphs")
        for word, fraction in (("state", 1), ("twice", 8), ("", 4)):
            if word in metafunc.function.__name__:
                count //= fraction
                break
        seeds = [
            pytest.param(seed, marks=pytest.mark.long)
            if seed >= (1 - LONG) * count
            else seed
            for seed in range(count)
        ]
        metafunc.parametrize("seed", [*FAILED, *seeds])


@pytest.mark.usefixtures("float64")
def test_a_random_network_and_its_state_are_the_same_after_the_cut(seed):
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    model = random_model(seed)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        ["mse"] * len(model.outputs),
        run_eagerly=True,
    )
    shake(model, seed)
    model.optimizer.build(model.trainable_variables)
    for slot in model.optimizer.variables[2:]:
        slot.assign(rng.normal(size=slot.shape))
    x = rng.normal(size=(5, SIZE, SIZE, 2))
    y = [rng.normal(size=(5, out.shape[-1])) for out in model.outputs]
    y = y if len(y) > 1 else y[0]
    numbering = number_channels(model)
    alive = some_alive(numbering, rng)
    silence(numbering, alive)

    smaller = reconfigure(model)

    if alive.all():
        assert smaller is model
        return
    assert cut_shapes(numbering, alive) == {
        place: tuple(weight.shape) for place, weight in places(smaller).items()
    }
    assert_same_results(smaller, model, x)
    for m in (model, smaller):
        m.train_on_batch(x, y)
    assert_same_state(model, smaller, kept(numbering, alive))


@pytest.mark.usefixtures("float64")
def test_a_random_network_can_be_cut_twice_like_once(seed):
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    model = random_model(seed)
    model.compile("sgd", ["mse"] * len(model.outputs))
    shake(model, seed)
    x = rng.normal(size=(5, SIZE, SIZE, 2))
    assert_cut_twice_like_once(model, x, rng)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("build", networks.sampled())
def test_every_network_can_be_cut_twice_like_once(build):
    model = build().model
    model.compile("sgd", "mse")
    shake(model)
    assert_cut_twice_like_once(
        model, networks.images(), np.random.default_rng(0)
    )


def assert_cut_twice_like_once(model, x, rng):
    """Asserts that the smaller model can be cut like the first one."""
    numbering = number_channels(model)
    alive = some_alive(numbering, rng)
    later = some_alive(numbering, rng, among=alive)
    silence(numbering, alive)
    smaller = reconfigure(model)
    silence_more(model, smaller, numbering, alive, later)

    smallest = reconfigure(smaller)

    assert cut_shapes(numbering, later) == {
        place: tuple(weight.shape) for place, weight in places(smallest).items()
    }
    assert_same_results(smallest, smaller, x)


@pytest.mark.usefixtures("float64")
def test_folding_leaves_a_random_network_the_function_that_it_is(seed):
    keras.utils.set_random_seed(seed)
    model = random_model(seed)
    model.compile("sgd", ["mse"] * len(model.outputs))
    shake(model, seed)
    numbering = number_channels(model)
    alive = some_alive(numbering, np.random.default_rng(seed))
    silence(numbering, alive, sides=("out",))
    x = np.random.default_rng(seed).normal(size=(5, SIZE, SIZE, 2))

    smaller = reconfigure(model, fold=True)

    assert_same_results(smaller, model, x)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("fold", [False, True])
def test_dead_branches_leave_a_random_network_the_function_it_is(seed, fold):
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    model = random_model(seed)
    model.compile("sgd", ["mse"] * len(model.outputs))
    shake(model, seed)
    numbering = number_channels(model)
    alive = some_alive(numbering, rng)
    for key, (channels, *_) in numbering.outputs.items():
        if key.startswith(BLOCK) and rng.random() < 0.7:
            alive[channels.numbers] = False
    alive[list(numbering.frozen)] = True
    silence(numbering, alive)
    x = rng.normal(size=(5, SIZE, SIZE, 2))

    smaller = reconfigure(model, fold=fold)

    assert_same_results(smaller, model, x)


def cut_shapes(numbering, alive):
    keep = kept(numbering, alive)
    shapes = {}
    for key, layer in numbering.layers.items():
        for i, weight in enumerate(getattr(layer, "weights", ())):
            shape = list(weight.shape)
            for axis, positions in keep.get(id(weight), {}).items():
                shape[axis] = len(positions)
            if not hasattr(layer, "layers"):
                shapes[key.rpartition("/")[2], i] = tuple(shape)
    return shapes


def results(model, x):
    return [np.asarray(y) for y in keras.tree.flatten(model(x))]


def assert_same_results(smaller, model, x):
    expected = results(model, x)
    # One of several outputs may be that of a piece that makes a constant.
    if max(np.ptp(y, axis=0).max() for y in expected) < 1e-3:
        pytest.skip("what is dead leaves an output that is a constant")
    for a, b in zip(results(smaller, x), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def state(model):
    """Yields place, weight and, if it has one, momentum of each weight."""
    owners = keras_internals.optimizer_variables(model.optimizer)[0]
    momenta = model.optimizer.variables[2:]
    slots = {id(v): m for v, m in zip(owners, momenta, strict=True)}
    for place, weight in places(model).items():
        yield place, weight, slots.get(id(weight))


def assert_same_state(model, smaller, keep):
    """Asserts that a step left the same weights: the gradients are in it."""
    old = {place: rest for place, *rest in state(model)}
    for place, *found in state(smaller):
        cut = keep.get(id(old[place][0]), {})
        for value, expected in zip(found, old[place], strict=True):
            assert (value is None) == (expected is None)
            if value is not None:
                np.testing.assert_allclose(
                    value,
                    take(expected, cut),
                    rtol=1e-7,
                    atol=1e-9,
                    err_msg=str(place),
                )

"""A walk over a model hands on what it is told, nested models included."""

import keras
import pytest
from keras import layers

from keras_prunetrain.channels.walk import run_graph


def named(visit):
    """Stands in for outputs: the operation and what it reads."""
    return [(visit.key, *visit.inputs)]


def test_it_hands_on_what_each_call_returns():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = keras.Model([a, b], [layers.Add(name="add")([a, b]), a])
    assert run_graph(model, ["A", "B"], named) == [("add", "A", "B"), "A"]


@pytest.fixture
def nested():
    """A model that calls another one twice, which holds a third."""
    x = keras.Input((4,))
    core = keras.Sequential([x, layers.ReLU(name="relu")], name="core")
    x = keras.Input((4,))
    inner = keras.Model(x, core(x), name="inner")
    x = keras.Input((4,))
    return keras.Model(x, inner(inner(x)))


def inside(visit):
    return None if hasattr(visit.call.operation, "layers") else named(visit)


def test_it_walks_through_the_models_that_it_is_told_to(nested):
    relu = "inner/core/relu"
    assert run_graph(nested, ["x"], inside) == [(relu, (relu, "x"))]
    assert run_graph(nested, ["x"], named) == [("inner", ("inner", "x"))]


def test_each_call_has_a_site_of_its_own_that_is_the_same_in_every_walk(nested):
    sites = []

    def visit(visit):
        sites.append(visit.site)
        assert [x.operation.name for x in visit.around] == (
            visit.key.split("/")[:-1]
        )
        return inside(visit)

    for _ in range(2):
        run_graph(nested, ["x"], visit)
    # Two calls, in each of which three operations are visited.
    assert len(sites) == 12
    assert len(set(sites[:6])) == 6
    assert sites[:6] == sites[6:]

"""The picture, read back: who computes and who reads which channels."""

import shutil
import sys

import keras
import pydot
import pytest
from keras import layers

from keras_prunetrain import plot_channels
from tests import networks

# Of what pydot reads .dot files with.
pytestmark = pytest.mark.filterwarnings("ignore:.* deprecated - use")


def drawn(model, tmp_path):
    """Returns the labels and colours of the nodes, and the labelled edges."""
    path = tmp_path / "channels.dot"
    plot_channels(model, path)
    (graph,) = pydot.graph_from_dot_file(path, encoding="utf-8")
    nodes = {node.get_name(): node for node in graph.get_nodes()}
    labels = {k: node.get("label").strip('"') for k, node in nodes.items()}
    colours = {labels[k]: node.get("fillcolor") for k, node in nodes.items()}
    edges = [
        (labels[edge.get_source()], labels[edge.get_destination()])
        for edge in graph.get_edges()
    ]
    return colours, edges


def test_layers_that_are_added_compute_one_set_of_channels(tmp_path):
    network = networks.residual()
    networks.shake(network.model)
    networks.kill_all(network)
    colours, edges = drawn(network.model, tmp_path)
    assert sorted(edges) == [
        ("4 channels, 1 can go", "conv2"),
        ("6 channels, 2 can go", "conv1"),
        ("6 channels, 2 can go", "logits"),
        ("conv1", "4 channels, 1 can go"),
        ("conv2", "6 channels, 2 can go"),
        ("logits", "3 channels\nmodel output"),
        ("model input", "stem"),
        ("stem", "6 channels, 2 can go"),
    ]
    blue, grey = '"#56b4e9"', '"#cccccc"'
    assert colours["4 channels, 1 can go"] == blue
    assert colours["3 channels\nmodel output"] == grey
    assert colours["model input"] == grey


def test_a_concatenation_is_read_from_all_its_parts(tmp_path):
    model = networks.concatenating().model
    networks.shake(model)
    colours, edges = drawn(model, tmp_path)
    # Two sets of three channels have the same label.
    assert edges.count(("3 channels", "logits")) == 2
    assert ("4 channels", "logits") in edges
    assert colours["4 channels"] == '"#ffffff"'


def test_what_holds_all_channels_of_a_layer_is_named(tmp_path):
    image = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="größe")(image)
    x = layers.Softmax(name="mixing")(x)
    x = layers.Conv2D(5, 3, name="next")(x)
    x = layers.Lambda(lambda x: x, name="unknown")(x)
    model = keras.Model(image, networks.head(x))
    _, edges = drawn(model, tmp_path)
    text = "4 channels\nmixing (Softmax): it mixes channels"
    assert {("größe", text), (text, "next")} <= set(edges)
    assert ("unknown (Lambda)", "logits") in edges


def test_a_model_without_kernels_is_an_empty_picture(tmp_path):
    image = keras.Input((6, 6, 2))
    assert drawn(keras.Model(image, layers.ReLU()(image)), tmp_path) == ({}, [])


@pytest.mark.skipif(
    shutil.which("dot") is None, reason="Graphviz is not installed"
)
@pytest.mark.parametrize(
    ("kind", "begin"),
    [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")],
)
def test_graphviz_draws_it(kind, begin, tmp_path):
    path = tmp_path / f"channels.{kind}"
    plot_channels(networks.nested().model, path)
    assert path.read_bytes().startswith(begin)


def test_without_graphviz_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImportError, match=r"needs Graphviz.* A .dot file"):
        plot_channels(networks.plain().model, tmp_path / "channels.png")


def test_without_pydot_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydot", None)
    with pytest.raises(ImportError, match=r"keras-prunetrain\[plot\]"):
        plot_channels(networks.plain().model, tmp_path / "channels.dot")


@pytest.mark.parametrize("name", ["channels", "channels.jpeg2"])
def test_an_unknown_format_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"must end with one of .*'png'"):
        plot_channels(networks.plain().model, tmp_path / name)

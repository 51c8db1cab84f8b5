"""The picture, read back: who computes and who reads which channels."""

import re
import shutil
import sys

import keras
import pydot
import pytest
from keras import layers

from keras_prunetrain import LayerRule, plot_channels, register_rule
from keras_prunetrain.channels import rules
from tests import networks

# Of what pydot reads .dot files with.
pytestmark = pytest.mark.filterwarnings("ignore:.* deprecated - use")


def drawn(model, tmp_path):
    """Returns the labels and colours of the nodes, and the labelled edges."""
    path = tmp_path / "channels.dot"
    plot_channels(model, path)
    (graph,) = pydot.graph_from_dot_file(path, encoding="utf-8")
    nodes = {node.get_name(): node for node in graph.get_nodes()}
    labels = {k: unquoted(node.get("label")) for k, node in nodes.items()}
    colours = {labels[k]: node.get("fillcolor") for k, node in nodes.items()}
    edges = [
        (labels[edge.get_source()], labels[edge.get_destination()])
        for edge in graph.get_edges()
    ]
    return colours, edges


def unquoted(text):
    """Returns what a string of the DOT language says."""
    assert text[0] == text[-1] == '"'
    says = {"n": "\n", '"': '"', "\\": "\\"}
    found = re.sub(r"\\(.)", lambda match: says[match[1]], text[1:-1])
    assert not re.search(r'(?<!\\)(\\\\)*"', text[1:-1])
    return found


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


def test_what_a_layer_computes_for_itself_has_its_own_name(tmp_path):
    steps = keras.Input((6, 4))
    x = layers.MultiHeadAttention(3, 2, value_dim=5, name="own")(steps, steps)
    model = keras.Model(steps, layers.Dense(2, name="logits")(x))
    networks.shake(model)
    _, edges = drawn(model, tmp_path)
    for text in ("3 num_heads", "5 value_dim"):
        assert {("own", text), (text, "own")} <= set(edges)
    assert ("4 channels", "logits") in edges


@pytest.mark.parametrize(
    "name",
    [
        'a"];evil[URL="javascript:alert(1)",image="x.png"];"b',
        *('a\\"b', "a\\", "a\nb", "<b>a<b>", "node", "channels 0", "n1"),
    ],
)
def test_no_name_of_a_layer_says_anything_but_itself(name, tmp_path):
    image = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name=name)(image)
    x = layers.Softmax(name=f"{name} too")(x)
    x = layers.Conv2D(5, 3, name="next")(x)
    model = keras.Model(image, networks.head(x), name=name)
    colours, edges = drawn(model, tmp_path)
    layer_names = {name, "next", "logits"}
    assert {target for _, target in edges} & layer_names == layer_names
    assert len(colours) == 3 + 4  # Three layers, three sets, and the input.
    assert [x for x, _ in edges if x.startswith("4 channels\n")] == [
        text for text in colours if text.startswith("4 channels\n")
    ]


def test_a_layer_that_computes_channels_without_a_kernel_is_drawn(
    tmp_path, monkeypatch
):
    class Energy(layers.Layer):
        def call(self, x):
            return keras.ops.sum(x * x, axis=-1, keepdims=True)

    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    register_rule(Energy, LayerRule("produces"))
    image = keras.Input((6, 6, 2))
    x = Energy(name="energy")(layers.Conv2D(4, 3, name="a")(image))
    _, edges = drawn(keras.Model(image, networks.head(x)), tmp_path)
    assert ("energy", "logits") in edges


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


@pytest.mark.parametrize("name", ["absent/x.dot", "a\0.dot", "\ud800.dot"])
def test_a_file_that_cannot_be_written_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="^`to_file` .* Received: to_file="):
        plot_channels(networks.plain().model, tmp_path / name)


def test_the_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    plot_channels(networks.plain().model, "~/channels.dot")
    assert (tmp_path / "channels.dot").exists()


@pytest.mark.parametrize("name", ["channels", "channels.jpeg2", "", 5, None])
def test_an_unknown_format_is_refused(name):
    with pytest.raises(ValueError, match=r"path that ends with one .*'png'"):
        plot_channels(networks.plain().model, name)

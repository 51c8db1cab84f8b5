"""What the documentation shows must run."""

import pathlib
import re
import types

import keras
import numpy as np
import pytest
from keras import layers

from keras_prunetrain import model_cost, reconfigure
from keras_prunetrain.channels import rules
from keras_prunetrain.channels.liveness import plan_of
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.channels.options import CutOptions
from tests import networks
from tests.networks import kill, outputs, shake

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    local = [link for link in links if "://" not in link]
    assert [x for x in local if not (page.parent / x).exists()] == []


def examples(page):
    text = page.read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def classes(monkeypatch):
    """What the examples with rules of docs/layers.md define."""
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    names = {"__name__": "docs"}
    for example in examples(DOCS / "layers.md"):
        if "register_rule" in example:
            exec(example, names)
    return names


def test_the_rule_for_your_own_layer_works(classes):
    image = keras.Input((6, 6, 2))
    x = classes["NoisyScale"](name="scale")(
        layers.Conv2D(4, 3, name="a")(image)
    )
    x = layers.GlobalMaxPooling2D()(layers.Conv2D(3, 3, name="b")(x))
    model = keras.Model(image, x)
    model.compile("sgd", "mse")
    shake(model)
    model.get_layer("scale").strength.assign([0.0])
    kill(model, {"a": [2]}, {"b": [2]})

    smaller = reconfigure(model)

    assert smaller.get_layer("scale").scale.shape == (3,)
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 2))
    np.testing.assert_allclose(
        outputs(smaller, x), outputs(model, x), atol=1e-6
    )


def test_the_rule_for_what_a_layer_costs_works(classes):
    image = keras.Input((6, 6, 2))
    x = classes["Project"](4, name="a")(image)
    x = layers.GlobalAveragePooling2D()(classes["Project"](3, name="b")(x))
    model = keras.Model(image, x)
    model.compile("sgd", "mse")
    kill(model, {"a": [2]}, {"b": [2]})

    smaller = reconfigure(model)

    assert model_cost(model).forward_flops == 2 * 36 * (2 * 4 + 4 * 3)
    assert model_cost(smaller).forward_flops == 2 * 36 * (2 * 3 + 3 * 3)


def test_the_plan_of_a_method_removes_the_quarter_with_the_smallest_gammas():
    names = {
        "np": np,
        "number_channels": number_channels,
        "plan_of": plan_of,
    }
    (example,) = examples(ROOT / "BUILD.md")
    exec(example, names)
    model = networks.residual().model
    for name, gamma in (
        ("stem_bn", [0.1, 0.2, 1.0, 1.0, 1.0, 1.0]),
        ("conv1_bn", [0.5, 1.0, 1.0, 1.0]),
        ("conv2_bn", [-0.2, 0.1, 1.0, 0.0, 1.0, -1.0]),
    ):
        model.get_layer(name).gamma.assign(gamma)
    callback = types.SimpleNamespace(network=model, options=CutOptions())

    plan = names["plan"](callback)

    # Of 10 channels: 6 with the sum of two gammas, and 4 with one gamma.
    outputs = plan.numbering.outputs
    assert plan.keep(outputs["stem"][0].numbers).tolist() == [2, 3, 4, 5]
    assert plan.keep(outputs["conv1"][0].numbers).tolist() == [1, 2, 3]
    assert plan.keep(outputs["logits"][0].numbers).tolist() == [0, 1, 2]

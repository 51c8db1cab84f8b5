"""What the documentation shows must run."""

import pathlib
import re

import keras
import numpy as np
from keras import layers

from keras_prunetrain import reconfigure
from keras_prunetrain.channels import rules
from tests.networks import kill, outputs, shake

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def examples(name):
    text = (DOCS / name).read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_rule_for_your_own_layer_works(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    (example,) = [x for x in examples("layers.md") if "register_rule" in x]
    names = {"__name__": "docs"}
    exec(example, names)
    image = keras.Input((6, 6, 2))
    x = names["NoisyScale"](name="scale")(layers.Conv2D(4, 3, name="a")(image))
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

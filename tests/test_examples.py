"""Every Python block of README.md, of docs/ and of the docstrings runs.

A block takes some names as given (`model`, `train`, `images`). Here they stand
for a small network and random images, and long trainings have few epochs. The
programs of docs/guides.md take nothing as given: `test_guides.py` runs them as
they stand.
"""

import ast
import doctest
import importlib
import inspect
import pathlib
import re
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_prunetrain as kpt
from keras_prunetrain.channels import rules
from tests.programs import test_gan

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "keras_prunetrain"
PAGES = [
    ROOT / "README.md",
    *sorted(x for x in ROOT.glob("docs/*.md") if x.name != "guides.md"),
]
# What a test process cannot do, and why: a word of the block, and the reason.
CANNOT_RUN = {
    "multi_worker_strategy()": "it must come before anything else of "
    "TensorFlow; tests/test_guides.py starts processes for a program with it",
}


def blocks(text):
    """Returns the Python blocks of a text, in order."""
    found = re.findall(r"^( *)```python\n(.*?)^\1```", text, re.M | re.S)
    return [textwrap.dedent(code) for _, code in found]


def docstrings():
    """Yields the name and the docstring of whatever has one."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield f"{module}.{getattr(node, 'name', '')}", text


TEXTS = [
    *((str(x.relative_to(ROOT)), x.read_text()) for x in PAGES),
    *docstrings(),
]
EXAMPLES = [
    pytest.param(code, id=f"{name}-{number}")
    for name, text in TEXTS
    for number, code in enumerate(blocks(text))
]
SESSIONS = [
    pytest.param(name, text, id=name) for name, text in TEXTS if ">>>" in text
]


@pytest.fixture
def given(strategy, monkeypatch, tmp_path):
    """What the blocks take as given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    # A second one in a process fails in `fit`.
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda: strategy)
    monkeypatch.setattr(kpt.models, "resnet20", small)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(128, 8, 8, 1)).astype("float32")
    labels = rng.integers(4, size=128)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = small()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    train = tf.data.Dataset.from_tensor_slices((images, labels)).batch(64)
    return {name: getattr(kpt, name) for name in kpt.__all__} | {
        "__name__": "block",
        "keras": keras,
        "tf": tf,
        "kpt": kpt,
        "keras_prunetrain": kpt,
        "model": model,
        "images": images,
        "labels": labels,
        "train": train,
        "val": train,
        "loss": loss,
        "augment": lambda image, label: (image, label),
        "strategy": tf.distribute.get_strategy(),
        "GAN": test_gan.GAN,
        "discriminator": test_gan.discriminator(),
        "generator": test_gan.generator(),
    }


def small():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, strides=2, name="stem"),
            layers.Conv2D(8, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, name="head_logits"),
        ]
    )


@pytest.mark.long
@pytest.mark.parametrize("code", EXAMPLES)
# Keras says so of every data set.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_a_block_runs(code, given):
    for word, reason in CANNOT_RUN.items():
        if word in code:
            pytest.skip(reason)
    code = re.sub(r"\bepochs=\d+", "epochs=4", code)
    exec(code.replace("range(0, 90, 10)", "range(0, 4, 2)"), given)


@pytest.mark.parametrize("word", CANNOT_RUN)
def test_what_cannot_run_is_one_block(word):
    assert sum(word in code for (code,) in (x.values for x in EXAMPLES)) == 1


@pytest.mark.parametrize(("name", "text"), SESSIONS)
def test_a_session_prints_what_it_says(name, text, monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    module = importlib.import_module(name.rpartition(".")[0])
    test = doctest.DocTestParser().get_doctest(
        text, vars(module).copy(), name, None, 0
    )
    printed = []
    result = doctest.DocTestRunner().run(test, out=printed.append)
    assert result.failed == 0, "".join(printed)
    assert result.attempted > 0


def calls(text):
    """Returns the calls of public names in the inline code of a text."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    found = []
    for span in re.findall(r"`([^`]+)`", text):
        try:
            tree = ast.parse(" ".join(span.split()), mode="eval")
        except SyntaxError:  # A command, a path, a piece of code.
            continue
        found += [x for x in ast.walk(tree) if isinstance(x, ast.Call)]
    return [x for x in found if ast.unparse(x.func).split(".")[-1] in PUBLIC]


PUBLIC = {
    name: getattr(kpt, name)
    for name in kpt.__all__
    if callable(getattr(kpt, name))
}
CALLS = [(name, call) for name, text in TEXTS for call in calls(text)]


def test_calls_between_words_have_arguments_that_exist():
    wrong = []
    for name, call in CALLS:
        function = PUBLIC[ast.unparse(call.func).split(".")[-1]]
        parameters = inspect.signature(function).parameters
        given = [x.arg for x in call.keywords]
        is_too_long = len(call.args) > len(parameters)
        if is_too_long or not {*given} <= {*parameters}:
            wrong.append(f"{name}: {ast.unparse(call)}")
    assert wrong == []
    assert len(CALLS) > 60


def test_blocks_are_found():
    names = {param.id.rpartition("-")[0] for param in EXAMPLES}
    assert {"README.md", "docs/usage.md", "docs/scaling.md"} <= names
    assert len(EXAMPLES) > 20
    assert len(SESSIONS) >= 3
    # Each fence of a docstring belongs to one block, however it is indented.
    for name, text in TEXTS:
        assert text.count("```python") == len(blocks(text)), name

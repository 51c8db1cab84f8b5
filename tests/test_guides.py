"""The guides are programs that run as they stand."""

import pathlib
import re
import sys

import keras
import pytest

from keras_prunetrain.channels import rules
from tests import workers

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guides.md"
GUIDES = [
    (text.splitlines()[0], re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    for text in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
]
# What a guide leaves in its folder.
FILES = {
    "Your own data": ["small.keras"],
    "Several devices of one machine": ["small.keras"],
    "Several machines": ["small.keras"],
    "To a phone or a browser": ["model.tflite", "model.onnx"],
}
# Guides that want processes of their own, and how many: the devices of one are
# chosen once, before anything else.
PROCESSES = {"Several devices of one machine": 1, "Several machines": 2}


@pytest.mark.long
@pytest.mark.parametrize(
    ("title", "programs"), GUIDES, ids=[title for title, _ in GUIDES]
)
@pytest.mark.filterwarnings("default")  # Of Keras, and of its exporters.
def test_a_guide_runs_and_leaves_a_smaller_model(
    title, programs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (program,) = programs
    program += '\nassert model.history.history["density"][-1] < 1.0\n'
    if title in PROCESSES:
        run_in_processes(program, PROCESSES[title], tmp_path)
    else:
        monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
        names = {"__name__": "guide"}
        exec(program, names)
    for name in FILES.get(title, []):
        assert (tmp_path / name).stat().st_size > 0
    if title == "Your own data":
        small = keras.saving.load_model("small.keras")
        assert small.count_params() == names["model"].count_params()
    if title == "A layer of your own":
        assert names["model"].get_layer("gate").strength.shape[0] < 16


def run_in_processes(program, count, folder):
    path = folder / "train.py"
    path.write_text(program)
    start = (
        f"import os, runpy, sys; sys.path.insert(0, {str(ROOT)!r}); "
        f"os.chdir({str(folder)!r}); runpy.run_path({str(path)!r})"
    )
    for text, code in workers.run(*[[sys.executable, "-c", start]] * count):
        assert code == 0, text[-2000:]


def test_each_name_belongs_to_a_guide():
    assert {*FILES, *PROCESSES} <= {title for title, _ in GUIDES}

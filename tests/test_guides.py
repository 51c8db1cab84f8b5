"""The guides are programs that run as they stand."""

import pathlib
import re

import keras
import pytest

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "guides.md"
GUIDES = [
    (text.splitlines()[0], re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    for text in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
]
# What a guide leaves in its folder.
FILES = {
    "Your own data": ["small.keras"],
    "To a phone or a browser": ["model.tflite", "model.onnx"],
}


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
    names = {"__name__": "guide"}
    exec(program, names)
    assert names["model"].history.history["density"][-1] < 1.0
    for name in FILES.get(title, []):
        assert (tmp_path / name).stat().st_size > 0
    if title == "Your own data":
        small = keras.saving.load_model("small.keras")
        assert small.count_params() == names["model"].count_params()


def test_each_file_belongs_to_a_guide():
    assert FILES.keys() <= {title for title, _ in GUIDES}

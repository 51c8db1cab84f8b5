"""The notebook runs as it is written, and says what is true."""

import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


def texts(notebook):
    return "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.get("name") == "stdout"
    )


def pictures(notebook):
    return sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


# The kernel's own: it listens on this machine only.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.long
def test_the_notebook_runs_and_its_model_shrinks(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shown = texts(notebook), pictures(notebook)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=400, resources=resources).execute()

    text = texts(notebook)
    assert pictures(notebook) == shown[1] == 2
    share = int(re.search(r"^parameters .*\((\d+)%\)$", text, re.M)[1])
    assert share < 60
    assert float(re.search(r"accuracy ([\d.]+)%", text)[1]) > 93
    # What is printed in the file is of this version of the program.
    words = [re.sub(r"[\d.,%()]+", "", t).split() for t in (text, shown[0])]
    assert set(words[0]) >= {"Epoch", "channels", "parameters", "layer"}
    assert words[0][:8] == words[1][:8]
    assert (tmp_path / "smaller.keras").exists()
    assert list((tmp_path / "logs").glob("*/events*"))

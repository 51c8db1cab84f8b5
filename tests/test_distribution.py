"""The wheel: what is in it, and that it trains where nothing else is."""

import os
import pathlib
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]

TRAINING = """
import keras
import numpy as np
import keras_prunetrain as kpt

model = kpt.models.resnet8((8, 8, 1), 4)
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
pruning = kpt.TargetPruneCallback(flops=0.5, warmup=0, decay=1)
x, y = np.random.rand(16, 8, 8, 1), np.arange(16) % 4
model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[pruning])
model.save("small.keras")
assert len(pruning.reports) == 1
print(kpt.__file__)
"""


def run(*words, **kwargs):
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", f"--outdir={folder}", cwd=ROOT)
    return folder


@pytest.mark.long
def test_the_distributions_can_be_published(built):
    archives = sorted(built.iterdir())
    assert [x.suffix for x in archives] == [".whl", ".gz"]
    run("-m", "twine", "check", "--strict", *archives)
    run("-m", "check_wheel_contents", archives[0])


@pytest.mark.long
def test_the_wheel_alone_trains(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    installed = {x.name for x in (tmp_path / "installed").iterdir()}
    assert {x for x in installed if "." not in x} == {"keras_prunetrain"}
    assert (tmp_path / "installed/keras_prunetrain/py.typed").exists()
    path = run(
        *("-c", TRAINING),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
    )
    assert path.startswith(str(tmp_path))
    assert (tmp_path / "small.keras").exists()


def test_citation_and_changelog_are_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {project['version']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert changelog.startswith(f"# Changelog\n\n## {project['version']}")

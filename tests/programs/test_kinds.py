"""What must hold of every kind of program: one line more, and it shrinks."""

import pathlib

import keras
import numpy as np
import pytest

from tests.programs.table import KINDS, OTHERS, halves, row
from tests.programs.watched import Target, outputs, trained

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "coverage.md"
# Of images, of sequences, and of what has a file of its own: `make test`.
QUICK = {"super-resolution, sub-pixels", "text, embedding and CNN", "GAN"}


def sampled(names):
    """Parameters: all `names`, most of them for `make test-long`."""
    return [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.long)
        for name in names
    ]


@pytest.mark.parametrize("name", sampled(KINDS))
def test_a_program_shrinks_is_saved_and_trains_on(name, float64, tmp_path):
    program = KINDS[name]()
    model = program.model
    model.compile(
        keras.optimizers.Adam(1e-3),
        program.loss,
        run_eagerly=True,  # Tracing takes most of the time.
    )
    callback = Target(flops=program.flops)
    data, most = (program.x, program.y), program.flops
    trained(callback, model, lambda x: [x], *data, most=most)

    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.saving.load_model(path)
    again.run_eagerly = True
    for one, other in zip(outputs(again), outputs(model), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    fitted = again.fit(*data, 16, verbose=0)
    assert np.isfinite(fitted.history["loss"][0])
    assert again.count_params() == model.count_params()


@pytest.mark.parametrize("name", sampled([*KINDS, *OTHERS]))
def test_half_of_what_may_go_goes_and_nothing_else_changes(name, float64):
    parts = halves(name)
    for part in parts:
        assert part.difference < 1e-12
        assert part.signal > 0.01, "the output hardly depends on the input"
        assert part.left < part.parameters
    if name in KINDS:
        assert parts[0].held_whole == KINDS[name]().held
    assert row(name, parts) in PAGE.read_text().splitlines(), (
        "python tools/program_table.py"
    )


def test_the_page_has_a_line_for_each_program():
    _, _, programs = PAGE.read_text().partition("\n## Programs\n")
    lines = [x for x in programs.splitlines() if x.startswith("| ")][2:]
    assert [x.split(" | ")[0].strip("| ") for x in lines] == [*KINDS, *OTHERS]
    assert len(lines) >= 24

"""The benchmark of the moment finds what the callback would find."""

import json
import pathlib
import sys

import pytest

import keras_prunetrain as kpt
from tests.callbacks.fits import examples, network

# What `python tools/benchmarks/moment.py` has on its path.
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools/benchmarks"))

import moment  # isort: skip


@pytest.mark.long
def test_it_picks_the_epoch_that_the_callback_picks():
    model, seen = network(), moment.Distances()
    model.fit(*examples(24), 8, 8, verbose=0, shuffle=False, callbacks=[seen])
    found = set()
    for criterion in moment.CRITERIA:
        for sparsity in (0.3, 0.5, 0.8):
            pruning = kpt.EarlyCroPCallback(
                *(sparsity, examples(24)), when=criterion, last_epoch=8
            )
            other = network()
            other.fit(
                *(*examples(24), 8, 8),
                verbose=0,
                shuffle=False,
                callbacks=[pruning],
            )
            is_late = pruning.moment.chosen == 8
            epochs = moment.picked(
                criterion, sparsity, True, seen.curves[criterion]
            )
            assert epochs in ([8, None] if is_late else [pruning.moment.chosen])
            found.add(epochs)
    assert len(found) > 1


def test_the_accuracy_is_that_of_the_epoch_picked():
    curves = {"lazy": [1.0, 1.6, 1.9, 1.99], "paper_code": [0, 1.0, 1.1, 1.11]}
    rows = moment.picks(curves, [0.1, 0.2, 0.3, 0.4])
    assert len(rows) == 3 * len(moment.SPARSITIES)
    lazy = {x["sparsity"]: x for x in rows if x["criterion"] == "lazy"}
    assert [lazy[x]["epochs"] for x in (0.5, 0.9, 0.98)] == [3, 4, None]
    assert [lazy[x]["val_accuracy"] for x in (0.5, 0.98)] == [0.3, None]
    code = {
        x["structured"]: x["epochs"]
        for x in rows
        if x["criterion"] == "paper_code" and x["sparsity"] == 0.95
    }
    assert code == {True: None, False: 4}
    text = "\n".join(moment.table({"distances": curves, "picked": rows}))
    assert "lazy, sparsity 0.5: after 3 epochs, 30.00%" in text


@pytest.mark.long
def test_a_network_that_is_recorded_is_not_trained_again(tmp_path, capsys):
    settings = ("--network=resnet8", "--width=2", "--image_size=4")
    networks = {"one": (*settings, "--epochs=1"), "two": settings}
    two = {
        "settings": list(settings),
        "distances": {"lazy": [0.125]},
        "picked": [],
    }
    path = tmp_path / "moment.json"
    path.write_text(json.dumps({"networks": {"two": two}}))
    moment.record(path, networks)
    found = json.loads(path.read_text())["networks"]
    assert found["two"] == two
    assert len(found["one"]["distances"]["lazy"]) == 1
    before = path.read_text()
    moment.record(path, networks)
    assert path.read_text() == before
    assert capsys.readouterr().out.count("distances: 0.125") == 2

"""What it takes to reach an accuracy, on the page of results."""

import pathlib
import sys

import pytest

# What `python tools/results_page.py` has on its path.
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))

import results_page  # isort: skip
import results_tables  # isort: skip
import run_records  # isort: skip
import time_to_accuracy  # isort: skip

DENSE_FLOPS = 100.0  # Of each epoch.


def run(name, accuracies, share=1.0, **recipe):
    """Returns a run with the given accuracies and share of dense FLOPs."""
    flops = share * DENSE_FLOPS
    return run_records.Run(
        name=name,
        path=pathlib.Path(f"{name}.json"),
        metrics=[
            {"epoch": epoch, "val_accuracy": x, "training_flops": flops}
            for epoch, x in enumerate(accuracies)
        ],
        reconfigurations=[],
        channels={},
        result={
            "epochs": len(accuracies),
            "val_accuracy": accuracies[-1],
            "forward_flops": flops,
            "total_training_flops": flops * len(accuracies),
        },
        recipe={"method": "dense"} | recipe,
        remarks=[],
    )


def pruned(name, accuracies, share=0.5, **recipe):
    return run(name, accuracies, share, method="targetprune", **recipe)


def replay(*architectures):
    rows = [{"epochs": x, "time_ratio": ratio} for x, ratio in architectures]
    return {"architectures": rows}


# 5, 3 and 2 points less: 75%, 77% and 78%.
DENSE = run("dense", [0.5, 0.75, 0.77, 0.8])


def rows_of(rows, replays=None):
    """Returns the cells of a table, and its titles."""
    table = [("A training", {"dense": [DENSE]} | rows)]
    text = time_to_accuracy.section(table, replays or {})
    lines = [x for x in text.splitlines() if x.startswith("|")]
    titles, _, *cells = [[y.strip() for y in x.split("|")] for x in lines]
    return {name: of_row for _, name, *of_row, _ in cells}, titles[2:-1]


def test_an_epoch_costs_what_its_architecture_does():
    rows, titles = rows_of(
        {"pruned": [pruned("a", [0.6, 0.76, 0.77, 0.79])]},
        {"a": replay((1, 1.0), (3, 0.6))},
    )
    assert titles == [
        "seeds",
        *("time to 75.00%", "FLOPs to 75.00%"),
        *("time to 77.00%", "FLOPs to 77.00%"),
        *("time to 78.00%", "FLOPs to 78.00%"),
    ]
    assert rows["dense"] == ["1", "50%", "50%", "75%", "75%", "100%", "100%"]
    # Of four: 1 + 0.6, 1 + 2 x 0.6 and 1 + 3 x 0.6.
    assert rows["pruned"] == ["1", "40%", "25%", "55%", "38%", "70%", "50%"]


def test_several_seeds_are_a_mean_over_those_that_were_timed():
    rows, _ = rows_of(
        {
            "pruned": [
                pruned("a", [0.75, 0.78, 0.78, 0.78]),
                pruned("b", [0.6, 0.75, 0.77, 0.78]),
            ]
        },
        {"b": replay((4, 0.8))},
    )
    cells = ["2, 1 timed", "40%", "19%", "60%", "31%", "80%", "38%"]
    assert rows["pruned"] == cells


def test_an_accuracy_that_a_seed_never_reaches_has_no_mean():
    rows, _ = rows_of(
        {
            "pruned": [
                pruned("a", [0.78, 0.7, 0.7, 0.7]),
                pruned("b", [0.6, 0.75, float("nan"), 0.7699]),
            ],
            "not timed": [pruned("c", [0.1, 0.1, 0.1, 0.1])],
        },
        {name: replay((4, 0.8)) for name in "ab"},
    )
    assert rows["pruned"] == ["2", "30%", "19%", *["- (1 of 2)"] * 4]
    assert rows["not timed"] == ["1", *["-", "- (0 of 1)"] * 3]


def test_accuracies_are_compared_as_they_are_shown():
    seeds = [run("a", [0.8]), run("b", [0.8002])]
    assert time_to_accuracy.accuracies(seeds) == [75.01, 77.01, 78.01]
    # What a 32-bit float holds of 77%.
    assert time_to_accuracy.epochs_until(run("c", [0.7699999809]), 77.0) == 1
    assert time_to_accuracy.epochs_until(run("c", [0.7699]), 77.0) is None


def test_a_shorter_dense_training_needs_no_replay():
    rows, _ = rows_of(
        {
            "short": [run("a", [0.75, 0.77])],
            "narrow": [run("b", [0.75, 0.75, 0.77, 0.78], 0.4)],
            "sdgp": [run("c", [0.75, 0.77, 0.77, 0.78], sdgp="2:4")],
        },
        {"b": replay((4, 0.9))},
    )
    assert rows["short"][1:5] == ["25%", "25%", "50%", "50%"]
    assert rows["narrow"][1:5] == ["22%", "10%", "68%", "30%"]
    assert rows["sdgp"][1:5] == ["-", "25%", "-", "50%"]


def test_without_a_replay_there_are_flops_only():
    rows, titles = rows_of({"pruned": [pruned("a", [0.8, 0.8, 0.8, 0.8])]})
    levels = ("75.00%", "77.00%", "78.00%")
    assert titles == ["seeds", *(f"FLOPs to {x}" for x in levels)]
    assert rows["pruned"] == ["1", "12%", "12%", "12%"]


def test_what_starts_from_trained_weights_is_left_out():
    behind = pruned("a", [0.8, 0.8, 0.8, 0.8], initial_run="runs/dense")
    rows, _ = rows_of({"behind": [behind]})
    assert [*rows] == ["dense"]


def test_without_a_table_there_is_no_section():
    assert time_to_accuracy.section([], {}) == ""


def test_the_last_epoch_ends_at_the_training_time_of_the_replay():
    tables, replays = results_tables.read_tables(results_page.FOLDER)
    checked = 0
    for rows in tables:
        for found in rows.values():
            for timed in found:
                record = replays.get(timed.path.stem)
                if record and "dense" in rows:
                    costs = time_to_accuracy.times(
                        timed, rows["dense"], replays
                    )
                    whole = record["training_time_ratio"]
                    assert costs.sum() == pytest.approx(whole)
                    checked += 1
    assert checked > 10

"""The papers' numbers in docs/results.md, and the recorded ones beside them."""

import json
import pathlib
import statistics
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))

import papers_section  # isort: skip
import recorded_recipes  # isort: skip
import results_page  # isort: skip
import results_records  # isort: skip

DENSE = "cifar10_16x16_resnet20_dense_seed0"
PRUNED = "cifar10_16x16_resnet20_target48_seed1"
COMMAND = (
    "python apps/train_cifar.py --dataset=cifar10 --network=resnet20 "
    "--image_size=16 --epochs=30 --learning_rate_drops=15,22 "
    "--dtype_policy=mixed_bfloat16 --method=targetprune --target_flops=0.48 "
    "--workdir=runs/pruned"
)
METRICS = ["accuracy", "training FLOPs", "time", "inference FLOPs"]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Writes the page of one table of a paper, beside some records."""
    papers = tmp_path / "papers"
    monkeypatch.setattr(papers_section, "PAPERS", papers)

    def written(table, *copies):
        table = {"title": "Table 1", "where": "", "note": ""} | table
        paper = {"title": "Paper", "by": "A", "url": "u", "tables": [table]}
        papers.write_text(json.dumps({"papers": [paper]}))
        for number, (name, changes) in enumerate(copies):
            text = (results_page.FOLDER / f"{name}.json").read_text()
            record = json.loads(text) | changes
            (tmp_path / f"{number}.json").write_text(json.dumps(record))
        return results_page.page(tmp_path)

    return written


def trainings(command, paper=("-1.8 points", "47%", "81%", "34%")):
    row = {"what": "pruned", "paper": paper, "command": command}
    return {"metrics": METRICS, "rows": [row]}


def row_of(page):
    (row,) = [x for x in page.splitlines() if x.startswith("| pruned |")]
    return row


def test_runs_of_the_command_stand_beside_the_paper(page):
    accuracies = (0.8, 0.79, 0.81)
    text = page(
        trainings(COMMAND),
        (DENSE, {"val_accuracy": 0.82, "total_training_flops": 200}),
        *(
            (
                PRUNED,
                {"val_accuracy": x, "seed": seed, "total_training_flops": 90},
            )
            for seed, x in enumerate(accuracies)
        ),
    )
    spread = 100 * statistics.stdev(accuracies)
    assert row_of(text) == (
        "| pruned | -1.8 points | 47% | 81% | 34% | "
        f"-2.00 ± {spread:.2f} points, 45%, -, 47% (seeds 0, 1, 2) |"
    )
    assert "Records: `1` (2026-11-30, 2 cores, " in text
    assert f"```\n{COMMAND}\n```" in text
    assert "rows with a command. 1 of them have been run." in text


def test_a_run_from_trained_weights_is_another_one(page):
    recipe = json.loads((results_page.FOLDER / f"{PRUNED}.json").read_text())
    behind = recipe["recipe"] | {"initial_run": "runs/dense"}
    copies = [(DENSE, {}), (PRUNED, {"recipe": behind})]
    assert row_of(page(trainings(COMMAND), *copies)).endswith("| not run |")
    command = f"{COMMAND} --initial_run=elsewhere/dense"
    text = page(trainings(command), *copies)
    assert row_of(text).endswith(" points, 54%, -, 47% (seed 1) |")
    name = "`TargetPruneCallback(flops=0.48)`, from trained weights"
    assert f"| {name} |" in text


@pytest.mark.parametrize(
    "change",
    [
        "--target_flops=0.5",
        "--rounds=2",
        "--epochs=31",
        "--channel_multiple=1",
        "--sdgp=2:4",
    ],
)
def test_what_another_recipe_makes_was_not_run(page, change):
    text = page(trainings(f"{COMMAND} {change}"), (DENSE, {}), (PRUNED, {}))
    assert row_of(text).endswith("| 34% | not run |")
    assert "rows with a command. 0 of them have been run." in text
    assert f"{COMMAND} {change}" in text


def test_a_replay_gives_the_time(page):
    replay = {
        "run": "1",
        "training_time_ratio": 0.77,
        "architectures": [{"time_ratio": 0.7, "epochs": 30}],
        "image_size": 16,
    }
    table = trainings(COMMAND)
    page(table, (DENSE, {}), (PRUNED, {}))
    folder = papers_section.PAPERS.parent
    (folder / "replay.json").write_text(json.dumps(replay))
    assert ", 77%, " in row_of(results_page.page(folder))


def test_a_dense_run_matches_whatever_else_its_flags_say():
    runs, _ = results_records.read(results_page.FOLDER)
    command = (
        "python apps/train_cifar.py --dataset=cifar10 --network=resnet20 "
        "--method=dense --epochs=40 --learning_rate_drops=20,30 "
        "--dtype_policy=mixed_bfloat16"
    )
    # That run was made with an interval.
    (found,), _ = recorded_recipes.made_by(command, runs)
    assert found.name == "cifar10_resnet20_dense"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (COMMAND.replace("0.48", "2"), "--target_flops=2"),
        (f"{COMMAND} --flops=3", "flops"),
        (f"{COMMAND} more", "more is no flag"),
    ],
)
def test_a_command_that_would_be_refused_is_named(page, command, message):
    with pytest.raises(ValueError, match=message):
        page(trainings(command), (DENSE, {}))


def figure(**changes):
    here = {"of": "one_time", "records": ["0"]} | changes
    row = {"what": "2c", "paper": "25%", "here": here, "command": "make it"}
    return {"claims": [row]}


def test_a_missing_record_is_named_with_its_command(page):
    with pytest.raises(ValueError, match=r"other\.json' is missing.*: make it"):
        page(figure(records=["other"]), (DENSE, {}))
    text = page(figure(records=["other"], optional=True), (DENSE, {}))
    assert "| 2c | 25% | not run |" in text


@pytest.mark.parametrize(
    ("of", "changes"),
    [
        ("bytes_saved", {}),
        ("batches", {}),
        ("normalization", {"reconfigurations": []}),
    ],
)
def test_a_record_without_what_a_figure_needs_is_named(page, of, changes):
    text = (results_page.FOLDER / f"{DENSE}.json").read_text()
    metrics = json.loads(text)["metrics"]
    del metrics[0]["batch_size"]
    changes = {"metrics": metrics} | changes
    with pytest.raises(ValueError, match=rf"0\.json' does not hold .*'{of}'"):
        page(figure(of=of), (DENSE, changes))


def test_a_figure_is_computed_from_its_records(page):
    epochs = [8, 8, 4, 4, 2]  # With the cut after 2 epochs only: 28.
    text = (results_page.FOLDER / f"{DENSE}.json").read_text()
    metrics = json.loads(text)["metrics"][: len(epochs)]
    for row, flops in zip(metrics, epochs, strict=True):
        row["training_flops"] = flops
    changes = {"metrics": metrics, "epochs": len(epochs)}
    found = page(figure(), (DENSE, changes))
    assert f"| 2c | 25% | {28 / 26 - 1:+.0%} (`0`) |" in found
    # Of 6 that are saved at the end, 4 in the middle.
    found = page(figure(of="early_share"), (DENSE, changes))
    assert "| 2c | 25% | 67% (`0`) |" in found


def test_the_traffic_of_normalization_is_weighted_by_epochs(page):
    def cost(moved):
        return {"training_flops": 1, "normalization_bytes": moved}

    text = (results_page.FOLDER / f"{PRUNED}.json").read_text()
    first, second, *_ = json.loads(text)["reconfigurations"]
    first |= {"epoch": 9, "cost_before": cost(10), "cost_after": cost(8)}
    second |= {"epoch": 19, "cost_before": cost(8), "cost_after": cost(5)}
    changes = {"reconfigurations": [first, second]}  # Of 30 epochs.
    found = page(figure(of="normalization"), (PRUNED, changes))
    assert f"| {1 - 23 / 30:.0%} (`0`) |" in found


def test_growth_of_a_batch_says_after_how_many_epochs(page):
    text = (results_page.FOLDER / f"{DENSE}.json").read_text()
    metrics = json.loads(text)["metrics"]
    for row in metrics[2:]:
        row["batch_size"] = 136
    found = page(figure(of="batches"), (DENSE, {"metrics": metrics}))
    assert "| 128, then 136 after 2 (`0`) |" in found


@pytest.mark.parametrize(
    ("of", "record", "said"),
    [
        (
            "revived",
            {"channels": {"fell": 9, "rose": 2, "highest": 3e-4}},
            "2 of 9 that fell below it, up to 3.0e-04",
        ),
        (
            "revived",
            {"channels": {"fell": 9, "rose": 0, "highest": None}},
            "0 of 9 that fell below it",
        ),
        ("near_zero", {"weights": {"share": 0.456}}, "46%"),
        (
            "inference",
            {"batches": [{"batch_size": 10, "speedup_median": 1.5}]},
            "1.50 times in batches of 10",
        ),
    ],
)
def test_counts_and_rates_are_said_in_words(page, of, record, said):
    folder = papers_section.PAPERS.parent
    (folder / "found.json").write_text(json.dumps(record))
    text = page(figure(of=of, records=["found"]), (DENSE, {}))
    assert f"| 2c | 25% | {said} (`found`) |" in text


def test_each_number_of_a_paper_is_said_once():
    for paper in json.loads(papers_section.PAPERS.read_text())["papers"]:
        for table in paper["tables"]:
            rows = table.get("rows") or table["claims"]
            names = [row["what"] for row in rows]
            assert len({*names}) == len(names)
            for row in table.get("rows", []):
                assert len(row["paper"]) == len(table["metrics"])

"""docs/results.md: what the records say, and records that it refuses."""

import json
import pathlib
import statistics
import sys
import xml.etree.ElementTree

import pytest

from tests.disks import full_disk

# What `python tools/results_page.py` has on its path.
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))

import papers_section  # isort: skip
import results_page  # isort: skip
import results_picture  # isort: skip
import run_labels  # isort: skip

DENSE = "cifar10_16x16_resnet20_dense_seed0"
PRUNED = "cifar10_16x16_resnet20_target48_seed1"


@pytest.fixture
def records(tmp_path, monkeypatch):
    """Copies records, changed, and returns their folder; without papers."""
    papers = tmp_path / "papers"
    papers.write_text('{"papers": []}')
    monkeypatch.setattr(papers_section, "PAPERS", papers)

    def copied(*copies):
        for number, (name, changes) in enumerate(copies):
            text = (results_page.FOLDER / f"{name}.json").read_text()
            record = json.loads(text) | changes
            (tmp_path / f"{number}.json").write_text(json.dumps(record))
        return tmp_path

    return copied


def test_the_page_is_that_of_the_records():
    written = results_page.PAGE.read_text()
    assert written == results_page.page(results_page.FOLDER), "make results"


def test_the_readme_is_an_excerpt_of_the_page():
    written = results_page.README.read_text()
    assert written == results_page.readme(results_page.FOLDER), "make results"
    page = results_page.PAGE.read_text()
    shown = written.split("make results -->")[1].split("<!-- end")[0]
    rows = [x for x in shown.splitlines() if x.startswith("| ")]
    assert len(rows) > 6
    assert [x for x in rows if x not in page] == []


def test_the_picture_is_that_of_the_records():
    svg = xml.etree.ElementTree.parse(results_page.PICTURE)
    (text,) = svg.findall(".//{http://purl.org/dc/elements/1.1/}description")
    shown = results_page.pictured(results_page.FOLDER)
    assert text.text == results_picture.described(shown), "make results"
    label = ">TargetPruneCallback(flops=0.48)</text>"
    assert label in results_picture.picture(shown)


def test_a_point_is_the_mean_over_the_seeds(records):
    folder = records(
        (DENSE, {"val_accuracy": 0.82, "total_training_flops": 200}),
        *(
            (
                PRUNED,
                {"val_accuracy": x, "seed": seed, "total_training_flops": y},
            )
            for seed, (x, y) in enumerate(((0.8, 100), (0.79, 130)))
        ),
    )
    (shown,) = results_page.pictured(folder).values()
    assert shown == {
        "dense": (100.0, 100.0, 82.0),
        "`TargetPruneCallback(flops=0.48)`": (57.5, None, 79.5),
    }


def test_a_shorter_dense_training_stands_beside_the_whole_one(records):
    def short(drops, name=DENSE):
        text = (results_page.FOLDER / f"{name}.json").read_text()
        record = json.loads(text)
        schedule = {"epochs": 15, "learning_rate_drops": drops}
        return name, {
            "recipe": record["recipe"] | schedule,
            "epochs": 15,
            "metrics": record["metrics"][:15],
            "total_training_flops": record["total_training_flops"] / 2,
            "command": record["command"] + " --epochs=15",
        }

    page = results_page.page(records((DENSE, {}), short([8, 11])))
    assert "| dense, 15 epochs | 81.95% | 1 | 100% | 50% | - |" in page
    (command,) = [x for x in page.splitlines() if x.endswith("--epochs=15")]
    assert command.count("--epochs") == 1
    wider = short([8, 11])
    wider[1]["recipe"]["width"] = 32
    for other in (short([5, 11]), short([8, 11], PRUNED), wider):
        page = results_page.page(records((DENSE, {}), other))
        assert ", 15 epochs |" not in page


def test_a_wider_network_has_a_table_of_its_own_and_a_narrower_one_has_not(
    records,
):
    recipe = json.loads((results_page.FOLDER / f"{DENSE}.json").read_text())[
        "recipe"
    ]
    for width, tables in ((None, 1), (16, 1), (11, 1), (32, 2)):
        changes = {"recipe": recipe | {"width": width}, "forward_flops": 1e6}
        page = results_page.page(
            records((DENSE, {}), (DENSE, changes | {"seed": 1}))
        )
        found = [x for x in page.splitlines() if x.startswith("### resnet20")]
        assert len(found) == tables
        name = "### resnet20 of width 32 on cifar10"
        assert sum(x.startswith(name) for x in found) == tables - 1


def test_dense_trainings_under_two_optimizers_have_two_names(records):
    recipe = json.loads((results_page.FOLDER / f"{DENSE}.json").read_text())[
        "recipe"
    ]
    adam = {"recipe": recipe | {"optimizer": "adam"}}
    lines = results_page.page(records((DENSE, {}), (DENSE, adam))).splitlines()
    name = "resnet20 on cifar10 of 16x16 pixels, 30 epochs"
    assert lines.count(f"{name}:") == lines.count(f"{name}, adam:") == 2


def test_dense_trainings_of_two_lengths_stand_beside_the_whole_one(records):
    text = (results_page.FOLDER / f"{DENSE}.json").read_text()
    record = json.loads(text)

    def short(epochs):
        drops = [epochs // 2, epochs * 3 // 4]
        recipe = {"epochs": epochs, "learning_rate_drops": drops}
        return DENSE, {
            "recipe": record["recipe"] | recipe,
            "epochs": epochs,
            "metrics": record["metrics"][:epochs],
        }

    # The shortest one is a short form of both others.
    page = results_page.page(records((DENSE, {}), short(16), short(24)))
    assert "| dense, 16 epochs |" in page
    assert "| dense, 24 epochs |" in page


SHARES = {"training_flops": 0.8, "emulated_flops": 0.2}


def test_what_the_readme_shows_must_be_recorded(records):
    folder = records((DENSE, {}), (PRUNED, {}))
    with pytest.raises(ValueError, match="no record of the README's dense, 16"):
        results_page.readme(folder)


def test_a_dense_network_with_pruned_gradients_is_not_narrow(records):
    recipe = json.loads((results_page.FOLDER / f"{DENSE}.json").read_text())[
        "recipe"
    ]
    sdgp = {"sdgp": "2:4", "sdgp_mode": "mvue", "sdgp_dense_last": 0.0}
    text = results_page.page(
        records((DENSE, {}), (DENSE, {"recipe": recipe | sdgp}))
    )
    assert '\n| dense, `SDGPCallback(2, 4, "mvue")` | 8' in text
    assert "| narrow" not in text


def test_what_only_hardware_leaves_out_is_no_saving(records):
    path = results_page.FOLDER / f"{DENSE}.json"
    record = json.loads(path.read_text())
    whole = record["total_training_flops"]
    metrics = [
        row | {k: row["training_flops"] * x for k, x in SHARES.items()}
        for row in record["metrics"]
    ]
    sdgp = {
        "recipe": record["recipe"]
        | {"sdgp": "2:4", "sdgp_mode": "mvue", "sdgp_dense_last": 0.0},
        "total_training_flops": 0.8 * whole,
        "total_emulated_flops": 0.2 * whole,
        "metrics": metrics,
    }
    text = results_page.page(records((DENSE, {}), (DENSE, sdgp)))
    rows = [x for x in text.splitlines() if x.startswith("| dense, `SDGP")]
    short, to_accuracy, in_whole = rows
    assert "| 100% | 100% (80% on n:m hardware) | - |" in short
    assert "| 100.0% | 100.0% (80.0% on n:m hardware) | - | - |" in in_whole
    dense = [x for x in text.splitlines() if x.startswith("| dense |")][1]
    # As many epochs, and in each as many FLOPs as it computes.
    assert to_accuracy.split("|")[2:] == dense.split("|")[2:]


def test_a_narrow_network_has_the_time_of_its_turns(records):
    narrow = "cifar10_16x16_resnet20_width11_seed0"
    folder = records((DENSE, {}), (PRUNED, {}), (narrow, {}))
    replay = {
        "run": "1",
        "image_size": 16,
        "command": "python tools/benchmarks/replay.py --narrow_width=11 1.json",
        "training_time_ratio": 0.7,
        "architectures": [{"time_ratio": 0.6, "epochs": 30}],
        "narrow": {"time_ratio": 0.9},
    }
    (folder / "replay.json").write_text(json.dumps(replay))
    text = results_page.page(folder)
    ends = [x[-13:] for x in text.splitlines() if x.startswith("| narrow")]
    assert ends[-1] == "| 90% | 90% |"
    ends = [x[-13:] for x in text.splitlines() if x.startswith("| `Target")]
    assert ends[-1] == "| 70% | 60% |"
    _, text = text.split("| time to 76.95% |")
    row = next(x for x in text.splitlines() if x.startswith("| narrow"))
    # In 19 of 30 epochs.
    assert row.startswith("| narrow, width 11 | 1 | 57% | 30% |")


def test_a_row_is_the_mean_over_the_seeds_beside_dense(records):
    accuracies = (0.8, 0.79, 0.81)
    folder = records(
        (DENSE, {"val_accuracy": 0.82, "forward_flops": 2e7}),
        *(
            (PRUNED, {"val_accuracy": x, "seed": seed, "forward_flops": 1e7})
            for seed, x in enumerate(accuracies)
        ),
    )
    text = results_page.page(folder)
    short, _, row = [x for x in text.splitlines() if x.startswith("| `Target")]
    deviation = 100 * statistics.stdev(accuracies)
    assert f"| 80.00% ± {deviation:.2f} | 3 | 50% |" in short
    seeds = "0 (80.00%), 1 (79.00%), 2 (81.00%)"
    assert f"± {deviation:.2f} | {seeds} | -2.00 points | 50.0%" in row
    assert (
        text.count("\n| dense | 82.00% | 0 (82.00%) |  | 100.0% | 100.0% |")
        == 1
    )
    assert text.count("\n| dense | 82.00% | 1 | 100% | 100% | 100% |") == 1


def test_rows_say_what_was_not_the_default():
    recipe = json.loads((results_page.FOLDER / f"{PRUNED}.json").read_text())[
        "recipe"
    ]
    labels = {
        run_labels.label(recipe | changes, False)
        for changes in (
            {},
            {"channel_multiple": "8"},
            {"skip": ["*_shortcut"]},
            {"cost_exponent": 0.5},
            {"score": "magnitude"},
            {"rounds": 1},
            {"granularity": 8},
            {"method": "prunetrain"},
            {"method": "prunetrain", "coupled": True},
            {"method": "earlycrop"},
            {"method": "earlycrop", "sparsity": 0.9, "target_flops": None},
            {"method": "narrow"},
            {"method": "dense", "width": 11},
            {"sdgp": "2:4", "sdgp_mode": "mvue", "sdgp_dense_last": 0.0},
        )
    }
    assert len(labels) == 14
    assert "`TargetPruneCallback(flops=0.48)`" in labels
    assert (
        '`TargetPruneCallback(flops=0.48, reconfigure={"skip": '
        '["*_shortcut"]})`'
    ) in labels
    assert "narrow, width 11" in labels
    assert any(x.endswith('`SDGPCallback(2, 4, "mvue")`') for x in labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": {}}, r"0\.json' has no '\w+': record the run anew"),
        ({"recipe": 3}, r"0\.json: 'recipe' is 3, expected an object"),
        ({"recipe": {"method": "narrow"}}, r"0\.json' has no '\w+': record"),
        ({"epochs": 31}, r"0\.json' has 30 of its 31 epochs"),
        ({"epochs": None}, r"0\.json: 'epochs' is null, expected a whole"),
        ({"command": 3}, r"0\.json: 'command' is 3, expected a text"),
        ({"seed": "0"}, r"0\.json: 'seed' is '0', expected a whole number"),
        ({"val_accuracy": [1]}, r"0\.json: 'val_accuracy' is \[1\]"),
        (
            {"metrics": [{"epoch": 0}], "epochs": 1},
            r"0\.json' .* 'val_accuracy'",
        ),
        ({"metrics": []}, r"0\.json' is no record of tools/record_run"),
        ({"machine": {"cores": 2}}, r"0\.json: 'machine' is .* 'cpu'"),
        ({"metrics": None}, r"0\.json' is no record of tools/record_run"),
    ],
)
def test_a_record_that_lacks_something_is_named(records, changes, message):
    with pytest.raises(ValueError, match=message):
        results_page.page(records((DENSE, changes)))


@pytest.mark.parametrize(
    "key",
    [
        *("seed", "epochs", "commit", "command", "forward_flops"),
        *("total_training_flops", "metrics", "recipe", "val_accuracy"),
        *("recipe learning_rate", "recipe dtype_policy", "recipe width"),
    ],
)
def test_what_is_missing_is_named(records, key):
    path = records((DENSE, {})) / "0.json"
    record = json.loads(path.read_text())
    inside, _, name = key.rpartition(" ")
    del (record[inside] if inside else record)[name]
    if name == "width":  # Only of these methods is it shown.
        record["recipe"]["method"] = "dense"
    path.write_text(json.dumps(record))
    expected = "no record of tools" if name == "metrics" else f"no '{name}'"
    with pytest.raises(ValueError, match=rf"0\.json'? (has|is) {expected}"):
        results_page.page(path.parent)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"metrics": [', "breaks off"),
        ("[]", r"holds \[\], expected an object"),
        ("\udcff", "is no text"),
        ('{"training_time_ratio": 1.0}', "has no 'run'"),
        ('{"architectures": []}', "has no 'run'"),
        (
            '{"run": "0", "training_time_ratio": 1, "architectures": []}',
            r"'architectures' is \[\], expected a list of objects",
        ),
        (
            '{"run": "0", "training_time_ratio": 1, "architectures": '
            '[{"time_ratio": 1}]}',
            r"'architectures' is .*, expected .* 'time_ratio' and 'epochs'",
        ),
        (
            '{"run": "0", "training_time_ratio": 1, "architectures": '
            '[{"time_ratio": 1, "epochs": 29}]}',
            r"times 29 epochs of '.*0\.json', which has 30: time the run anew",
        ),
        (
            '{"run": "gone", "training_time_ratio": 1, "architectures": '
            '[{"time_ratio": 1, "epochs": 30}]}',
            r"times a run of which there is no record: expected .*gone\.json",
        ),
    ],
)
def test_a_file_that_is_something_else_is_named(records, text, message):
    folder = records((DENSE, {}))
    path = folder / "other.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"other\.json'? ?.*{message}"):
        results_page.page(folder)


def test_other_measurements_are_no_trainings(records):
    folder = records((DENSE, {}))
    text = results_page.page(folder)
    (folder / "memory.json").write_text('{"seeds": [0], "run": "0"}')
    assert results_page.page(folder) == text


def test_two_records_of_one_training_are_named(records):
    with pytest.raises(ValueError, match=r"training and seed: '0\.json', '1\."):
        results_page.page(records((DENSE, {}), (DENSE, {})))


def test_a_folder_without_records_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no record of a training"):
        results_page.page(tmp_path)


def test_nothing_is_written_if_a_record_is_refused(
    records, monkeypatch, tmp_path
):
    folder = records((DENSE, {"recipe": {}}))
    monkeypatch.setattr(results_page, "FOLDER", folder)
    monkeypatch.setattr(results_page, "PAGE", tmp_path / "page.md")
    with pytest.raises(SystemExit, match="Nothing was written"):
        results_page.main([])
    assert not (tmp_path / "page.md").exists()


def test_the_old_pages_stay_where_the_new_ones_find_no_space(
    records, monkeypatch, tmp_path
):
    monkeypatch.setattr(results_page, "FOLDER", records((DENSE, {})))
    monkeypatch.setattr(results_page, "readme", lambda folder: "new")
    pages = [tmp_path / "README.md", tmp_path / "page.md"]
    for name, path in zip(("README", "PAGE"), pages, strict=True):
        path.write_text("old")
        monkeypatch.setattr(results_page, name, path)
    with full_disk(), pytest.raises(SystemExit, match="Nothing was written"):
        results_page.main([])
    assert [path.read_text() for path in pages] == ["old", "old"]
    assert not list(tmp_path.glob("*.new"))

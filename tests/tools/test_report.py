"""The report shows the numbers of the records, and says what is missing."""

import base64
import json
import re

import matplotlib
import numpy as np
import pytest

from tests.tools.written import EPOCHS, GONE, WIDTHS, write_run

import figures  # isort: skip
import report  # isort: skip
import run_records  # isort: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """No test looks at pixels, and to draw and to compress them takes long."""
    monkeypatch.setitem(matplotlib.rcParams, "savefig.dpi", 20)


@pytest.fixture
def folders(tmp_path):
    return [
        write_run(tmp_path / "runs" / "dense", "dense"),
        write_run(tmp_path / "runs" / "pruned"),
    ]


def test_the_page_contains_all_pictures_and_needs_nothing_else(
    folders, tmp_path
):
    path = report.write(folders, tmp_path / "report")
    page = path.read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    prefix = "data:image/png;base64,"
    assert all(source.startswith(prefix) for source in sources)
    embedded = {base64.b64decode(x.removeprefix(prefix)) for x in sources}
    files = {p.read_bytes() for p in path.parent.glob("*.png")}
    assert embedded == files
    assert {p.stem for p in path.parent.glob("*.png")} == {
        *("accuracy", "cost", "schedule", "memory", "communication"),
        *("pruned_channels", "pruned_heat_map", "pruned_revival"),
    }
    assert "http" not in page
    assert "<script" not in page
    for alt in re.findall(r'alt="([^"]*)"', page):
        assert f"<h2>{alt}</h2>" in page


def test_a_narrow_run_has_no_pictures_of_channels_that_go(folders, tmp_path):
    narrow = write_run(tmp_path / "runs" / "narrow", "narrow")
    report.write([*folders, narrow], tmp_path / "report")
    names = {p.stem for p in (tmp_path / "report").glob("*.png")}
    assert not {name for name in names if name.startswith("narrow")}
    assert "pruned_channels" in names
    # Nor is it what the others are compared with.
    rows = report.summary_table(list(map(run_records.read, [narrow, *folders])))
    assert "<td>79.00%  (-1.00 points)</td>" in rows
    assert "<td>80.00%  (+0.00 points)</td>" in rows


def test_the_table_relates_a_run_to_the_dense_one(folders):
    rows = report.summary_table(list(map(run_records.read, folders)))
    for cell in (
        *("<th>dense</th>", "<th>pruned</th>", "<td>80.00%</td>"),
        *("<td>79.00%  (-1.00 points)</td>", "<td>700  (70%)</td>"),
        *("<td>2.000  (50%)</td>", "<td>240.0</td>", "<td>3.5  (-)</td>"),
    ):
        assert cell in rows


def test_reconfigurations_are_listed_and_names_are_escaped(folders):
    table = report.reconfiguration_table(run_records.read(folders[1]))
    for cell in ("2", "9 → 7", "3.0 → 2.0", "256", "0.05", "3.5"):
        assert f"<td>{cell}</td>" in table
    assert "&lt;block&gt;" in table
    assert "<block>" not in table


def data(place):
    return [np.array(line.get_xydata()) for line in place.get_lines()]


def test_accuracy_is_drawn_over_epochs_seconds_and_flops(folders):
    runs = list(map(run_records.read, folders))
    axes = figures.accuracy(runs).axes
    assert [x.get_xlabel() for x in axes] == [
        "epochs",
        "minutes of training",
        "training TFLOP so far",
    ]
    accuracy = [50, 60, 70, 80]
    sums = np.cumsum([1, 1 / 2, 1 / 3, 1 / 4])
    for place, dense, pruned in zip(
        axes,
        ([1, 2, 3, 4],) * 3,
        ([1, 2, 3, 4], sums, sums),
        strict=True,
    ):
        for line, expected in zip(data(place), (dense, pruned), strict=True):
            np.testing.assert_allclose(line[:, 0], expected)
            np.testing.assert_allclose(line[:, 1], accuracy)


@pytest.mark.parametrize("finished", [True, False])
def test_the_distance_is_drawn_until_the_moment_which_is_marked(
    folders, tmp_path, finished
):
    folder = write_run(tmp_path / "runs" / "crop", "earlycrop", finished)
    runs = list(map(run_records.read, [*folders, folder]))
    (place,) = figures.distance(runs).axes
    curve, point = data(place)
    np.testing.assert_allclose(curve[:2], [[1, 0.5], [2, 0.75]])
    assert np.isnan(curve[2:, 1]).all()
    assert point.tolist() == [[2, 0.75]]
    rows = report.summary_table(runs)
    row = "<td>pruned after epochs</td><td>-</td><td>-</td><td>2</td>"
    assert (row in rows) == finished
    if not finished:
        return
    page = report.write([*folders, folder], tmp_path / "report").read_text()
    assert "<h2>When the network was pruned</h2>" in page
    assert "a network was pruned: crop after epoch 2.</p>" in page


def test_what_an_emulation_computes_and_keeps_is_drawn(folders, tmp_path):
    dense, pruned = map(run_records.read, folders)
    for row in pruned.metrics:
        row |= {
            "emulated_flops": 1e12 - row["training_flops"],
            "kept_gradient": 0.75,
        }
    # It computes as much as dense training, whatever hardware would leave out.
    *_, place = figures.accuracy([dense, pruned]).axes
    of_dense, of_pruned = data(place)
    np.testing.assert_allclose(of_pruned[:, 0], of_dense[:, 0])
    place, *_ = figures.cost([dense, pruned]).axes
    of_dense, of_pruned = data(place)
    np.testing.assert_allclose(of_pruned[:, 1], of_dense[:, 1])
    (curve,) = data(*figures.kept_gradient([dense, pruned]).axes)
    np.testing.assert_allclose(curve, [[x, 0.75] for x in (1, 2, 3, 4)])
    titles = [title for title, *_ in report.pictures([dense, pruned])]
    assert "What is kept of the data gradients" in titles
    titles = [title for title, *_ in report.pictures([dense])]
    assert "What is kept of the data gradients" not in titles


def test_a_run_that_is_not_pruned_yet_has_no_point(tmp_path):
    folder = write_run(tmp_path / "crop", "earlycrop", finished=False)
    path = folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(True)[:2]))
    run = run_records.read(folder)
    assert run.pruned_after is None
    assert len(data(*figures.distance([run]).axes)) == 1
    captions = [caption for _, caption, _, _ in report.pictures([run])]
    assert any(x.endswith("was pruned: crop not yet.") for x in captions)


def test_communication_is_twice_the_gradients_of_all_updates(folders):
    runs = list(map(run_records.read, folders))
    dense, pruned = data(figures.communication(runs).axes[0])
    np.testing.assert_allclose(dense[:, 1], [0.08] * 4)
    np.testing.assert_allclose(pruned[:, 1], [0.08, 0.072, 0.064, 0.056])


def test_schedule_cost_and_memory_are_those_of_the_epochs(folders):
    runs = list(map(run_records.read, folders))
    batch, rate = figures.schedule(runs).axes
    np.testing.assert_allclose(data(batch)[1][:, 1], [128, 128, 256, 256])
    np.testing.assert_allclose(data(rate)[0][:, 1], 0.1 / np.arange(1, 5))
    flops, seconds, parameters = figures.cost(runs).axes
    np.testing.assert_allclose(data(flops)[0][:, 1], [1] * 4)
    np.testing.assert_allclose(data(seconds)[1][:, 1], [60, 30, 20, 15])
    np.testing.assert_allclose(data(parameters)[1][:, 1], [1, 0.9, 0.8, 0.7])
    (place,) = figures.memory(runs).axes
    np.testing.assert_allclose(data(place)[0][:, 1], [2] * 4)


def test_a_run_has_one_colour_in_all_pictures(folders):
    dense, pruned = map(run_records.read, folders)
    for row in dense.metrics:
        del row["memory_bytes"]
    (line,) = figures.memory([dense, pruned]).axes[0].get_lines()
    both = figures.communication([dense, pruned]).axes[0].get_lines()
    assert line.get_label() == "pruned"
    assert line.get_color() == both[1].get_color() != both[0].get_color()


def test_bars_are_the_channels_at_first_and_in_the_end(folders):
    (place,) = figures.channels(run_records.read(folders[1])).axes
    first, left = (
        [bar.get_width() for bar in bars] for bars in place.containers
    )
    assert first == [4, 3, 2]
    assert left == [2, 2, 2]
    assert [x.get_text() for x in place.get_yticklabels()] == ["a", "b", "c"]


def test_the_heat_map_is_the_share_that_is_left(folders):
    place = figures.heat_map(run_records.read(folders[1])).axes[0]
    np.testing.assert_allclose(
        place.get_images()[0].get_array(),
        [[1, 1, 0.5, 0.5], [1, 1, 1, 2 / 3], [1, 1, 1, 1]],
    )


def test_revival_shows_all_channels_of_the_layers_that_lost_most(folders):
    run = run_records.read(folders[1])
    assert report._most_changed(run) == ["a", "b", "c"]
    axes = figures.revival(run, ["a", "b"]).axes
    assert [place.get_title() for place in axes] == ["a", "b"]
    for place, layer in zip(axes, "ab", strict=True):
        *channels, threshold = data(place)
        assert len(channels) == WIDTHS[layer]
        ends = sorted(np.isnan(line[:, 1]).sum() for line in channels)
        gone = sorted(EPOCHS - epoch for epoch in GONE[layer].values())
        assert ends == [0] * (WIDTHS[layer] - len(gone)) + gone
        assert set(threshold[:, 1]) == {1e-3}
        for line in place.get_lines():
            gone = np.isnan(line.get_ydata()).any()
            if line.get_label() == "removed in the end":
                assert gone
            elif line.get_label() == "left in the end":
                assert not gone
    labels = {line.get_label() for line in axes[0].get_lines()}
    assert {"removed in the end", "left in the end"} <= labels


def test_the_layer_that_lost_most_is_chosen(folders, monkeypatch):
    monkeypatch.setattr(report, "_CHOSEN_LAYERS", 1)
    assert report._most_changed(run_records.read(folders[1])) == ["a"]


def test_the_weights_that_are_left_are_counted(folders):
    keras = pytest.importorskip("keras")
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2, name="a")]
    )
    model.layers[0].kernel.assign([[0.1, -2e-3], [9e-4, -9e-4]])
    model.save(folders[1] / "model.keras")
    run = run_records.read(folders[1])
    assert report._weight_shares(run) == {"a": 0.5}
    (place,) = figures.weight_density(run, {"a": 0.5}).axes
    assert [bar.get_width() for bar in place.containers[0]] == [0.5]


# What is missing.


def test_a_line_that_breaks_off_is_left_out_with_a_word(folders, tmp_path):
    path = folders[1] / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    run = run_records.read(folders[1])
    assert len(run.metrics) == 3
    assert run.remarks == ["metrics.jsonl breaks off in line 4"]
    page = report.write(folders, tmp_path / "report").read_text()
    assert "pruned: metrics.jsonl breaks off in line 4." in page


def test_nothing_is_read_behind_a_broken_line(folders):
    path = folders[1] / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:20]
    path.write_text("\n".join(lines))
    assert len(run_records.read(folders[1]).metrics) == 1


def test_a_run_that_is_not_finished_is_shown_as_far_as_it_got(tmp_path):
    folder = write_run(tmp_path / "run", finished=False)
    with np.load(folder / "channels.npz") as whole:
        arrays = {
            name: np.vstack([history, np.full_like(history, np.nan)])
            for name, history in whole.items()
        }
    np.savez(folder / "channels.npz", **arrays)
    page = report.write([folder], tmp_path / "report").read_text()
    assert "run: not finished: 4 epochs so far." in page
    assert "No dense run is among these" in page
    pictures = {path.stem for path in (tmp_path / "report").glob("run_*.png")}
    assert pictures == {"run_channels", "run_heat_map", "run_revival"}
    run = run_records.read(folder)
    assert run.threshold == 1e-3
    assert run.left("a", -1).tolist() == [0, 2]
    assert "<td>-</td>" in report.summary_table([run])


def test_without_its_channels_a_run_has_no_pictures_of_layers(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "channels.npz").unlink()
    page = report.write([folder], tmp_path / "report").read_text()
    assert "run: no channels.npz" in page
    assert not list((tmp_path / "report").glob("run_*.png"))


def test_a_run_that_was_kept_is_read_from_its_file(folders, tmp_path):
    recorded = tmp_path / "kept.json"
    folder = run_records.read(folders[1])
    record = {
        "metrics": folder.metrics,
        "reconfigurations": folder.reconfigurations,
    }
    recorded.write_text(json.dumps(folder.result | record))
    run = run_records.read(recorded)
    assert run.name == "kept"
    assert run.metrics == folder.metrics
    assert run.threshold == 1e-3
    assert not run.is_dense
    table = report.summary_table([run_records.read(folders[0]), run])
    assert "<td>79.00%  (-1.00 points)</td>" in table
    page = report.write([recorded], tmp_path / "report").read_text()
    assert "kept: kept without channels.npz" in page
    assert "<td>9 → 7</td>" in page


def test_times_can_be_left_out(folders, tmp_path):
    path = report.write(folders, tmp_path / "report", without_seconds=True)
    page = path.read_text()
    assert "dense: its seconds are left out." in page
    about_times = ("times without validation", "Its seconds contain")
    assert not any(words in page for words in about_times)
    with_times = report.write(folders, tmp_path / "report").read_text()
    assert all(words in with_times for words in about_times)
    assert "<td>9 → 7</td>" in page
    runs = [run_records.read(folder).without_seconds() for folder in folders]
    assert "240.0" not in report.summary_table(runs)
    for figure in (figures.accuracy(runs), figures.cost(runs)):
        labels = [place.get_xlabel() for place in figure.axes]
        labels += [place.get_ylabel() for place in figure.axes]
        assert len(figure.axes) == 2
        assert not any(
            word in label for label in labels for word in ("minutes", "seconds")
        )


def test_runs_in_folders_of_one_name_are_told_apart(tmp_path):
    places = ("one/x", "two/x")
    folders = [write_run(tmp_path / x / "run") for x in places]
    page = report.write(folders, tmp_path / "report").read_text()
    for word in ("<th>one_x_run</th>", "<th>two_x_run</th>"):
        assert word in page
    assert len(list((tmp_path / "report").glob("*_revival.png"))) == 2


def test_files_that_break_off_are_left_out_with_a_word(folders, tmp_path):
    for name in ("result.json", "channels.npz"):
        path = folders[1] / name
        path.write_bytes(path.read_bytes()[:-30])
    page = report.write(folders, tmp_path / "report").read_text()
    assert "pruned: result.json breaks off." in page
    assert "pruned: channels.npz breaks off" in page


def test_a_model_that_breaks_off_is_left_out_with_a_word(folders, tmp_path):
    (folders[1] / "model.keras").write_bytes(b"PK")
    page = report.write(folders, tmp_path / "report").read_text()
    assert "pruned: model.keras cannot be read" in page
    assert not (tmp_path / "report" / "pruned_weights.png").exists()


def test_a_single_epoch_is_a_point(tmp_path):
    folder = write_run(tmp_path / "run", finished=False)
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    run = run_records.read(folder)
    for figure in (figures.accuracy([run]), figures.revival(run, ["a"])):
        for place in figure.axes:
            assert place.get_lines()[0].get_marker() == "o"


def test_a_run_that_knows_little_is_drawn(tmp_path):
    folder = write_run(tmp_path / "run")
    path = folder / "metrics.jsonl"
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    few = ("epoch", "val_accuracy", "parameters")
    rows = [{k: row[k] for k in few} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = report.write([folder], tmp_path / "report").read_text()
    assert "<h2>What an epoch costs</h2>" in page
    assert "<h2>Memory</h2>" not in page


def test_a_run_in_which_nothing_died_is_not_dense(tmp_path):
    folder = write_run(tmp_path / "run")
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(row) | {"density": 1.0} for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines)
    assert not run_records.read(folder).is_dense
    (folder / "recipe.json").unlink()
    assert not run_records.read(folder).is_dense
    (folder / "result.json").unlink()
    assert run_records.read(folder).is_dense


@pytest.mark.parametrize(
    "content",
    [*("", "[]", "{}"), '{"metrics": [], "reconfigurations": []}'],
)
def test_a_file_that_is_no_record_of_a_run_is_refused(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"no record of tools/record_run"):
        run_records.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no run in '{0}': expected {0}/metrics.jsonl."),
        ("", "The run in '{0}' has not finished an epoch."),
    ],
)
def test_a_folder_without_a_run_ends_the_program_with_a_word(
    tmp_path, content, message
):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(SystemExit) as caught:
        report.main([str(tmp_path), f"--output={tmp_path / 'report'}"])
    assert caught.value.code == message.format(tmp_path)
    assert not (tmp_path / "report").exists()


def test_a_page_of_something_else_is_not_written_over(folders, tmp_path):
    page = tmp_path / "index.html"
    page.write_text("<title>My cats</title>")
    with pytest.raises(SystemExit) as caught:
        report.main([str(folders[0]), f"--output={tmp_path}"])
    assert caught.value.code == (
        f"{page} was not written by this program. Choose another --output."
    )
    assert page.read_text() == "<title>My cats</title>"
    page.unlink()
    report.write([folders[0]], tmp_path)
    report._check_output(tmp_path)  # Its own it replaces.


def test_the_program_wants_a_folder_for_its_page(folders, capsys):
    with pytest.raises(SystemExit):
        report.main([str(folders[0]), "--output="])
    assert "--output must be a folder" in capsys.readouterr().err

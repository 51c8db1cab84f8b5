"""Records with wrong contents end the tools with a sentence that names them."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from apps import compare
from tests.disks import full_disk
from tests.tools.written import EPOCHS, write_run

import figures  # isort: skip
import record_run  # isort: skip
import report  # isort: skip
import run_records  # isort: skip

MEND = "Restore the file, or repeat the run."
LINES = ("metrics.jsonl", "reconfigurations.jsonl")
OBJECTS = ("result.json", "recipe.json")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("base") / "run")


@pytest.fixture
def folder(base, tmp_path):
    return pathlib.Path(shutil.copytree(base, tmp_path / "run"))


def refusal(program, *words):
    """Returns the one line with which a program ends."""
    with pytest.raises(SystemExit) as caught:
        program.main([str(word) for word in words])
    message = caught.value.code
    assert isinstance(message, str)
    assert len(message.splitlines()) == 1
    assert len(message) < 400
    return message


def refusal_of_report(folder):
    output = folder.parent / "report"
    message = refusal(report, folder, f"--output={output}")
    assert not output.exists()
    return message


def changed(path, change):
    """Rewrites each JSON object of a file."""
    texts = path.read_text().splitlines()
    if path.suffix == ".json":
        texts = ["".join(texts)]
    rows = [json.loads(text) for text in texts]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# Whole files.

NO_OBJECTS = {
    "5": "5",
    "null": "null",
    '"x"': "'x'",
    "[]": "[]",
    "true": "True",
    "NaN": "nan",
}


@pytest.mark.parametrize("content", NO_OBJECTS)
@pytest.mark.parametrize("name", [*LINES, *OBJECTS])
def test_what_is_no_object_is_refused(name, content, folder):
    (folder / name).write_text(content + "\n")
    line = ", line 1" if name in LINES else ""
    expected = (
        f"{folder / name}{line} holds {NO_OBJECTS[content]}, expected an "
        f"object. {MEND}"
    )
    assert refusal_of_report(folder) == expected
    if name == "result.json":
        assert refusal(compare, folder) == expected


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"\xff\xfe\x00", b"\x80"],
    ids=["lists", "objects", "digits", "utf-16", "byte"],
)
@pytest.mark.parametrize("name", [*LINES, *OBJECTS])
def test_what_cannot_be_held_is_refused(name, content, folder):
    (folder / name).write_bytes(content)
    message = refusal_of_report(folder)
    assert message.startswith(str(folder / name))
    assert message.endswith(MEND)
    if name == "result.json":
        assert refusal(compare, folder) == message


@pytest.mark.parametrize("content", ["", " ", "{", '{"method": "den', "\0"])
def test_a_result_that_breaks_off_cannot_be_compared(content, folder):
    (folder / "result.json").write_text(content)
    assert refusal(compare, folder) == (
        f"No finished run in {folder}: {folder / 'result.json'} breaks off. "
        f"{MEND}"
    )


def test_a_run_that_is_not_finished_cannot_be_compared(folder, tmp_path):
    (folder / "result.json").unlink()
    assert refusal(compare, folder) == (
        f"No finished run in {folder}: expected {folder / 'result.json'} (No "
        "such file or directory)."
    )
    (tmp_path / "file").write_text("")
    assert refusal(compare, tmp_path / "file").endswith("(Not a directory).")


def test_comparing_nothing_says_what_is_missing():
    with pytest.raises(SystemExit, match="one or more run directories"):
        compare.main([])


# Single values.

NO_NUMBERS = [None, True, "x", -1, 10**400, float("inf"), [], {}]
NUMBERS_OF_EPOCHS = [
    *("val_accuracy", "seconds", "training_flops", "batch_size", "parameters"),
    *("learning_rate", "density", "memory_bytes", "gradient_bytes", "updates"),
]
NUMBERS_OF_RESULTS = [
    *("val_accuracy", "parameters", "forward_flops", "total_training_flops"),
    *("seconds", "reconfiguration_seconds"),
]
VALUES = [
    *((LINES[0], key, x) for key in NUMBERS_OF_EPOCHS for x in NO_NUMBERS),
    *((LINES[0], "epoch", x) for x in [*NO_NUMBERS, 0.5, float("nan")]),
    *((OBJECTS[0], k, x) for k in NUMBERS_OF_RESULTS for x in NO_NUMBERS),
    *((OBJECTS[0], "method", x) for x in (None, 5, [], "\ud800")),
    *((OBJECTS[0], "recipe", x) for x in (None, 5, [])),
    *((OBJECTS[1], "method", x) for x in (None, 5, [], "\ud800")),
    *((OBJECTS[1], "threshold", x) for x in NO_NUMBERS),
    *(
        (LINES[1], key, x)
        for key in ("seconds", "first_step_seconds")
        for x in NO_NUMBERS
    ),
    *((LINES[1], "epoch", x) for x in [*NO_NUMBERS, float("nan")]),
    *((LINES[1], "learning_rate", x) for x in NO_NUMBERS[1:]),
    *((LINES[1], "batch_size", x) for x in NO_NUMBERS[1:]),
    *(
        (LINES[1], f"cost_{when}", x)
        for when in ("before", "after")
        for x in ("x", 5, {}, {"training_flops": None})
    ),
    *(
        (LINES[1], f"channels_{when}", x)
        for when in ("before", "after")
        for x in (None, "x", [1], {"a": None}, {"a": -1}, {"\ud800": 1})
    ),
    *((LINES[1], "removed_layers", x) for x in (None, "x", [1], ["\ud800"])),
    *((LINES[1], "keep", x) for x in (None, "x", {"a": 1}, {"a": [-1]})),
]


@pytest.mark.parametrize(("name", "key", "value"), VALUES)
def test_a_value_of_another_kind_is_refused(name, key, value, folder):
    path = folder / name
    changed(path, lambda row: row.update({key: value}))
    place = f"{path}, line 1" if name in LINES else path
    message = refusal_of_report(folder)
    assert message.startswith(f"{place}: '{key}' is ")
    assert ", expected " in message
    assert message.endswith(MEND)
    if name == "result.json":
        assert refusal(compare, folder) == message


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (LINES[0], "epoch"),
        *(
            (LINES[1], key)
            for key in (
                *("epoch", "channels_before", "channels_after", "cost_before"),
                *("cost_after", "learning_rate", "removed_layers"),
                "batch_size",
            )
        ),
        (OBJECTS[0], "method"),
    ],
)
def test_a_missing_key_is_named(name, key, folder):
    changed(folder / name, lambda row: row.pop(key))
    line = ", line 1" if name in LINES else ""
    expected = f"{folder / name}{line} has no '{key}'. {MEND}"
    assert refusal_of_report(folder) == expected
    if name == "result.json":
        assert refusal(compare, folder) == expected


def test_the_line_of_the_first_wrong_value_is_named(folder):
    path = folder / "metrics.jsonl"
    rows = path.read_text().splitlines()
    rows[2] = rows[2].replace('"seconds": 20.0', '"seconds": "20"')
    path.write_text("\n\n".join(rows))
    assert refusal_of_report(folder) == (
        f"{path}, line 5: 'seconds' is '20', expected a number that is not "
        f"negative. {MEND}"
    )


def test_a_long_value_is_shown_in_a_few_characters(folder):
    changed(folder / "result.json", lambda row: row.update(seconds="x" * 9999))
    assert "'seconds' is 'xxxxxxxxxxxx...xxxxxxxxxxxxx', expected" in (
        refusal_of_report(folder)
    )


def test_epochs_of_two_runs_are_refused(folder):
    path = folder / "metrics.jsonl"
    path.write_text(2 * path.read_text())
    assert refusal_of_report(folder) == (
        f"{path}, line 5 is of epoch 0, expected 4: lines of another run, or "
        f"lines that are missing. {MEND}"
    )


# The channels.


def test_channels_of_fewer_epochs_are_refused(folder):
    with np.load(folder / "channels.npz") as whole:
        arrays = {name: history[:2] for name, history in whole.items()}
    np.savez(folder / "channels.npz", **arrays)
    assert refusal_of_report(folder) == (
        f"{folder / 'channels.npz'}: the channels of 'a' are those of 2 "
        f"epochs, but metrics.jsonl has {EPOCHS}: files of two runs. Restore "
        "one of them, or remove channels.npz to do without pictures of the "
        "layers."
    )


@pytest.mark.parametrize(
    "array",
    [
        np.float32(1),
        np.zeros(4, "float32"),
        np.zeros((4, 0), "float32"),
        np.zeros((4, 3, 2), "float32"),
        np.zeros((4, 3), int),
        np.full((4, 3), "x"),
        np.zeros((4, 3), complex),
    ],
    ids=lambda array: f"{array.dtype.kind}{array.shape}",
)
def test_channels_that_are_none_are_refused(array, folder):
    np.savez(folder / "channels.npz", a=array)
    assert refusal_of_report(folder) == (
        f"{folder / 'channels.npz'}: the channels of 'a' are no numbers of "
        "shape (epochs, channels). Restore the file, or remove it to do "
        "without pictures of the layers."
    )


def broken_archives(whole):
    middle = len(whole) // 2
    yield "empty", b""
    yield "text", b"hello"
    yield "half", whole[:middle]
    yield "one array", b"\x93NUMPY" + whole[6:]
    yield "changed", whole[:200] + bytes(x ^ 255 for x in whole[200:300])
    yield (
        "changed inside",
        (whole[:180] + bytes(x ^ 255 for x in whole[180:220]) + whole[220:]),
    )


@pytest.mark.parametrize(
    "kind",
    ["empty", "text", "half", "one array", "changed", "changed inside",
     "objects", "a single array", "other files"],
)  # fmt: skip
def test_an_archive_that_is_broken_is_left_out_with_a_word(kind, folder):
    path = folder / "channels.npz"
    if kind == "objects":
        np.savez(path, a=np.array([{}, []], object))
    elif kind == "a single array":
        with path.open("wb") as file:
            np.save(file, np.zeros((4, 3)))
    elif kind == "other files":
        shutil.make_archive(str(folder / "x"), "zip", folder, "recipe.json")
        (folder / "x.zip").rename(path)
    else:
        path.write_bytes(dict(broken_archives(path.read_bytes()))[kind])
    try:
        run = run_records.read(folder)
    except ValueError as error:  # Its members are no arrays.
        assert kind == "other files"
        assert "'recipe.json' are no numbers of shape" in str(error)
        return
    assert run.remarks == ["channels.npz breaks off: no pictures of its layers"]
    assert run.channels == {}


# A file that was kept.


@pytest.mark.parametrize("key", ["metrics", "reconfigurations"])
@pytest.mark.parametrize("value", [None, 5, "x", {"a": 1}])
def test_a_kept_file_without_its_lines_is_refused(key, value, folder):
    path = kept(folder)
    changed(path, lambda record: record.update({key: value}))
    assert refusal(report, path, f"--output={folder / 'report'}") == (
        f"'{path}' is no record of tools/record_run.py."
    )


@pytest.mark.parametrize("key", ["metrics", "reconfigurations"])
@pytest.mark.parametrize("value", [[5], [None], [[]]])
def test_a_kept_file_with_other_lines_is_refused(key, value, folder):
    path = kept(folder)
    changed(path, lambda record: record.update({key: value}))
    assert refusal(report, path, f"--output={folder / 'report'}").startswith(
        f"{path}, '{key}' 1 holds "
    )


def test_a_kept_file_with_another_result_is_refused(folder):
    path = kept(folder)
    changed(path, lambda record: record["recipe"].update(threshold="x"))
    assert refusal(report, path, f"--output={folder / 'report'}") == (
        f"{path}, 'recipe': 'threshold' is 'x', expected a number that is not "
        f"negative. {MEND}"
    )


def kept(folder):
    record_run.main([str(folder), "kept"], folder.parent)
    return folder.parent / "kept.json"


def test_a_run_is_kept_whole(folder):
    run, again = map(run_records.read, (folder, kept(folder)))
    assert again.metrics == run.metrics
    assert again.reconfigurations == run.reconfigurations
    # Their number makes room for the reconfigurations themselves.
    del run.result["reconfigurations"]
    assert again.result == run.result
    kept(folder)  # Once more, over itself.


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("result.json", None, "No finished run in "),
        ("result.json", "5", "holds 5, expected an object."),
        ("metrics.jsonl", None, "There is no run in "),
        ("metrics.jsonl", '{"epoch": 0}\n{"ep', "breaks off in line 2."),
        ("metrics.jsonl", '{"epoch": 7}', "is of epoch 7, expected 0"),
        ("reconfigurations.jsonl", None, "it has no reconfigurations.jsonl."),
        ("reconfigurations.jsonl", "{}", "line 1 has no 'epoch'."),
        ("reconfigurations.jsonl", "{", "breaks off in line 1."),
    ],
)
def test_a_run_that_is_not_whole_is_not_kept(name, change, words, folder):
    (folder / name).unlink()
    if change is not None:
        (folder / name).write_text(change)
    with pytest.raises(SystemExit) as caught:
        record_run.main([str(folder), "kept"], folder.parent)
    assert words in caught.value.code
    assert not (folder.parent / "kept.json").exists()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "a b"])
def test_a_name_that_is_a_path_is_refused(name, folder):
    with pytest.raises(SystemExit) as caught:
        record_run.main([str(folder), name], folder.parent)
    assert caught.value.code == (
        f"'{name}' is no name of a file, such as resnet20_ratio25."
    )


def test_a_kept_run_stays_where_the_new_one_finds_no_space(folder):
    record_run.main([str(folder), "kept"], folder.parent)
    before = (folder.parent / "kept.json").read_text()
    with full_disk(), pytest.raises(SystemExit, match="File too large"):
        record_run.main([str(folder), "kept"], folder.parent)
    assert (folder.parent / "kept.json").read_text() == before
    assert not (folder.parent / "kept.new").exists()


def test_no_other_result_is_written_over(folder):
    path = folder.parent / "memory.json"
    path.write_text('{"rows": []}')
    with pytest.raises(SystemExit) as caught:
        record_run.main([str(folder), "memory"], folder.parent)
    assert caught.value.code == (
        f"{path} is no run that was kept. Choose another name."
    )
    assert path.read_text() == '{"rows": []}'


@pytest.mark.parametrize("words", [[], ["one"], ["one", "two", "three"]])
def test_a_run_is_kept_by_its_folder_and_a_name(words):
    with pytest.raises(SystemExit, match="the folder of a run, and a name"):
        record_run.main(words)


# What can be drawn is drawn.


def drawn(folder):
    """Draws all pictures of a run without making files of them."""
    run = run_records.read(folder)
    assert "Training: " in report.page([run], [])
    for *_, figure in report.pictures([run]):
        figure.draw_without_rendering()
    return run


def test_blank_lines_are_skipped(folder):
    for name in LINES:
        path = folder / name
        text = path.read_text().replace("\n", "\r\n\n \t\n")
        path.write_text(f"\n{text}\n")
    run = run_records.read(folder)
    assert len(run.metrics) == EPOCHS
    assert len(run.reconfigurations) == 1
    assert run.remarks == []


@pytest.mark.parametrize("value", [float("nan"), 0, 1e30])
def test_any_number_can_be_drawn(value, folder):
    keys = NUMBERS_OF_EPOCHS
    changed(
        folder / LINES[0], lambda row: row.update(dict.fromkeys(keys, value))
    )
    changed(
        folder / LINES[1],
        lambda row: row.update(
            dict.fromkeys(("seconds", "learning_rate"), value)
            | {"cost_before": None}
        ),
    )
    changed(
        folder / OBJECTS[0],
        lambda row: row.update(dict.fromkeys(NUMBERS_OF_RESULTS, value)),
    )
    if value != 1e30:
        changed(folder / OBJECTS[1], lambda row: row.update(threshold=0))
    drawn(folder)
    table = compare.table([json.loads((folder / OBJECTS[0]).read_text())] * 2)
    assert "validation accuracy" in table


def test_names_are_drawn_as_they_are(folder):
    layers = [r"$\frac{1$", "$x$", r"a\$b", "_c", "$"]
    with np.load(folder / "channels.npz") as whole:
        history = whole["a"]
    np.savez(folder / "channels.npz", **dict.fromkeys(layers, history))
    other = folder.rename(folder.with_name(r"_c13$\frac{1$ $y$"))
    run = drawn(other)
    (axes,) = figures.channels(run).axes
    ticks = axes.get_yticklabels()
    assert [shown(tick) for tick in ticks] == [
        *(r"$\frac{1$", "$x$", r"a\$b", " _c", "$")
    ]
    legend = figures.accuracy([run]).axes[0].get_legend()
    assert [shown(text) for text in legend.get_texts()] == [
        r" _c13$\frac{1$ $y$"
    ]


def shown(text):
    """Returns what matplotlib draws of a text, if it is no mathematics."""
    string, is_mathematics = text._preprocess_math(text.get_text())
    assert not is_mathematics
    return string


def test_a_folder_whose_name_is_no_text_is_drawn(folder):
    other = folder.rename(folder.with_name("run\udcff"))
    run = run_records.read(other)
    assert run.name == "run?"
    report.page([run], []).encode("utf-8")


@pytest.mark.parametrize("content", [b"", b"PK", b"{}"])
def test_any_broken_model_is_left_out_with_a_word(content, folder):
    (folder / "model.keras").write_bytes(content)
    run = run_records.read(folder)
    assert report._weight_shares(run) == {}
    assert run.remarks == ["model.keras cannot be read: none of its weights"]


def test_a_model_of_another_make_is_left_out_with_a_word(folder):
    shutil.make_archive(str(folder / "x"), "zip", folder, "recipe.json")
    (folder / "x.zip").rename(folder / "model.keras")
    run = run_records.read(folder)
    assert report._weight_shares(run) == {}
    assert run.remarks == ["model.keras cannot be read: none of its weights"]

"""The check of `keras.applications`, and the page of its results."""

import pathlib
import sys

import pytest

# What `python tools/coverage.py` has on its path.
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))

import coverage  # isort: skip
import coverage_page  # isort: skip
import masked_trial  # isort: skip
import nested_check  # isort: skip

ROW = {
    "parameters": 100,
    "parameters_after": 50,
    "output_difference": 1e-14,
    "living_channel_difference": 0.5,
}


@pytest.mark.long
def test_a_nested_backbone_of_any_size_is_compared(float64):
    found = nested_check.nested("MobileNetV3Small")["nested"]
    assert found["misses"] == []
    assert 0.0 < found["difference"] < 1e-12
    assert found["parameters_after"] < 0.4 * found["parameters"]


@pytest.mark.parametrize(
    "key, value",
    [
        ("output_difference", 1e-5),
        ("output_difference", float("nan")),
        ("living_channel_difference", 1e-5),
        ("parameters_after", 80),
    ],
)
def test_what_is_not_as_claimed_is_named(key, value):
    assert masked_trial.misses(ROW) == []
    assert masked_trial.misses(ROW | {key: value}) == [key]


@pytest.mark.parametrize(
    "found, cells",
    [
        ({}, "not run | "),
        ({"nested_error": "ValueError: no"}, "ValueError: no | "),
        ({"misses": []}, "25% | 2e-15"),
        ({"misses": [], "any_size": False}, "25% (one size) | 2e-15"),
        ({"misses": ["loaded_difference"]}, "25% | 2e-15 misses"),
    ],
)
def test_a_row_says_how_the_nested_model_was_compared(found, cells):
    if "misses" in found:
        shares = {"parameters": 8, "parameters_after": 2, "difference": 2e-15}
        shares["any_size"] = True
        found = {"nested": shares | found}
    lines = coverage_page.table([{"model": "Net", "seconds": 1.0} | found])
    heading, _, row = lines.splitlines()
    assert row == f"| Net {'| ' * 8}| {cells} | 1.0 | not run |"
    assert row.count("|") == heading.count("|")


def test_nothing_stays_of_an_older_run_of_a_task(monkeypatch):
    monkeypatch.setattr(coverage, "in_a_process", lambda *_: {"nested": 2})
    row = {"model": "Net", "seconds": 1.0, "nested_error": "no", **ROW}
    coverage.renew(row, ["nested"], leave_out={})
    assert row == {"model": "Net", "seconds": 1.0, "nested": 2, **ROW}


def test_a_model_that_is_too_large_is_timed_only(monkeypatch):
    monkeypatch.setattr(coverage, "in_a_process", lambda task, _: {task: 1})
    row = {"model": "Net"}
    coverage.renew(row, ["time", "nested"], leave_out={"Net": "too large"})
    assert row == {"model": "Net", "time": 1, "error": "too large"}

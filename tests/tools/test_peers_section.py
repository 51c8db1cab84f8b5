"""Records of other packages on the page of results."""

import json
import pathlib
import sys

import pytest

# What `python tools/results_page.py` has on its path.
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))

import peers_section  # isort: skip

RECORD = {
    "peer": "Other 1.0",
    "recipe": "by_norm",
    "dataset": "cifar10",
    "network": "resnet20",
    "image_size": 16,
    "epochs": 2,
    "seed": 3,
    "val_accuracy": 0.75,
    "dense_forward_flops": 200,
    "forward_flops": 100,
    "dense_training_flops": 1000,
    "total_training_flops": 850,
    "command": "python other.py",
    "by_epoch": [{}, {}],
}


def written(folder, **changes):
    record = {k: v for k, v in (RECORD | changes).items() if v is not None}
    (folder / "other.json").write_text(json.dumps(record))
    return folder


def test_a_row_says_who_reached_what(tmp_path):
    row = peers_section.section(written(tmp_path)).splitlines()[-1]
    assert row == (
        "| Other 1.0, by_norm: resnet20 on cifar10 of 16x16 pixels, 2 epochs "
        "| 75.00% | 3 | 50.0% | 85.0% | `python other.py` |"
    )


def test_without_a_record_there_is_no_section(tmp_path):
    (tmp_path / "ours.json").write_text("{}")
    assert peers_section.section(tmp_path) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_accuracy": None}, "other.json' has no val_accuracy"),
        ({"seed": None, "command": None}, "other.json' has no seed, command"),
        ({"val_accuracy": "high"}, "other.json' holds what cannot be shown"),
        ({"by_epoch": 2}, "other.json': 'by_epoch' is no list"),
        ({"dense_forward_flops": 0}, "other.json' holds .* division by zero"),
        ({"epochs": 3}, "other.json' has 2 of its 3 epochs"),
    ],
)
def test_a_record_that_lacks_something_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        peers_section.section(written(tmp_path, **changes))

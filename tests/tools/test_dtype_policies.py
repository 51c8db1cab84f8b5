"""The benchmark of dtype policies builds what it says that it times."""

import pathlib
import sys

import keras
import pytest

sys.path.insert(
    0, str(pathlib.Path(__file__).parents[2] / "tools" / "benchmarks")
)

import dtype_policies  # noqa: E402  # isort: skip


@pytest.mark.parametrize("policy", dtype_policies.POLICIES)
def test_the_network_computes_in_its_policy_and_no_other_does(policy):
    model = dtype_policies.network(policy)
    found = {
        layer.dtype_policy.name
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D)
    }
    assert found == {policy}
    assert keras.config.dtype_policy().name == "float32"


def test_the_ratio_is_taken_turn_by_turn():
    # Two slow turns of both: the ratio of the medians would be 2.
    assert dtype_policies.ratio([3.0, 60.0, 30.0], [1.0, 30.0, 10.0]) == 3.0

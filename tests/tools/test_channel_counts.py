"""The benchmark of channel counts relates each to the multiples of 16."""

import pathlib
import sys
import time

import numpy as np
import pytest

from keras_prunetrain.devices import fast_multiple

BENCHMARKS = pathlib.Path(__file__).parents[2] / "tools" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import channel_counts  # noqa: E402  # isort: skip


def test_a_cost_is_related_to_the_multiples_of_16_around_it():
    costs = {4: 6.0, 16: 3.0, 24: 3.0, 32: 2.0, 40: 1.0}
    found = channel_counts.relative_costs(costs)
    assert found == {4: 2.0, 16: 1.0, 24: 3 / 2.5, 32: 1.0, 40: 0.5}


def test_a_time_is_related_to_that_of_the_next_multiple_of_16():
    times = {4: 1.0, 16: 2.0, 24: 3.0, 32: 4.0, 40: 5.0}
    found = channel_counts.relative_times(times)
    assert found == {4: 0.5, 16: 1.0, 24: 0.75, 32: 1.0}


def types_behind(tensors):
    """The types of the operations on which tensors of a graph depend."""
    found, waiting = {}, [tensor.op for tensor in tensors]
    while waiting:
        operation = waiting.pop()
        if operation.name not in found:
            found[operation.name] = operation.type
            waiting += [x.op for x in operation.inputs]
    return set(found.values())


@pytest.mark.parametrize("policy", channel_counts.POLICIES)
def test_a_block_takes_training_steps(policy):
    place = channel_counts.Place(policy, 4)
    block = channel_counts.Block(place, 4)
    assert block.flops == channel_counts.flops(4, 4)
    values = channel_counts._values(place, 8)
    kernel = block._layers[0].kernel
    before = kernel.numpy()
    assert block.seconds(values) > 0
    assert np.abs(kernel.numpy() - before).max() > 0
    images = values[..., :4]
    graph = block._step.get_concrete_function(images, images).graph
    (convolution,) = (x for x in graph.get_operations() if x.type == "Conv2D")
    assert convolution.inputs[0].dtype.name == policy.removeprefix("mixed_")
    # The gradient of the images is computed, too: the result depends on it.
    assert "Conv2DBackpropInput" in types_behind(graph.outputs)


def test_the_records_hold_medians_of_turns_and_of_kinds(monkeypatch):
    monkeypatch.setattr(channel_counts, "BATCH_SIZE", 2)
    place = channel_counts.Place("float32", 4)
    blocks = [channel_counts.Block(place, width) for width in (4, 8, 16)]
    turns = channel_counts.in_turns(blocks, deadline=time.perf_counter())
    assert [len(turn) for turn in turns] == [3] * channel_counts.LEAST_TURNS
    (columns,) = channel_counts.by_place(blocks).values()
    # Times that make the first block 3, 1 and 2 times as costly as the last.
    work = [block.flops for block in blocks]
    turns = [[n * work[0], 4 * work[1], work[2]] for n in (3, 1, 2)]
    rows = list(channel_counts.rows_of(place, columns, turns))
    assert [row["channels"] for row in rows] == [4, 8, 16]
    assert [row["relative_cost"] for row in rows] == [2, 4, 1]
    assert rows[0]["step_seconds"] == 2 * work[0]
    assert rows[0]["time_of_next_16"] == 2 * work[0] / work[2]
    found = channel_counts.summary(rows)
    assert [(x["multiple"], x["relative_cost"]) for x in found] == [
        (4, 2),
        (8, 4),
    ]
    assert all(x["channels"] == [4, 47] for x in found)
    channel_counts.show({"counts": rows, "summary": found, "turns": 3})


def test_the_ranges_of_counts_are_those_of_auto():
    for least, most in channel_counts.RANGES:
        found = {fast_multiple(n, "cpu") for n in range(least, most)}
        assert len(found) == 1

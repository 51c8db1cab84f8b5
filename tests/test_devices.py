"""Channel counts that suit the device that computes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_prunetrain import (
    PruneTrainCallback,
    TargetPruneCallback,
    model_cost,
    reconfigure,
)
from keras_prunetrain.channels.liveness import plan_cut, plan_of
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.choice import Choice
from keras_prunetrain.devices import device_kind, fast_multiple, multiples
from keras_prunetrain.fit import admission
from keras_prunetrain.models import resnet8
from keras_prunetrain.surgery.reconfigure import prepare_cut
from tests import networks
from tests.networks import conv, images, kill_all, outputs, shake


def test_the_device_is_the_one_that_tensorflow_sees():
    kinds = {x.device_type for x in tf.config.list_logical_devices()}
    assert device_kind() == ("gpu" if "GPU" in kinds else "cpu")


@pytest.mark.parametrize(
    ("channels", "cpu", "others"),
    [
        *((1, 1, 1), (3, 1, 1), (4, 4, 1), (7, 4, 1), (8, 4, 8), (47, 4, 8)),
        *((48, 8, 8), (127, 8, 8), (128, 16, 8), (2048, 16, 8)),
    ],
)
def test_the_multiple_grows_with_the_channels(channels, cpu, others):
    assert fast_multiple(channels, "cpu") == cpu
    for kind in ("gpu", "tpu", "npu"):
        assert fast_multiple(channels, kind) == others


def test_a_number_is_the_multiple_of_all_counts():
    assert {multiples(3)(n) for n in (0, 47, 128)} == {3}


def counts(plan, side="out"):
    """Yields how many channels each kernel writes or reads: kept, of all."""
    for label in plan.numbering.kernels(side):
        if label.layer in plan.numbering.inner:
            continue  # Heads of an attention, which are no channels.
        yield int(plan.alive[label.numbers].sum()), len(label.numbers)


def is_fast(kept, total):
    return kept == total or kept % fast_multiple(kept, device_kind()) == 0


def chosen(model, kept, channel_multiple="auto"):
    """The plan of a cut that would keep the first `kept[layer]` channels."""
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    for layer, count in kept.items():
        alive[numbering.outputs[layer][0].numbers[count:]] = False
    options = CutOptions(channel_multiple=channel_multiple)
    return plan_of(model, numbering, alive, options)


def chain(channels):
    image = keras.Input((4, 4, 2))
    return keras.Model(image, conv(conv(image, channels, "a", 1), 3, "b", 1))


@pytest.mark.parametrize(
    ("kept", "total", "expected"),
    [
        *((1, 16, 1), (3, 16, 3), (4, 16, 4), (5, 16, 8)),
        *((41, 64, 44), (45, 64, 48)),
        *((50, 64, 56), (57, 200, 64), (121, 200, 128)),
        *((128, 200, 128), (130, 200, 144), (193, 256, 208)),
        # Fewer channels than the multiple asks for: all stay.
        *((5, 7, 7), (45, 47, 47), (50, 54, 54), (130, 140, 140)),
    ],
)
@pytest.mark.skipif("device_kind() != 'cpu'")
def test_counts_are_rounded_up_on_a_cpu(kept, total, expected):
    plan = chosen(chain(total), {"a": kept})
    assert list(counts(plan)) == [(expected, total), (3, 3)]
    assert list(counts(plan, "in"))[1] == (expected, total)
    # What was revived, with the reason that a report shows.
    assert list(plan.reasons.values()) == ["channel_multiple"] * (
        expected - kept
    )


@pytest.mark.parametrize("build", networks.sampled())
def test_every_layer_keeps_a_fast_count_and_no_living_channel_goes(build):
    network = build()
    shake(network.model)
    kill_all(network)
    plain = plan_cut(network.model, CutOptions())
    plan = plan_cut(network.model, CutOptions(channel_multiple="auto"))
    for kept, total in counts(plan):
        assert is_fast(kept, total)
    assert plan.alive[plain.alive].all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("build", networks.sampled())
def test_the_model_computes_the_same_with_fast_counts(build):
    network = build()
    model = network.model
    model.compile("sgd", "mse", run_eagerly=True)
    shake(model)
    kill_all(network)
    smaller = reconfigure(model, channel_multiple="auto")
    x = images()
    np.testing.assert_allclose(
        outputs(smaller, x), outputs(model, x), atol=1e-12
    )


def test_both_sides_of_the_kernels_around_a_residual_sum_are_fast():
    image = keras.Input((4, 4, 2))
    x = conv(image, 200, "stem", 1)
    for i in range(2):
        x = layers.Add()([x, conv(conv(x, 90, f"in{i}", 1), 200, f"out{i}", 1)])
    model = keras.Model(image, conv(x, 3, "logits", 1))
    # The sum keeps what any of the three layers keeps.
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    for layer, count in (("stem", 133), ("in0", 50), ("in1", 21)):
        alive[numbering.outputs[layer][0].numbers[count:]] = False
    plan = plan_of(model, numbering, alive, CutOptions(channel_multiple="auto"))
    for side in ("in", "out"):
        for kept, total in counts(plan, side):
            assert is_fast(kept, total)
    if device_kind() == "cpu":
        written = [kept for kept, _ in counts(plan)]
        assert written == [144, 56, 144, 24, 144, 3]


def test_behind_a_concatenation_the_parts_are_fast():
    image = keras.Input((4, 4, 2))
    parts = [conv(image, 64, name, 1) for name in ("left", "right")]
    x = layers.Concatenate(name="both")(parts)
    model = keras.Model(image, conv(x, 3, "logits", 1))
    plan = chosen(model, {"left": 41, "right": 46})
    written = list(counts(plan))
    for kept, total in written:
        assert is_fast(kept, total)
    read = list(counts(plan, "in"))[-1][0]
    assert read == written[0][0] + written[1][0]
    # A multiple of the smallest multiple of the parts.
    assert read % fast_multiple(41, device_kind()) == 0


def test_a_callback_rounds_up_too():
    model = chain(16)
    model.compile("sgd", "mse")
    living = np.arange(16) < 9
    for name, shape in (("a", (1, 16)), ("b", (16, 1))):
        kernel = model.get_layer(name).kernel
        kernel.assign(kernel * living.reshape(shape))
    pruning = PruneTrainCallback(
        interval=1, reconfigure={"channel_multiple": "auto"}
    )
    x, y = np.zeros((4, 4, 4, 2)), np.zeros((4, 4, 4, 3))
    model.fit(x, y, verbose=0, callbacks=[pruning])
    kept = {"cpu": 12}.get(device_kind(), 16)
    assert model.get_layer("a").filters == kept
    assert pruning.reports[0].channels_after["a"] == kept


def test_a_target_is_met_by_fast_counts():
    model = resnet8((8, 8, 1), width=40)
    numbering = number_channels(model)
    options = CutOptions(channel_multiple="auto")
    choice = Choice(model, numbering, "forward_flops", options, {})
    scores = np.random.default_rng(0).uniform(size=numbering.size)
    plan = choice.plan(scores, 0.25 * model_cost(model).forward_flops)
    # Of images and logits there are as many as before.
    found = list(counts(plan))
    assert sum(kept < total for kept, total in found) == len(found) - 1
    for kept, total in found:
        assert is_fast(kept, total)
    with_image = list(counts(plan, "in"))
    assert all(is_fast(kept, total) for kept, total in with_image)
    smaller = prepare_cut(model, plan).model
    ratio = model_cost(smaller).forward_flops / model_cost(model).forward_flops
    assert 0.2 < ratio <= 0.25


@pytest.mark.parametrize("options", [None, {"skip": ()}, "one"])
def test_a_target_is_met_by_fast_counts_unless_told_otherwise(options):
    exact = options == "one"
    model = chain(24)
    model.compile("sgd", "mse", run_eagerly=True)
    pruning = TargetPruneCallback(
        *(0.46,),
        **{"warmup": 0, "decay": 1, "rounds": 1},
        reconfigure={"channel_multiple": 1} if exact else options,
    )
    x, y = np.ones((4, 4, 4, 2)), np.ones((4, 4, 4, 3))
    model.fit(x, y, 1, 2, verbose=0, callbacks=[pruning])
    kept = model.get_layer("a").filters
    assert kept == 11 if exact else kept == 8
    assert is_fast(kept, 24) != exact


def test_workers_compare_their_devices_if_the_counts_depend_on_them():
    model = chain(4)
    model.compile("sgd", "mse")
    params = {"epochs": 1, "steps": 1}
    for channel_multiple, is_compared in (("auto", True), (8, False)):
        options = CutOptions(channel_multiple=channel_multiple)
        text = admission._description(model, options, {}, params)
        assert (f"device={device_kind()}" in text) == is_compared

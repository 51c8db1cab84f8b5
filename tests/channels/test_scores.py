"""Another criterion than the weights' magnitude, and channels by choice."""

import keras
import numpy as np
import pytest

from keras_prunetrain import channel_report, reconfigure
from keras_prunetrain.channels.liveness import plan_cut, plan_of
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.channels.scores import magnitude
from tests import networks
from tests.masked import silence
from tests.networks import images, outputs, shake


def by_gamma(label):
    """The scale of a batch normalization, as in network slimming."""
    if label.weight.name != "gamma":
        return None
    return np.abs(keras.ops.convert_to_numpy(label.weight))


@pytest.fixture
def residual():
    """A residual network whose normalizations say what may go."""
    model = networks.residual().model
    model.compile("sgd", "mse")
    shake(model)
    for name, gamma in (
        ("stem_bn", [0.1, 0.1, 1.0, 1.0, 0.1, 1.0]),
        ("conv1_bn", [1.0, 0.1, 1.0, 1.0]),
        ("conv2_bn", [0.1, 1.0, 1.0, 1.0, 0.1, 0.1]),
    ):
        model.get_layer(name).gamma.assign(gamma)
    return model


def kept(plan, layer):
    return plan.keep(plan.numbering.outputs[layer][0].numbers).tolist()


def test_a_score_decides_in_the_place_of_the_magnitude(residual):
    plan = plan_cut(residual, CutOptions(threshold=0.5, score=by_gamma))
    # A channel that two normalizations share has the larger of two scores.
    assert kept(plan, "stem") == kept(plan, "conv2") == [1, 2, 3, 5]
    assert kept(plan, "conv1") == [0, 2, 3]
    stem = plan.numbering.outputs["stem"][0].numbers
    np.testing.assert_allclose(plan.score[stem], [0.1, 1, 1, 1, 0.1, 1])


@pytest.mark.usefixtures("float64")
def test_the_channels_that_a_score_condemns_go_with_their_weights():
    model = networks.residual().model
    model.compile("sgd", "mse")
    shake(model)
    model.get_layer("stem_bn").gamma.assign([0.1] * 3 + [1.0] * 3)
    model.get_layer("conv2_bn").gamma.assign([0.1] * 3 + [1.0] * 3)
    smaller = reconfigure(model, threshold=0.3, score=by_gamma)
    assert smaller.get_layer("stem").filters == 3
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    alive[numbering.outputs["stem"][0].numbers[:3]] = False
    silence(numbering, alive)
    np.testing.assert_allclose(
        outputs(smaller, images()), outputs(model, images()), atol=1e-12
    )


def test_the_report_counts_by_the_same_score(residual):
    stem, conv1, *_ = channel_report(residual, 0.5, score=by_gamma)
    # No kernel has a say: none of them holds a channel alive.
    assert (stem.dead, stem.removable) == (6, 2)
    assert set(stem.held_by) == {"stem_bn writes (3)", "conv2_bn writes (3)"}
    assert (conv1.dead, conv1.removable) == (4, 1)


def test_a_channel_on_which_no_weight_has_a_say_stays():
    model = networks.plain().model

    def of_b(label):
        return magnitude(label) if label.layer == "b" else None

    networks.kill(model, {"a": [1], "b": [0]}, {"b": [1], "logits": [0]})
    assert kept(plan_cut(model, CutOptions(score=of_b)), "b") == [1, 2, 3, 4]
    plan = plan_cut(model, CutOptions(score=lambda label: None))
    assert plan.removes_nothing
    assert set(plan.reasons.values()) >= {"no weight says if it counts"}


@pytest.mark.parametrize("fold", [False, True])
def test_branches_leave_by_the_score_too(residual, fold):
    gamma = residual.get_layer("conv1_bn").gamma
    gamma.assign(0.1 * gamma)
    plan = plan_cut(
        residual, CutOptions(threshold=0.5, score=by_gamma, fold=fold)
    )
    assert {"conv1", "conv1_bn", "conv2", "conv2_bn"} <= plan.removed
    # Those of `conv2_bn` had no say any more.
    assert kept(plan, "stem") == [2, 3, 5]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("magnitude", "must be a function of a label"),
        (lambda label: 1.0, "one number for each of the 2 channels on axis 2"),
        (lambda label: ["a"] * len(label.numbers), "one number for each"),
        (lambda label: -label.magnitudes(), "at least 0. Received for axis"),
        (lambda label: label.magnitudes() * np.inf, "must return finite"),
        (lambda label: label.gamma, "fails for axis 2 of .*: AttributeError"),
        (int, "fails for axis 2 of .*: TypeError"),
        (lambda label: [10**400] * len(label.numbers), "one number for each"),
        (lambda label: label.magnitudes() * 1j, "one number for each"),
    ],
)
def test_a_score_of_the_wrong_kind_is_an_error(score, message):
    model = networks.plain().model
    shake(model)
    with pytest.raises(ValueError, match=f"`score` .*{message}"):
        plan_cut(model, CutOptions(score=score))


def chosen(model, **keep):
    """Returns the numbering, and which channels are alive by choice."""
    numbering = number_channels(model)
    alive = np.zeros(numbering.size, bool)
    for layer, positions in keep.items():
        alive[numbering.outputs[layer][0].numbers[positions]] = True
    return numbering, alive


def test_a_plan_can_keep_the_channels_of_a_choice(residual):
    numbering, alive = chosen(residual, stem=[0, 4], conv1=[3])
    before = alive.copy()
    plan = plan_of(residual, numbering, alive, CutOptions())
    assert kept(plan, "stem") == kept(plan, "conv2") == [0, 4]
    assert kept(plan, "conv1") == [3]
    assert kept(plan, "logits") == [0, 1, 2]  # The model's output.
    np.testing.assert_array_equal(alive, before)


def test_a_choice_is_rounded_up_by_the_score_that_comes_with_it(residual):
    numbering, alive = chosen(residual, stem=[0], conv1=[3])
    score = np.arange(numbering.size, dtype=float)
    plan = plan_of(residual, numbering, alive, CutOptions(channel_multiple=2))
    assert kept(plan, "stem") == [0, 1]
    plan = plan_of(
        residual, numbering, alive, CutOptions(min_channels=3), score=score
    )
    assert kept(plan, "stem") == [0, 4, 5]
    assert kept(plan, "conv1") == [1, 2, 3]


def test_a_choice_leaves_skipped_layers_alone(residual):
    numbering, alive = chosen(residual, stem=[0])
    plan = plan_of(residual, numbering, alive, CutOptions(skip="conv1"))
    assert kept(plan, "conv1") == [0, 1, 2, 3]
    assert kept(plan, "stem") == [0, 1, 2, 3, 4, 5]


def test_a_branch_of_which_nothing_is_chosen_leaves(residual):
    numbering, alive = chosen(residual, stem=[0, 4])
    plan = plan_of(residual, numbering, alive, CutOptions())
    assert "conv1" in plan.removed
    assert kept(plan, "stem") == [0, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda alive: alive.astype(int),
        lambda alive: alive.astype(float),
        lambda alive: np.flatnonzero(alive),
        lambda alive: alive[1:],
        lambda alive: alive.tolist(),
        lambda alive: None,
    ],
    ids=["integers", "floats", "positions", "too few", "a list", "None"],
)
def test_a_choice_that_is_no_bool_for_each_channel_is_an_error(residual, wrong):
    numbering, alive = chosen(residual, stem=[0, 4], conv1=[3])
    message = rf"`alive` must be a bool array of shape \({numbering.size},\)"
    with pytest.raises(ValueError, match=message):
        plan_of(residual, numbering, wrong(alive), CutOptions())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda size: np.ones(3),
        lambda size: ["a"] * size,
        lambda size: np.full(size, np.nan),
        lambda size: 1.0,
    ],
    ids=["too few", "text", "NaN", "a number"],
)
def test_a_score_beside_a_choice_is_a_number_for_each_channel(residual, wrong):
    numbering, alive = chosen(residual, stem=[0, 4], conv1=[3])
    message = rf"`score` must be .* finite .* shape \({numbering.size},\)"
    with pytest.raises(ValueError, match=message):
        plan_of(residual, numbering, alive, CutOptions(), wrong(numbering.size))


def test_a_choice_by_the_numbers_of_another_model_is_an_error(residual):
    other = networks.residual().model
    numbering, alive = chosen(other, stem=[0, 4], conv1=[3])
    with pytest.raises(ValueError, match="number_channels.* anew for each cut"):
        plan_of(residual, numbering, alive, CutOptions())

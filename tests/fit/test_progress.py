"""How far a model has shrunk, told step by step and epoch by epoch."""

import pytest

from keras_prunetrain.fit.progress import Progress
from keras_prunetrain.fit.record import Reconfiguration


def report():
    return Reconfiguration(
        epoch=0,
        channels_before={},
        channels_after={},
        keep={},
        removed_layers=[],
        constants_kept=[],
        held={},
        cost_before=None,
        cost_after=None,
        batch_size=None,
        batch_size_after=None,
        learning_rate=None,
        penalty_ratio=0.0,
    )


@pytest.fixture
def progress():
    progress = Progress()
    progress.begin_fit(20)
    return progress


def test_the_density_is_that_of_the_first_model_over_every_fit(progress):
    assert progress.density == 1.0
    progress.size = 10
    assert progress.density == 0.5
    progress.begin_fit(10)
    assert progress.density == 0.5


def test_the_first_step_is_the_next_one_alone(progress):
    one = report()
    progress.add(one)
    progress.end_step(3.0)
    progress.end_step(1.0)
    assert one.first_step_seconds == 3.0


def test_the_first_step_of_another_fit_is_not_meant(progress):
    one = report()
    progress.add(one)
    progress.begin_fit(10)
    progress.end_step(3.0)
    assert one.first_step_seconds == 0.0


def test_seconds_are_saved_against_the_fastest_epoch_before_the_first_cut(
    progress,
):
    reports = [report() for _ in range(3)]
    for seconds in (9.0, 4.0, 5.0):
        progress.end_epoch(seconds)
    progress.add(reports[0])
    for one, seconds in zip(reports[1:], (3.0, 1.0), strict=True):
        progress.end_epoch(seconds)
        progress.add(one)
    assert [one.seconds_saved for one in reports] == [0.0, 1.0, 3.0]


@pytest.mark.parametrize("seconds", [0.0, 0.04, -0.04])
def test_a_report_is_silent_about_seconds_that_round_to_none(seconds):
    one = report()
    one.seconds_saved = seconds
    assert "at first" not in str(one)

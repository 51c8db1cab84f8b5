"""A `fit` inside of a `fit`, called by a callback."""

import keras
import numpy as np
import pytest

import keras_prunetrain as kpt
from tests.callbacks.fits import examples, factors, kill, network, widths


class FitInside(keras.callbacks.Callback):
    """Calls `fit` at the end of the first epoch; notes what it raises."""

    def __init__(self, callbacks=(), model=None):
        super().__init__()
        self.callbacks, self.other, self.error = list(callbacks), model, None

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            model = self.other or self.model
            try:
                model.fit(
                    *examples(16), verbose=0, callbacks=self.callbacks or None
                )
            except ValueError as error:
                self.error = error


def fit(model, *callbacks):
    return model.fit(
        *examples(16), epochs=2, verbose=0, callbacks=list(callbacks)
    ).history


def test_a_plain_fit_inside_works():
    model, inside = network(), FitInside()
    kill(model, "inner", [0])
    model.optimizer.learning_rate = 0.0
    history = fit(model, inside, kpt.PruneTrainCallback(interval=1))
    assert inside.error is None
    assert widths(model)["inner"] == 5
    assert len(history["density"]) == 2
    assert factors(model) == [0.0] * 4


def test_a_fit_that_shrinks_inside_of_a_plain_one_works():
    model = network()
    kill(model, "inner", [0])
    model.optimizer.learning_rate = 0.0
    inside = FitInside([kpt.PruneTrainCallback(interval=1)])
    history = fit(model, inside)
    assert inside.error is None
    assert widths(model)["inner"] == 5
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("same", [True, False])
def test_two_fits_that_shrink_the_same_model_are_refused(same):
    outer = kpt.PruneTrainCallback(interval=1)
    inside = FitInside([outer if same else kpt.PruneTrainCallback()])
    model = network()
    kill(model, "inner", [0])
    model.optimizer.learning_rate = 0.0
    fit(model, inside, outer)
    message = str(inside.error)
    assert f"to make '{model.name}' smaller inside of a `fit`" in message
    assert "Call the inner `fit` once the outer one has returned" in message
    # The outer one goes on.
    assert widths(model)["inner"] == 5
    assert [report.epoch for report in outer.reports] == [0]
    assert factors(model) == [0.0] * 4


def test_another_model_may_be_trained_inside_but_not_by_the_same_callback():
    other = network()
    inside = FitInside([kpt.PruneTrainCallback()], other)
    outer = kpt.PruneTrainCallback()
    fit(network(), inside, outer)
    assert inside.error is None
    assert other.optimizer.iterations == 1
    inside = FitInside([outer], other)
    fit(network(), inside, outer)
    assert "smaller inside of a `fit`" in str(inside.error)
    assert other.optimizer.iterations == 1

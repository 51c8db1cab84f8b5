"""The state of a model goes into another one of the same kind alone."""

import keras
import numpy as np
import pytest

from keras_prunetrain.fit.training_state import (
    add_worker_state,
    callback_states,
    model_state,
    set_model_state,
    worker_state,
)
from tests.callbacks.fits import examples, network


def test_it_goes_into_a_model_that_has_not_been_trained():
    trained = network()
    trained.train_on_batch(*examples(8))  # Now the metrics have variables.
    fresh = network()
    set_model_state(fresh, model_state(trained))
    for one, other in zip(trained.variables, fresh.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert fresh.optimizer.iterations == 1


def test_other_optimizers_are_refused_and_nothing_is_changed():
    trained = network()
    trained.train_on_batch(*examples(8))
    # Both have slots of the same shapes.
    other = network(compiled={"optimizer": keras.optimizers.Lion(0.01)})
    before = other.get_weights()
    with pytest.raises(ValueError, match=r"optimizers: \['SGD'\] there, \['Li"):
        set_model_state(other, model_state(trained))
    for one, value in zip(other.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, value)
    assert not other.optimizer.built


def test_a_state_that_no_file_can_hold_is_that_of_a_named_callback():
    class Mine(keras.callbacks.Callback):
        def get_state(self):
            return {"seen": {1, 2}}

    plain = keras.callbacks.EarlyStopping()
    with pytest.raises(TypeError, match="that of Mine does not: .* type set "):
        callback_states([plain, Mine()])


def test_a_worker_adds_its_statistics_and_not_the_weights():
    first, second = network(), network()
    second.train_on_batch(*examples(8))
    state = {"model": model_state(first), "metrics": [], "random": {}}
    part = worker_state(second, steps=1)
    add_worker_state(state, part)
    mixed = network()
    set_model_state(mixed, state["model"])
    pairs = zip(first.trainable_weights, mixed.trainable_weights, strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)
    others = [second.non_trainable_variables, mixed.non_trainable_variables]
    assert any("seed" in variable.path for variable in others[0])
    for one, other in zip(*others, strict=True):
        np.testing.assert_array_equal(one, other)
    assert state["metrics"][0][0] > 0.0  # The loss.
    assert state["random"]["python"]
    assert worker_state(second, steps=0)["metrics"] == []

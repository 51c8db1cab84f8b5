"""The state of a model goes into another one of the same kind alone."""

import keras
import numpy as np
import pytest

from keras_prunetrain.fit.training_state import model_state, set_model_state
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

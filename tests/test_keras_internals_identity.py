"""What `keras_internals` knows of how Keras's objects refer to each other."""

import keras
import pytest

from keras_prunetrain import keras_internals
from tests import networks
from tests.networks import images, targets

# What belongs to a trace or a call, and TensorFlow's bookkeeping of attributes.
PASSING = {
    *("test_function", "train_function", "predict_function"),
    *("_called", "_tracked"),
}


def changed(before, after):
    names = {x for x in after if after[x] is not before.get(x)}
    return {
        x for x in names | before.keys() - after.keys() if "_self_" not in x
    }


def test_compile_and_fit_set_no_other_attributes_than_those_that_are_kept():
    model = networks.sequential().model
    before = dict(vars(model))
    model.compile("sgd", "mse", metrics=["mae"], steps_per_execution=2)
    x, y = images(), targets()
    model.fit(x, y, validation_data=(x, y), verbose=0)
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    found = changed(before, vars(model)) - PASSING
    assert found <= keras_internals.TRAINER_ATTRIBUTES
    assert found >= {"optimizer", "loss", "_loss_tracker", "compiled"}


class Plain:
    pass


class Fixed:
    """Cannot get another `__dict__`."""

    def __init__(self):
        self.size = 0

    __dict__ = property(lambda self: {"size": 0})


def test_states_are_set_all_together_or_not_at_all():
    one, other = Plain(), Plain()
    one.size = 1
    keras_internals.set_states([(one, {"size": 2}), (other, {"size": 3})])
    assert (one.size, other.size) == (2, 3)
    with pytest.raises(AttributeError):
        keras_internals.set_states([(one, {"size": 4}), (Fixed(), {})])
    assert (one.size, other.size) == (2, 3)


def test_the_operations_in_a_model_are_found_however_deep():
    network = networks.nested().model
    image = keras.Input((6, 6, 2))
    x = keras.layers.TimeDistributed(keras.layers.Dense(2, name="dense"))(image)
    model = keras.Model(image, network(x + 1.0))
    names = [x.name for x in keras_internals.operations_in(model)]
    assert names.count("dense") == 1
    assert {"stem", "inner", "a", "a_bn", "neck", "c", "logits"} <= {*names}
    assert len([x for x in names if x.startswith("add")]) == 2

"""What a user's subclass holds beside its graph goes on as well."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_prunetrain import reconfigure
from keras_prunetrain.surgery.reconfigure import check_reconfigurable
from tests import networks
from tests.networks import images
from tests.surgery.test_takeover import shrink, step, trained


class Own(keras.Model):
    """A model of the user's own, which is given attributes."""


def own(**attributes):
    """A network whose model is an `Own` with functions of it as attributes."""
    network = networks.plain()
    model = Own(network.model.inputs[0], network.model.outputs[0], name="own")
    for name, make in attributes.items():
        setattr(model, name, make(model))
    return network._replace(model=model)


def smaller_of(model, in_place):
    if in_place:
        shrink(model)
        return model
    return reconfigure(model)


def extractor(model):
    return keras.Model(model.inputs[0], model.get_layer("b").output)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_among_the_attributes_has_the_smaller_layers(in_place):
    network = own(extractor=extractor, listed=lambda m: [extractor(m)])
    model = trained(network)
    old = model.extractor
    expected = np.delete(np.asarray(old(images())), [0], axis=-1)

    smaller = smaller_of(model, in_place)

    assert (smaller.extractor is old) == in_place
    for one in (smaller.extractor, smaller.listed[0]):
        np.testing.assert_allclose(one(images()), expected, atol=1e-5)
        assert one.get_layer("b") is smaller.get_layer("b")
    assert model.extractor.get_layer("b") is model.get_layer("b")


def probe(model):
    x = layers.GlobalAveragePooling2D()(model.get_layer("b").output)
    return keras.Model(
        model.inputs[0], layers.Dense(2, name="probe", trainable=False)(x)
    )


def test_a_model_among_the_attributes_that_would_go_stale_is_refused():
    model = trained(own(extractor=probe))
    for check in (check_reconfigurable, reconfigure):
        with pytest.raises(
            ValueError, match="'own.extractor' is a model on la"
        ):
            check(model)


@pytest.mark.parametrize("in_place", [False, True])
def test_variables_and_tensors_among_the_attributes_are_those_of_now(in_place):
    network = own(
        watched=lambda m: {"kernels": [m.get_layer("a").kernel], "name": "x"},
        features=lambda m: m.get_layer("b").output,
    )
    smaller = smaller_of(trained(network), in_place)
    assert smaller.watched["kernels"][0] is smaller.get_layer("a").kernel
    assert smaller.watched["name"] == "x"
    features = keras.Model(smaller.inputs[0], smaller.features)
    assert features.output_shape == (None, 6, 6, 4)


class TwoSteps(Own):
    """Trains its kernels and the rest with an optimizer each."""

    def train_step(self, data):
        logs = super().train_step(data)
        kernels = [x.kernel for x in self.layers if hasattr(x, "kernel")]
        gradients = [keras.ops.ones_like(kernel) for kernel in kernels]
        self.second["kernels"].apply(gradients, kernels)
        return logs


@pytest.mark.parametrize("in_place", [False, True])
def test_further_optimizers_go_on_where_they_were(in_place):
    network = networks.plain()
    model = TwoSteps(network.model.inputs[0], network.model.outputs[0])
    second = keras.optimizers.SGD(0.01, momentum=0.9)
    model.second = {"kernels": second}
    trained(network._replace(model=model))
    momentum = second.variables[2].numpy()
    model.get_layer("a").kernel.assign(model.get_layer("a").kernel * 1.0)

    smaller = smaller_of(model, in_place)

    optimizer = smaller.second["kernels"]
    assert (optimizer is second) == in_place
    kept = np.delete(momentum, network.writes["a"], axis=-1)
    np.testing.assert_array_equal(optimizer.variables[2], kept)
    step(smaller)
    assert int(optimizer.iterations) == 2
    assert int(model.second["kernels"].iterations) == 1 + in_place


class Average:
    """Holds weights where nobody finds them."""

    def __init__(self, model):
        self.pairs = [(w, w.numpy()) for w in model.trainable_variables]


def test_a_weight_that_an_attribute_hides_is_refused_before_training():
    model = trained(own(average=Average))
    message = "'own.average', a Average, holds the weight '[a-z]"
    with pytest.raises(ValueError, match=message):
        check_reconfigurable(model)


def test_an_optimizer_that_does_not_know_a_weight_is_refused_before_training():
    network = networks.plain()
    network.model.get_layer("a").trainable = False
    model = trained(network)
    model.get_layer("a").trainable = True
    with pytest.raises(ValueError, match="begun without the weights a/kernel"):
        check_reconfigurable(model)
    model.compile("sgd", "mse")
    check_reconfigurable(model)


class Some(Own):
    """Trains some of its weights only."""

    def train_step(self, data):
        kernel = self.get_layer("logits").kernel
        self.optimizer.apply([keras.ops.ones_like(kernel)], [kernel])
        return {"loss": 0.0}


def test_a_step_of_ones_own_may_train_some_of_the_weights():
    network = networks.plain()
    model = Some(network.model.inputs[0], network.model.outputs[0])
    trained(network._replace(model=model))
    check_reconfigurable(model)
    shrink(model)
    step(model)
    (kernel,) = model.optimizer._trainable_variables
    assert kernel is model.get_layer("logits").kernel

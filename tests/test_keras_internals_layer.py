"""The private parts of Keras's layers that we use are where they were."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_prunetrain import keras_internals
from tests.surgery.cuts import SETTINGS


def built(layer, shape=(None, 3)):
    layer.build(shape)
    return layer


class Holder(layers.Layer):
    """Holds parts in each way there is."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(2)
        self.listed = [layers.Dense(2), {"key": layers.Dropout(0.5)}]
        self.number = 3

    def build(self, shape):
        self.dense.build(shape)
        self.listed[0].build(shape)
        self.add_weight(name="nowhere")
        self.add_weight(name="nowhere")
        self.frozen = self.add_weight(trainable=False, name="frozen")
        self.generator = keras.random.SeedGenerator(1)


def test_parts_are_found_by_the_attribute_in_which_they_lie():
    layer = built(Holder())
    parts = keras_internals.parts(layer)
    assert parts == {
        "dense": layer.dense,
        "listed[0]": layer.listed[0],
        "listed[1]['key']": layer.listed[1]["key"],
        "frozen": layer.frozen,
        "generator": layer.generator,
        "<nowhere>": layer.weights[0],
        "<nowhere 1>": layer.weights[1],
    }
    attribute_of = keras_internals.attribute_of
    assert attribute_of("listed[1]['key']") == "listed"
    assert attribute_of("dense") == "dense"
    assert attribute_of("<nowhere 1>") is None


def test_parts_of_a_model_are_its_layers_by_name():
    inputs = keras.Input((3,), name="in")
    model = keras.Model(inputs, layers.Dense(2, name="out")(inputs))
    assert keras_internals.parts(model) == {
        "in": model.layers[0],
        "out": model.layers[1],
    }


def test_attributes_that_every_layer_has_are_not_its_own():
    layer = built(layers.Dense(2))
    own = keras_internals.own_attributes(layer)
    assert own["units"] == 2
    assert own["_kernel"] is layer.kernel
    assert not set(own) & set(vars(layers.Layer()))
    assert not [name for name in own if name.startswith("_self_")]


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_where_keras_reads_them(name):
    layer, clone = layers.Dense(2), layers.Dense(2)
    assert name in vars(layer)
    vars(layer)[name] = "another"
    keras_internals.carry_settings(layer, clone)
    assert vars(clone)[name] == "another"


def test_public_names_write_these_settings():
    layer = layers.Dense(2)
    layer.supports_masking = False
    assert vars(layer)["_supports_masking"] is False
    with keras.RematScope("full"):
        assert vars(layers.Dense(2))["_remat_mode"].mode == "full"


def test_a_flag_can_be_set_on_a_layer_alone():
    layer = built(layers.Dense(2))
    keras_internals.set_trainable(layer, False)
    assert not layer.trainable
    assert layer.kernel.trainable


def test_a_part_is_replaced_wherever_it_lies():
    layer = built(Holder())
    old, new = layer.listed[0], built(layers.Dense(2))
    layer.again = (old, {"x": old})
    keras_internals.replace_part(layer, old, new)
    assert layer.listed[0] is layer.again[0] is layer.again[1]["x"] is new
    assert [w.path for w in layer.weights].count(new.kernel.path) == 1
    assert not any(w is old.kernel for w in layer.weights)
    # By one that is there already.
    keras_internals.replace_part(layer, new, layer.dense)
    assert layer.listed[0] is layer.dense
    assert sum(w is layer.dense.kernel for w in layer.weights) == 1


def test_a_built_layer_takes_a_further_part():
    layer = built(layers.Dense(2))
    with pytest.raises(ValueError, match="cannot add new elements"):
        layer.scale = keras.Variable(1.0)
    keras_internals.set_attribute(layer, "scale", keras.Variable(1.0))
    keras_internals.track(layer, keras.Variable(2.0))
    assert [float(v.numpy()) for v in layer.variables[2:]] == [1.0, 2.0]
    with pytest.raises(ValueError, match="cannot add new elements"):
        layer.scale = keras.Variable(1.0)


def test_a_variable_like_another_has_all_but_its_value():
    layer = layers.Layer(name="layer")
    old = layer.add_weight(
        shape=(2, 3),
        dtype="float16",
        autocast=False,
        aggregation="mean",
        trainable=False,
        name="old",
    )
    new = keras_internals.variable_like(old)
    for name in ("name", "path", "dtype", "trainable", "aggregation", "shape"):
        assert getattr(new, name) == getattr(old, name)
    assert new._autocast is False
    assert keras_internals.variable_like(old, (1, 3)).shape == (1, 3)


def test_a_blank_copy_that_is_filled_tracks_its_parts_in_the_same_order():
    layer = built(Holder(name="holder"))
    layer.weights[0].trainable = False  # In the list of the trainable ones.
    copy = keras_internals.blank_copy(layer)
    assert type(copy) is Holder
    assert (copy.name, copy.path, copy.built) == ("holder", "holder", True)
    assert copy.get_build_config() == layer.get_build_config()
    assert keras_internals.own_attributes(copy) == {}
    twins = {}
    attributes = dict(keras_internals.own_attributes(layer))
    for name, part in keras_internals.parts(layer).items():
        twins[id(part)] = part
        if isinstance(part, keras.Variable):
            twins[id(part)] = keras_internals.variable_like(part)
        if name in attributes:
            attributes[name] = twins[id(part)]
    keras_internals.fill_copy(layer, copy, attributes, twins)
    stores = [[w.path for w in x._trainable_variables] for x in (layer, copy)]
    assert stores[0] == stores[1]
    assert [w.path for w in copy.variables] == [w.path for w in layer.variables]
    assert copy.frozen is twins[id(layer.frozen)]
    assert copy.number == 3
    with pytest.raises(ValueError, match="cannot add new elements"):
        copy.scale = keras.Variable(1.0)


def test_an_operation_that_is_no_layer_is_copied_too():
    x = keras.Input((3,))
    operation = keras_internals.producer(keras.ops.sum(x, axis=1))
    copy = keras_internals.blank_copy(operation)
    own = keras_internals.own_attributes(operation)
    keras_internals.fill_copy(operation, copy, own, {})
    assert copy is not operation
    np.testing.assert_array_equal(copy(np.ones((2, 3))), [3.0, 3.0])


def test_every_attribute_of_a_bare_layer_is_a_setting_or_keras_own():
    known = {
        *SETTINGS,
        # Carried in other ways.
        *("_dtype_policy", "_trainable", "activity_regularizer", "name"),
        # Keras's notes on what is made, built, called and saved.
        *("_auto_config", "_build_shapes_dict", "_call_context_args"),
        *("_call_has_context_arg", "_call_has_mask_arg", "_called"),
        *("_call_has_training_arg", "_call_signature", "_inbound_nodes"),
        *("_input_spec", "_layers", "_lock", "_loss_ids", "_losses"),
        *("_losses_override", "_metrics", "_non_trainable_variables"),
        *("_outbound_nodes", "_parent_path", "_path", "_seed_generators"),
        *("_saved_model_arg_spec", "_saved_model_inputs_spec", "_tracked"),
        *("_self_setattr_tracking", "_tracker", "_trainable_variables"),
        *("build", "built", "call_signature_parameters", "quantize"),
    }
    assert set(vars(layers.Layer())) == known

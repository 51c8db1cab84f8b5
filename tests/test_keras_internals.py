"""The private parts of Keras that we use are still where they were.

One test for each; a failure here says what a new Keras has moved.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_prunetrain import keras_internals
from keras_prunetrain.memory import device_bytes
from keras_prunetrain.surgery.adoption import adopt_class
from tests import networks


def names(calls):
    return [call.operation.name for call in calls]


def test_a_graph_is_told_from_other_models():
    inputs = keras.Input((4,))
    functional = keras.Model(inputs, layers.Dense(3)(inputs))
    assert keras_internals.is_graph(functional)
    assert keras_internals.is_graph(
        keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    )
    assert not keras_internals.is_graph(keras.Sequential([layers.Dense(3)]))
    assert not keras_internals.is_graph(layers.Dense(3))

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    assert not keras_internals.is_graph(Subclassed())


def test_calls_are_those_of_this_model_alone_and_in_running_order():
    model = networks.shared().model
    # A second model with the same layer: not one of `model`'s calls.
    model.get_layer("twice")(keras.Input((6, 6, 5)))
    order = names(keras_internals.calls(model))
    assert order[0] == "stem"
    assert order[1::2][:2] == ["twice", "twice"]
    assert order[-2:] == ["pool", "logits"]
    assert len(order) == 7  # `InputLayer` is no call.


def test_calls_of_a_sequential_model_are_its_layers():
    model = networks.sequential().model
    assert names(keras_internals.calls(model)) == [x.name for x in model.layers]


def test_arguments_of_a_call_can_be_replaced():
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dropout(0.5)(x, training=True))
    (call,) = keras_internals.calls(model)
    args, kwargs = keras_internals.arguments_with(call, {id(x): "new"})
    assert args == ("new",)
    assert kwargs["training"] is True
    x, y = keras.Input((4,)), keras.Input((4,))
    (call,) = keras_internals.calls(keras.Model([x, y], layers.Add()([x, y])))
    args, _ = keras_internals.arguments_with(call, {id(x): 1, id(y): 2})
    assert list(args[0]) == [1, 2]


def test_a_mask_is_told_from_the_other_inputs_of_a_call():
    words = keras.Input((6,), dtype="int32")
    x = layers.Embedding(7, 5, mask_zero=True)(words)
    x = layers.Dense(4)(layers.LSTM(3)(x))
    found = {
        type(call.operation).__name__: keras_internals.mask_position(call)
        for call in keras_internals.calls(keras.Model(words, x))
    }
    assert found["LSTM"] == 1
    assert found["Embedding"] is found["Dense"] is None


def test_arguments_have_the_order_of_the_call():
    few, many = keras.Input((5, 4)), keras.Input((7, 4))
    attention = layers.MultiHeadAttention(2, 3)
    # Keras sorts them by name.
    x = attention(value=many, query=few, key=many)
    *_, call = keras_internals.calls(keras.Model([few, many], x))
    assert [x.shape[1] for x in call.inputs] == [5, 7, 7]
    for names, position in (
        (["query"], 0),
        (["key", "value"], 2),
        (["query_mask", "value"], 1),
        (["query_mask"], None),
        (["unknown"], None),
    ):
        assert keras_internals.argument_position(call, names) == position


def test_weights_that_keras_had_to_name_have_one_name():
    class Nameless(layers.Layer):
        def build(self, shape):
            self.add_weight(shape=(2,))
            self.add_weight(shape=(2,), name="given")

    for _ in range(2):
        layer = Nameless()
        layer.build((1, 2))
        names = [keras_internals.weight_name(w) for w in layer.weights]
        assert names == ["variable", "given"]


def test_a_tensor_knows_its_producer():
    model = networks.plain().model
    assert keras_internals.producer(model.outputs[0]) is model.layers[-1]
    assert keras_internals.producer(model.inputs[0]) is model.layers[0]


def test_inputs_and_outputs_keep_their_structure():
    x = keras.Input((4,), name="x")
    y = layers.Dense(3)(x)
    model = keras.Model({"x": x}, {"y": [y]})
    inputs, outputs = keras_internals.structures(model)
    assert set(inputs) == {"x"}
    assert outputs["y"][0] is y


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_the_scope_is_that_of_the_models_strategy(strategy):
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
        model.compile("sgd", "mse")
    assert not tf.distribute.has_strategy()
    with keras_internals.strategy_scope(model):
        assert tf.distribute.get_strategy() is strategy


def test_compile_arguments_are_carried_as_objects():
    def loss(y, y_predicted):
        return keras.ops.mean(y - y_predicted)

    model, smaller = networks.plain().model, networks.plain().model
    metric = keras.metrics.MeanAbsoluteError()
    model.compile(
        "sgd",
        loss,
        metrics=[metric],
        weighted_metrics=["mse"],
        run_eagerly=True,
        steps_per_execution=5,
    )
    optimizer = keras.optimizers.SGD()
    keras_internals.compile_like(model, smaller, optimizer)
    assert smaller.optimizer is optimizer
    assert smaller._compile_config.config["loss"] is loss
    assert smaller._compile_config.config["metrics"][0] is metric
    assert smaller._compile_config.config["weighted_metrics"] == ["mse"]
    assert (smaller.run_eagerly, smaller.steps_per_execution) == (True, 5)


def test_a_mixed_float16_model_gets_no_second_loss_scale():
    model, smaller = networks.plain().model, networks.plain().model
    model.compile("sgd", "mse", auto_scale_loss=True)
    model.optimizer = keras.optimizers.LossScaleOptimizer(model.optimizer)
    keras_internals.compile_like(model, smaller, model.optimizer)
    assert smaller.optimizer is model.optimizer


class WithAttributes(keras.Model):
    pass


def test_a_class_and_its_attributes_are_adopted():
    x = keras.Input((4,))
    y = layers.Dense(3, name="d")(x)
    model, smaller = WithAttributes(x, y), keras.Model(x, y)
    other = layers.Dense(3)
    model.answer, model.mine = 42, {"dense": [model.get_layer("d")]}
    clones = {id(model.get_layer("d")): other}
    adopt_class(smaller, model, clones)
    assert type(smaller) is WithAttributes
    assert smaller.answer == 42
    assert smaller.mine["dense"][0] is other
    assert model.mine["dense"][0] is model.get_layer("d")


def test_a_copied_optimizer_has_the_settings_and_no_slots():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    for rate in (0.25, schedule):
        optimizer = keras.optimizers.Adam(rate, beta_1=0.5, clipnorm=2.0)
        optimizer.build([keras.Variable(np.ones(3))])
        copy = keras_internals.copy_optimizer(optimizer)
        assert type(copy) is keras.optimizers.Adam
        assert (copy.beta_1, copy.clipnorm) == (0.5, 2.0)
        assert not copy.built
        assert len(optimizer.variables) == len(copy.variables) + 2
        assert (copy._learning_rate is schedule) == (rate is schedule)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_the_values_of_a_variable_are_those_of_now(dtype):
    variable = keras.Variable([[1, 2], [3, 4]], dtype=dtype)
    values = keras_internals.values_of(variable)
    np.testing.assert_array_equal(values.astype("float32"), [[1, 2], [3, 4]])
    variable.assign([[5, 6], [7, 8]])
    np.testing.assert_array_equal(values.astype("float32"), [[1, 2], [3, 4]])


def test_slots_are_made_without_values_and_an_optimizer_stays_as_it_was():
    inner = keras.optimizers.Ftrl(0.1)  # Its accumulators begin at 0.1.
    optimizer = keras.optimizers.LossScaleOptimizer(inner)
    weight, smaller = keras.Variable([[1.0, 2.0]]), keras.Variable([[1.0]])
    optimizer.build([weight])
    copy = keras_internals.copy_optimizer(optimizer)
    made = []

    class Recorded(keras_internals.Unfilled):
        def __call__(self, shape, dtype=None):
            made.append(tuple(shape))
            return super().__call__(shape, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras_internals.optimizer, "Unfilled", Recorded)
        keras_internals.build_copy(optimizer, copy, [(weight, smaller)])

    assert made.count((1, 1)) == 2
    assert copy.inner_optimizer.variables[-1].shape == (1, 1)
    for one, other in keras_internals.optimizer_pairs(optimizer, copy):
        assert vars(one).keys() == vars(other).keys()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32"])
def test_an_unfilled_variable_has_its_shape_and_dtype(dtype):
    for shape in ((), (2, 3)):
        variable = keras.Variable(
            keras_internals.Unfilled(), shape=shape, dtype=dtype
        )
        assert variable.shape == shape
        assert variable.dtype == dtype


def test_an_optimizers_variables_are_found_by_what_they_are():
    weights = [keras.Variable(np.ones(n)) for n in (2, 3)]
    optimizer = keras.optimizers.SGD(
        0.1, momentum=0.9, use_ema=True, gradient_accumulation_steps=2
    )
    outer = keras.optimizers.LossScaleOptimizer(optimizer)
    outer.build(weights)
    _, _, singles = keras_internals.optimizer_variables(outer)
    assert set(singles) >= {"dynamic_scale", "step_counter"}
    (inner,) = keras_internals.inner_optimizers(outer).values()
    assert inner is optimizer
    updated, slots, singles = keras_internals.optimizer_variables(optimizer)
    assert [id(v) for v in updated] == [id(v) for v in weights]
    assert set(slots) == {
        "momentums",
        "_model_variables_moving_average",
        "_accumulated_gradients",
    }
    for name, values in slots.items():
        assert [v.shape for v in values] == [(2,), (3,)], name
    assert set(singles) == {"_iterations", "_learning_rate"}
    # Nothing that an optimizer saves is missing.
    found = [*singles.values(), *(v for x in slots.values() for v in x)]
    assert {id(v) for v in found} == {id(v) for v in optimizer.variables}


def test_the_memory_of_a_device_is_that_of_the_machine_in_shares():
    share = device_bytes()
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    cpus = len(tf.config.list_logical_devices("CPU"))
    assert share == pytest.approx(total / cpus, rel=0.01)


def linear_fit(optimizer, ratio=1.0, count=lambda n: n, steps=3):
    """Returns a weight whose gradient is 1, after each of some steps."""
    weight = keras.Variable([0.0])
    optimizer.build([weight])
    if ratio is not None:
        keras_internals.scale_learning_rate(optimizer, ratio, count)
    path = []
    for _ in range(steps):
        optimizer.apply([keras.ops.ones(1)], [weight])
        path.append(float(weight.numpy()[0]))
    return path


WRAPPED = {
    "sgd": lambda rate: keras.optimizers.SGD(rate),
    "loss scale": lambda rate: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(rate), initial_scale=1.0
    ),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_the_learning_rate_of_a_step_is_scaled_and_what_is_shown_is_not(wrap):
    optimizer = wrap(0.5)
    path = linear_fit(optimizer, ratio=3.0)
    np.testing.assert_allclose(path, [-1.5, -3.0, -4.5])
    assert float(optimizer.learning_rate) == 0.5
    optimizer.learning_rate = 0.1  # A callback changes it: scaled in turn.
    weight = keras_internals.optimizer_variables(
        keras_internals.leaf_optimizers(optimizer)[0]
    )[0][0]
    optimizer.apply([keras.ops.ones(1)], [weight])
    np.testing.assert_allclose(weight.numpy(), [-4.8], rtol=1e-6)


def test_the_scale_is_not_compounded_and_can_be_taken_off():
    optimizer = keras.optimizers.SGD(0.5)
    for ratio in (2.0, 3.0):
        keras_internals.scale_learning_rate(optimizer, ratio, lambda n: n)
    assert linear_fit(optimizer, ratio=None, steps=1) == [-1.5]
    keras_internals.restore_learning_rate(optimizer)
    assert "apply" not in vars(optimizer)
    weight = optimizer._trainable_variables[0]
    optimizer.apply([keras.ops.ones(1)], [weight])
    assert float(weight.numpy()[0]) == -2.0


def test_a_schedule_is_read_at_another_step_and_scaled():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [5], [1.0, 0.1]
    )
    optimizer = keras.optimizers.SGD(schedule)
    path = linear_fit(optimizer, 2.0, lambda n: 3 * n, steps=4)
    # Steps 0, 3, 6 and 9 of the schedule.
    steps = np.diff([0.0, *path])
    np.testing.assert_allclose(steps, [-2, -2, -0.2, -0.2], rtol=1e-5)
    assert float(optimizer.learning_rate) == pytest.approx(0.1)
    assert optimizer.get_config()["learning_rate"]["config"]["boundaries"] == [
        5
    ]


def test_the_rate_of_the_next_step_is_known_of_a_schedule():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [1], [1.0, 0.1]
    )
    for wrap in WRAPPED.values():
        optimizer = wrap(schedule)
        weight = keras.Variable([0.0])
        optimizer.build([weight])
        rates = []
        for _ in range(3):
            rates.append(keras_internals.scheduled_rate(optimizer))
            optimizer.apply([keras.ops.ones(1)], [weight])
        # The step at the boundary has the rate before it.
        np.testing.assert_allclose(rates, [1.0, 1.0, 0.1], rtol=1e-6)
        assert keras_internals.scheduled_rate(wrap(0.5)) is None


def test_decoupled_weight_decay_is_scaled_as_well():
    optimizer = keras.optimizers.SGD(0.5, weight_decay=0.1)
    weight = keras.Variable([1.0])
    optimizer.build([weight])
    keras_internals.scale_learning_rate(optimizer, 2.0, lambda n: n)
    optimizer.apply([keras.ops.zeros(1)], [weight])
    np.testing.assert_allclose(weight.numpy(), [0.9])


def test_calls_that_read_a_tensor_are_found_in_all_models():
    x = keras.Input((4,))
    first, other = keras.layers.Dense(3), keras.layers.Add()
    y = first(x)
    keras.Model(x, other([y, keras.layers.Dense(3)(x)]))
    last = keras.layers.ReLU()
    keras.Model(x, last(y))
    found = [x.operation for x in keras_internals.calls_reading(y)]
    assert found == [other, last]
    assert keras_internals.calls_reading(last.output) == []

"""What people bring besides ResNets: odd graphs, subclasses, optimizers."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_prunetrain import PruneTrainCallback, channel_report, reconfigure
from tests import networks
from tests.callbacks.fits import Kill, examples, graph, network, widths
from tests.networks import images, kill, outputs, shake


def compiled(model, optimizer="sgd"):
    model.compile(optimizer, "mse", run_eagerly=True)
    shake(model)
    return model


def check_cut(model):
    """Reconfigures `model` and checks that it is the same function."""
    smaller = reconfigure(model)
    assert smaller.count_params() < model.count_params()
    np.testing.assert_allclose(
        outputs(smaller, images()), outputs(model, images()), rtol=1e-5
    )
    return smaller


def two_convolutions(between=lambda x: x):
    image = keras.Input((6, 6, 2))
    x = between(layers.Conv2D(6, 3, name="a")(image))
    x = layers.Conv2D(4, 3, name="b")(x)
    return keras.Model(image, networks.head(x))


def test_a_model_without_weights_that_is_called_twice_couples_its_inputs():
    inside = keras.Input((4, 4, 6))
    twice = keras.Model(inside, layers.ReLU()(inside), name="twice")
    image = keras.Input((6, 6, 2))
    p = layers.Conv2D(6, 3, name="p")(image)
    q = layers.Conv2D(6, 3, name="q")(image)
    p = layers.Conv2D(4, 3, name="p2")(twice(p))
    q = layers.Conv2D(4, 3, name="q2")(twice(q))
    model = compiled(
        keras.Model(image, networks.head(layers.Concatenate()([p, q])))
    )
    kill(model, {"p": [1, 2], "q": [1]}, {"p2": [1, 2], "q2": [1]})

    smaller = check_cut(model)

    assert smaller.get_layer("p").filters == 5
    assert smaller.get_layer("q").filters == 5


def test_what_stands_in_two_models_couples_its_inputs_in_both():
    relu = keras.Input((4, 4, 6))
    relu = keras.Model(relu, layers.ReLU()(relu), name="relu")
    reshape = layers.Reshape((16, 6), name="reshape")
    inside = keras.Input((4, 4, 6))
    inner = keras.Model(inside, reshape(relu(inside)), name="inner")
    image = keras.Input((6, 6, 2))
    p = layers.Conv2D(6, 3, name="p")(image)
    q = layers.Conv2D(6, 3, name="q")(image)
    p = layers.Conv1D(4, 1, name="p2")(inner(p))
    q = layers.Conv1D(4, 1, name="q2")(reshape(relu(q)))
    x = layers.GlobalAveragePooling1D()(layers.Concatenate()([p, q]))
    model = compiled(keras.Model(image, layers.Dense(3, name="logits")(x)))
    kill(model, {"p": [1, 2], "q": [1]}, {"p2": [1, 2], "q2": [1]})

    smaller = check_cut(model)

    assert smaller.get_layer("p").filters == 5
    assert smaller.get_layer("q").filters == 5


@pytest.mark.parametrize("built", [False, True])
def test_a_layer_in_two_wrappers_is_one_layer_afterwards(built):
    shared = layers.Dense(4, name="shared")
    image = keras.Input((6, 6, 2))
    x = layers.TimeDistributed(shared, name="one")(image)
    y = layers.TimeDistributed(shared, name="two")(2.0 * image)
    x = layers.Concatenate()([x, y, shared(-image)])
    model = compiled(keras.Model(image, networks.head(x)))
    if built:
        model.optimizer.build(model.trainable_variables)
    kernel = shared.kernel.numpy()
    kernel[:, 1] = 0.0
    shared.kernel.assign(kernel)
    kill(model, reads={"logits": [1, 5, 9]})

    smaller = check_cut(model)

    one, two = (smaller.get_layer(name).layer for name in ("one", "two"))
    assert one is two is smaller.get_layer("shared")
    y = np.random.default_rng(0).normal(size=(6, 3))
    for m in (model, smaller):
        m.train_on_batch(images(), y)
    np.testing.assert_allclose(
        one.kernel, np.delete(shared.kernel, 1, axis=-1), rtol=1e-5
    )


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(4, 3, groups=4, padding="same"),
        layers.DepthwiseConv2D(3, padding="same"),
    ],
)
def test_a_norm_of_a_depthwise_kernel_holds_its_channels(layer):
    image = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="a")(image)
    x = layers.SpectralNormalization(layer, name="norm")(x)
    model = compiled(keras.Model(image, networks.head(x)))
    kill(model, {"a": [1]}, {"logits": [1]})
    assert reconfigure(model) is model
    held = channel_report(model)[0].held_by
    assert held[0].startswith("norm (SpectralNormalization): ")


@pytest.mark.parametrize(
    "widen",
    [
        lambda x: x[:, None],
        lambda x: keras.ops.expand_dims(x, -1),
        lambda x: keras.ops.reshape(x, (-1, 1)),
    ],
)
def test_one_number_for_each_example_has_no_channels(widen):
    image, gate = keras.Input((6, 6, 2)), keras.Input(())
    x = layers.Conv2D(4, 3, name="a")(image)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(3, name="b")(x) * widen(gate)
    model = compiled(keras.Model([image, gate], x))
    kill(model, {"a": [1]}, {"b": [1]})

    smaller = reconfigure(model)

    assert smaller.get_layer("a").filters == 3
    x = [images(), np.arange(6.0)]
    np.testing.assert_allclose(
        outputs(smaller, x), outputs(model, x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "between",
    [
        lambda x: layers.Add()([x, np.ones((1, 4, 4, 6), "float32")]),
        layers.Rescaling(np.full((1, 1, 6), 2.0), offset=0.5),
    ],
    ids=["an array is added", "the scale is an array"],
)
def test_arrays_of_fixed_size_hold_the_channels_they_meet(between):
    model = compiled(two_convolutions(between))
    kill(model, {"a": [1], "b": [2]}, {"b": [1], "logits": [2]})

    smaller = check_cut(model)

    assert smaller.get_layer("a").filters == 6
    assert smaller.get_layer("b").filters == 3


def test_the_offset_of_a_branch_takes_a_free_name():
    image = keras.Input((6, 6, 2))
    stem = layers.Conv2D(6, 3, padding="same", name="stem")(image)
    other = layers.Conv2D(6, 3, padding="same", name="other")(image)
    x = layers.Conv2D(4, 3, padding="same", name="x1")(stem)
    x = layers.Conv2D(6, 3, padding="same", name="x2")(x)
    x = layers.Add(name="add")([stem, x, other])
    x = layers.ReLU(name="add_constant")(x)
    model = compiled(keras.Model(image, networks.head(x)))
    kill(model, {"x1": [0, 1, 2, 3]}, {"x2": [0, 1, 2, 3]})

    smaller = check_cut(model)

    assert smaller.get_layer("add_constant_").offset.shape == (6,)


def test_what_only_a_removed_branch_held_goes_with_it():
    image = keras.Input((6, 6, 2))
    stem = layers.Conv2D(6, 3, padding="same", name="stem")(image)
    x = layers.Conv2D(4, 3, padding="same", name="x1")(stem)
    x = layers.Conv2D(4, 3, padding="same", name="x2")(x)
    x = layers.Conv2D(6, 3, padding="same", name="x3")(x)
    x = layers.Add(name="add")([stem, x])
    model = compiled(keras.Model(image, networks.head(x)))
    # Channel 5 of the stem is read by the first layer of the branch only.
    kill(model, {"stem": [5], "x3": [5]}, {"logits": [5]})
    kill(model, {"x2": [0, 1, 2, 3]}, {"x2": [0, 1, 2, 3], "x3": [0, 1, 2, 3]})

    smaller = check_cut(model)

    assert smaller.get_layer("stem").filters == 5
    assert reconfigure(smaller) is smaller


def test_functions_are_carried_as_objects():
    model = two_convolutions(
        lambda x: layers.Lambda(lambda y: y + 1.0)(
            layers.Conv2D(6, 1, activation=lambda y: y * abs(y), name="mine")(x)
        )
    )
    compiled(model)
    kill(model, {"b": [2]}, {"logits": [2]})

    smaller = check_cut(model)

    mine = smaller.get_layer("mine")
    assert mine.activation is model.get_layer("mine").activation


def test_a_dead_layer_with_an_activity_regularizer_is_not_called():
    image = keras.Input((6, 6, 2))
    stem = layers.Conv2D(6, 3, padding="same", name="stem")(image)
    x = layers.Conv2D(
        4, 3, padding="same", activity_regularizer="l2", name="x1"
    )(stem)
    x = layers.Conv2D(6, 3, padding="same", name="x2")(x)
    x = layers.Add(name="add")([stem, x])
    model = compiled(keras.Model(image, networks.head(x)))
    kill(model, {"x1": [0, 1, 2, 3]}, {"x2": [0, 1, 2, 3]})
    before = len(model.losses)

    reconfigure(model)

    assert len(model.losses) == before


@pytest.mark.parametrize("pure", [True, False])
@pytest.mark.parametrize("by", ["name", "variable"])
def test_what_is_excluded_from_weight_decay_stays_excluded(by, pure):
    model = network()
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    if by == "name":
        optimizer.exclude_from_weight_decay(var_names=["kernel"])
    else:
        kernel = model.get_layer("last").kernel
        optimizer.exclude_from_weight_decay(var_list=[kernel])
    model.compile(optimizer, model.loss, run_eagerly=True)
    if pure:
        model.fit(*examples(), callbacks=[Kill({0: {"inner": [1]}})], verbose=0)
        model = reconfigure(model)
    else:
        model.fit(
            *examples(),
            epochs=2,
            callbacks=[
                Kill({0: {"inner": [1]}}),
                PruneTrainCallback(interval=1),
            ],
            verbose=0,
        )

    assert widths(model)["inner"] == 5
    decays = model.optimizer._use_weight_decay
    assert not decays(model.get_layer("last").kernel)
    assert decays(model.get_layer("stem_bn").gamma)


class WithTemperature(keras.Model):
    """Learns a weight that no layer of its graph has."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.temperature = self.add_weight(
            shape=(), initializer="ones", name="temperature"
        )

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training) / self.temperature


def test_weights_outside_the_graph_go_on_learning():
    model = network(model_class=WithTemperature)
    before = float(model.temperature.numpy())
    epochs = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            epochs.append(float(self.model.temperature.numpy()))

    model.fit(
        *examples(),
        epochs=3,
        callbacks=[
            Kill({0: {"inner": [1]}}),
            PruneTrainCallback(interval=1),
            Watch(),
        ],
        verbose=0,
    )

    assert widths(model)["inner"] == 5
    assert len({before, *epochs}) == 4
    assert any(v is model.temperature for v in model.trainable_variables)


def test_an_optimizer_whose_slots_cannot_be_cut_is_refused_before_training():
    model = network(compiled={"optimizer": keras.optimizers.Adafactor()})
    with pytest.raises(ValueError, match="state of Adafactor.*has shape"):
        model.fit(*examples(), callbacks=[PruneTrainCallback()], verbose=0)
    assert model.optimizer.iterations == 0


class Rate(keras.optimizers.schedules.LearningRateSchedule):
    """Has no config."""

    def __call__(self, step):
        return 0.01


def test_a_schedule_is_carried_as_an_object():
    rate = Rate()
    model = network(compiled={"optimizer": keras.optimizers.SGD(rate)})
    model.fit(*examples(), callbacks=[Kill({0: {"inner": [1]}})], verbose=0)

    smaller = reconfigure(model)

    assert smaller.optimizer._learning_rate is rate
    assert model.optimizer._learning_rate is rate


class Unrepeatable(keras.optimizers.SGD):
    def __init__(self, rate):
        super().__init__(rate)


def test_an_optimizer_without_a_true_config_is_refused_before_training():
    model = network(compiled={"optimizer": Unrepeatable(0.1)})
    with pytest.raises(ValueError, match="second Unrepeatable .*get_config"):
        model.fit(*examples(), callbacks=[PruneTrainCallback()], verbose=0)


def test_two_callbacks_in_one_fit_are_refused():
    model = network()
    both = [PruneTrainCallback(), PruneTrainCallback()]
    with pytest.raises(ValueError, match="two callbacks that make the model"):
        model.fit(*examples(), callbacks=both, verbose=0)


def test_patterns_of_skip_are_resolved_for_each_model():
    pruning = PruneTrainCallback(interval=1, reconfigure={"skip": ["in*"]})
    network().fit(*examples(), callbacks=[pruning], verbose=0)
    image, _ = graph()
    x = layers.Conv2D(4, 3, name="input_like")(image)
    outputs = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    other = keras.Model(image, outputs)
    other.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    other.fit(*examples(), callbacks=[pruning], verbose=0)
    assert pruning.reports == []


@pytest.mark.parametrize("executed", [1, 16])
def test_batch_size_of_a_report_is_that_of_its_fit(executed):
    model = network(
        compiled={"steps_per_execution": executed, "run_eagerly": executed == 1}
    )
    pruning = PruneTrainCallback(interval=1)
    for size, dead in ((8, 1), (20, 2)):
        model.fit(
            *examples(),
            batch_size=size,
            callbacks=[Kill({0: {"inner": [dead]}}), pruning],
            verbose=0,
        )
    assert [report.batch_size for report in pruning.reports] == [8, 20]


def test_density_in_the_history_counts_the_cut_after_an_early_stop():
    model = network()

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    history = model.fit(
        *examples(),
        epochs=5,
        callbacks=[
            PruneTrainCallback(interval=10),
            Kill({0: {"inner": [1]}}),
            Stop(),
        ],
        verbose=0,
    ).history
    assert widths(model)["inner"] == 5
    assert history["density"][-1] < 1.0


@pytest.mark.parametrize("change", ["lora", "quantize"])
def test_lora_and_quantized_layers_hold_their_channels_and_stay(change):
    image = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="a", activation="relu")(image)
    x = layers.Conv2D(4, 3, name="b")(x)
    x = layers.GlobalMaxPooling2D()(x)
    x = layers.Dense(5, name="changed")(x)
    model = keras.Model(image, layers.Dense(3, name="c")(x))
    shake(model)
    kill(model, {"a": [2], "b": [1]}, {"b": [2], "changed": [1]})
    if change == "lora":
        model.get_layer("changed").enable_lora(2)
        model.get_layer("changed").lora_kernel_b.assign(np.ones((2, 5)))
    else:
        model.get_layer("changed").quantize("int8")
    model.compile("sgd", "mse")

    smaller = reconfigure(model)

    assert smaller.get_layer("a").filters == 3
    assert smaller.get_layer("b").filters == 4
    held = channel_report(model)[1].held_by[0]
    assert held.startswith("changed (Dense): its rule does not say where")
    x = images().astype("float32")
    np.testing.assert_allclose(
        outputs(smaller, x), outputs(model, x), atol=1e-5
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("fold", [False, True])
def test_images_of_any_size(fold):
    """With operations that are asked on a stand-in for the unknown size."""
    image = keras.Input((None, None, 2))
    x = layers.Conv2D(6, 3, padding="same", name="a")(image)
    x = layers.ZeroPadding2D()(layers.UpSampling2D()(x))
    left, right = keras.ops.split(x, 2, axis=-1)
    x = keras.ops.concatenate([left * right, x[..., 1:5]], axis=-1)
    x = layers.Conv2D(4, 3, name="b")(keras.ops.flip(x, axis=1))
    x = keras.ops.max(x, axis=(1, 2))
    model = compiled(keras.Model(image, layers.Dense(3, name="c")(x)))
    # 1 and 4 are multiplied with each other: 0 3, 1 4, 2 5, and 1 2 3 4.
    kill(model, {"a": [1, 4], "b": [2]}, {"b": [1, 3, 6], "c": [2]})

    smaller = reconfigure(model, fold=fold)

    assert smaller.input_shape == (None, None, None, 2)
    assert (smaller.get_layer("a").filters, smaller.get_layer("b").filters) == (
        *(4, 3),
    )
    for size in (5, 8):
        x = images(shape=(size, size + 1, 2))
        np.testing.assert_allclose(
            outputs(smaller, x), outputs(model, x), atol=1e-12
        )


def test_a_sparse_input_stays_sparse():
    words = keras.Input((6,), sparse=True)
    x = layers.Dense(4, activation="relu", name="a")(words)
    model = compiled(keras.Model(words, layers.Dense(3, name="b")(x)))
    kill(model, {"a": [1]}, {"b": [1]})

    smaller = reconfigure(model)

    assert smaller.inputs[0].sparse
    x = np.eye(6, dtype="float32")
    np.testing.assert_allclose(
        outputs(smaller, x), outputs(model, x), atol=1e-6
    )


def test_a_ragged_input_stays_ragged():
    # Keras 3.15 builds such a model, but fails when it runs a layer of it.
    lines = keras.Input((None, 4), ragged=True)
    x = layers.Dense(4, name="a")(lines)
    x = layers.GlobalAveragePooling1D()(x)
    model = compiled(keras.Model(lines, layers.Dense(3, name="b")(x)))
    kill(model, {"a": [1]}, {"b": [1]})

    smaller = reconfigure(model)

    assert smaller.inputs[0].ragged
    assert smaller.get_layer("a").units == 3


def test_a_tensor_without_channels_is_left_alone():
    image = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="a")(image)
    nothing = keras.ops.split(x, [0], axis=-1)[0]
    x = layers.Concatenate()([nothing, layers.Conv2D(3, 1, name="b")(x)])
    x = layers.GlobalMaxPooling2D()(x)
    model = compiled(keras.Model(image, layers.Dense(3, name="c")(x)))
    kill(model, {"a": [1], "b": [2]}, {"b": [1], "c": [2]})

    smaller = reconfigure(model)

    assert smaller.get_layer("b").filters == 2
    x = images().astype("float32")
    np.testing.assert_allclose(
        outputs(smaller, x), outputs(model, x), atol=1e-6
    )

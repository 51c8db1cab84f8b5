"""Whatever ends `fit`: the model is an ordinary one afterwards.

A table of the places in `fit` at which the user's code runs. At each of them an
exception ends a training in which everything that the callback changes is
changed: a lasso is on, the batch has grown and the learning rate with it.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_prunetrain as kpt

COUNT = 12


class Broken(Exception):
    pass


class Fuse:
    """Raises at one of its calls, the first one that is not before `ready`."""

    def __init__(self, error=Broken):
        self.error = error
        self.is_ready = False

    def __call__(self):
        if self.is_ready:
            raise self.error


class Ready(keras.callbacks.Callback):
    """Lets the fuse blow from the third epoch on: the batch has grown."""

    def __init__(self, fuse):
        super().__init__()
        self.fuse = fuse

    def on_epoch_begin(self, epoch, logs=None):
        self.fuse.is_ready = epoch >= 2


HOOKS = (
    *("on_train_begin", "on_epoch_begin", "on_train_batch_begin"),
    *("on_train_batch_end", "on_test_begin", "on_test_batch_begin"),
    *("on_test_batch_end", "on_test_end", "on_epoch_end", "on_train_end"),
)
# What comes between is left to `make test-long`.
ENDS = "on_train_begin", "on_epoch_end", "on_train_end"


def raising_in(hook, fuse):
    """A callback whose `hook` blows the fuse."""

    def method(self, *args, **kwargs):
        fuse()

    return type("Raising", (keras.callbacks.Callback,), {hook: method})()


class Loss(keras.losses.Loss):
    def __init__(self, fuse):
        super().__init__()
        self.fuse = fuse

    def call(self, y_true, y_pred):
        self.fuse()
        return keras.losses.sparse_categorical_crossentropy(
            y_true, y_pred, from_logits=True
        )


class Metric(keras.metrics.Mean):
    """Blows the fuse in one of its methods."""

    def __init__(self, fuse, method):
        super().__init__(name="watched")
        self.fuse, self.method = fuse, method

    def update_state(self, y_true, y_pred, sample_weight=None):
        if self.method == "update_state":
            self.fuse()
        return super().update_state(y_pred, sample_weight)

    def reset_state(self):
        if self.method == "reset_state":
            self.fuse()
        super().reset_state()

    def result(self):
        if self.method == "result":
            self.fuse()
        return super().result()


class Layer(keras.layers.Layer):
    fuse = staticmethod(lambda: None)

    def call(self, x):
        if not isinstance(x, keras.KerasTensor):
            Layer.fuse()
        return x

    def compute_output_shape(self, input_shape):
        return input_shape


class Batches(keras.utils.PyDataset):
    def __init__(self, fuse):
        super().__init__()
        self.fuse = fuse

    def __len__(self):
        return 2

    def __getitem__(self, i):
        if i:
            self.fuse()
        return tuple(x[4 * i : 4 * i + 4] for x in arrays())


def batches_of(fuse):
    """A generator that blows the fuse at its first batch."""
    fuse()
    yield arrays()


def arrays():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=COUNT).astype("int32")
    return rng.normal(size=(COUNT, 4)).astype("float32"), labels


def network(own_lasso=None, loss=None, metrics=()):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = Layer(name="watched")(inputs)  # No rule: it freezes the inputs.
    x = keras.layers.Dense(
        6, activation="relu", name="hidden", kernel_regularizer=own_lasso
    )(x)
    outputs = keras.layers.Dense(3, name="logits")(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=list(metrics),
        run_eagerly=True,
    )
    return model


class KillOne(keras.callbacks.Callback):
    """A hidden channel dies in the second epoch."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            hidden, logits = map(self.model.get_layer, ("hidden", "logits"))
            kernel, bias = hidden.get_weights()
            kernel[:, 2] = bias[2] = 0.0
            hidden.set_weights([kernel, bias])
            kernel, bias = logits.get_weights()
            kernel[2] = 0.0
            logits.set_weights([kernel, bias])


def broken_fit(
    model, fuse, *, front=(), behind=(), data=None, finetune_epochs=0, **kwargs
):
    """Trains until the fuse blows; checks that the exception comes through."""
    batch = None
    if data is None:
        batch = kpt.DynamicBatch(4, 4, memory_budget=2**20)
        data = batch.arrays(*arrays(), shuffle=False)
    pruning = kpt.PruneTrainCallback(
        0.5, interval=2, batch=batch, finetune_epochs=finetune_epochs
    )
    callbacks = [KillOne(), Ready(fuse), *front, pruning, *behind]
    kwargs.setdefault("validation_data", arrays())
    with pytest.raises((fuse.error, tf.errors.UnknownError)):
        model.fit(
            data,
            epochs=4,
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
            **kwargs,
        )
    fuse.is_ready = False
    return pruning, batch


def assert_ordinary(model, tmp_path, own_factor=None):
    """It has nothing of the callback on it, and trains as a loaded file."""
    for weight in model.weights:
        assert not hasattr(weight.regularizer, "lasso")
    assert not {"apply", "_get_current_learning_rate"} & set(
        vars(model.optimizer)
    )
    assert model.stop_training in (True, False)
    path = tmp_path / "model.keras"
    model.save(path)
    custom = {"Layer": Layer, "Loss": Loss}
    plain = keras.saving.load_model(path, custom, compile=False)
    if own_factor is not None:
        for each in (model, plain):
            regularizer = each.get_layer("hidden").kernel_regularizer
            assert regularizer.factor == pytest.approx(own_factor)
    plain.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    if model.optimizer.built:
        plain.optimizer.build(plain.trainable_variables)
        for new, old in zip(
            plain.optimizer.variables, model.optimizer.variables, strict=True
        ):
            new.assign(old)
    losses = [  # Each with what penalties there are.
        each.fit(*arrays(), batch_size=4, shuffle=False, verbose=0).history[
            "loss"
        ]
        for each in (model, plain)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for one, other in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        *((hook, place) for hook in ENDS for place in ("front", "behind")),
        *(
            pytest.param(hook, place, marks=pytest.mark.long)
            for hook, place in (
                *((hook, "behind") for hook in HOOKS),
                *((hook, "front") for hook in HOOKS if "_batch_" not in hook),
            )
            if hook not in ENDS
        ),
    ],
)
def test_a_callback_raises(hook, place, tmp_path):
    fuse, model = Fuse(), network()
    fuse.is_ready = hook == "on_train_begin"
    pruning, batch = broken_fit(
        model, fuse, **{place: [raising_in(hook, fuse)]}
    )
    if hook != "on_train_begin":
        assert batch.size == 12
    assert_ordinary(model, tmp_path)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        *(("loss", Broken), ("loss", KeyboardInterrupt), ("layer", Broken)),
        *(("update_state", Broken), ("result", Broken)),
        *(("reset_state", Broken), ("reset_state", KeyboardInterrupt)),
    ],
)
def test_the_model_raises(place, error, tmp_path, monkeypatch):
    fuse, parts = Fuse(error), {}
    if place == "loss":
        parts["loss"] = Loss(fuse)
    elif place == "layer":
        monkeypatch.setattr(Layer, "fuse", staticmethod(fuse))
    else:
        parts["metrics"] = [Metric(fuse, place)]
    model = network(**parts)
    broken_fit(model, fuse)
    assert_ordinary(model, tmp_path)


def test_the_data_raise(tmp_path):
    fuse, model = Fuse(), network()
    broken_fit(model, fuse, data=Batches(fuse))
    assert_ordinary(model, tmp_path)


@pytest.mark.parametrize("kind", [Batches, batches_of])
def test_the_validation_data_raise(kind, tmp_path):
    fuse, model = Fuse(), network()
    broken_fit(model, fuse, validation_data=kind(fuse), validation_freq=3)
    assert_ordinary(model, tmp_path)


def test_the_update_raises(tmp_path):
    fuse, model = Fuse(KeyboardInterrupt), network()

    class Optimizer(keras.optimizers.SGD):
        def update_step(self, *args):
            fuse()
            super().update_step(*args)

    model.compile(Optimizer(0.01, momentum=0.9), model.loss, run_eagerly=True)
    broken_fit(model, fuse)
    assert_ordinary(model, tmp_path)


def test_the_end_of_moving_averages_raises(tmp_path):
    fuse, model = Fuse(), network()

    class Optimizer(keras.optimizers.SGD):
        def finalize_variable_values(self, variables):
            fuse()

    model.compile(Optimizer(0.01, momentum=0.9), model.loss, run_eagerly=True)
    broken_fit(model, fuse)
    assert_ordinary(model, tmp_path)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_epoch_end"])
def test_a_lasso_of_the_users_own_has_its_factor_back(hook, tmp_path):
    # The third epoch is one of fine-tuning: the factor is 0 there.
    fuse, model = Fuse(), network(own_lasso=kpt.GroupLasso(0.01, (-1,)))
    raising = raising_in(hook, fuse)
    broken_fit(model, fuse, behind=[raising], finetune_epochs=2)
    assert_ordinary(model, tmp_path, own_factor=0.01)


def test_the_traced_steps_are_made_anew(tmp_path):
    fuse, model = Fuse(), network()
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9), model.loss, run_eagerly=False
    )
    broken_fit(model, fuse, behind=[raising_in("on_epoch_end", fuse)])
    assert_ordinary(model, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_replicas_are_left_ordinary(strategy, tmp_path):
    with strategy.scope():
        model = network()
    fuse = Fuse()
    broken_fit(model, fuse, behind=[raising_in("on_epoch_end", fuse)])
    for weight in model.weights:
        assert weight.regularizer is None
    assert "apply" not in vars(model.optimizer)


def test_what_fit_told_the_callbacks_is_as_it_was():
    fuse, model = Fuse(), network()
    bar = keras.callbacks.ProgbarLogger()
    history = keras.callbacks.History()
    broken_fit(
        model,
        fuse,
        front=[history],
        behind=[bar, raising_in("on_train_batch_end", fuse)],
    )
    assert bar.target == history.params["steps"] == 3


def test_a_refusal_before_the_first_step_changes_nothing(tmp_path):
    log_dir = tmp_path / "log"
    data, model = arrays(), network()
    for _ in range(2):
        pruning = kpt.PruneTrainCallback(log_dir=log_dir)
        before = vars(model).keys(), vars(model.optimizer).keys()
        try:
            model.fit(*data, verbose=0, callbacks=[pruning])
        except ValueError as error:
            assert "holds the log of another run" in str(error)
    assert vars(model).keys() == before[0]
    assert vars(model.optimizer).keys() == before[1]
    assert_ordinary(model, tmp_path)


@pytest.mark.parametrize("by", ["another callback", "another model"])
def test_the_next_fit_cleans_up_where_nobody_saw_the_end(by):
    # Whoever holds the traceback holds what `fit` holds: no finalizer acts.
    fuse = Fuse(KeyboardInterrupt)
    model = network(
        kpt.GroupLasso(0.01, (-1,)), metrics=[Metric(fuse, "reset_state")]
    )
    pruning = kpt.PruneTrainCallback(0.5, finetune_epochs=2)

    class Second(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            fuse.is_ready = epoch == 1

    with pytest.raises(KeyboardInterrupt) as held:
        model.fit(*arrays(), epochs=3, verbose=0, callbacks=[pruning, Second()])
    fuse.is_ready = False
    lasso = model.get_layer("hidden").kernel.regularizer
    assert lasso.factor == 0.0
    if by == "another callback":
        other = kpt.PruneTrainCallback(0.5)
        model.fit(*arrays(), verbose=0, callbacks=[other])
        assert other.factor == pytest.approx(0.01)
    else:
        network().fit(*arrays(), epochs=3, verbose=0, callbacks=[pruning])
    assert lasso.factor == pytest.approx(0.01)
    del held

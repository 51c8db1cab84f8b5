"""A model that has been replaced by a smaller one leaves memory."""

import gc
import weakref

import keras
import numpy as np
import pytest

import keras_prunetrain as kpt
from keras_prunetrain.keras_internals.gradients import _registry
from tests.optimizers import ELEMENTWISE
from tests.resident import resident_bytes


def network(optimizer, units=8):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(units, name="first", activation="silu")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dense(6, name="second")(x)
    model = keras.Model(inputs, keras.layers.Dense(1, name="last")(x))
    model.compile(optimizer, "mse")
    return model


class Kill(keras.callbacks.Callback):
    """Sets the last channel of `first` to zero at the end of each epoch."""

    def on_epoch_end(self, epoch, logs=None):
        for name, axis in (("first", -1), ("second", -2)):
            kernel = self.model.get_layer(name).kernel
            array = np.array(keras.ops.convert_to_numpy(kernel))
            array = np.moveaxis(array, axis, 0)
            array[-1] = 0.0
            kernel.assign(np.moveaxis(array, 0, axis))


class Watch(keras.callbacks.Callback):
    """Notes which memories of weights and slots are there, by epoch."""

    def __init__(self):
        super().__init__()
        self.memories = []
        self.registered = []

    def on_train_batch_end(self, batch, logs=None):
        variables = [*self.model.variables, *self.model.optimizer.variables]
        values = [v.value for v in variables if len(v.shape)]
        self.memories.append(
            [
                weakref.ref(component.handle)
                for value in values
                for component in getattr(value, "values", [value])
            ]
        )
        self.registered.append(len(_registry()))

    def in_use(self):
        return [
            sum(memory() is not None for memory in memories)
            for memories in self.memories
        ]


class InUse(keras.callbacks.Callback):
    """Asks a `Watch` in front after each epoch, when the surgery is done."""

    def __init__(self, watch):
        super().__init__()
        self.watch = watch
        self.found = []

    def on_epoch_end(self, epoch, logs=None):
        self.found.append(self.watch.in_use())


def train(model, callbacks=(), epochs=3, **kwargs):
    watch = Watch()
    in_use = InUse(watch)
    x, y = np.ones((4, 4), "float32"), np.ones((4, 1), "float32")
    pruning = kpt.PruneTrainCallback(interval=1)
    model.fit(
        x,
        y,
        epochs=epochs,
        verbose=0,
        callbacks=[Kill(), watch, pruning, *callbacks, in_use],
        **kwargs,
    )
    assert len(pruning.reports) == epochs
    return watch, in_use


def scaled():
    adam = keras.optimizers.AdamW(0.01, weight_decay=0.1, use_ema=True)
    return keras.optimizers.LossScaleOptimizer(adam)


@pytest.mark.parametrize(
    "optimizer",
    [scaled, pytest.param(ELEMENTWISE["multi"], marks=pytest.mark.long)],
)
def test_old_weights_and_slots_are_freed_by_each_reconfiguration(optimizer):
    watch, in_use = train(network(optimizer()))
    assert all(watch.memories)
    assert in_use.found == [[0] * (i + 1) for i in range(3)]
    # The first step of all builds metrics and more, which stay.
    assert len(set(watch.registered[1:])) == 1


@pytest.mark.long
def test_old_weights_of_pruned_data_gradients_are_freed_as_well():
    sdgp = kpt.SDGPCallback(1, 2, "mvue", layers=["first", "second"])
    watch, in_use = train(network("sgd"), [sdgp])
    assert in_use.found == [[0] * (i + 1) for i in range(3)]
    assert len(set(watch.registered[1:])) == 1


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_old_weights_are_freed_on_all_replicas_and_beside_a_log(
    strategy, tmp_path
):
    with strategy.scope():
        model = network(keras.optimizers.Adam(0.01))
    x, y = np.ones((2, 4), "float32"), np.ones((2, 1), "float32")
    watch, in_use = train(
        model, [kpt.DensityLog(tmp_path)], validation_data=(x, y)
    )
    assert in_use.found == [[0] * (i + 1) for i in range(3)]
    assert len(set(watch.registered[1:])) == 1


class Resident(keras.callbacks.Callback):
    """Notes the resident memory after each reconfiguration."""

    def __init__(self):
        super().__init__()
        self.bytes = []

    def on_epoch_end(self, epoch, logs=None):
        self.bytes.append(resident_bytes())


@pytest.mark.long
def test_resident_memory_stays_over_many_reconfigurations():
    # `make bench` has a long run, of a large network, on two replicas as well.
    resident = Resident()
    train(network("adam", units=16), [resident], epochs=15)
    growth = (resident.bytes[-1] - resident.bytes[4]) / 10
    assert growth < 500_000  # 1.1 MB if what TensorFlow prepared is kept.


def test_a_model_that_reconfigure_returned_lets_the_old_one_go():
    model = network("sgd")
    x, y = np.ones((4, 4), "float32"), np.ones((4, 1), "float32")
    watch, kill = Watch(), Kill()
    model.fit(x, y, verbose=0, callbacks=[watch, kill])
    smaller = kpt.reconfigure(model)
    model.fit(x, y, verbose=0)  # It is whole.
    assert sum(watch.in_use()) > 0
    watch.set_model(smaller)
    kill.set_model(smaller)
    del model
    gc.collect()
    assert watch.in_use() == [0]

"""A callback that another one holds, and passes the hooks on to."""

import json

import keras

import keras_prunetrain as kpt
from tests.callbacks.fits import Kill, examples, network, widths


class Holder(keras.callbacks.Callback):
    """Passes all that `fit` tells on to the callback that it holds."""

    def __init__(self, held):
        super().__init__()
        self.held = held

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return getattr(self.held, name)
        return super().__getattribute__(name)

    def set_model(self, model):
        self.held.set_model(model)

    def set_params(self, params):
        self.held.set_params(params)


def fit(*callbacks):
    model = network()
    model.fit(
        *examples(16),
        validation_data=examples(8),
        epochs=2,
        verbose=0,
        callbacks=[Kill({0: {"inner": [0]}}), *callbacks],
    )
    return model


def test_a_log_behind_it_follows_it(tmp_path):
    pruning = kpt.PruneTrainCallback(interval=1)
    model = fit(Holder(pruning), kpt.DensityLog(tmp_path))
    assert widths(model)["inner"] == 5
    record = json.loads((tmp_path / "density_log.json").read_text())
    place = list(record["layers"]).index("inner")
    assert [row[place] for row in record["densities"]] == [5 / 6] * 2


def test_nobody_is_told_to_stand_behind_it(caplog):
    stop = keras.callbacks.EarlyStopping("val_task_loss", mode="min")
    fit(Holder(kpt.PruneTrainCallback(interval=1)), stop)
    assert "Put it behind" not in caplog.text

"""What a training must not lose when it goes on beside other callbacks."""

import os
import pathlib
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_prunetrain as kpt
from keras_prunetrain.fit.backup_files import BackupFolder
from keras_prunetrain.fit.training_state import (
    callback_state,
    set_callback_state,
)
from tests.callbacks.fits import Kill, examples, network
from tests.callbacks.test_backup_and_restore import (
    DEATHS,
    Break,
    Trained,
    curves,
)

EPOCHS = 4


def program(
    folder,
    stop=None,
    *,
    compiled=None,
    behind=(),
    last=(),
    pruned=None,
    deaths=None,
    epochs=EPOCHS,
    **kwargs,
):
    """A program that is started again; `last` are its last callbacks."""
    model = network(compiled=compiled and compiled(), **kwargs)
    x, y = examples(16)
    pruning = pruned and kpt.PruneTrainCallback(
        **{"interval": 2, "log_dir": folder / "log", **pruned}
    )
    history = model.fit(
        x,
        y,
        batch_size=8,
        shuffle=False,
        epochs=epochs,
        verbose=0,
        validation_data=(x[:3], y[:3]),
        callbacks=[
            Kill(deaths or {}),
            kpt.BackupAndRestore(folder / "backups"),
            *([pruning] if pruned else []),
            *behind,
            Break(stop),
            *last,
        ],
    )
    return Trained(model, pruning, history)


def in_pieces(folder, stops, arguments=dict):
    """Runs `program` with `arguments()`, killed at each of `stops`."""
    for stop in stops:
        with pytest.raises(RuntimeError, match="killed"):
            program(folder, stop, **arguments())
    return program(folder, **arguments())


class DieAtTheEnd(keras.callbacks.Callback):
    """Kills when the last backup is written and `fit` is about to end."""

    def on_train_end(self, logs=None):
        raise RuntimeError("killed")


class DieAtTheEndOfAnEpoch(keras.callbacks.Callback):
    """Kills when all steps of the first epoch are done."""

    def on_epoch_end(self, epoch, logs=None):
        raise RuntimeError("killed")


@pytest.mark.parametrize("epochs", [2, pytest.param(3, marks=pytest.mark.long)])
def test_epochs_without_lasso_go_on(epochs, tmp_path):
    """Two of them: the process is killed before and within."""

    def arguments():
        return {
            "pruned": {"finetune_epochs": 2},
            "deaths": DEATHS,
            "epochs": epochs + 1,
        }

    stops = [(epochs - 1, 1), (epochs, 0)]
    pieces = in_pieces(tmp_path / "pieces", stops, arguments)
    pieces.equals(program(tmp_path / "whole", **arguments()))
    assert "val_task_loss" in pieces.history.history


def own_loss(true, predicted):
    return keras.losses.sparse_categorical_crossentropy(
        true, predicted, from_logits=True
    )


@pytest.mark.parametrize(
    "loss",
    [
        lambda: lambda true, predicted: own_loss(true, predicted),
        lambda: [own_loss],
        lambda: [keras.losses.SparseCategoricalCrossentropy(from_logits=True)],
    ],
    ids=["function", "list of functions", "list of losses"],
)
def test_a_loss_without_a_name_is_known_again(loss, tmp_path):
    """Its address, which another process has not, says nothing."""
    in_pieces(
        tmp_path, [(1, 1)], lambda: {"compiled": lambda: {"loss": loss()}}
    )


@pytest.mark.parametrize(
    "skip",
    [
        lambda model: model.get_layer("inner"),
        lambda model: lambda layer: layer.name == "inner",
        lambda model: [model.layers[3].name],  # Of Keras: of another number.
    ],
    ids=["layer", "function", "name"],
)
def test_layers_that_are_left_alone_are_known_again(skip, tmp_path):
    def fit(stop):
        model, (x, y) = network(), examples(16)
        pruning = kpt.PruneTrainCallback(
            interval=1, reconfigure={"skip": skip(model)}
        )
        backup = kpt.BackupAndRestore(tmp_path)
        callbacks = [backup, pruning, Kill(DEATHS), Break(stop)]
        return model.fit(x, y, epochs=3, verbose=0, callbacks=callbacks)

    with pytest.raises(RuntimeError, match="killed"):
        fit((1, 0))
    assert fit(None).epoch == [0, 1, 2]


def early():
    return keras.callbacks.EarlyStopping("loss", patience=1, min_delta=100.0)


@pytest.mark.parametrize(
    "pruned", [{"interval": 5}, pytest.param(None, marks=pytest.mark.long)]
)
def test_a_training_that_was_stopped_early_stays_so(pruned, tmp_path):
    def arguments():
        return {"behind": [early()], "pruned": pruned, "deaths": DEATHS}

    whole = program(tmp_path / "whole", **arguments())
    assert whole.history.epoch == [0, 1]
    pieces = tmp_path / "pieces"
    with pytest.raises(RuntimeError, match="killed"):
        program(pieces, last=[DieAtTheEnd()], **arguments())
    program(pieces, **arguments()).equals(whole)
    assert not (pieces / "backups").exists()


@pytest.mark.long
def test_a_training_that_was_killed_at_its_end_ends_as_it_would_have(tmp_path):
    def arguments():
        return {"pruned": {"interval": 2}, "deaths": DEATHS}

    class Logs(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            self.logs = logs

    expected, found = Logs(), Logs()
    whole = program(tmp_path / "whole", behind=[expected], **arguments())
    with pytest.raises(RuntimeError, match="killed"):
        # In front of the callback that writes the end of the log.
        model = network()
        x, y = examples(16)
        model.fit(
            x,
            y,
            batch_size=8,
            shuffle=False,
            epochs=EPOCHS,
            verbose=0,
            validation_data=(x[:3], y[:3]),
            callbacks=[
                Kill(DEATHS),
                DieAtTheEnd(),
                kpt.BackupAndRestore(tmp_path / "pieces" / "backups"),
                kpt.PruneTrainCallback(
                    interval=2, log_dir=tmp_path / "pieces" / "log"
                ),
            ],
        )
    pieces = program(tmp_path / "pieces", behind=[found], **arguments())
    pieces.equals(whole)
    assert curves(tmp_path / "pieces") == curves(tmp_path / "whole")
    assert found.logs["loss"] == expected.logs["loss"]


@pytest.mark.long
def test_averaged_weights_that_are_in_the_model_leave_it_again(tmp_path):
    def averaged():
        return {
            "optimizer": keras.optimizers.SGD(0.05, momentum=0.9, use_ema=True)
        }

    def arguments():
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        return {"behind": [swap], "compiled": averaged}

    pieces = in_pieces(tmp_path / "pieces", [(1, 1), (2, 0)], arguments)
    pieces.equals(program(tmp_path / "whole", **arguments()))


def test_the_curves_of_steps_go_on(tmp_path):
    boards = []

    def arguments():
        boards.append(
            keras.callbacks.TensorBoard(tmp_path / "board", update_freq=1)
        )
        return {"behind": [boards[-1]]}

    in_pieces(tmp_path, [(1, 1), (2, 0)], arguments)
    # Each epoch has two steps, and one of the validation.
    assert boards[-1]._global_train_batch == 2 * EPOCHS
    assert boards[-1]._global_test_batch == EPOCHS


class Diverge(keras.callbacks.Callback):
    """Sets a learning rate with which no weight stays finite."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            self.model.optimizer.learning_rate.assign(np.inf)


@pytest.mark.parametrize("terminated", [True, False])
def test_a_training_that_diverges_keeps_its_last_good_backups(
    terminated, tmp_path, caplog
):
    terminate = [keras.callbacks.TerminateOnNaN()] if terminated else []
    behind = [Diverge(), *terminate]
    diverged = program(tmp_path, behind=behind, epochs=5, pruned={})
    assert np.isnan(diverged.history.history["loss"][-1])
    assert len(diverged.history.epoch) == (3 if terminated else 5)
    assert caplog.text.count("No backup after") == 1
    assert "No backup after step 0 of epoch 4" in caplog.text
    assert "has ended with a weight that is not finite" in caplog.text
    kept = sorted(path.name for path in (tmp_path / "backups").glob("*.npz"))
    assert kept == ["backup-00001-0000000.npz", "backup-00002-0000000.npz"]


@pytest.mark.long
def test_a_training_goes_on_from_before_it_diverged(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        program(tmp_path / "pieces", (3, 1), behind=[Diverge()])
    program(tmp_path / "pieces").equals(program(tmp_path / "whole"))
    assert not (tmp_path / "pieces" / "backups").exists()


class Vector(keras.Model):
    """Its step tells a metric that is no single number."""

    def train_step(self, data):
        logs = super().train_step(data)
        return {**logs, "both": keras.ops.stack([logs["loss"], 1.0])}


def test_a_metric_that_is_a_vector_is_no_reason_to_write_no_backup(
    tmp_path, caplog
):
    pieces = in_pieces(
        tmp_path, [(1, 1), (2, 0)], lambda: {"model_class": Vector}
    )
    assert "No backup" not in caplog.text
    assert np.shape(pieces.history.history["both"]) == (EPOCHS, 2)


@pytest.mark.long
def test_a_signal_in_the_last_moment_is_heard(tmp_path):
    class Late(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as raised:
        program(tmp_path / "pieces", behind=[Late()])
    assert raised.value.code == 143
    assert (tmp_path / "pieces" / "backups").exists()
    whole = program(tmp_path / "whole")
    program(tmp_path / "pieces").equals(whole)


def test_a_step_after_which_the_training_stops_is_no_place_to_go_on(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = True

    model, (x, y) = network(), examples(16)
    backup = kpt.BackupAndRestore(tmp_path, 1, delete_checkpoint=False)
    model.fit(
        x, y, batch_size=4, epochs=3, verbose=0, callbacks=[Stop(), backup]
    )
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == [
        "backup-00001-0000000.npz"
    ]


# Keras says so in the first epoch, while it does not know how many there are.
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_the_last_step_of_an_unknown_number_is_known_to_be_the_last(tmp_path):
    def fit(folder, stop=None):
        model, (x, y) = network(), examples(12)
        data = tf.data.Dataset.from_tensor_slices((x, y))
        history = model.fit(
            data.filter(lambda x, y: True).batch(4),
            shuffle=False,
            epochs=3,
            verbose=0,
            callbacks=[kpt.BackupAndRestore(tmp_path / folder, 3), stop],
        )
        return Trained(model, None, history)

    with pytest.raises(RuntimeError, match="killed"):
        fit("pieces", DieAtTheEndOfAnEpoch())
    (path,) = (tmp_path / "pieces").glob("*.npz")
    assert path.name == "backup-00000-0000003.npz"  # All of the epoch.
    fit("pieces", Break(None)).equals(fit("whole", Break(None)))


def test_a_fit_that_breaks_off_again_does_not_shift_the_next_one(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        program(tmp_path, (2, 0))
    model, (x, y) = network(), examples(16)
    with pytest.raises(RuntimeError, match="killed"):
        model.fit(
            x,
            y,
            batch_size=8,
            epochs=EPOCHS,
            verbose=0,
            callbacks=[
                kpt.BackupAndRestore(tmp_path / "backups"),
                Break((2, 1)),
            ],
        )
    assert model.fit(x, y, epochs=1, verbose=0).epoch == [0]


def test_backups_that_cannot_be_deleted_are_told_and_harm_no_training(
    tmp_path, caplog, monkeypatch
):
    unlink = pathlib.Path.unlink

    def refuse(path, **kwargs):
        if path.suffix == ".npz":
            raise PermissionError("no right to do so")
        unlink(path, **kwargs)

    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    assert program(tmp_path, epochs=2).history.epoch == [0, 1]
    assert "cannot be deleted" in caplog.text


def test_a_backup_of_a_later_format_is_refused(tmp_path):
    BackupFolder(tmp_path / "backups", 1).write((1, 0), {"format": 99})
    with pytest.raises(ValueError, match="format was 99 and is 1"):
        program(tmp_path)


def test_a_file_sets_nothing_but_what_keras_remembers():
    checkpoint = keras.callbacks.ModelCheckpoint("mine.keras")
    state = callback_state(checkpoint) | {"filepath": "yours", "best": 3.0}
    set_callback_state(checkpoint, state)
    assert checkpoint.filepath == "mine.keras"
    assert checkpoint.best == 3.0

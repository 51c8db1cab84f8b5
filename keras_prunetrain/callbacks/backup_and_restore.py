"""An interrupted training goes on, also if its model has shrunk."""

import functools
import logging
import os
from typing import Any, Literal

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.callbacks.reconfiguring import ReconfiguringCallback
from keras_prunetrain.callbacks.sdgp import SDGPCallback
from keras_prunetrain.distribution import check_agreement
from keras_prunetrain.fit.admission import options_of_fit
from keras_prunetrain.fit.arguments import check_backups
from keras_prunetrain.fit.backups import Backups
from keras_prunetrain.fit.signals import Signals
from keras_prunetrain.fit.training_state import (
    callback_states,
    description_of,
    metric_state,
    model_state,
    set_callback_state,
    set_metric_state,
    set_model_state,
    states_of,
)
from keras_prunetrain.sdgp.attach import (
    emulation_of,
    layer_places,
    sdgp_layers,
)
from keras_prunetrain.surgery.redoing import repeat_cuts

_LOG = logging.getLogger("keras_prunetrain")


class BackupAndRestore(keras.callbacks.Callback):
    """Lets a training that was interrupted go on where it was.

    Keras's callback of this name restores weights into a model of the same
    shapes. This callback also restores models that have been made smaller. The
    same program is started again and builds and compiles its first model. `fit`
    then makes the model as small as it was, restores weights, optimizer, random
    generators, history and the state of the callbacks, and continues with the
    next epoch. The training computes the same bits as without the interruption
    if the program is deterministic (`keras.utils.set_random_seed`,
    `tf.config.experimental.enable_op_determinism`) and the data are arrays or a
    `tf.data.Dataset` whose n-th pass is the same in each process; so are the
    data of validation. A `PyDataset`, a generator and a data set with
    `steps_per_epoch` or `validation_steps` start from their beginning.

    Example:

    ```python
    callbacks = [PruneTrainCallback(), BackupAndRestore("backups")]
    model.fit(images, labels, epochs=90, callbacks=callbacks)
    ```

    A backup is written after the hooks of all callbacks at the end of an epoch
    or a step, wherever this callback stands in the list. A process that
    is told to end (SIGTERM, Ctrl-C) finishes its step, writes a backup, and
    ends with status 143 or 130. To go on in the middle of an epoch, the data of
    the steps that are done are read once more and dropped.

    The state of the user's own callback is part of the backup if the callback
    has two methods. `get_state()` returns dicts, lists, tuples, numbers,
    strings and arrays. `set_state(state)` is called after `on_train_begin` of
    all callbacks, and again after `on_epoch_begin` if the training continues in
    the middle of that epoch.

    A state with a weight that is not finite is not written, and the backups
    before it stay. The files are deleted when `fit` ends without an error, and
    with finite weights. On several workers,
    all must see the same folder: the first worker writes the state of the
    training, and each other one a small file beside it with its own statistics
    and random generators.

    Args:
        backup_dir: Path of a local folder for the backups of this training,
            which belongs to one process at a time.
        save_freq: `"epoch"` (the default) for a backup at the end of each
            epoch, or an integer for one after so many steps.
        keep: Integer, at least 1. The number of backups that stay. If the last
            one is damaged, the one before it is used. Defaults to `2`.
        delete_checkpoint: Boolean. Whether the backups are deleted when `fit`
            has ended as it should, with finite weights. Defaults to `True`.

    Raises:
        ValueError: If an argument is out of its range; in `fit`, before the
            first step, if the folder cannot be used or another process has it,
            if no backup in it is whole, or if the backup is one of another
            training.
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike,
        save_freq: int | Literal["epoch"] = "epoch",
        keep: int = 2,
        delete_checkpoint: bool = True,
    ):
        super().__init__()
        check_backups(backup_dir, save_freq, keep, delete_checkpoint)
        self.backup_dir = os.fspath(backup_dir)
        self.save_freq = save_freq
        self.delete_checkpoint = delete_checkpoint
        self._backups = Backups(backup_dir, int(keep))
        self._signals = Signals()
        self._siblings: list[keras.callbacks.Callback] = []
        self._description: dict[str, Any] = {}
        self._restored: dict[str, Any] | None = None
        # The epoch to go on with, the steps of it that are done, and the steps
        # since the last backup.
        self._epoch = self._step = self._unsaved_steps = 0
        self._passes: keras_internals.Passes | None = None
        # Of the validation data, begun by `fit`, and by the process before it.
        self._validations: keras_internals.Passes | None = None
        self._validated = 0
        # Of the last epoch or step; those of the last step that was skipped.
        self._logs: dict[str, Any] = {}
        self._skipped_logs: dict[str, Any] = {}

    def set_model(self, model):
        super().set_model(model)
        callbacks = keras_internals.calling_list()
        if callbacks is None:
            raise ValueError(
                "BackupAndRestore works inside of `fit`: pass it to "
                "`model.fit(..., callbacks=[...])`."
            )
        self._leave()  # The end of another `fit` was not seen.
        self._siblings = list(callbacks.callbacks)
        for name, around in (
            ("on_train_begin", self._begin),
            ("on_epoch_begin", self._begin_epoch),
            ("on_train_batch_end", self._end_step),
            ("on_epoch_end", self._end_epoch),
            ("on_train_end", self._end),
        ):
            keras_internals.wrap_hook(callbacks, name, around)
        keras_internals.guard_hooks(callbacks, self._leave)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._step = epoch, 0

    def on_train_batch_end(self, batch, logs=None):
        self._unsaved_steps += batch + 1 - self._step
        self._step = batch + 1
        self._logs, self._skipped_logs = dict(logs or {}), {}

    def on_test_begin(self, logs=None):
        keras_internals.guard_loop(self._leave)
        if self._validations is None:
            self._validations = keras_internals.Passes(self.model)
            self._validations.begin(self._validated)

    def on_epoch_end(self, epoch, logs=None):
        self._logs = dict(logs or {})

    def _leave(self):
        """Lets go of the folder and of the signals, however `fit` ends."""
        self._signals.release()
        self._backups.release()
        if self.model is not None:
            self.model._initial_epoch = None  # It would hold for any `fit`.

    # Around what all callbacks do.

    def _begin(self, hook):
        """Brings the model back before `hook`, and the callbacks after it."""
        self._epoch = self._step = self._unsaved_steps = 0
        self._skipped_logs = {}
        self._validations, self._validated = None, 0
        self._description = description_of(
            self.model, self.params.get("steps"), self._settings()
        )
        self._backups.begin(self.model)
        self._restored = self._backups.read(self._description)
        if self._restored is not None:
            self._restore_model(self._restored)
        hook()
        keras_internals.guard_loop(self._leave)
        self._passes = keras_internals.Passes()
        if self._restored is not None:
            # Where the batch grows, the data set is made anew for each pass.
            grows = self._description.get("batch") is not None
            self._passes.begin(self._restored["passes"], reads=grows)
            self._restore_callbacks(self._restored)
        check_agreement(
            self.model,
            f"backup={self._epoch, self._step}, save_freq={self.save_freq}, "
            f"delete_checkpoint={self.delete_checkpoint}",
        )
        self._signals.catch()

    def _begin_epoch(self, hook):
        hook()
        state, self._restored = self._restored, None
        if state is None or not state["step"]:
            return
        # The middle of this epoch, which the callbacks have begun once more.
        self._step, self._skipped_logs = state["step"], state["logs"]
        keras_internals.skip_steps(
            self._step, functools.partial(self._restore_middle, state)
        )

    def _restore_middle(self, state):
        set_model_state(self.model, state["model"])
        set_metric_state(self.model, state["metrics"])
        self._restore_callbacks(state)

    def _end_step(self, hook):
        hook()
        steps = self.params.get("steps")
        # `fit` cannot go on behind the last step, without another one.
        is_last = steps is not None and self._step >= steps
        if not is_last and not self.model.stop_training:
            self._save()

    def _end_epoch(self, hook):
        # If all steps were skipped, `fit` has no logs of its own.
        for name, value in self._skipped_logs.items():
            hook.args[-1].setdefault(name, value)
        hook()
        self._epoch, self._step = self._epoch + 1, 0
        self._save()

    def _end(self, hook):
        if self._restored is None:
            hook()
        else:  # All epochs were done: `fit` has no logs of its own.
            hook(logs=self._restored["logs"])
        if self._signals.received:
            self._signals.end(self.backup_dir)
        if self.delete_checkpoint:
            self._backups.delete()
        self._leave()

    # What a backup holds.

    def _save(self):
        """Writes a backup if it is due; ends the process if it was told so."""
        if self.save_freq == "epoch":
            is_due = self._step == 0
        else:
            is_due = self._unsaved_steps >= self.save_freq
        if is_due or self._signals.received:
            self._unsaved_steps = 0
            place = self._epoch, self._step
            self._backups.write(place, self._state, together=is_due)
        if self._signals.received:
            self._signals.end(self.backup_dir)

    def _state(self):
        return {
            "description": self._description,
            "epoch": self._epoch,
            "step": self._step,
            "stopped": self._step == 0 and bool(self.model.stop_training),
            "logs": self._logs,
            "model": model_state(self.model),
            # The pass in whose middle the epoch is begins once more.
            "passes": self._passes.begun - bool(self._step),
            "validations": self._validated
            if self._validations is None
            else self._validations.begun,
            "metrics": metric_state(self.model) if self._step else [],
            "random": keras_internals.random_state(),
            "callbacks": callback_states(self._siblings),
        }

    def _settings(self):
        """Returns those of the callbacks that change the training."""
        found = {}
        emulation = emulation_of(self.model)
        if emulation is not None:
            places = layer_places(self.model, sdgp_layers(self.model))
            found = {"sdgp": str(emulation.pattern), "sdgp_layers": places}
        for callback in self._siblings:
            if isinstance(callback, SDGPCallback):
                found |= callback.settings()
            if isinstance(callback, ReconfiguringCallback):
                found |= {
                    **callback.settings(),
                    **options_of_fit(callback.network, callback.options),
                    "batch": callback.batch and callback.batch.initial,
                }
        return found

    def _restore_model(self, state):
        for callback, kept in states_of(self._siblings, state["callbacks"]):
            if kept is not None and isinstance(callback, ReconfiguringCallback):
                callback.cuts = list(kept["cuts"])
                repeat_cuts(callback.network, callback.cuts, self.model)
        set_model_state(self.model, state["model"])
        self._epoch, self._step = state["epoch"], state["step"]
        self._validated = state["validations"]
        # By this attribute Keras's own callback of this name tells `fit`.
        self.model._initial_epoch = self._epoch
        if state["stopped"]:
            self.model._initial_epoch = self.params["epochs"]
            self.model.stop_training = True
        _LOG.info(
            "'%s' goes on in epoch %d, behind step %d, from '%s'.",
            self.model.name,
            self._epoch + 1,
            self._step,
            self.backup_dir,
        )

    def _restore_callbacks(self, state):
        for callback, kept in states_of(self._siblings, state["callbacks"]):
            if kept is not None:
                set_callback_state(callback, kept)
        keras_internals.set_random_state(state["random"])

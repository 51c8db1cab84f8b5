"""Trains one `fit` with pruned data gradients."""

import contextlib
import logging
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.selection import Skip
from keras_prunetrain.checks import is_number
from keras_prunetrain.distribution import check_agreement
from keras_prunetrain.fit.epoch_logs import EpochLogs
from keras_prunetrain.sdgp.attach import (
    attach,
    kept_masses,
    layer_places,
    sdgp_layers,
    without_sdgp,
)
from keras_prunetrain.sdgp.choosing import chosen_layers
from keras_prunetrain.sdgp.emulation import Emulation, Phase, layer_gradient
from keras_prunetrain.sdgp.pattern import Mode, Pattern

_LOG = logging.getLogger("keras_prunetrain")


class SDGPCallback(keras.callbacks.Callback):
    """Prunes the data gradients of a model while `fit` runs (SDGP).

    `with_sdgp` says what that is: an emulation, which saves no time without
    hardware for n:m sparsity. The model is as before when `fit` returns, or
    raises.

    The history gains `kept_gradient`: which part of the L1 mass of the
    gradients was kept in the first step of each epoch, the mean over the
    layers; 1 in epochs with dense gradients, NaN if no gradient of that step
    was finite. `DensityLog` shows it layer by layer. The `training_flops` of
    the other callbacks count the pruned products, as n:m hardware would compute
    them, and `emulated_flops` beside it what that hardware would leave out.

    Example:

    ```python
    sdgp = SDGPCallback(2, 4, mode="mvue", dense_last=0.2)
    model.fit(images, labels, epochs=90, callbacks=[sdgp])
    ```

    Args:
        n: Integer from 1 to `m`: the channels that are kept of a block.
        m: Integer from 2 to 16: the consecutive channels of a block.
        mode: How channels are kept: `"rescaled"`, `"magnitude"`, `"random"`,
            `"random_biased"` or `"mvue"`; `with_sdgp` describes them.
        layers: Which layers, as of `with_sdgp`. Defaults to `None`:
            convolutions of one group with more than 3 input channels and at
            least `m` output channels.
        dense_last: Float in [0, 1): the share of the epochs, at the end, that
            train with dense gradients, rounded up to whole epochs. The step is
            not traced anew for it.
        seed: Integer of at least 0 for the modes that draw. Defaults to `None`,
            a number from Python's random generator.

    Raises:
        ValueError: If an argument is out of its range; in `fit`, before the
            first step, as `with_sdgp`.
    """

    def __init__(
        self,
        n: int = 2,
        m: int = 4,
        mode: Mode = "rescaled",
        layers: Skip | None = None,
        dense_last: float = 0.0,
        seed: int | None = None,
    ):
        super().__init__()
        self.pattern = Pattern(n, m, mode)
        if not is_number(dense_last) or not 0.0 <= dense_last < 1.0:
            raise ValueError(
                "`dense_last` is a share of the epochs, a number of at least 0 "
                f"and below 1. Received: dense_last={dense_last!r}"
            )
        self.layers = layers
        self.dense_last = float(dense_last)
        self.seed = seed
        self._chosen: list[str] = []
        self._emulation: Emulation | None = None
        self._epoch_logs = EpochLogs()
        self._last_phase = Phase.DENSE
        self._undo = contextlib.ExitStack()

    def settings(self) -> dict[str, Any]:
        """Returns the settings by which trainings of a model differ."""
        return {
            "sdgp": str(self.pattern),
            "sdgp_layers": layer_places(self.model, self._chosen),
            "dense_last": self.dense_last,
        }

    def set_model(self, model):
        self._leave()  # Nobody has seen the end of an earlier `fit`.
        super().set_model(model)
        callbacks = keras_internals.calling_list()
        if callbacks is not None:
            keras_internals.guard_hooks(callbacks, self._leave)
        # Now already: `BackupAndRestore` makes the model smaller before
        # `on_train_begin`, and a layer of fewer than m channels is not chosen.
        self._chosen = chosen_layers(
            model, self.pattern, self.layers, self.seed
        )

    def _leave(self):
        """Takes the gradients off again, once, however `fit` ends."""
        self._undo.close()

    def on_train_begin(self, logs=None):
        check_agreement(self.model, f"{self.settings()}, seed={self.seed!r}")
        keras_internals.guard_loop(self._leave)
        self._emulation = attach(
            self.model, self.pattern, self._chosen, self.seed
        )
        self._undo.callback(without_sdgp, self.model)
        # A callback before this one counts the first epoch before it begins.
        first = keras_internals.fit_argument("initial_epoch") or 0
        self._emulation.phase = self._phase_of(first)
        if self._phase_of(0) == Phase.DENSE:
            _LOG.warning(
                "No epoch has pruned data gradients: `dense_last` is rounded "
                "up to whole epochs. Received: dense_last=%g, epochs=%d",
                self.dense_last,
                self.params["epochs"],
            )
        self._epoch_logs = EpochLogs()
        self._last_phase = Phase.DENSE

    def on_test_begin(self, logs=None):
        keras_internals.guard_loop(self._leave)

    def _phase_of(self, epoch):
        """Returns the `Phase` in which an epoch trains."""
        epochs = self.params["epochs"]
        dense = math.ceil(self.dense_last * epochs - 1e-9)
        return Phase.DENSE if epoch >= epochs - dense else Phase.SPARSE

    def on_epoch_begin(self, epoch, logs=None):
        self._emulation.phase = self._phase_of(epoch)
        for gradient in self._gradients():
            gradient.mass = np.zeros(2)
        if self._emulation.phase == Phase.SPARSE:
            self._emulation.phase = Phase.MEASURED

    def _gradients(self):
        """Returns the `LayerGradient`s of the layers that are left."""
        return list(map(layer_gradient, sdgp_layers(self.model).values()))

    def on_train_batch_end(self, batch, logs=None):
        self._epoch_logs.note_metrics(logs or {})
        if self._emulation.phase == Phase.MEASURED:
            self._emulation.phase = Phase.SPARSE

    def on_epoch_end(self, epoch, logs=None):
        self._last_phase = self._phase_of(epoch)
        kept = list(kept_masses(self.model).values())
        totals = [gradient.mass[1] for gradient in self._gradients()]
        if self._last_phase == Phase.DENSE:
            kept = [1.0]
        elif totals and not any(totals):  # Of one that overflows, it is NaN.
            _LOG.warning(
                "No data gradient of '%s' has been pruned in the first step of "
                "epoch %d. A `train_step` of the model's own must call the "
                "model with `training=True`, and the loss must have a "
                "gradient.",
                self.model.name,
                epoch + 1,
            )
        if logs is not None:
            mean = sum(kept) / len(kept) if kept else math.nan
            self._epoch_logs.add(logs, {"kept_gradient": mean})
        # Already now: others count the cost of the next epoch as it begins.
        self._emulation.phase = self._phase_of(epoch + 1)

    def on_train_end(self, logs=None):
        if self.dense_last and self._last_phase == Phase.SPARSE:
            _LOG.warning(
                "The training of '%s' ended before its epochs with dense "
                "gradients. `dense_last` is a share of the epochs of `fit`, "
                "which does not know when another callback stops it. Received: "
                "dense_last=%g, epochs=%d",
                self.model.name,
                self.dense_last,
                self.params["epochs"],
            )
        self._leave()

    # For `BackupAndRestore`.

    def get_state(self) -> dict[str, Any]:
        """Returns the state from which another process can go on."""
        state = self._emulation.random_state
        return {
            "phase": int(self._emulation.phase),
            "random": None if state is None else ops.convert_to_numpy(state),
            "masses": [gradient.mass for gradient in self._gradients()],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the state that `get_state` returned."""
        self._emulation.phase = Phase(state["phase"])
        if self._emulation.random_state is not None:
            self._emulation.random_state.assign(state["random"])
        for gradient, mass in zip(
            self._gradients(), state["masses"], strict=True
        ):
            gradient.mass = mass

"""Stands in for a pruning callback in a training without one."""

from typing import Any

import keras

from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.fit.meter import EpochMeter
from keras_prunetrain.fit.record import Reconfiguration, penalty_share


class DenseTraining:
    """Stands in for a `ReconfiguringCallback` where a `fit` has none.

    Args:
        model: The model that is trained.

    Attributes:
        meter: An `EpochMeter`; the log forwards its hooks.
        reports: Empty: nothing is reconfigured.
        options: The `CutOptions`: no channel is dead.
    """

    def __init__(self, model: keras.Model):
        self.meter = EpochMeter()
        self.reports: list[Reconfiguration] = []
        self.options = CutOptions(threshold=0.0)
        self._model = model

    def settings(self) -> dict[str, Any]:
        """Returns the settings that a log shows, by their names."""
        return {"algorithm": "dense"}

    def penalty_share(self, loss: float) -> float:
        """Returns the share of a lasso that layers came with, a fraction.

        Args:
            loss: Mean loss of the epoch, all penalties included.
        """
        return penalty_share(self._model, loss)

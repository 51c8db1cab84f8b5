"""What a log sees of a training, also of one without a pruning callback."""

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
        model: The model.
    """

    def __init__(self, model: keras.Model):
        self.meter = EpochMeter()
        self.reports: list[Reconfiguration] = []
        self.options = CutOptions(threshold=0.0)
        self.model = model

    @property
    def network(self) -> keras.Model | None:
        return self.meter.network

    def settings(self) -> dict[str, Any]:
        """Returns the settings that a log shows, by their names."""
        return {"algorithm": "dense"}

    def penalty_share(self, loss: float) -> float:
        """Returns the share of a lasso that layers came with, a fraction.

        Args:
            loss: Mean loss of the epoch, all penalties included.
        """
        return penalty_share(self.model, loss)


def check_training(training: Any) -> None:
    """Raises a `ValueError` if a log cannot show what `training` does.

    Args:
        training: Should be a `ReconfiguringCallback` whose `fit` has begun.
    """
    seen = "network", "meter", "reports", "options", "settings", "penalty_share"
    if not all(hasattr(training, name) for name in seen):
        raise ValueError(
            "`follow` takes a `ReconfiguringCallback`, which calls it itself "
            "when its `fit` begins; a `DensityLog` among the callbacks of "
            f"`fit` needs no call. Received: pruning={training!r}"
        )

"""What is said about a training in which no channel goes."""

import logging

import keras

_LOG = logging.getLogger("keras_prunetrain")


class NothingDead:
    """Warns, once for each model, that none of its channels goes, and why.

    Attributes:
        said: Boolean. Whether a warning has been given.
    """

    def __init__(self):
        self.said = False

    def say_no_lasso(self, model: keras.Model) -> None:
        """Warns that no kernel of `model` carries a lasso."""
        self.said = True
        _LOG.warning(
            "Nothing to prune in '%s': it has no kernel that trains and whose "
            "channels may go. keras_prunetrain.channel_report(model) says why.",
            model.name,
        )

    def say_none_dead(self, model: keras.Model, threshold: float) -> None:
        """Warns that each channel has a weight of at least `threshold`."""
        if self.said:
            return
        self.said = True
        _LOG.warning(
            "No channel of '%s' fell below threshold=%g. A longer training at "
            "a high learning rate, or a larger `penalty_ratio`, removes more. "
            "Trained weights, whose loss is small from the first batch on, "
            "need the `factor` of a training from random weights. "
            "keras_prunetrain.channel_report(model) tells.",
            model.name,
            threshold,
        )

"""Training that makes the network smaller while it learns."""

from keras_prunetrain import models
from keras_prunetrain.batching import DynamicBatch, training_bytes
from keras_prunetrain.callbacks.density_log import DensityLog
from keras_prunetrain.callbacks.prune_train import PruneTrainCallback
from keras_prunetrain.callbacks.record import Reconfiguration
from keras_prunetrain.channels.layer_rule import LayerRule
from keras_prunetrain.channels.picture import plot_channels
from keras_prunetrain.channels.report import channel_report
from keras_prunetrain.channels.rules import register_rule
from keras_prunetrain.cost import (
    Cost,
    communication_bytes,
    gradient_bytes,
    model_cost,
)
from keras_prunetrain.distribution import multi_worker_strategy
from keras_prunetrain.regularizers import GroupLasso
from keras_prunetrain.surgery.reconfigure import reconfigure

__all__ = [
    "Cost",
    "DensityLog",
    "DynamicBatch",
    "GroupLasso",
    "LayerRule",
    "PruneTrainCallback",
    "Reconfiguration",
    "channel_report",
    "communication_bytes",
    "gradient_bytes",
    "model_cost",
    "models",
    "multi_worker_strategy",
    "plot_channels",
    "reconfigure",
    "register_rule",
    "training_bytes",
]

"""Training that makes the network smaller while it learns."""

from keras_prunetrain import models
from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.callbacks.backup_and_restore import BackupAndRestore
from keras_prunetrain.callbacks.density_log import DensityLog
from keras_prunetrain.callbacks.early_crop import EarlyCroPCallback
from keras_prunetrain.callbacks.prune_train import PruneTrainCallback
from keras_prunetrain.callbacks.reconfiguring import ReconfiguringCallback
from keras_prunetrain.callbacks.sdgp import SDGPCallback
from keras_prunetrain.callbacks.target_prune import TargetPruneCallback
from keras_prunetrain.channels.layer_rule import LayerRule
from keras_prunetrain.channels.picture import plot_channels
from keras_prunetrain.channels.report import channel_report
from keras_prunetrain.channels.rules import register_rule
from keras_prunetrain.channels.whole_groups import prune_whole_groups
from keras_prunetrain.cost import Cost, communication_bytes, model_cost
from keras_prunetrain.distribution import (
    is_first_worker,
    multi_worker_strategy,
)
from keras_prunetrain.fit.meter import EpochMeter
from keras_prunetrain.fit.record import Reconfiguration
from keras_prunetrain.lasso.group_lasso import GroupLasso
from keras_prunetrain.mask_report import mask_report
from keras_prunetrain.memory import training_bytes
from keras_prunetrain.sdgp.attach import with_sdgp, without_sdgp
from keras_prunetrain.surgery.reconfigure import reconfigure
from keras_prunetrain.variables import gradient_bytes

__all__ = [
    "BackupAndRestore",
    "Cost",
    "DensityLog",
    "DynamicBatch",
    "EarlyCroPCallback",
    "EpochMeter",
    "GroupLasso",
    "LayerRule",
    "PruneTrainCallback",
    "Reconfiguration",
    "ReconfiguringCallback",
    "SDGPCallback",
    "TargetPruneCallback",
    "channel_report",
    "communication_bytes",
    "gradient_bytes",
    "is_first_worker",
    "mask_report",
    "model_cost",
    "models",
    "multi_worker_strategy",
    "plot_channels",
    "prune_whole_groups",
    "reconfigure",
    "register_rule",
    "training_bytes",
    "with_sdgp",
    "without_sdgp",
]

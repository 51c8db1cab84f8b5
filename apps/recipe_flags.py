"""The flags that all training programs share, and the recipe they make.

Every flag is checked when the command line is read, before a file is touched: a
typo must neither cost the records of an earlier run nor hours of a new one.
"""

from absl import flags

from apps import (
    command_line,
    folder_flags,
    networks,
    sdgp_flags,
    target_flags,
    training,
)
from keras_prunetrain import models

_METHODS = ("dense", "prunetrain", *target_flags.TARGETS)
# NumPy takes no larger seed.
_LARGEST_SEED = 2**32 - 1
# More epochs would be gigabytes of records.
_MOST_EPOCHS = 10_000
_MOST_IMAGES = 10**6
_MOST_DROPS = 10
_MOST_CHANNELS = 1024
# Learning rates, if none is given.
_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}


def define(values, **defaults):
    """Defines the shared flags.

    Args:
        values: The `flags.FlagValues` to define them in.
        **defaults: `epochs`, `batch_size`, `weight_decay`, `penalty_ratio`,
            `interval` and `learning_rate_drops` of the program.
    """
    _define_training(values, defaults)
    _define_optimizer(values, defaults)
    _define_pruning(values, defaults)
    target_flags.define(values)
    sdgp_flags.define(values)
    _check_what_is_for_channels(values)
    folder_flags.define(values)


def _define_training(values, defaults):
    flags.DEFINE_enum(
        *("method", "prunetrain", _METHODS),
        "dense: no pruning. prunetrain: channels go all the time, by a group "
        "lasso. targetprune: early, until a target is met. earlycrop: at one "
        "moment; crop, snip, grasp and synflow are earlycrop before the first "
        "step, by these scores. narrow: dense, with every width times one "
        "factor.",
        flag_values=values,
    )
    command_line.integer(
        *("epochs", defaults["epochs"], 1, _MOST_EPOCHS, "Epochs."),
        flag_values=values,
    )
    command_line.integer(
        *("batch_size", defaults["batch_size"], 1, _MOST_IMAGES),
        "Images per update, in all.",
        flag_values=values,
    )
    command_line.integer(
        *("seed", 0, 0, _LARGEST_SEED),
        "Seed of weights, order and augmentation.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "dtype_policy",
        "float32",
        ["float32", "mixed_float16", "mixed_bfloat16"],
        "What layers compute in.",
        flag_values=values,
    )


def _define_optimizer(values, defaults):
    flags.DEFINE_enum(
        *("optimizer", "sgd", list(_RATES), "Optimizer."), flag_values=values
    )
    command_line.real(
        "learning_rate",
        None,
        "Before the drops. Without any: 0.1 for SGD, 0.001 for the others.",
        "a number from 1e-9 to 1000",
        lambda rate: rate is None or 1e-9 <= rate <= 1000,
        values,
    )
    flags.DEFINE_list(
        "learning_rate_drops",
        defaults["learning_rate_drops"],
        "Epochs, from 0, at whose beginning it is divided by 10; those behind "
        "the last do nothing. Without any: half and three quarters.",
        flag_values=values,
    )
    flags.register_validator(
        "learning_rate_drops",
        _are_epochs,
        f"must be at most {_MOST_DROPS} different epochs, such as 91,136.",
        flag_values=values,
    )
    command_line.real(
        *("momentum", 0.9, "Of SGD."),
        "a number of at least 0 and below 1",
        lambda momentum: 0 <= momentum < 1,
        values,
    )
    command_line.real(
        *("global_clipnorm", None),
        "The gradients of all weights together are clipped to this norm.",
        "a number above 0 and at most 1e6",
        lambda norm: norm is None or 0 < norm <= 1e6,
        values,
    )
    command_line.real(
        *("weight_decay", defaults["weight_decay"]),
        "On all weights; coupled, except for AdamW.",
        "a number from 0 to 1",
        lambda decay: 0 <= decay <= 1,
        values,
    )


def _define_pruning(values, defaults):
    command_line.integer(
        *("granularity", None, 1, _MOST_IMAGES),
        "The batch grows with what pruning frees, by multiples of so many "
        "images on each device.",
        flag_values=values,
    )
    command_line.real(
        *("penalty_ratio", defaults["penalty_ratio"], "Group lasso."),
        "a number above 0 and below 1",
        lambda ratio: 0 < ratio < 1,
        values,
    )
    command_line.real(
        "factor",
        None,
        "Of the group lasso, instead of the one that --penalty_ratio gives for "
        "the first batch. Trained weights have a small loss, and would get a "
        "small one; result.json of another run has its own.",
        "a number from 1e-12 to 100",
        lambda factor: factor is None or 1e-12 <= factor <= 100,
        values,
    )
    command_line.integer(
        *("interval", defaults["interval"], 1, _MOST_EPOCHS),
        "Epochs between reconfigurations.",
        flag_values=values,
    )
    command_line.real(
        *("threshold", 1e-4, "Channels below it are dead."),
        "0, or a number from 1e-12 to 100",
        lambda threshold: threshold == 0 or 1e-12 <= threshold <= 100,
        values,
    )
    command_line.integer(
        *("finetune_epochs", 0, 0, _MOST_EPOCHS),
        "Last epochs without group lasso.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "solver",
        "auto",
        ["auto", "subgradient", "proximal"],
        "How the group lasso acts: as a penalty in the loss, or by a step "
        "behind each update.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        *("coupled", False),
        "One group of the lasso for all slices of a channel.",
        flag_values=values,
    )
    flags.DEFINE_string(
        *("channel_multiple", None),
        "Layers keep a multiple of so many channels, or (auto) counts that the "
        "device computes fast. Without this flag: auto with "
        "--method=targetprune, else 1.",
        flag_values=values,
    )
    flags.register_validator(
        "channel_multiple",
        lambda text: (
            text in (None, "auto")
            or (text.isdecimal() and 1 <= int(text) <= _MOST_CHANNELS)
        ),
        f"must be auto, or a whole number from 1 to {_MOST_CHANNELS}.",
        flag_values=values,
    )
    flags.DEFINE_list(
        *("skip", []),
        "Layers that keep all of their channels, those that they read as well: "
        "names, or patterns such as *_shortcut.",
        flag_values=values,
    )
    flags.register_multi_flags_validator(
        ["finetune_epochs", "epochs"],
        lambda found: found["finetune_epochs"] < found["epochs"],
        "the epochs of fine-tuning must be fewer than all epochs.",
        flag_values=values,
    )


def _check_what_is_for_channels(values):
    """Refuses flags that only channels use, once all are defined."""
    of_channels = ["granularity", "channel_multiple", "skip"]
    flags.register_multi_flags_validator(
        ["sparsity", *of_channels],
        lambda found: (
            found["sparsity"] is None or not any(map(found.get, of_channels))
        ),
        "--sparsity sets single weights to zero, and the network keeps its "
        f"shape. Leave out --{', --'.join(of_channels)}.",
        flag_values=values,
    )


def check_width(values):
    """Refuses a narrow network without a width, once `network` is defined."""
    flags.register_multi_flags_validator(
        ["method", "network"],
        lambda found: (
            found["method"] != "narrow" or networks.has_width(found["network"])
        ),
        "a network of keras.applications has no width. Choose one of "
        f"{', '.join(models.__all__)}, or another method.",
        flag_values=values,
    )


def recipe(values):
    """Returns the `training.Recipe` that the flags describe."""
    drops = values.learning_rate_drops or _usual_drops(values.epochs)
    settings = {
        name: values[name].value
        for name in training.Recipe.__dataclass_fields__
        if name in values
    }
    rate = values.learning_rate
    return training.Recipe(
        **settings
        | target_flags.resolved(values)
        | {
            "learning_rate": _RATES[values.optimizer] if rate is None else rate,
            "learning_rate_drops": tuple(map(int, drops)),
            "skip": tuple(values.skip),
            "initial_run": command_line.folder(values.initial_run),
        }
    )


def _usual_drops(epochs):
    # One epoch has no half, and two have one for both.
    return sorted({epochs // 2, epochs * 3 // 4} - {0})


def _are_epochs(drops):
    # Longer ones are none, and none that Python would read.
    known = all(drop.isdecimal() and len(drop) < 10 for drop in drops)
    return known and len(set(map(int, drops))) == len(drops) <= _MOST_DROPS

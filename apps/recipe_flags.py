"""The flags that all training programs share, and the recipe they make.

Every flag is checked when the command line is read, before a file is touched: a
typo must neither cost the records of an earlier run nor hours of a new one.
"""

import os

from absl import flags

from apps import command_line, networks, records, training, workdir
from apps.refusal import RefusedError
from keras_prunetrain import models

# The targets that a method may have, of which it needs one.
_TARGETS = {
    "targetprune": ("target_flops", "training_flops"),
    "narrow": ("target_flops",),
    "earlycrop": ("target_flops", "sparsity"),
}
_METHODS = ("dense", "prunetrain", *_TARGETS)
# Scores that are measured on batches of data.
_ON_DATA = ("gradient_flow", "snip", "grasp", "synflow")
# NumPy takes no larger seed.
_LARGEST_SEED = 2**32 - 1
# More epochs would be gigabytes of records.
_MOST_EPOCHS = 10_000
_MOST_IMAGES = 10**6
_MOST_DROPS = 10
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
    _define_target(values)
    _define_folders(values)


def _define_training(values, defaults):
    flags.DEFINE_enum(
        *(
            "method",
            "prunetrain",
            _METHODS,
        ),
        "Dense, shrinking, or with every width times one factor from the "
        "beginning.",
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
        "Epochs at which it is divided by 10. Without any: half and three "
        "quarters.",
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
        *(
            "coupled",
            False,
            "One group of the lasso for all slices of a channel.",
        ),
        flag_values=values,
    )
    flags.register_multi_flags_validator(
        ["finetune_epochs", "epochs"],
        lambda found: found["finetune_epochs"] < found["epochs"],
        "the epochs of fine-tuning must be fewer than all epochs.",
        flag_values=values,
    )


def _define_target(values):
    command_line.real(
        *("target_flops", None),
        "Inference FLOPs of the network at the end, a fraction of those at "
        "full width. A narrow network is as wide as they allow.",
        "a number above 0 and at most 1",
        lambda target: 0 < target <= 1,
        values,
    )
    command_line.real(
        *("training_flops", None),
        "FLOPs of all epochs, a fraction of those of dense training: the "
        "target of --method=targetprune in the place of --target_flops.",
        "a number above 0 and below 1",
        lambda target: 0 < target < 1,
        values,
    )
    command_line.real(
        *("sparsity", None),
        "The part of the weights of kernels that --method=earlycrop sets to "
        "zero one by one, in the place of --target_flops.",
        "a number above 0 and below 1",
        lambda sparsity: 0 < sparsity < 1,
        values,
    )
    flags.register_multi_flags_validator(
        ["method", "target_flops", "training_flops", "sparsity"],
        _has_its_target,
        flag_values=values,
    )
    for name, default, text in (
        ("warmup", 0.05, "Before the first channels shrink"),
        ("decay", 0.1, "Until the last ones are cut"),
    ):
        command_line.real(
            *(name, default),
            f"{text}: epochs, or a fraction of them below 1.",
            "a whole number of epochs, or a fraction above 0 and below 1",
            lambda value: value > 0 and (value < 1 or value == int(value)),
            values,
        )
    command_line.integer(
        *("rounds", 4, 1, 100, "Cuts on the way to the target."),
        flag_values=values,
    )
    flags.DEFINE_enum(
        *("score", None, ["taylor", "magnitude", "random", *_ON_DATA]),
        "How much a channel matters. Without this flag: taylor, or "
        "gradient_flow with --method=earlycrop.",
        flag_values=values,
    )
    flags.register_multi_flags_validator(
        ["method", "score"],
        lambda found: (
            found["method"] != "earlycrop"
            or found["score"] in (None, *_ON_DATA)
        ),
        f"--method=earlycrop takes one of {', '.join(_ON_DATA)}.",
        flag_values=values,
    )
    flags.DEFINE_string(
        *("when", "lazy"),
        "When --method=earlycrop prunes: lazy, paper_code, start, or the "
        "number of epochs before.",
        flag_values=values,
    )
    flags.register_validator(
        "when",
        lambda when: (
            when in ("lazy", "paper_code", "start")
            or (when.isdecimal() and 0 < int(when) <= _MOST_EPOCHS)
        ),
        "must be lazy, paper_code, start, or a number of epochs.",
        flag_values=values,
    )


def _has_its_target(found):
    """Whether a method has the one target that it needs, and no other."""
    method = found["method"]
    allowed = _TARGETS.get(method, ())
    names = {name for names in _TARGETS.values() for name in names}
    given = [name for name in sorted(names) if found[name] is not None]
    for name in given:
        if name not in allowed:
            others = [x for x, names in _TARGETS.items() if name in names]
            _no(
                f"--method={method} takes no --{name}. Leave it out, or choose "
                f"{' or '.join(f'--method={x}' for x in others)}."
            )
    if allowed and len(given) != 1:
        _no(
            f"--method={method} needs one target, such as "
            f"{' or '.join(f'--{x}=0.5' for x in allowed)}."
        )
    if method != "narrow" and found["target_flops"] == 1:
        _no("a network that is pruned has a target below 1.")
    return True


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


def _define_folders(values):
    for name, text in (
        ("data_dir", "Where the data lies."),
        ("workdir", "Where the run's files go."),
        ("dense", "Folder of a finished dense run, to compare with."),
    ):
        flags.DEFINE_string(
            *(name, None, text),
            required=name == "workdir",
            flag_values=values,
        )
    for name, check in (
        ("data_dir", _check_data_dir),
        ("workdir", _check_workdir),
        ("dense", _check_dense),
    ):
        flags.register_validator(name, check, flag_values=values)
    flags.DEFINE_bool(
        *("restart", False, "Train anew, though --workdir holds a run of it."),
        flag_values=values,
    )
    flags.register_multi_flags_validator(
        ["dense", "workdir"],
        lambda found: not _same_folder(found["dense"], found["workdir"]),
        "the dense run's folder cannot be that of the new run.",
        flag_values=values,
    )


def recipe(values):
    """Returns the `training.Recipe` that the flags describe."""
    epochs = values.epochs
    drops = values.learning_rate_drops or [epochs // 2, epochs * 3 // 4]
    settings = {
        name: values[name].value
        for name in training.Recipe.__dataclass_fields__
        if name in values
    }
    rate = values.learning_rate
    return training.Recipe(
        **settings
        | {
            "learning_rate": _RATES[values.optimizer] if rate is None else rate,
            "learning_rate_drops": tuple(map(int, drops)),
        }
    )


def _are_epochs(drops):
    # Longer ones are none, and none that Python would read.
    known = all(drop.isdecimal() and len(drop) < 10 for drop in drops)
    return known and len(set(map(int, drops))) == len(drops) <= _MOST_DROPS


def _check_data_dir(path):
    if path is None:
        return True
    place = command_line.folder(path)
    # One that is not there is left to those who know how to fill it.
    if not path or (os.path.exists(place) and not os.path.isdir(place)):
        _no("must be a folder. Leave it out for the default.")
    return True


def _check_workdir(path):
    if not path:
        _no("must be a folder that may be written, such as runs/first.")
    if "://" in path:
        _no("must be a folder of this machine.")
    if not command_line.may_be_written(path):
        _no("must be a folder that may be written.")
    try:
        workdir.check(command_line.folder(path))
    except (RefusedError, OSError) as error:
        _no(str(error))
    return True


def _check_dense(path):
    if path is None:
        return True
    if not path:
        _no("must be the folder of a finished run.")
    try:
        records.result(command_line.folder(path))
    except records.RecordError as error:
        _no(f"must be the folder of a finished run. {error}")
    return True


def _no(message):
    raise flags.ValidationError(message)


def _same_folder(one, other):
    paths = (one, other)
    if None in paths:
        return False
    return (
        len({os.path.realpath(command_line.folder(path)) for path in paths})
        == 1
    )

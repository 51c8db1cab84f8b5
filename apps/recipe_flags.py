"""The flags that all training programs share, and the recipe they make."""

import os

from absl import flags

from apps import compare, training

FLAGS = flags.FLAGS


def define(**defaults):
    """Defines the shared flags.

    Args:
        **defaults: `epochs`, `batch_size`, `weight_decay`, `penalty_ratio`,
            `interval` and `learning_rate_drops` of the program.
    """
    flags.DEFINE_enum(
        "method", "prunetrain", ["dense", "prunetrain"], "Method."
    )
    _integer("epochs", defaults["epochs"], "Epochs.")
    _integer("batch_size", defaults["batch_size"], "Images per update, in all.")
    _integer(
        "granularity",
        None,
        "The batch grows with what pruning frees, by multiples of so many "
        "images on each device.",
    )
    flags.DEFINE_integer("seed", 0, "Seed of weights, order and augmentation.")
    flags.DEFINE_float("learning_rate", 0.1, "Of SGD, before the drops.")
    flags.DEFINE_list(
        "learning_rate_drops",
        defaults["learning_rate_drops"],
        "Epochs at which it is divided by 10. Without any: half and three "
        "quarters.",
    )
    flags.DEFINE_float("momentum", 0.9, "Of SGD.", lower_bound=0.0)
    flags.DEFINE_float(
        "weight_decay",
        defaults["weight_decay"],
        "Coupled, on all weights.",
        lower_bound=0.0,
    )
    flags.DEFINE_enum(
        "dtype_policy",
        "float32",
        ["float32", "mixed_float16", "mixed_bfloat16"],
        "What layers compute in.",
    )
    flags.DEFINE_float(
        "penalty_ratio", defaults["penalty_ratio"], "Group lasso."
    )
    _integer(
        "interval", defaults["interval"], "Epochs between reconfigurations."
    )
    flags.DEFINE_float(
        "threshold", 1e-4, "Channels below it are dead.", lower_bound=0.0
    )
    flags.DEFINE_integer(
        "finetune_epochs", 0, "Last epochs without group lasso.", lower_bound=0
    )
    flags.DEFINE_string("data_dir", None, "Where the data lies.")
    flags.DEFINE_string(
        "workdir", None, "Where the run's files go.", required=True
    )
    flags.DEFINE_string(
        "dense", None, "Folder of a finished dense run, to compare with."
    )
    flags.register_validator(
        "dense",
        lambda folder: folder is None or compare.is_finished(folder),
        "must be the folder of a finished run.",
    )
    flags.register_validator(
        "workdir",
        _may_be_written,
        "must be a folder that may be written.",
    )
    flags.register_multi_flags_validator(
        ["dense", "workdir"],
        lambda values: not _same_folder(values["dense"], values["workdir"]),
        "the dense run's folder cannot be that of the new run.",
    )
    flags.register_validator(
        "learning_rate_drops",
        lambda drops: all(drop.isdecimal() for drop in drops),
        "must be epochs, such as 91,136.",
    )
    flags.register_validator(
        "penalty_ratio",
        lambda ratio: 0.0 < ratio < 1.0,
        "must be above 0 and below 1.",
    )


def recipe():
    """Returns the `training.Recipe` that the flags describe."""
    epochs = FLAGS.epochs
    drops = FLAGS.learning_rate_drops or [epochs // 2, epochs * 3 // 4]
    settings = {
        name: getattr(FLAGS, name)
        for name in training.Recipe.__dataclass_fields__
        if name in FLAGS
    }
    return training.Recipe(
        **settings | {"learning_rate_drops": tuple(map(int, drops))}
    )


def _may_be_written(folder):
    place = os.path.abspath(folder)
    while not os.path.exists(place):  # Nor where one may not look.
        place = os.path.dirname(place)
    return os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)


def _same_folder(one, other):
    paths = (one, other)
    return None not in paths and len(set(map(os.path.realpath, paths))) == 1


def _integer(name, default, text):
    flags.DEFINE_integer(name, default, text, lower_bound=1)

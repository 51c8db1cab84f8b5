"""What recorded trainings have in common, by the recipes in their records."""

import dataclasses
import functools
import os
import pathlib
import shlex
import statistics
import sys
import tempfile

from absl import flags

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from apps import networks, recipe_flags, train_cifar, train_imagenet  # noqa: E402
from apps.training import Recipe  # noqa: E402

DEFAULTS = {x.name: x.default for x in dataclasses.fields(Recipe)}
# What two trainings have in common that stand in one table.
_SETTING = (
    *("dataset", "network", "image_size", "epochs", "batch_size", "optimizer"),
    *("learning_rate", "learning_rate_drops", "momentum", "weight_decay"),
    *("global_clipnorm", "dtype_policy"),
)
_SCHEDULE = ("epochs", "learning_rate_drops")
_OF_SDGP = ("sdgp", "sdgp_mode", "sdgp_dense_last")
# Of runs from when the choice under a target divided scores by the cost to this
# power, and not by the cost.
EXPONENT = "cost_exponent"
_PROGRAMS = {
    "apps/train_cifar.py": train_cifar,
    "apps/train_imagenet.py": train_imagenet,
}
_INITIAL = "--initial_run="
# Folders of the reader. A recipe knows no more of them than that there is one.
_FOLDERS = ("--workdir=", "--data_dir=", "--dense=", _INITIAL)
# "on n:m hardware" leaves out what SDGP computes in emulation.
_KEYS = {
    "accuracy": ("val_accuracy",),
    "inference": ("forward_flops",),
    "training": ("total_training_flops", "total_emulated_flops"),
    "training on n:m hardware": ("total_training_flops",),
}


def value(recipe, name):
    """Returns a setting of a recipe, which may be older than the setting."""
    found = recipe.get(name, DEFAULTS[name])
    return tuple(found) if isinstance(found, list) else found


def setting(recipe):
    """Returns what the trainings of one table have in common, hashable."""
    return *(value(recipe, name) for name in _SETTING), wider(recipe)


def wider(recipe):
    """Returns the width of a recipe's network if it is wider than its own.

    Otherwise `None`: a narrower one stands beside the network of usual width.
    """
    network, width = recipe["network"], value(recipe, "width")
    if width is None or not networks.has_width(network):
        return None
    return width if width > networks.own_width(network) else None


def shortens(recipe, longer):
    """Whether a dense recipe is another one with its schedule compressed."""
    scale = recipe["epochs"] / longer["epochs"]
    drops, others = (value(x, "learning_rate_drops") for x in (recipe, longer))
    same = [name for name in _SETTING if name not in _SCHEDULE]
    return (
        recipe["method"] == "dense"
        and scale < 1
        and [value(recipe, x) for x in same] == [value(longer, x) for x in same]
        and wider(recipe) == wider(longer)
        and len(drops) == len(others)
        and all(
            abs(drop - scale * other) <= 1
            for drop, other in zip(drops, others, strict=True)
        )
    )


def was_exact(recipe):
    """Whether a run is older than the flag: it has rounded no count."""
    return "channel_multiple" not in recipe


def mean(runs, kind):
    """Returns the mean over runs of `"accuracy"`, or of FLOPs of a kind."""
    first, *others = _KEYS[kind]
    return statistics.mean(
        # Records that are older than SDGP have no FLOPs of an emulation.
        run.result[first] + sum(run.result.get(key, 0) for key in others)
        for run in runs
    )


def is_plain(run):
    """Whether a run trained a network from scratch and changed nothing."""
    changed = run.recipe.get("sdgp") or run.recipe.get("initial_run")
    return run.is_dense and not changed


def dense_of(recipe, runs):
    """Returns the dense runs of a recipe's setting, of the widest network."""
    dense = [
        run
        for run in runs
        if is_plain(run) and setting(run.recipe) == setting(recipe)
    ]
    widest = max((run.result["forward_flops"] for run in dense), default=None)
    return [run for run in dense if run.result["forward_flops"] == widest]


def made_by(command, runs):
    """Returns the runs that a command makes, with any seed, and its recipe.

    Raises:
        ValueError: If its program would refuse the command.
    """
    recipe = parsed(command)
    return [
        run
        for run in runs
        if EXPONENT not in run.recipe and _key(run.recipe) == _key(recipe)
    ], recipe


@functools.cache
def parsed(command):
    """Returns the recipe of a command, a dict.

    Raises:
        ValueError: If its program would refuse the command.
    """
    _, program, *words = shlex.split(command)
    has_initial = any(word.startswith(_INITIAL) for word in words)
    words = [word for word in words if not word.startswith(_FOLDERS)]
    nowhere = os.path.join(tempfile.gettempdir(), "a_run_that_is_not_made")
    values = flags.FlagValues()
    _PROGRAMS[program].define(values)
    try:
        beside = values([program, *words, f"--workdir={nowhere}"])[1:]
    except flags.Error as error:
        raise ValueError(f"'{command}': {error}") from error
    if beside:
        raise ValueError(f"'{command}': {' '.join(beside)} is no flag.")
    recipe = dataclasses.asdict(recipe_flags.recipe(values))
    return recipe | {
        "channel_multiple": values.channel_multiple,
        "initial_run": "of the reader" if has_initial else None,
    }


def _key(recipe):
    """Returns all that makes two runs of a recipe the same but for the seed."""
    if recipe["method"] == "dense":  # It ignores what belongs to pruning.
        names = (*_SETTING, "method", "width", "initial_run", *_OF_SDGP)
    else:
        names = (name for name in DEFAULTS if name != "seed")
    found = {name: value(recipe, name) for name in names}
    found["initial_run"] = bool(found["initial_run"])
    if recipe["method"] == "targetprune" and was_exact(recipe):
        found["channel_multiple"] = "1"
    return tuple(sorted(found.items()))

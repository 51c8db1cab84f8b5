"""The random generators of the process that a training may draw from."""

import importlib
import random
from typing import Any

import keras
import numpy as np
from keras import ops


def random_state() -> dict[str, Any]:
    """Returns the state of all random generators of the process, a dict.

    That is all that `keras.utils.set_random_seed` seeds. Generators that belong
    to a layer are among the variables of its model.
    """
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
    }
    # Not made here: that would draw from Python's generator.
    generator = _internals("backend.common.global_state").get_global_attribute(
        "global_seed_generator"
    )
    if generator is not None:
        state["keras"] = ops.convert_to_numpy(generator.state)
    if keras.backend.backend() == "tensorflow":
        # An operation that is run eagerly gets a seed of its own from the
        # generator that `tf.random.set_seed` seeds, which is private.
        context = _context()
        seeds = getattr(context, "_rng", None)  # `None` before the first seed.
        state["tensorflow"] = seeds and (context._seed, seeds.getstate())
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Brings a `random_state` back.

    Args:
        state: Dict as of `random_state`; sequences in it may have become lists.
    """
    if "keras" in state:
        # Layers and functions without a seed of their own draw from it. Keras
        # makes it by a private function, and public ones only draw.
        generator = _internals("random.seed_generator").global_seed_generator()
        generator.state.assign(state["keras"])
    random.setstate(_as_tuples(state["python"]))
    np.random.set_state(state["numpy"])
    if state.get("tensorflow"):
        import tensorflow as tf

        seed, seeds = state["tensorflow"]
        tf.random.set_seed(seed)  # Forgets the operations that drew before.
        _context()._rng.setstate(_as_tuples(seeds))


def _as_tuples(value):
    """`random.setstate` takes no list."""
    if isinstance(value, list | tuple):
        return tuple(map(_as_tuples, value))
    return value


def _internals(name):
    return importlib.import_module(f"keras.src.{name}")


def _context():
    return importlib.import_module("tensorflow.python.eager.context").context()

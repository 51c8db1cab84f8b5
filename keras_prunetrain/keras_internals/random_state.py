"""The random generators of the process that a training may draw from."""

import importlib
import random
from typing import Any

import keras
import numpy as np
from keras import ops


def random_state() -> dict[str, Any]:
    """Returns the state of all random generators of the process, a dict.

    These are the generators that `keras.utils.set_random_seed` seeds. The seed
    generators of layers are among the variables of their model.
    """
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
    }
    # Making a missing generator here would draw from Python's generator.
    generator = _internals("backend.common.global_state").get_global_attribute(
        "global_seed_generator"
    )
    if generator is not None:
        state["keras"] = ops.convert_to_numpy(generator.state)
    if keras.backend.backend() == "tensorflow":
        # Each eager operation gets a seed from a private generator, which
        # `tf.random.set_seed` seeds.
        context = _context()
        seeds = getattr(context, "_rng", None)  # `None` before the first seed.
        state["tensorflow"] = seeds and (context._seed, seeds.getstate())
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restores a `random_state`.

    Args:
        state: Dict that `random_state` returned; its tuples may be lists.
    """
    if "keras" in state:
        # Layers and functions without a seed of their own draw from this
        # generator, which only a private function of Keras makes.
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
    """Returns `value` with tuples for lists, as `random.setstate` needs it."""
    if isinstance(value, list | tuple):
        return tuple(map(_as_tuples, value))
    return value


def _internals(name):
    return importlib.import_module(f"keras.src.{name}")


def _context():
    return importlib.import_module("tensorflow.python.eager.context").context()

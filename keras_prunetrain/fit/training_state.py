"""The state of a training, from which another process can go on."""

import os
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_prunetrain import keras_internals
from keras_prunetrain.distribution import replica_count
from keras_prunetrain.fit.backup_data import encoded
from keras_prunetrain.sdgp.attach import emulation_of
from keras_prunetrain.trainers import optimizer_of, optimizers_of, updated_by

# The attributes of Keras's callbacks that change with each epoch.
_STATE_OF_KERAS = {
    keras.callbacks.EarlyStopping: (
        *("wait", "best", "stopped_epoch", "best_epoch", "best_weights"),
    ),
    keras.callbacks.History: ("epoch", "history"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
    keras.callbacks.TensorBoard: (
        *("_global_train_batch", "_global_test_batch"),
        "_previous_epoch_iterations",
    ),
    keras.callbacks.ModelCheckpoint: (
        *("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
        "_current_epoch",
    ),
}


def model_state(model: keras.Model) -> dict[str, Any]:
    """Returns the values of all variables of a model and of its optimizers.

    Random seeds are among them; those of metrics are not, some of which are
    made only in the first step.
    """
    return {
        "variables": [_values(model, v) for v in model.variables],
        "optimizers": [
            {
                "name": type(optimizer).__name__,
                "built": optimizer.built,
                "updates": _updates(model, optimizer),
                "variables": [_values(model, v) for v in optimizer.variables],
            }
            for optimizer in optimizers_of(model)
        ],
        "sdgp": [_values(model, v) for v in _sdgp_variables(model)],
    }


def _updates(model, optimizer):
    """Returns the places of the weights that `optimizer` updates, a list."""
    place = {id(variable): i for i, variable in enumerate(model.variables)}
    return [place[key] for key in updated_by([optimizer]) if key in place]


def _sdgp_variables(model):
    """Returns the random state of pruned data gradients, if there is one."""
    emulation = emulation_of(model)
    state = None if emulation is None else emulation.random_state
    return [] if state is None else [state]


def set_model_state(model: keras.Model, state: dict[str, Any]) -> None:
    """Brings a `model_state` back into a model of the same architecture.

    Raises:
        ValueError: If the model or an optimizer has other variables. Nothing
            has been changed then.
    """
    optimizers = optimizers_of(model)
    names = [type(optimizer).__name__ for optimizer in optimizers]
    stored = [x["name"] for x in state["optimizers"]]
    if names != stored:
        raise ValueError(f"optimizers: {stored} there, {names} here")
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        if kept["built"] and not optimizer.built:
            with keras_internals.strategy_scope(model):
                optimizer.build([model.variables[i] for i in kept["updates"]])
    pairs = _pairs("weights", model.variables, state["variables"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        if kept["built"]:
            what = f"variables of {type(optimizer).__name__}"
            pairs += _pairs(what, optimizer.variables, kept["variables"])
    # `SDGPCallback` has not begun yet, and brings its own state back.
    pairs += zip(_sdgp_variables(model), state.get("sdgp", ()), strict=False)
    for variable, values in pairs:
        _assign(model, variable, values)


def metric_state(model: keras.Model) -> list[list[np.ndarray]]:
    """Returns the values of the metrics of an epoch that is not over."""
    return [_values(model, v) for v in model.metrics_variables]


def set_metric_state(model: keras.Model, state: list[list[np.ndarray]]) -> None:
    """Brings a `metric_state` back.

    Raises:
        ValueError: If the model has other metrics.
    """
    for variable, values in _pairs("metrics", model.metrics_variables, state):
        _assign(model, variable, values)


def has_finite_weights(model: keras.Model) -> bool:
    """Whether no weight of `model` on this worker is infinite or NaN."""
    return all(
        np.isfinite(ops.convert_to_numpy(row)).all()
        for weight in model.weights
        for row in _on_replicas(model, weight)
    )


def worker_state(model: keras.Model, steps: int) -> dict[str, Any]:
    """Returns what is not the same on all workers, a dict.

    Args:
        model: The model that the workers train.
        steps: Integer, the steps that are done of an epoch; 0 between epochs.
    """
    trained = {id(variable) for variable in model.trainable_variables}
    return {
        "variables": {
            i: _values(model, variable)
            for i, variable in enumerate(model.variables)
            if id(variable) not in trained
        },
        "metrics": metric_state(model) if steps else [],
        "random": keras_internals.random_state(),
    }


def add_worker_state(state: dict[str, Any], part: dict[str, Any]) -> None:
    """Puts a `worker_state` into the state of a training, a dict; modified."""
    for i, values in part["variables"].items():
        state["model"]["variables"][i] = values
    state["metrics"], state["random"] = part["metrics"], part["random"]


def _pairs(what, variables, values):
    """Returns pairs of a variable and its value, compared by their shapes."""
    here = [tuple(x.shape) for x in variables]
    there = [tuple(x[0].shape) for x in values]
    if here != there:
        raise ValueError(
            f"{what}: {len(there)} there and {len(here)} here, or of other "
            f"shapes: {there} there, {here} here"
        )
    return list(zip(variables, values, strict=True))


def _values(model, variable):
    """Returns the values of a variable on all replicas, one if all are equal.

    A batch normalization has other statistics on each replica.
    """
    rows = [np.asarray(x) for x in _on_replicas(model, variable)]
    same = all(row.tobytes() == rows[0].tobytes() for row in rows[1:])
    return rows[:1] if same else rows


def _on_replicas(model, variable):
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return [ops.convert_to_numpy(variable)]
    return strategy.experimental_local_results(variable.value)


def _assign(model, variable, values):
    """Assigns the values of a variable, one or one for each replica."""
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        variable.assign(values[0])
        return
    # One by one: a sum over replicas that is assigned is divided among them.
    replicas = _on_replicas(model, variable)
    if len(values) == 1:
        values = values * len(replicas)
    if len(replicas) != len(values):
        raise ValueError(f"replicas: {len(values)} there, {len(replicas)} here")
    for replica, value in zip(replicas, values, strict=True):
        replica.assign(value)


def callback_state(callback: keras.callbacks.Callback) -> Any:
    """Returns the state of `callback`; `None` if none is known.

    The state is what the callback's method `get_state` returns: nested dicts,
    lists and tuples of numbers, strings and arrays. Keras's callbacks have no
    such method; `_STATE_OF_KERAS` lists their attributes.
    """
    if hasattr(callback, "get_state"):
        return callback.get_state()
    found = {x: getattr(callback, x, None) for x in _names_of_keras(callback)}
    return {k: v for k, v in found.items() if v is not None} or None


def callback_states(
    callbacks: list[keras.callbacks.Callback],
) -> list[tuple[str, Any]]:
    """Returns a pair of the class's name and the state of each callback.

    Raises:
        TypeError: If a state holds something that no file can hold.
    """
    states = []
    for callback in callbacks:
        name, state = type(callback).__name__, callback_state(callback)
        try:
            encoded(state, [])
        except TypeError as error:
            raise TypeError(
                "`get_state` must return dicts, lists, tuples, numbers, "
                f"strings and arrays, and that of {name} does not: {error}"
            ) from error
        states.append((name, state))
    return states


def states_of(
    callbacks: list[keras.callbacks.Callback], stored: list[tuple[str, Any]]
) -> list[tuple[keras.callbacks.Callback, Any]]:
    """Returns pairs of a callback and its state, `None` for new ones.

    Args:
        callbacks: List of callbacks.
        stored: The `callback_states` of a backup. Callbacks of one class are
            told apart by their order.
    """
    left = list(stored)
    pairs = []
    for callback in callbacks:
        name = type(callback).__name__
        kept = next((entry for entry in left if entry[0] == name), None)
        if kept is not None:
            left.remove(kept)
        pairs.append((callback, kept and kept[1]))
    return pairs


def set_callback_state(callback: keras.callbacks.Callback, state: Any) -> None:
    """Brings a `callback_state` back, by the callback's method `set_state`."""
    if hasattr(callback, "set_state"):
        callback.set_state(state)
        return
    # No other name that a file may have, such as the path of a checkpoint.
    for name in _names_of_keras(callback):
        if name in state:
            setattr(callback, name, state[name])


def _names_of_keras(callback):
    for kind, names in _STATE_OF_KERAS.items():
        if isinstance(callback, kind):
            return names
    return ()


def description_of(
    model: keras.Model, steps: int | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Returns the facts that a backup and the new program must share.

    Args:
        model: The model as the user has built it.
        steps: Integer, the steps of an epoch; `None` if not known.
        settings: Those of the callback that makes the model smaller.
    """
    return {
        "weights": [list(weight.shape) for weight in model.weights],
        "optimizer": type(model.optimizer).__name__,
        "learning_rate": keras_internals.shown_rate(optimizer_of(model)),
        "loss": [_name_of_loss(x) for x in keras.tree.flatten(model.loss)],
        "steps": steps,
        "replicas": replica_count(model),
        **settings,
    }


def _name_of_loss(loss):
    """Returns a name that is the same in each process."""
    if loss is None or isinstance(loss, str):
        return loss
    name = getattr(loss, "name", getattr(loss, "__name__", None))
    return name if isinstance(name, str) else type(loss).__name__


def check_same(
    path: os.PathLike, there: dict[str, Any], here: dict[str, Any]
) -> None:
    """Raises a `ValueError` if a backup is one of another training.

    Args:
        path: Path of the backup.
        there: Its `description_of` the training.
        here: That of the training that is to go on.
    """
    differing = [
        f"{name} was {_short(there.get(name))} and is {_short(here.get(name))}"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if differing:
        raise ValueError(
            f"The backup '{path}' is one of another training: "
            f"{'; '.join(differing)}. Give each training a folder of its own, "
            "or delete this one to begin anew."
        )


def _short(value):
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."

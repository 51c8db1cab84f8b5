"""The private parts of Keras that concern `compile` and `fit`."""

import contextlib
import importlib
from collections.abc import Iterable
from typing import Any

import keras

from keras_prunetrain.keras_internals.gradients import release_gradients


def strategy_scope(
    model: keras.Model,
) -> contextlib.AbstractContextManager[Any]:
    """Returns the scope in which variables for `model` must be made.

    Variables that are made elsewhere would silently not be distributed. Only
    the TensorFlow trainer has `distribute_strategy`.
    """
    if hasattr(model, "distribute_strategy"):
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()


def repair_distributed_fit() -> None:
    """Repairs `fit` on several machines and `evaluate` on an uneven batch.

    Two private functions of Keras's TensorFlow trainer fail there (Keras 3.8 to
    3.15, keras-team/keras#20585): `_maybe_symbolic_build` averages a batch over
    the replicas, which must be of one machine and have as many examples each,
    and `reduce_per_replica` takes the first axis of results that have none.
    Both are replaced in the whole process. The replacements behave like Keras
    wherever Keras works. Nothing is replaced in a Keras of another major
    version, or in one that lacks one of the functions.
    """
    is_keras_3 = keras.version().split(".")[0] == "3"
    if keras.backend.backend() != "tensorflow" or not is_keras_3:
        return
    trainer = importlib.import_module("keras.src.backend.tensorflow.trainer")
    if not all(
        hasattr(owner, name)
        for owner, name in (
            (trainer, "reduce_per_replica"),
            (trainer.TensorFlowTrainer, "_maybe_symbolic_build"),
        )
    ):
        return  # This version of Keras may not need the repair.
    if getattr(trainer, "_repaired_by_keras_prunetrain", False):
        return
    trainer._repaired_by_keras_prunetrain = True
    trainer.reduce_per_replica = _with_any_axis(trainer.reduce_per_replica)
    trainer.TensorFlowTrainer._maybe_symbolic_build = _maybe_symbolic_build


def _with_any_axis(reduce):
    """Returns `reduce_per_replica` for results that may have no first axis."""

    def reduce_per_replica(values, strategy, reduction):
        if not on_several_machines(strategy) or reduction not in (
            "auto",
            "mean",
            "sum",
        ):
            return reduce(values, strategy, reduction)
        how = "SUM" if reduction == "sum" else "MEAN"
        return keras.tree.map_structure(
            lambda value: strategy.reduce(how, value, axis=None), values
        )

    return reduce_per_replica


def _maybe_symbolic_build(self, iterator=None, data_batch=None):
    """Builds metrics and optimizer from the first batch of one replica."""
    if self._distribute_strategy is None:
        return
    strategy = self.distribute_strategy
    for _, _, batches in iterator or ():
        data_batch = keras.tree.map_structure(
            lambda x: strategy.experimental_local_results(x)[0],
            next(batches),
        )
        break
    with strategy.scope():
        self._symbolic_build(data_batch=data_batch)


def on_several_machines(strategy: Any) -> bool:
    """Whether `strategy` has replicas in other processes.

    Keras reads the same attribute; for one worker, `cluster_resolver` does not
    give the answer.
    """
    return getattr(strategy.extended, "_in_multi_worker_mode", bool)()


def compile_like(
    model: keras.Model,
    smaller: keras.Model,
    optimizer: keras.optimizers.Optimizer | None,
) -> None:
    """Compiles `smaller` with the very objects `model` was compiled with.

    `get_compile_config` is public, but it serializes: lambdas, unregistered
    losses and the identity of the objects would be lost. `_compile_config`
    keeps what the user passed.
    """
    keras.Model.compile(
        smaller,
        **{
            **model._compile_config.config,
            "optimizer": optimizer,
            "run_eagerly": model.run_eagerly,
            "steps_per_execution": model.steps_per_execution,
            "jit_compile": model.jit_compile,
            # If the loss is scaled, `optimizer` is a LossScaleOptimizer.
            "auto_scale_loss": False,
        },
    )


def example_count(model: keras.Model, steps: int) -> int | None:
    """Returns how many examples the epoch's training steps have seen so far.

    `fit` weighs the mean of the loss by the examples of each step, so the
    weights of `_loss_tracker` add up to their number. The result is `None` if a
    `train_step` of the user's own counts steps instead, or nothing. On several
    replicas the count is an exchange, in which all replicas must take part.

    Args:
        model: The model, while it trains.
        steps: Integer, the number of steps that the epoch has had.
    """
    # During training, the JAX trainer writes the variables only when asked to.
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
    count = int(keras.ops.convert_to_numpy(model._loss_tracker.count))
    own_step = type(model).train_step is not keras.Model.train_step
    return None if own_step and count <= steps else count


def announce_steps(
    callbacks: Iterable[keras.callbacks.Callback], steps: int
) -> None:
    """Tells the progress bars among `callbacks` how long an epoch is.

    A progress bar copies `params["steps"]` to `target` when `fit` begins, and
    reads `target`, an undocumented attribute, when an epoch begins.
    """
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.ProgbarLogger):
            callback.target = steps
            if callback.progbar is not None:
                callback.progbar.target = steps


def renew_steps(model: keras.Model) -> None:
    """Lets `model` trace its steps anew when they are called."""
    release_gradients(model.variables)
    model.make_train_function(force=True)
    model.test_function = None
    model.predict_function = None
    _forget_tracings()


def _forget_tracings():
    """Lets TensorFlow count the tracings of Keras's steps from zero.

    TensorFlow counts the tracings of all models together, and warns at the
    fifth, as if one step were traced again and again.
    """
    if keras.config.backend() != "tensorflow":
        return
    module = "tensorflow.python.eager.polymorphic_function.polymorphic_function"
    counts = getattr(
        importlib.import_module(module),
        "_frequent_tracing_detector_manager",
        None,
    )
    trainer = importlib.import_module("keras.src.backend.tensorflow.trainer")
    for code in list(getattr(counts, "_detectors", ())):
        if getattr(code, "co_filename", None) == trainer.__file__:
            counts._detectors.pop(code, None)

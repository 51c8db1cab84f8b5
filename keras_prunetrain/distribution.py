"""Several replicas and machines: settings, statistics, the first worker."""

import hashlib
import logging
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_prunetrain import keras_internals
from keras_prunetrain.checks import is_number

if TYPE_CHECKING:
    import tensorflow as tf

_LOG = logging.getLogger("keras_prunetrain")
# The function of each strategy that gathers digests.
_DIGESTS = {}


def multi_worker_strategy(
    timeout_seconds: float | None = None,
) -> "tf.distribute.MultiWorkerMirroredStrategy":
    """Returns a `MultiWorkerMirroredStrategy` under which `fit` works.

    Each worker is a process that runs the same program. The environment
    variable `TF_CONFIG` names all workers and says which of them the process
    is. Call this function before TensorFlow does anything else in the process,
    build and compile the model under `strategy.scope()`, and give every worker
    the same data set, which is divided among the workers.

    Two functions of Keras fail under this strategy. They are replaced in the
    whole process (`keras_internals.repair_distributed_fit`) and behave as
    before under any other strategy.

    Args:
        timeout_seconds: Seconds that a worker waits for the others in an
            exchange before it ends with an error. TensorFlow keeps a thread
            for each exchange until the timeout is over, also when the exchange
            is done: thousands of threads, if steps are short. Defaults to
            `None`, no timeout; TensorFlow still notices the death of a worker.

    Returns:
        A `tf.distribute.MultiWorkerMirroredStrategy`.

    Raises:
        ValueError: If `timeout_seconds` is out of its range.
    """
    import tensorflow as tf

    if timeout_seconds is not None and not (
        is_number(timeout_seconds) and timeout_seconds > 0
    ):
        raise ValueError(
            "`timeout_seconds` must be a number above 0, or `None` for no "
            f"timeout. Received: timeout_seconds={timeout_seconds!r}"
        )
    keras_internals.repair_distributed_fit()
    options = tf.distribute.experimental.CommunicationOptions(
        timeout_seconds=timeout_seconds
    )
    return tf.distribute.MultiWorkerMirroredStrategy(
        communication_options=options
    )


def replica_count(model: keras.Model) -> int:
    """Returns the number of devices on which `model` trains at once."""
    strategy = getattr(model, "distribute_strategy", None)
    return 1 if strategy is None else strategy.num_replicas_in_sync


def is_first_worker(strategy_or_model: Any) -> bool:
    """Whether this process is to write the files of a training.

    This is one process of a cluster: its chief, or worker 0 of a cluster
    without a chief. A process that belongs to no cluster is a first worker as
    well.

    Example:

    ```python
    if kpt.is_first_worker(strategy):
        model.save("model.keras")
    ```

    Args:
        strategy_or_model: A `tf.distribute.Strategy`, a model that trains under
            one, or `None` for no strategy.

    Returns:
        Boolean.

    Raises:
        ValueError: If `strategy_or_model` is none of these.
    """
    strategy = getattr(
        strategy_or_model, "distribute_strategy", strategy_or_model
    )
    if strategy is not None and not hasattr(strategy, "cluster_resolver"):
        raise ValueError(
            "`strategy_or_model` must be a `tf.distribute.Strategy`, a model "
            "or `None`. Received: "
            f"strategy_or_model={strategy_or_model!r}"
        )
    return _worker_of(strategy) is None


def worker_name(model: keras.Model) -> str | None:
    """Returns a name of this worker, such as `worker1`; of the first, `None`.

    Args:
        model: The model that the workers train.
    """
    return _worker_of(getattr(model, "distribute_strategy", None))


def _worker_of(strategy):
    resolver = getattr(strategy, "cluster_resolver", None)
    jobs = resolver.cluster_spec().jobs if resolver else ()
    first = "chief" if "chief" in jobs else "worker"
    if not jobs or (resolver.task_type, resolver.task_id) == (first, 0):
        return None
    return f"{resolver.task_type}{resolver.task_id}"


def prepare_strategy(model: keras.Model) -> None:
    """Checks the strategy that is to train `model`, and repairs Keras for it.

    On several replicas, Keras's `evaluate` fails on a first batch that the
    replicas do not share equally, and so does validation. The repair replaces
    functions of Keras in the whole process
    (`keras_internals.repair_distributed_fit`).

    Raises:
        ValueError: As `check_strategy`.
    """
    check_strategy(model)
    if replica_count(model) > 1:
        keras_internals.repair_distributed_fit()


def check_strategy(model: keras.Model) -> None:
    """Raises a `ValueError` if the strategy of `model` cannot train it.

    The model must have been built in the scope of the strategy. On several
    machines, a scaled loss (`mixed_float16`) is refused: each replica decides
    by its own gradients whether to skip an update, and one that does not skip
    it would wait for the others forever.
    """
    if replica_count(model) == 1:
        return
    strategy = model.distribute_strategy
    for weight in model.weights:
        if not strategy.extended.variable_created_in_scope(weight.value):
            raise ValueError(
                f"'{model.name}' was not built in the scope of the "
                f"{type(strategy).__name__} that should train it. Build and "
                "compile the model under `with strategy.scope():`. Received: "
                f"'{weight.path}', a variable of another scope"
            )
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        if keras_internals.on_several_machines(strategy):
            raise ValueError(
                "On several machines, `mixed_float16` does not work in Keras: "
                "some workers would skip an update for which the others wait. "
                "Use `mixed_bfloat16`."
            )
        _LOG.warning(
            "With `mixed_float16`, Keras skips an update if the gradients of "
            "the first replica overflow, and only then. Use `mixed_bfloat16` "
            "if the hardware has it."
        )


def check_agreement(model: keras.Model, description: str) -> None:
    """Raises a `ValueError` unless all workers have the same `description`.

    Args:
        model: The model that the workers train.
        description: All settings on which the workers must agree, as text.
    """
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is None or not keras_internals.on_several_machines(strategy):
        return
    digest = hashlib.sha256(description.encode()).digest()
    rows = _gathered_digests(strategy, np.frombuffer(digest, "int32"))
    if (rows != rows[0]).any():
        raise ValueError(
            "The workers do not train the same way, and would drift apart or "
            "wait for each other forever. Start all workers with the same "
            f"arguments. Received, on this worker: {description}"
        )


def mean_over_workers(model: keras.Model, values: np.ndarray) -> np.ndarray:
    """Returns the mean of an array over all workers, the same on each.

    Args:
        model: The model that the workers train.
        values: Float array, of the same shape on all workers.
    """
    strategy = getattr(model, "distribute_strategy", None)
    if strategy is None or not keras_internals.on_several_machines(strategy):
        return values
    return _gathered(strategy, [values])[0].mean(axis=0)


def _gathered_digests(strategy, digest):
    """Returns the digests of all workers, an array `(replicas, *shape)`."""
    import tensorflow as tf

    if strategy not in _DIGESTS:

        def gather(digest):
            context = tf.distribute.get_replica_context()
            return context.all_gather(digest[None], axis=0)

        # Traced once: workers agree at each backup, and what TensorFlow keeps
        # of every function that it traced would fill the memory.
        _DIGESTS[strategy] = tf.function(
            lambda digest: strategy.run(gather, (digest,)), autograph=False
        )
    result = _DIGESTS[strategy](tf.constant(digest))
    return strategy.experimental_local_results(result)[0].numpy()


def average_statistics(model: keras.Model) -> None:
    """Gives all replicas the mean of their moving statistics.

    A `BatchNormalization` that is not `synchronized` has its own statistics on
    each replica, those of the examples that the replica has seen. `evaluate`,
    a saved file and the constant of a removed branch use them; training does
    not.
    """
    own = [w for w in model.non_trainable_weights if "float" in w.dtype]
    if replica_count(model) == 1 or not own:
        return
    means = [
        # This form is exact for equal rows: frozen weights do not change.
        rows[0] + (rows - rows[0]).mean(axis=0, dtype=rows.dtype)
        for rows in _values_of_replicas(model, own)
    ]
    for weight, mean in zip(own, means, strict=True):
        weight.assign(mean)


def _values_of_replicas(model, weights):
    """Returns the values of each of `weights`, arrays `(replicas, *shape)`."""
    strategy = model.distribute_strategy
    if keras_internals.on_several_machines(strategy):
        rows = _gathered(strategy, weights)
        keras_internals.release_gradients(weights)
        return rows
    return [
        np.stack(strategy.experimental_local_results(weight.value))
        for weight in weights
    ]


def _gathered(strategy, values):
    """Returns each of `values` on all workers, arrays `(replicas, *shape)`."""
    import tensorflow as tf

    def gather():
        context = tf.distribute.get_replica_context()
        rows = [ops.convert_to_tensor(value)[None] for value in values]
        return context.all_gather(rows, axis=0)

    # A strategy keeps every traced function that it runs, forever, and so it
    # gets a function that is not traced.
    results = tf.function(lambda: strategy.run(gather), autograph=False)()
    return [
        strategy.experimental_local_results(result)[0].numpy()
        for result in results
    ]

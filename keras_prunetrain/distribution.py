"""Several replicas and machines, and what they have to agree on."""

import hashlib
import logging

import keras
import numpy as np
from keras import ops

from keras_prunetrain import keras_internals

_LOG = logging.getLogger("keras_prunetrain")


def multi_worker_strategy(timeout_seconds=None):
    """Returns a `MultiWorkerMirroredStrategy` under which `fit` works.

    Each worker is a process that runs the same program and is told by the
    environment variable `TF_CONFIG` who the others are and which of them it is.
    Call this before anything else that TensorFlow does in the process, build
    and compile the model under `strategy.scope()`, and give every worker the
    same data set: it is divided among them.

    Args:
        timeout_seconds: Number. How long a worker waits for the others in an
            exchange before it gives up with an error. TensorFlow keeps a thread
            for each exchange until then, even when it is done: thousands of
            them, if steps are short. Defaults to `None`, forever; that a worker
            has died is noticed without it.

    Returns:
        A `tf.distribute.MultiWorkerMirroredStrategy`. Two functions of Keras
        that fail under one are replaced for all of the process; they go on
        doing for other strategies what they did.
    """
    import tensorflow as tf

    keras_internals.repair_distributed_fit()
    options = tf.distribute.experimental.CommunicationOptions(
        timeout_seconds=timeout_seconds
    )
    return tf.distribute.MultiWorkerMirroredStrategy(
        communication_options=options
    )


def replica_count(model):
    """Returns on how many devices `model` trains at once."""
    strategy = getattr(model, "distribute_strategy", None)
    return 1 if strategy is None else strategy.num_replicas_in_sync


def is_first_worker(strategy_or_model):
    """Whether this process is the one that writes the files of a training.

    Example:

    ```python
    if kpt.is_first_worker(strategy):
        model.save("model.keras")
    ```

    Args:
        strategy_or_model: A `tf.distribute.Strategy`, a model that trains under
            one, or `None` for no strategy.

    Returns:
        Boolean, true in the chief of a cluster, in its worker 0 if it has no
        chief, and in a process that belongs to no cluster.
    """
    strategy = getattr(
        strategy_or_model, "distribute_strategy", strategy_or_model
    )
    resolver = getattr(strategy, "cluster_resolver", None)
    jobs = resolver.cluster_spec().jobs if resolver else ()
    first = "chief" if "chief" in jobs else "worker"
    return not jobs or (resolver.task_type, resolver.task_id) == (first, 0)


def prepare_strategy(model):
    """Makes Keras ready for the strategy that is to train `model`.

    With several replicas, Keras's `evaluate` fails on a first batch that they
    do not share equally, and so does validation. It is repaired where it lies,
    in Keras, and so for every model of the process
    (`keras_internals.repair_distributed_fit`).

    Raises:
        ValueError: See `check_strategy`.
    """
    check_strategy(model)
    if replica_count(model) > 1:
        keras_internals.repair_distributed_fit()


def check_strategy(model):
    """Raises a `ValueError` if `model` cannot be trained by its strategy.

    It must have been built in its scope. And on several machines a scaled loss
    (`mixed_float16`) would end in waiting forever: each replica of Keras judges
    by its own gradients whether to skip an update.
    """
    if replica_count(model) == 1:
        return
    strategy = model.distribute_strategy
    for weight in model.weights:
        if not strategy.extended.variable_created_in_scope(weight.value):
            raise ValueError(
                f"'{model.name}' was not built in the scope of the "
                f"{type(strategy).__name__} that is to train it. Build and "
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
            "the first replica overflow, whatever those of the others do. Use "
            "`mixed_bfloat16` if the hardware has it."
        )


def check_agreement(model, description):
    """Raises a `ValueError` unless all workers have the same `description`.

    Args:
        model: The model that they train.
        description: String that says what they must agree on.
    """
    if replica_count(model) == 1:
        return
    digest = hashlib.sha256(description.encode()).digest()
    rows = _gathered(model, [np.frombuffer(digest, "int32")])[0]
    if (rows != rows[0]).any():
        raise ValueError(
            "The workers do not train the same way, and would drift apart or "
            "wait for each other forever. Start all of them with the same "
            f"arguments. Received, on this one: {description}"
        )


def average_statistics(model):
    """Gives all replicas the mean of what each of them has gathered.

    The moving statistics of a `BatchNormalization` that is not `synchronized`
    are those of the examples that one replica has seen. Training does not read
    them; `evaluate`, a saved file and a removed branch's constant do.
    """
    own = [w for w in model.non_trainable_weights if "float" in w.dtype]
    if replica_count(model) == 1 or not own:
        return
    means = [
        # Exact where all are equal: frozen weights stay what they are.
        rows[0] + (rows - rows[0]).mean(axis=0, dtype=rows.dtype)
        for rows in _gathered(model, own)
    ]
    for weight, mean in zip(own, means, strict=True):
        weight.assign(mean)


def _gathered(model, values):
    """Returns the values of all replicas, as arrays `(replicas, *shape)`."""
    import tensorflow as tf

    strategy = model.distribute_strategy

    @tf.function
    def gather():
        context = tf.distribute.get_replica_context()
        rows = [ops.convert_to_tensor(value)[None] for value in values]
        return context.all_gather(rows, axis=0)

    results = strategy.run(gather)
    return [
        strategy.experimental_local_results(result)[0].numpy()
        for result in results
    ]

"""A batch that grows while the model shrinks (paper, section 4.3)."""

import math
import numbers
import weakref
from concurrent import futures

from keras_prunetrain import keras_internals
from keras_prunetrain.distribution import replica_count
from keras_prunetrain.memory import (
    device_bytes,
    iteration_bytes,
    training_bytes,
)

# What an iteration really takes, over what is counted: 1.14 at most as measured
# (tools/benchmarks/memory.py), and something to spare.
_OVERHEAD = 1.25
_SCALINGS = {"linear": lambda ratio: ratio, "sqrt": math.sqrt}


_OTHER_DATA = (
    "`fit` does not train on the data set of this DynamicBatch: hand it "
    "`batch(train)`, with `train` an unbatched `tf.data.Dataset`, or "
    "`batch.arrays(images, labels)`, and no `steps_per_epoch`."
)


class DynamicBatch:
    """The batch size of a training, as an object.

    What a smaller model frees in memory, a larger batch uses: fewer updates,
    fewer all-reduces, better utilization. `PruneTrainCallback` enlarges the
    batch after each reconfiguration, to the largest multiple of `granularity`
    on each replica that `memory_budget` allows, and lets the optimizer train
    with a learning rate that is scaled to it.

    Example:

    ```python
    batch = DynamicBatch(128)
    train = tf.data.Dataset.from_tensor_slices((images, labels))
    train = batch(train.shuffle(len(images))).map(augment).prefetch(2)
    model.fit(train, epochs=182, callbacks=[PruneTrainCallback(batch=batch)])
    ```

    Each epoch has every example once, whatever the size; the last batch of an
    epoch is what is left. The optimizer's `learning_rate` stays what the user,
    a schedule or another callback set; what it trains with is that, times
    `learning_rate_ratio`. A `LearningRateSchedule` goes on in examples: a step
    on twice the examples counts for two.

    `keras.utils.PyDataset`s and generators form their batches themselves, and
    `fit` asks them once how many there are: they cannot be enlarged.

    Args:
        initial: Integer. The first batch size, over all replicas.
        granularity: Integer. Sizes that are grown to are multiples of so many
            examples per replica. Defaults to `32`, the paper's.
        memory_budget: What one training iteration may take on each replica, in
            bytes as `training_bytes` counts them; `"device"` for the memory of
            the device; `None` (the default) for what the first architecture
            takes with the first batch.
        maximum: Integer. Largest batch size, over all replicas. Defaults to
            no limit but the number of examples.
        scaling: What the learning rate is multiplied by when the batch is
            `ratio` times the initial one: `"linear"` for `ratio` (the
            default), `"sqrt"` for its root, or a function of `ratio`.

    Attributes:
        size: Integer, the current batch size, over all replicas.
        examples: Integer, the examples in an epoch; `None` before the first
            data set.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        - [Lym et al., 2019](https://arxiv.org/abs/1901.09290), section 4.3.
    """

    def __init__(
        self,
        initial,
        granularity=32,
        memory_budget=None,
        maximum=None,
        scaling="linear",
    ):
        _check_counts(initial=initial, granularity=granularity)
        if maximum is not None:
            _check_counts(maximum=maximum)
            if maximum < initial:
                raise ValueError(
                    "`maximum` must be at least `initial`. Received: "
                    f"maximum={maximum}, initial={initial}"
                )
        _check_budget(memory_budget)
        if not callable(scaling) and scaling not in _SCALINGS:
            raise ValueError(
                "`scaling` must be 'linear', 'sqrt' or a function of the "
                f"ratio. Received: scaling={scaling!r}"
            )
        # The first batch may be larger on one replica than on another.
        keras_internals.repair_distributed_fit()
        self.initial = initial
        self.granularity = granularity
        self.memory_budget = memory_budget
        self.maximum = maximum
        self.scaling = scaling
        self.size = initial
        self.examples = None
        self._steps_of_data = None
        self._model = None
        self._budget = None
        self._variable = None
        # (update, how many of the initial size it comes to), at the last growth
        self._since = (0, 0)

    def __repr__(self):
        names = (
            *("initial", "granularity", "memory_budget", "maximum"),
            *("size", "examples"),
        )
        values = [f"{name}={getattr(self, name)!r}" for name in names]
        # A function without its address, which differs between processes.
        scaling = self.scaling
        if callable(scaling):
            scaling = getattr(scaling, "__qualname__", type(scaling).__name__)
        return f"DynamicBatch({', '.join(values)}, scaling={scaling!r})"

    @property
    def ratio(self):
        """How often the initial batch goes into the current one, a float."""
        return self.size / self.initial

    @property
    def learning_rate_ratio(self):
        """What the learning rate is multiplied by, a float."""
        return float(_SCALINGS.get(self.scaling, self.scaling)(self.ratio))

    def initial_updates(self, iterations):
        """Returns how many updates of the initial size `iterations` come to.

        Args:
            iterations: Integer, or integer tensor. The optimizer's, at least
                as many as at the last growth.
        """
        update, initial_updates = self._since
        since = (iterations - update) * self.size // self.initial
        return initial_updates + since

    @property
    def steps(self):
        """Updates in an epoch of the current size, an integer."""
        return math.ceil(self.examples / self.size)

    def __call__(self, examples):
        """Returns `examples` in batches of the current size.

        Shuffle before, with a seed where several workers share the examples:
        each takes its part of every batch, so all must see the same order.
        Each pass over the result reads the size anew when it begins. Outside of
        `fit`, call `batch(examples)` anew once the batch has grown: a data set
        that has fewer batches than it had at first ends with an error.

        Args:
            examples: An unbatched `tf.data.Dataset` of known, finite size.
                Map and prefetch the result as you like.

        Raises:
            ValueError: If `examples` is no such data set, has fewer examples
                than one batch, or another number than the data set before.
        """
        import tensorflow as tf

        self._check_examples(examples, tf)
        count = int(examples.cardinality())
        if self.examples not in (None, count):
            raise ValueError(
                "A DynamicBatch is that of the one data set that `fit` trains "
                f"on, and it has had one of {self.examples} examples. Form the "
                "batches of others, for validation, with `.batch(n)`. "
                f"Received: one of {count} examples"
            )
        if self._variable is None:
            self._variable = _outside_strategies(lambda: _size_on_cpu(tf, self))
        size = self._variable
        batches = tf.data.Dataset.range(1).flat_map(
            lambda _: examples.batch(size)
        )
        self.examples = count
        self._steps_of_data = self.steps
        # `fit` wants to know how many there are. Once they are fewer, the
        # callback ends the epochs.
        return batches.apply(
            tf.data.experimental.assert_cardinality(self.steps)
        )

    def arrays(self, x, y=None, sample_weight=None, shuffle=True, seed=0):
        """Returns NumPy arrays in batches of the current size.

        Args:
            x: Array, or a structure of arrays, with as many rows as examples.
            y: The same; optional.
            sample_weight: Array; optional.
            shuffle: Boolean. Whether each pass has an order of its own.
            seed: Integer that decides the orders. Several workers need the
                same one.

        Returns:
            A `tf.data.Dataset` as of `__call__`.
        """
        import tensorflow as tf

        if y is None and sample_weight is not None:
            raise ValueError(
                "`sample_weight` without `y` would be taken for the targets. "
                "Pass `y` as well."
            )
        parts = [part for part in (x, y, sample_weight) if part is not None]
        structure = tuple(parts) if len(parts) > 1 else parts[0]
        # A list would be stacked to one tensor.
        structure = _lists_as_tuples(structure)
        if y is None and isinstance(structure, tuple):
            structure = (structure,)  # Else the second input were the target.
        leaves = tf.nest.flatten(structure)
        if len({len(leaf) for leaf in leaves}) != 1:
            raise ValueError(
                "All arrays must have the same number of examples. Received: "
                f"{', '.join(str(len(leaf)) for leaf in leaves)}"
            )
        with tf.device("/CPU:0"):
            structure = tf.nest.map_structure(tf.convert_to_tensor, structure)
        indices = tf.data.Dataset.range(len(leaves[0]))
        if shuffle:
            indices = indices.shuffle(len(leaves[0]), seed=seed)
        return (
            self(indices)
            .map(
                lambda rows: tf.nest.map_structure(
                    lambda array: tf.gather(array, rows), structure
                )
            )
            .prefetch(2)
        )

    def begin(self, model, steps):
        """Checks that `model` can be trained with this batch.

        Called by `PruneTrainCallback` before the first step.

        Args:
            model: The model, compiled and built.
            steps: Integer. How many steps per epoch `fit` knows of.

        Raises:
            ValueError: If the replicas do not divide the first batch, if `fit`
                does not read a data set of this batch, or if the budget is
                below what a batch of one takes.
        """
        replicas = replica_count(model)
        if self.initial % replicas:
            raise ValueError(
                f"The {replicas} replicas do not divide the first batch. "
                f"Received: initial={self.initial}"
            )
        fixed_steps = keras_internals.fit_argument("steps_per_epoch")
        if fixed_steps is not None:
            raise ValueError(
                f"{_OTHER_DATA} Received: steps_per_epoch={fixed_steps}"
            )
        data = keras_internals.fit_argument("x")
        if data is not None and not _is_data_set(data):
            raise ValueError(f"{_OTHER_DATA} Received: {type(data).__name__}")
        if self.examples is None or steps != self._steps_of_data:
            raise ValueError(
                f"{_OTHER_DATA} Received: {steps} steps per epoch, expected "
                f"{self._steps_of_data}"
            )
        if self._leaves_a_replica_empty(self.size, replicas):
            raise ValueError(
                f"The last batch of an epoch has {self.examples % self.size} "
                f"examples for {replicas} replicas, one of which would get "
                "none, and layers fail on that. Choose another `initial`, or "
                "leave out examples with `train.take(n)`. Received: batches "
                f"of {self.size} for {self.examples} examples"
            )
        if model.steps_per_execution > 1:
            raise ValueError(
                "A batch that grows makes epochs shorter, and an execution of "
                "several steps cannot end in its middle. Compile with "
                "`steps_per_execution=1`. Received: steps_per_execution="
                f"{model.steps_per_execution}"
            )
        if not model.optimizer.built:  # Its slots take memory, too.
            with keras_internals.strategy_scope(model):
                model.optimizer.build(model.trainable_variables)
        if self._model is None:
            self._model = weakref.ref(model)
            self._budget = self._budget_for(model, replicas)
        elif self._model() is not model:
            raise ValueError(
                "This DynamicBatch has been grown with another model. Make a "
                f"new one for '{model.name}'. Received: {self}"
            )
        updates = keras_internals.update_count(model.optimizer)
        if updates < self._since[0]:  # Compiled anew.
            self._since = (updates, 0)

    def check_first_step(self, examples):
        """Raises a `ValueError` unless the first step saw so many `examples`.

        Data of the same number of steps may be another's.
        """
        expected = min(self.size, self.examples)
        if examples != expected:
            raise ValueError(
                f"{_OTHER_DATA} Received: {examples} examples in the first "
                f"step, expected {expected}"
            )

    def grow(self, model):
        """Enlarges the batch to what the memory allows; never makes it smaller.

        Args:
            model: The model as it is now.

        Returns:
            The new size, an integer.
        """
        replicas = replica_count(model)
        fixed, per_example = iteration_bytes(model)
        room = (self._budget - fixed) // per_example  # On one replica.
        limit = min(self.maximum or math.inf, self.examples)
        step = self.granularity * replicas
        size = int(min(room * replicas, limit) // step) * step
        while size > 0 and self._leaves_a_replica_empty(size, replicas):
            size -= step
        if size > self.size:
            update = keras_internals.update_count(model.optimizer)
            self._since = (update, self.initial_updates(update))
            self.size = size
            self._variable.assign(size)
        return self.size

    def _leaves_a_replica_empty(self, size, replicas):
        # TensorFlow cuts the rest into parts of as many as it can.
        rest = self.examples % size
        return 0 < rest <= math.ceil(rest / replicas) * (replicas - 1)

    def _budget_for(self, model, replicas):
        if self.memory_budget is None:
            return training_bytes(model, self.initial // replicas)
        budget = self.memory_budget
        if budget == "device":
            budget = device_bytes() / _OVERHEAD
        least = training_bytes(model, 1)
        if budget < least:
            raise ValueError(
                f"One training iteration of '{model.name}' takes {least:,} "
                "bytes with a batch of one on each replica. Received: "
                f"memory_budget={self.memory_budget!r} ({int(budget):,} bytes)"
            )
        return budget

    def _check_examples(self, examples, tf):
        if not isinstance(examples, tf.data.Dataset):
            raise ValueError(
                "A DynamicBatch is called on an unbatched `tf.data.Dataset`; "
                "for arrays there is `batch.arrays(images, labels)`. A "
                "`PyDataset` or a generator forms its batches itself and "
                f"cannot be enlarged. Received: {type(examples).__name__}"
            )
        shapes = [
            spec.shape
            for spec in tf.nest.flatten(examples.element_spec)
            if hasattr(spec, "shape")
        ]
        if all(s.rank and s[:1].as_list() == [None] for s in shapes):
            raise ValueError(
                "The data set is batched already: every element has a first "
                "axis of unknown length. Leave `.batch(...)` out, or undo it "
                f"with `.unbatch()`. Received: {examples.element_spec}"
            )
        count = int(examples.cardinality())
        if count < 0:
            kind = "infinite" if count == -1 else "unknown"
            raise ValueError(
                f"The data set is of {kind} size. Leave `.repeat()` out; after "
                "a `filter` or a generator, tell the number of examples with "
                "`.apply(tf.data.experimental.assert_cardinality(n))`."
            )
        if count < self.size:
            raise ValueError(
                f"A batch is larger than the data set: {self.size} examples, "
                f"and {count} are there."
            )


def _size_on_cpu(tf, batch):
    with tf.init_scope(), tf.device("/CPU:0"):
        return tf.Variable(batch.size, dtype="int64")


def _outside_strategies(function):
    """Calls `function` as if no strategy's scope were entered.

    Scopes are those of a thread.
    """
    with futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()


def _is_data_set(data):
    import tensorflow as tf

    return isinstance(data, tf.data.Dataset | tf.distribute.DistributedDataset)


def _lists_as_tuples(structure):
    if isinstance(structure, dict):
        return {k: _lists_as_tuples(v) for k, v in structure.items()}
    if isinstance(structure, list | tuple):
        return tuple(map(_lists_as_tuples, structure))
    return structure


def _check_counts(**counts):
    for name, value in counts.items():
        if (
            not isinstance(value, numbers.Integral)
            or isinstance(value, bool)
            or value < 1
        ):
            raise ValueError(
                f"`{name}` must be an integer of at least 1. Received: "
                f"{name}={value}"
            )


def _check_budget(budget):
    is_number = isinstance(budget, numbers.Real) and budget > 0
    if budget not in (None, "device") and not is_number:
        raise ValueError(
            "`memory_budget` must be a number of bytes above 0, 'device' or "
            f"`None`. Received: memory_budget={budget!r}"
        )

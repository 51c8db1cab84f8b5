"""A batch that grows while the model shrinks (paper, section 4.3)."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from keras_prunetrain import data_sets
from keras_prunetrain.checks import is_count, is_number

if TYPE_CHECKING:
    import tensorflow as tf

Scaling = Literal["linear", "sqrt"] | Callable[[float], float]
_SCALINGS = {"linear": lambda ratio: ratio, "sqrt": math.sqrt}


class DynamicBatch:
    """The batch size of a training, as an object.

    A larger batch uses the memory that a smaller model frees, and means fewer
    updates, fewer exchanges between devices and better utilization.
    `PruneTrainCallback` enlarges the batch after each reconfiguration, to the
    largest multiple of `granularity` on each replica that `memory_budget`
    allows, and lets the optimizer train with a learning rate that is scaled to
    it.

    Example:

    ```python
    batch = DynamicBatch(128)
    train = tf.data.Dataset.from_tensor_slices((images, labels))
    train = batch(train.shuffle(len(images))).map(augment).prefetch(2)
    model.fit(train, epochs=182, callbacks=[PruneTrainCallback(batch=batch)])
    ```

    Each epoch has every example once, whatever the size; the last batch of an
    epoch holds the remaining examples. The optimizer's `learning_rate` stays
    what the user, a schedule or another callback set; the optimizer trains with
    this rate times `learning_rate_ratio`. A `LearningRateSchedule` advances by
    examples: an update on twice the examples counts for two.

    `keras.utils.PyDataset`s and generators form their batches themselves, and
    `fit` asks once for their number, so these batches cannot grow.

    Args:
        initial: Integer. The first batch size, over all replicas.
        granularity: Integer. The batch grows to multiples of this many examples
            per replica. Defaults to `32`, the paper's.
        memory_budget: Number of bytes that one training iteration may take on
            each replica, as `training_bytes` counts them; `"device"` for the
            memory of the device; `None` (the default) for as much as the first
            architecture takes with the first batch.
        maximum: Integer. Largest batch size, over all replicas. Defaults to
            no limit but the number of examples.
        scaling: Factor of the learning rate when the batch is `ratio` times the
            initial one: `"linear"` for `ratio` (the default), `"sqrt"` for its
            root, or a function of `ratio` that returns a number above 0. The
            batch does not grow to a size for which the function fails.

    Attributes:
        size: Integer, the current batch size, over all replicas. It can be set
            at any time; the next pass over a data set uses the new size.
        examples: Integer, the examples in an epoch; `None` before the first
            data set.
        announced_steps: Integer, the number of batches that the last data set
            told `fit`; `None` before the first data set.
        growth: The `BatchGrowth` with the model that is trained, for callbacks;
            `None` before the first `fit`.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        - [Lym et al., 2019](https://arxiv.org/abs/1901.09290), section 4.3.
    """

    def __init__(
        self,
        initial: int,
        granularity: int = 32,
        memory_budget: float | Literal["device"] | None = None,
        maximum: int | None = None,
        scaling: Scaling = "linear",
    ):
        self.initial = _checked_count("initial", initial)
        self.granularity = _checked_count("granularity", granularity)
        self.memory_budget = _checked_budget(memory_budget)
        self.maximum = maximum
        if maximum is not None:
            self.maximum = _checked_count("maximum", maximum)
            if maximum < initial:
                raise ValueError(
                    "`maximum` must be at least `initial`. Received: "
                    f"maximum={maximum}, initial={initial}"
                )
        self.scaling = scaling
        self._check_scaling()
        self.examples = None
        self.announced_steps = None
        self.growth = None
        self._size = self.initial
        self._variable = None

    def __repr__(self):
        names = (
            *("initial", "granularity", "memory_budget", "maximum"),
            *("size", "examples"),
        )
        values = [f"{name}={getattr(self, name)!r}" for name in names]
        # Leaves out the function's address, which differs between processes.
        scaling = self.scaling
        if callable(scaling):
            scaling = getattr(scaling, "__qualname__", type(scaling).__name__)
        return f"DynamicBatch({', '.join(values)}, scaling={scaling!r})"

    @property
    def size(self) -> int:
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        size = _checked_count("size", size)
        self._scaled(size / self.initial)  # Nothing is changed if this raises.
        self._size = size
        if self._variable is not None:
            self._variable.assign(size)

    @property
    def ratio(self) -> float:
        """The current batch size over the initial one."""
        return self.size / self.initial

    @property
    def learning_rate_ratio(self) -> float:
        """Factor of the learning rate at the current size, above 0."""
        return self._scaled(self.ratio)

    @property
    def steps(self) -> int:
        """Updates in an epoch of the current size.

        Raises:
            ValueError: If there has been no data set yet.
        """
        if self.examples is None:
            raise ValueError(
                "The number of steps depends on the number of examples. Call "
                "the DynamicBatch on the data set first."
            )
        return math.ceil(self.examples / self.size)

    def get_state(self) -> dict[str, Any]:
        """Returns how far the batch has grown, for a backup."""
        growth = self.growth and self.growth.get_state()
        return {"size": self.size, "growth": growth}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state of `get_state`, in a `fit` that has begun."""
        self.size = state["size"]
        if self.growth is not None and state["growth"] is not None:
            self.growth.set_state(state["growth"])

    def __call__(self, examples: "tf.data.Dataset") -> "tf.data.Dataset":
        """Returns `examples` in batches of the current size.

        Shuffle `examples` before, with a seed where several workers share them:
        each worker takes its part of every batch, so all workers must see the
        same order. Each pass over the result reads the size anew when it
        begins. Outside of `fit`, call `batch(examples)` anew once the batch has
        grown: a data set that has fewer batches than it had at first ends with
        an error.

        Args:
            examples: An unbatched `tf.data.Dataset` of known, finite size,
                whose elements all have the same shapes. The result can be
                mapped and prefetched.

        Raises:
            ValueError: If `examples` is no such data set, has fewer examples
                than one batch, or another number than the data set before.
        """
        data_sets.check_examples(examples, self.size)
        count = int(examples.cardinality())
        if self.examples not in (None, count):
            raise ValueError(
                "A DynamicBatch belongs to the one data set that `fit` trains "
                f"on, which has {self.examples} examples. Form the batches of "
                "other data sets, for validation, with `.batch(n)`. Received: "
                f"a data set of {count} examples"
            )
        if self._variable is None:
            self._variable = data_sets.size_variable(self.size)
        self.examples = count
        self.announced_steps = self.steps
        return data_sets.batched(examples, self._variable, self.steps)

    def arrays(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        shuffle: bool = True,
        seed: int | None = 0,
    ) -> "tf.data.Dataset":
        """Returns NumPy arrays in batches of the current size.

        Args:
            x: Array, or a structure of arrays, with as many rows as examples.
            y: Array, or a structure of arrays; optional.
            sample_weight: Array; optional.
            shuffle: Boolean. Whether each pass has an order of its own.
            seed: Integer, at least 0, that decides the orders; `None` for
                random orders. Several workers need the same integer.

        Returns:
            A `tf.data.Dataset` as `__call__` returns it.

        Raises:
            ValueError: If there are no arrays of equally many examples, if the
                examples are fewer than one batch, if `sample_weight` comes
                without `y`, or if `shuffle` or `seed` is out of its range.
        """
        structure = data_sets.structure_of(x, y, sample_weight)
        tensors = data_sets.tensors_of(structure)
        positions = data_sets.positions_in(tensors, shuffle, seed)
        return data_sets.gathered(self(positions), tensors)

    def _scaled(self, ratio):
        """Returns the factor of the learning rate for a batch of this `ratio`.

        Raises:
            ValueError: If `scaling` fails, or returns no number above 0.
        """
        scale = self.scaling
        if isinstance(scale, str):
            scale = _SCALINGS[scale]
        try:
            factor = float(scale(ratio))
        except Exception as error:
            raise ValueError(
                "`scaling` must return a number for every ratio to which the "
                f"batch can grow. It fails for {ratio:g}: {error!r}"
            ) from error
        if not (is_number(factor) and factor > 0):
            raise ValueError(
                "`scaling` multiplies the learning rate and must return a "
                f"finite number above 0. Received: {factor} for the ratio "
                f"{ratio:g}"
            )
        return factor

    def _check_scaling(self):
        """Raises a `ValueError` if `scaling` is no scaling or fails."""
        if isinstance(self.scaling, str) and self.scaling in _SCALINGS:
            return
        if not callable(self.scaling):
            raise ValueError(
                "`scaling` must be 'linear', 'sqrt' or a function of the "
                f"ratio. Received: scaling={self.scaling!r}"
            )
        largest = math.inf
        if self.maximum is not None:
            largest = self.maximum / self.initial
        for ratio in (1.0, 1.5, 2.0, 4.0):
            if ratio <= largest:
                self._scaled(ratio)


# The largest value of the variable that data sets read.
_LARGEST = 2**63 - 1


def _checked_count(name, value):
    if not is_count(value, 1) or value > _LARGEST:
        raise ValueError(
            f"`{name}` must be an integer of at least 1, which fits into 64 "
            f"bits. Received: {name}={value!r}"
        )
    return int(value)  # Workers compare settings as text, and NumPy's differ.


def _checked_budget(budget):
    """Returns a valid memory budget; a number becomes an integer."""
    if budget is None or (isinstance(budget, str) and budget == "device"):
        return budget
    if not is_number(budget) or budget <= 0:
        raise ValueError(
            "`memory_budget` must be a finite number of bytes above 0, "
            "'device' or `None`; `maximum` limits the batch itself. Received: "
            f"memory_budget={budget!r}"
        )
    return int(budget)

"""Which channels go, so that what is left meets a target."""

import gc
import logging
import math
from collections.abc import Callable, Mapping

import keras
import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.channel_costs import ChannelCosts
from keras_prunetrain.channels.counts import passed_on
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.channels.liveness import Plan, plan_of
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.channels.selection import touched
from keras_prunetrain.cost import model_cost
from keras_prunetrain.example_shapes import InputShapes
from keras_prunetrain.garbage import no_garbage_collection
from keras_prunetrain.saliency import readers
from keras_prunetrain.surgery.rebuild import rebuild

_LOG = logging.getLogger("keras_prunetrain")

# A limit may be a product of fractions, rounded: 1 - 0.9 is below 0.1.
_ROUNDING = 1e-9


class Choice:
    """Chooses the channels of a model that go, under a target.

    Args:
        model: A functional model.
        numbering: Its `Numbering`.
        quantity: One of `channel_costs.QUANTITIES`.
        options: The `CutOptions`; `skip`, `min_channels` and
            `channel_multiple` count here.
        least: Dict from the key of a layer to the number of channels that it
            must go on writing.
        input_shapes: Shape of one example, as of `model_cost`.

    Attributes:
        candidates: Sorted int array, the channel numbers that may go: neither
            frozen nor skipped, and in no kernel that does not train.

    Raises:
        ValueError: As `model_cost`.
    """

    def __init__(
        self,
        model: keras.Model,
        numbering: Numbering,
        quantity: str,
        options: CutOptions,
        least: Mapping[str, int],
        input_shapes: InputShapes = None,
    ):
        self._model = model
        self._numbering = numbering
        self._quantity = quantity
        self._options = options
        self._input_shapes = input_shapes
        self._costs = ChannelCosts(model, numbering, quantity, input_shapes)
        self._limits = _limits(numbering, options.min_channels, least)
        self.candidates = _candidates(numbering, options.skip)

    @property
    def total(self) -> float:
        """The cost of the model as it is."""
        return self._costs.total

    def least_cost(self) -> float:
        """Returns the cost that is left if as many channels go as may."""
        equal = np.zeros(self._numbering.size)
        return self._counted(self._plan(self._removable(equal), equal))

    def plan(self, scores: np.ndarray, limit: float) -> Plan:
        """Returns the `Plan` that keeps the cost at or below `limit`.

        One threshold on the score for a channel's share of the cost decides,
        over all layers. No fewer channels go than `limit` demands, and no more,
        except that layers keep a multiple of `channel_multiple` channels.

        Args:
            scores: Float array, shape `(numbering.size,)`, finite.
            limit: Number, the cost that may be left, in the unit of the
                quantity. If it cannot be met, all channels go that may, and a
                warning says so.
        """
        values = self._values(scores)
        order = self._removable(values)

        def plan_without(count):
            return self._plan(order[:count], values)

        def fewest(cost):
            return _first(
                len(order),
                lambda count: is_met(cost(plan_without(count)), limit),
            )

        plan = plan_without(fewest(self._estimate))
        left = self._counted(plan)
        if left != self._estimate(plan):
            # A layer of the user's may cost otherwise than its kernels' sizes.
            plan = plan_without(fewest(self._counted))
            left = self._counted(plan)
        if not is_met(left, limit):
            _LOG.warning(
                "The target is missed: '%s' keeps %.3g of its %s, and %.3g was "
                "asked for. No further channel may go.",
                self._model.name,
                left / self.total,
                self._quantity,
                limit / self.total,
            )
        return plan

    def _values(self, scores):
        """Returns the score of each channel for its share of the cost."""
        share = self._costs.shares(np.ones(self._numbering.size, bool))
        values = np.full(self._numbering.size, math.inf)
        costly = share > 0.0
        values[costly] = scores[costly] / share[costly]
        return values

    def _removable(self, values):
        """Returns the candidates in the order in which they go.

        A candidate is left out if a layer could not spare it after those
        before it.
        """
        order = self.candidates[
            np.argsort(values[self.candidates], kind="stable")
        ]
        holders = [[] for _ in range(self._numbering.size)]
        spare = []
        for i, (numbers, least) in enumerate(self._limits):
            spare.append(len(numbers) - least)
            found, times = np.unique(numbers, return_counts=True)
            for number, count in zip(found.tolist(), times, strict=True):
                holders[number].append((i, int(count)))
        going = []
        for number in order.tolist():
            if all(spare[i] >= count for i, count in holders[number]):
                going.append(number)
                for i, count in holders[number]:
                    spare[i] -= count
        return np.asarray(going, int)

    def _plan(self, going, values):
        alive = np.ones(self._numbering.size, bool)
        alive[going] = False
        finite = np.where(np.isfinite(values), values, 0.0)
        return plan_of(
            self._model, self._numbering, alive, self._options, finite
        )

    def _estimate(self, plan):
        return round(self._costs.of(plan.alive))

    def _counted(self, plan):
        if plan.removes_nothing:
            return self.total
        if self._quantity == "channels":
            return self._estimate(plan)
        with (
            keras_internals.strategy_scope(self._model),
            no_garbage_collection(),
        ):
            smaller, _, _ = rebuild(self._model, plan)
        cost = model_cost(smaller, self._input_shapes)
        del smaller
        gc.collect()  # Its layers and its graph refer to each other.
        return getattr(cost, self._quantity)


def is_met(cost: float, limit: float) -> bool:
    """Whether `cost` is at or below `limit`, but for rounding."""
    return cost <= limit * (1.0 + _ROUNDING)


def check_sparsity(
    choice: Choice, sparsity: float, target: str, name: str
) -> None:
    """Raises a `ValueError` if a model cannot become so small.

    Args:
        choice: The `Choice` of the model.
        sparsity: Float in (0, 1), the part that is to go.
        target: Of what, in the words of the caller.
        name: The name of the model.
    """
    # A model may have no channel that is not frozen.
    least = choice.least_cost() / choice.total if choice.total else 1.0
    if not is_met(least, 1.0 - sparsity):
        raise ValueError(
            f"`sparsity` of the {target} of '{name}' can be at most "
            f"{1.0 - least:.3g}: every layer keeps a channel, and `skip`, "
            "`min_channels` and frozen channels hold others. Received: "
            f"sparsity={sparsity}"
        )


def least_channels(
    numbering: Numbering, max_layer_cut: float
) -> dict[str, int]:
    """Returns how many channels each layer keeps of those that it has now.

    Args:
        numbering: The `Numbering` of the first model.
        max_layer_cut: Float in [0, 1), the part of a layer's channels that may
            go.

    Returns:
        Dict from the key of a layer to the number of channels.
    """
    least = {}
    for x in numbering.writers():
        kept = (1.0 - max_layer_cut) * len(x.numbers)
        kept = max(1, math.ceil(round(kept, 9)))  # 10 * (1 - 0.7) is above 3.
        # Several heads of queries may read one head of keys.
        least[x.name] = min(kept, least.get(x.name, kept))
    return least


def distinct(scores: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Returns `scores`, or random ones if they tell no candidates apart.

    Args:
        scores: Float array.
        candidates: Int array, the positions that are compared.
    """
    compared = scores[candidates]
    if len(compared) < 2 or np.ptp(compared) > 0.0:
        return scores
    _LOG.warning(
        "All channels have the same score, %g: those that go are drawn at "
        "random.",
        compared[0],
    )
    return np.random.default_rng(0).random(len(scores))


def _limits(numbering, min_channels, least):
    """Returns tuples of a vector of numbers, and how many of them must stay."""
    limits = [
        (
            x.numbers,
            max(
                # Heads, and the channels in one, may be fewer.
                1 if x.is_inner else min_channels,
                least.get(x.name, 1),
            ),
        )
        for x in numbering.writers()
    ]
    # Every tensor, and each piece of a split, keeps a channel.
    known = {numbers.tobytes() for numbers, _ in limits}
    tensors = {x.tobytes(): x for x in passed_on(numbering)}
    return limits + [(x, 1) for key, x in tensors.items() if key not in known]


def _candidates(numbering, skip):
    stays = np.zeros(numbering.size, bool)
    stays[list(numbering.frozen)] = True
    for key in skip:
        stays[touched(numbering, key)] = True
    for label in numbering.kernels():
        if not label.weight.trainable:
            stays[label.numbers] = True
    read = np.zeros(numbering.size, bool)
    for label in readers(numbering):
        read[label.numbers] = True
    return np.flatnonzero(read & ~stays)


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """Returns the first of 0 ... `count` for which `holds`, else `count`.

    Args:
        count: Integer.
        holds: Function of an integer that, once it is true, stays true.
    """
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low

"""When channels go under a target, and what is left after each round."""

import dataclasses
import logging

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.checks import is_count, is_integer, is_number

_LOG = logging.getLogger("keras_prunetrain")

# A rate below this part of the first one has been dropped.
_DROPPED = 0.5


@dataclasses.dataclass(frozen=True)
class Target:
    """What the model is to cost.

    Attributes:
        name: `"flops"`, `"parameters"`, `"activation_bytes"`, or
            `"training_flops"` (of the whole `fit`).
        fraction: Float in (0, 1), of the first model.
    """

    name: str
    fraction: float

    @property
    def quantity(self) -> str:
        """The attribute of `Cost` that is brought down."""
        # Each step costs a multiple of the forward pass.
        is_flops = self.name in ("flops", "training_flops")
        return "forward_flops" if is_flops else self.name

    def __str__(self):
        return f"{self.name}={self.fraction:g}"


@dataclasses.dataclass(frozen=True)
class Round:
    """A part of a training in which some channels shrink to zero.

    Attributes:
        begin: Integer, the epoch in which the round begins.
        end: Integer, the epoch before which the channels are cut.
        fraction: Float, the cost after the round, of the first model's.
    """

    begin: int
    end: int
    fraction: float


def target_of(**fractions: float | None) -> Target:
    """Returns the only `Target` that is given.

    Args:
        **fractions: The fraction, or `None`, for each name of a target.

    Raises:
        ValueError: If none or several are given, or if the fraction is not
            between 0 and 1.
    """
    given = {name: x for name, x in fractions.items() if x is not None}
    if len(given) != 1:
        raise ValueError(
            f"Give exactly one target: {', '.join(fractions)}. Received: "
            + (", ".join(f"{k}={v!r}" for k, v in given.items()) or "none")
        )
    ((name, fraction),) = given.items()
    if not is_number(fraction) or not 0.0 < fraction < 1.0:
        raise ValueError(
            f"`{name}` must be a fraction of the first model, a number above 0 "
            f"and below 1. Received: {name}={fraction!r}"
        )
    return Target(name, float(fraction))


def check_window(
    warmup: float, decay: float, rounds: int, max_layer_cut: float
) -> None:
    """Raises a `ValueError` if one of them is out of its range."""
    for name, value, least in (("warmup", warmup, 0), ("decay", decay, 1)):
        is_fraction = (
            is_number(value) and not is_integer(value) and 0.0 < value < 1.0
        )
        if not is_fraction and not is_count(value, least):
            raise ValueError(
                f"`{name}` must be a fraction of the epochs, a float between 0 "
                f"and 1, or a number of epochs, an integer of at least {least}."
                f" Received: {name}={value!r}"
            )
    if not is_count(rounds, 1):
        raise ValueError(
            "`rounds` must be an integer of at least 1. Received: "
            f"rounds={rounds!r}"
        )
    if not is_number(max_layer_cut) or not 0.0 < max_layer_cut < 1.0:
        raise ValueError(
            "`max_layer_cut` must be a fraction of a layer's channels, a "
            f"number between 0 and 1. Received: max_layer_cut={max_layer_cut!r}"
        )


def rounds_of(
    target: Target,
    first: int,
    epochs: int,
    warmup: float,
    decay: float,
    rounds: int,
) -> list[Round]:
    """Returns the rounds of a `fit`, in order.

    After warm-up, `decay` epochs are divided into rounds of one or more epochs.
    The cost falls by the same factor in each of them. For
    `training_flops`, this factor is such that the cost of all epochs of `fit`
    is the target.

    Args:
        target: The `Target`.
        first: Integer, the first epoch of `fit`.
        epochs: Integer, the epoch at which `fit` ends.
        warmup: Epochs, or a fraction of them, before the first round.
        decay: Epochs, or a fraction of them, of all rounds.
        rounds: Integer. There are fewer if `decay` has fewer epochs.

    Raises:
        ValueError: If no epoch is left behind the last round, or if the epochs
            before the first cut alone cost more than the target.
    """
    total = epochs - first
    warmup, decay = _epochs(warmup, total), _epochs(decay, total)
    if warmup + decay >= total:
        raise ValueError(
            "At least one epoch must follow the warm-up and the rounds in "
            "which channels go. Train longer, or make `warmup` and `decay` "
            f"shorter. Received: {total} epochs in `fit`, {warmup} of them for "
            f"warm-up and {decay} for the rounds"
        )
    count = min(int(rounds), decay)
    ends = [decay * i // count for i in range(count + 1)]
    # The epochs that are trained at the cost after 0, 1, 2, ... rounds.
    lengths = [b - a for a, b in zip(ends, ends[1:], strict=False)]
    lengths = [warmup + lengths[0], *lengths[1:], total - warmup - decay]
    fraction = target.fraction
    if target.name == "training_flops":
        fraction = _last_fraction(target, lengths)
    return [
        Round(
            first + warmup + ends[i],
            first + warmup + ends[i + 1],
            fraction ** ((i + 1) / count),
        )
        for i in range(count)
    ]


def warn_of_short_rounds(
    model: keras.Model, rounds: list[Round], steps: int | None
) -> None:
    """Warns of rounds that leave no step in which channels could shrink.

    Channels are chosen behind the first execution of a round at the earliest.

    Args:
        model: The model that trains.
        rounds: The rounds of a `fit`.
        steps: Integer, the steps of an epoch; `None` if not known.
    """
    if steps is None:
        return
    # Executions do not go on over the end of an epoch.
    executed = min(steps, model.steps_per_execution)
    short = [x for x in rounds if (x.end - x.begin) * steps <= executed]
    if short:
        _LOG.warning(
            "The channels of %d of %d rounds are cut without shrinking to zero "
            "before: a round takes %d steps, which are one execution "
            "(steps_per_execution=%d). Give the rounds more epochs, by a "
            "larger `decay` or fewer `rounds`, or let an execution have fewer "
            "steps.",
            len(short),
            len(rounds),
            (short[0].end - short[0].begin) * steps,
            model.steps_per_execution,
        )


def warn_of_early_drop(
    model: keras.Model,
    rounds: list[Round],
    steps: int | None,
    callbacks: list[keras.callbacks.Callback],
    first: int,
) -> None:
    """Warns of a learning rate that drops before the last round is over.

    Args:
        model: The model that trains.
        rounds: The rounds of a `fit`.
        steps: Integer, the steps of an epoch; `None` if not known.
        callbacks: List of the callbacks of the `fit`.
        first: Integer, its first epoch.
    """
    end = rounds[-1].end
    if rate_has_dropped(callbacks, model.optimizer, first, end, steps):
        _LOG.warning(
            "The learning rate drops before the last channels go, after epoch "
            "%d. The channels that are left recover better at a high rate: "
            "make `warmup` and `decay` shorter, or let the rate drop later.",
            end - 1,
        )


def rate_has_dropped(
    callbacks: list[keras.callbacks.Callback],
    optimizer: keras.optimizers.Optimizer,
    first: int,
    end: int,
    steps: int | None,
) -> bool:
    """Whether a schedule lowers the rate before the last round ends.

    Args:
        callbacks: List of the callbacks of a `fit`.
        optimizer: The optimizer, at the start of the `fit`.
        first: Integer, the first epoch of the `fit`.
        end: Integer, the epoch before which the last channels are cut.
        steps: Integer, the steps of an epoch; `None` if not known.
    """
    rate = keras_internals.shown_rate(optimizer)
    courses = [
        _course(x.schedule, first, end, rate)
        for x in callbacks
        if isinstance(x, keras.callbacks.LearningRateScheduler)
        and rate is not None
    ]
    if steps and keras_internals.scheduled_rate(optimizer) is not None:
        courses.append(
            [
                keras_internals.scheduled_rate(optimizer, epochs * steps)
                for epochs in range(end - first)
            ]
        )
    # The rate may rise at first.
    return any(x and x[-1] < _DROPPED * max(x) for x in courses)


def _course(schedule, first, end, rate):
    """Returns the rates of epochs by a schedule; none if the schedule fails."""
    rates = []
    for epoch in range(first, end):
        try:
            try:
                rate = float(schedule(epoch, rate))
            except TypeError:  # Keras tries the older form in this case, too.
                rate = float(schedule(epoch))
        except Exception:  # `fit` will raise it where it belongs.
            return []
        rates.append(rate)
    return rates


def _epochs(value, total):
    """Returns a number of epochs, at least one if `value` is a fraction."""
    if is_integer(value):
        return int(value)
    return max(1, round(value * total))


def _last_fraction(target, lengths):
    """Returns the cost of the last epochs, a fraction, by bisection.

    Args:
        target: The `Target` for the sum over all epochs.
        lengths: List of the epochs that are trained at each stage.
    """
    total, stages = sum(lengths), len(lengths) - 1

    def cost(fraction):
        return sum(
            epochs * fraction ** (i / stages)
            for i, epochs in enumerate(lengths)
        )

    least = lengths[0] / total
    if target.fraction <= least:
        raise ValueError(
            f"`training_flops` must be above {least:.3g}, which the epochs "
            "before the first cut cost alone. Make `warmup` shorter, or train "
            f"longer. Received: {target}"
        )
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if cost(middle) <= target.fraction * total:
            low = middle
        else:
            high = middle
    return low

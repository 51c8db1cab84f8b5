"""Every optimizer of Keras, by name, with the options that change its slots."""

import pytest
from keras import optimizers


def _by_kernel():
    """Chooses a new optimizer for each weight, as in Keras's documentation."""
    return optimizers.MultiOptimizer(
        lambda v: (
            optimizers.Adam(0.01)
            if "kernel" in v.path
            else optimizers.SGD(0.1, momentum=0.9)
        )
    )


# Each element of a weight is trained by itself: the next step of a smaller
# weight is that of the masked one.
ELEMENTWISE = {
    "schedule": lambda: optimizers.SGD(
        optimizers.schedules.ExponentialDecay(0.4, 1, 0.5), momentum=0.9
    ),
    "sgd": lambda: optimizers.SGD(0.1),
    "ema": lambda: optimizers.SGD(0.1, momentum=0.9, use_ema=True),
    "accumulate": lambda: optimizers.Adam(
        0.01, amsgrad=True, gradient_accumulation_steps=2
    ),
    "adamw": lambda: optimizers.AdamW(0.01, weight_decay=0.1, clipvalue=0.5),
    "rmsprop": lambda: optimizers.RMSprop(0.01, centered=True, momentum=0.5),
    "adagrad": lambda: optimizers.Adagrad(0.01),
    "adadelta": lambda: optimizers.Adadelta(0.1),
    "adamax": lambda: optimizers.Adamax(0.01),
    "nadam": lambda: optimizers.Nadam(0.01),
    "ftrl": lambda: optimizers.Ftrl(0.01),
    "lion": lambda: optimizers.Lion(0.01),
    "schedule_free": lambda: optimizers.ScheduleFreeAdamW(0.01),
    "multi": lambda: optimizers.MultiOptimizer(
        optimizers.OptimizerMap(
            optimizers.SGD(0.1, momentum=0.9),
            {".*kernel": optimizers.Adam(0.01)},
        )
    ),
    "multi_by_function": _by_kernel,
    "loss_scale": lambda: optimizers.LossScaleOptimizer(
        optimizers.SGD(0.1, momentum=0.9), initial_scale=8.0
    ),
}
# The next step of a smaller weight is its own: its norm or its shape differs.
BY_WEIGHT = {
    "lamb": lambda: optimizers.Lamb(0.01),
    "muon": lambda: optimizers.Muon(0.01),
    "clipnorm": lambda: optimizers.Adam(0.01, clipnorm=0.1),
    "global_clipnorm": lambda: optimizers.SGD(
        0.1, momentum=0.9, global_clipnorm=0.1
    ),
}
ALL = ELEMENTWISE | BY_WEIGHT

# Of each kind one: slots, accumulated gradients, several, a wrapper, a step
# that looks at whole weights, and one that divides by a slot.
_SOME = {"adamw", "accumulate", "multi", "loss_scale", "lamb", "ftrl"}


def sampled():
    """Returns parameters: all names; some are for `make test`."""
    return [
        pytest.param(name, marks=() if name in _SOME else pytest.mark.long)
        for name in ALL
    ]

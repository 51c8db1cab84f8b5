"""Model in, smaller model out."""

import gc
from typing import Literal

import keras
from keras import tree

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.liveness import Plan, plan_cut, trial_plan
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.channels.scores import Score, magnitude
from keras_prunetrain.channels.selection import Skip
from keras_prunetrain.garbage import no_garbage_collection
from keras_prunetrain.surgery.adoption import adopt_class, with_twins
from keras_prunetrain.surgery.cut import Cut
from keras_prunetrain.surgery.rebuild import rebuild
from keras_prunetrain.surgery.slots import carry_optimizer
from keras_prunetrain.surgery.takeover import Smaller, check_take_over
from keras_prunetrain.trainers import optimizers_of, updated_by


def reconfigure(
    model: keras.Model,
    threshold: float = 1e-4,
    channel_multiple: int | Literal["auto"] = 1,
    min_channels: int = 1,
    skip: Skip = (),
    fold: bool = False,
    score: Score = magnitude,
) -> keras.Model:
    """Returns `model` without the channels that training has driven to zero.

    A model that was trained without a lasso has hardly any such channel.
    A channel is dead if no weight that computes it and no weight that reads it
    reaches `threshold`, in any of the layers that share it: layers that are
    added together, as in a residual stage, share their channels, and one of
    them that is alive keeps the channel in all (the paper's *channel union*).
    A residual branch whose inner channels are all dead leaves the model.

    The new model is ready to go on training. It has the same layer names, the
    same loss and metrics, and the same optimizer with its step count, learning
    rate and, for every weight that is left, its slots. It computes what `model`
    computes once the dead weights are set to zero.

    Args:
        model: A functional or `Sequential` model. It is not modified.
        threshold: Float, at least 0, in the unit of the weights. Defaults to
            `1e-4`, the paper's.
        channel_multiple: Integer, or `"auto"`. Each layer keeps a multiple of
            so many channels, or all: dead channels stay, the strongest first,
            live ones never go to reach it. `"auto"` is for counts that the
            device computes fast. The multiple then depends on how many
            channels the layer keeps: on a CPU, it is 16 from 128 channels on,
            8 from 48 on, else 4; if TensorFlow sees a GPU (or another kind of
            device), it is 8; counts below the smallest multiple are not
            rounded. Layers that are added share their channels, so
            both sides of their kernels have such a count. A kernel behind a
            concatenation reads the sum of several such counts. Defaults to
            `1`.
        min_channels: Integer. Each layer keeps at least so many. Defaults to
            `1`.
        skip: Layers, or names or patterns of names (`"stage1_*"`), or
            functions of a layer that return whether it is meant: their
            channels all stay, those that they read as well as those that they
            write.
        fold: Boolean. Whether channels also go that are dead only where they
            are computed, if what reads them can take their constant value
            over: zero, or a value that a kernel without padding reads, which
            then goes into its bias or into the moving mean of the
            `BatchNormalization` behind it. The model stays the same function;
            its training does not, as the constants are trained no further.
            Beyond the paper. Defaults to `False`.
        score: Function of a `Label` (`channels/labels.py`: one axis of channels
            of one weight) that returns a float array of shape `(channels,)`, at
            least 0, or `None` if this weight has no say. A channel is dead if
            no weight gives it a score of `threshold` or more. Defaults to the
            largest weight magnitude of kernels, the paper's.

    Returns:
        A new `keras.Model` of the same class, compiled if `model` is; or
        `model` itself if nothing is dead.

    Raises:
        ValueError: If `model` is no model or has no known graph, if an argument
            is out of its range, if `skip` matches no layer, if a weight is not
            finite, or if the state of the optimizer cannot be carried over.

    Example:

    ```python
    for epoch in range(0, 90, 10):
        model.fit(images, labels, initial_epoch=epoch, epochs=epoch + 10)
        model = keras_prunetrain.reconfigure(model)
    ```

    Reference:
        - [Lym et al., 2019](https://arxiv.org/abs/1901.09290), section 4.2.
    """
    options = CutOptions(
        threshold=threshold,
        channel_multiple=channel_multiple,
        min_channels=min_channels,
        skip=skip,
        fold=fold,
        score=score,
    )
    plan = plan_cut(model, options)
    if plan.removes_nothing:
        return model
    smaller = prepare_cut(model, plan)
    if model.compiled:
        copies = {id(old): new for old, new in smaller.optimizers}
        optimizer = copies.get(id(model.optimizer))  # `None` if there is none.
        keras_internals.compile_like(model, smaller.model, optimizer)
    return smaller.model


def prepare_cut(
    model: keras.Model, plan: Plan, trainer: keras.Model | None = None
) -> Smaller:
    """Returns the smaller model and its optimizers, beside the old ones.

    Args:
        model: A functional model; not modified.
        plan: A `Plan` for it that removes something.
        trainer: The model that trains `model`, its `network_of`. Defaults to
            `None`, `model` itself.

    Returns:
        A `Smaller`, which `take_over` can hand to the caller's objects.

    Raises:
        ValueError: If a layer or the optimizer cannot be carried over.
    """
    # Else the weights would stay in memory when nothing uses them any more.
    keras_internals.release_gradients(model.variables)
    trainer = trainer or model
    return _smaller(model, plan, trainer, optimizers_of(trainer))


def check_reconfigurable(
    model: keras.Model, skip: Skip = (), trainer: keras.Model | None = None
) -> None:
    """Raises the errors that `reconfigure` would raise for `model`, by a trial.

    Without the trial, a layer that cannot be made anew, or an optimizer that
    cannot be cut, would end a training in its middle. The trial removes half of
    the channels that may go, dead or not.

    Args:
        model: As of `prepare_cut`.
        skip: As of `reconfigure`.
        trainer: As of `prepare_cut`.
    """
    trainer = trainer or model
    optimizers = optimizers_of(trainer)
    if not optimizers or (trainer is model and model.optimizer is None):
        raise ValueError(
            f"'{model.name}' was compiled with `optimizer=None`. Pass the "
            "optimizer that trains it to `compile`; further ones may be "
            "attributes of the model."
        )
    optimizers = [_built(x, trainer) for x in optimizers]
    _check_known(trainer, optimizers)
    smaller = _smaller(model, trial_plan(model, skip), trainer, optimizers)
    check_take_over(model, smaller)
    gc.collect()  # The trial's layers and graph refer to each other.


def _built(optimizer, model):
    """Returns `optimizer`, or a built copy of one that has no slots yet."""
    if not optimizer.built:
        optimizer = keras_internals.copy_optimizer(optimizer)
        optimizer.build(model.trainable_variables)
    return optimizer


def _smaller(model, plan, trainer, optimizers):
    """Returns the `Smaller` of `model` by `plan`.

    Args:
        model: A functional model.
        plan: A `Plan` for it.
        trainer: The model that trains it.
        optimizers: List of the optimizers to carry over.
    """
    with keras_internals.strategy_scope(model), no_garbage_collection():
        smaller, cuts, twins = rebuild(model, plan)
        names = adopt_class(smaller, model, twins)
        cuts += _weights_outside(trainer, optimizers, plan)
        order = smaller.trainable_variables
        if trainer is not model:
            order = _in_order(trainer, twins)
        pairs = [(x, carry_optimizer(x, cuts, order)) for x in optimizers]
        copies = {id(old): new for old, new in pairs}
        for name in names:
            value = vars(smaller)[name]
            if any(id(x) in copies for x in tree.flatten(value)):
                setattr(smaller, name, with_twins(value, copies))
    return Smaller(smaller, pairs, cuts, twins)


def _in_order(trainer, twins):
    """Returns the variables that `trainer` is to train, in its order.

    A list in which the last place of a variable counts: those that no layer
    holds stand in front, as in Keras.
    """
    if id(trainer) in twins:
        return twins[id(trainer)].trainable_variables
    inner = keras_internals.inner_layers(trainer)
    return [
        *trainer.trainable_variables,
        *(v for layer in inner for v in _in_order(layer, twins)),
    ]


def _check_known(model, optimizers):
    """Raises a `ValueError` if the optimizers cannot take a step of `model`.

    A `train_step` of the user's own may train some of the weights only.
    """
    if type(model).train_step is not keras.Model.train_step:
        return
    known = updated_by(optimizers[:1])  # The compiled one.
    unknown = [v.path for v in model.trainable_variables if id(v) not in known]
    if unknown:
        raise ValueError(
            f"The optimizer of '{model.name}' has begun without the weights "
            f"{', '.join(unknown[:3])} and cannot train them. Call "
            "`model.compile(...)` after `trainable` has changed."
        )


def _weights_outside(trainer, optimizers, plan):
    """Returns `Cut`s for weights that no layer of the plan holds.

    Such a weight, for example a learned temperature among the attributes of a
    model, stays the same variable.
    """
    inside = {
        id(v)
        for layer in plan.numbering.layers.values()
        for v in getattr(layer, "variables", ())
    }
    weights = {id(v): v for v in trainer.trainable_variables}
    weights |= updated_by(optimizers)  # Some of these may be frozen by now.
    return [Cut(v, v, {}) for key, v in weights.items() if key not in inside]

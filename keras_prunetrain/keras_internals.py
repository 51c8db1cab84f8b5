"""The private parts of Keras that this package needs, all in one place.

Each function says which attribute it reads and why nothing public does. The
tests of this module fail when a new Keras moves one of them.
"""

import contextlib
import importlib
import os
import pathlib
import re
import sys
from typing import Any, NamedTuple

import keras
import numpy as np


class Call(NamedTuple):
    """One call of an operation in a functional graph.

    Attributes:
        operation: The `keras.Operation` (mostly a layer) that was called.
        inputs: List of the `KerasTensor`s it was called with.
        outputs: List of the `KerasTensor`s it returned.
        arguments: All arguments; see `arguments_with`.
    """

    operation: Any
    inputs: list
    outputs: list
    arguments: Any


def is_graph(operation):
    """Whether `operation` is a model whose layers form a known graph."""
    return _function(operation) is not None


def calls(model):
    """Returns the `Call`s of a functional model, in an order that runs.

    `Model.operations` names the operations, but an operation that is called
    twice, or that belongs to several models, has calls in each of them: only
    `Function._nodes_by_depth` says which of them make up this model.
    """
    nodes_by_depth = _function(model)._nodes_by_depth
    return [
        Call(node.operation, node.input_tensors, node.outputs, node.arguments)
        for depth in sorted(nodes_by_depth, reverse=True)
        for node in nodes_by_depth[depth]
        if not node.is_input
    ]


def run_graph(model, inputs, visit):
    """Runs the graph of a functional model on stand-ins for its tensors.

    Args:
        model: A functional model.
        inputs: List of what stands in for `model.inputs`.
        visit: Function of a `Call` and the list of its inputs' stand-ins that
            returns the list of its outputs'.

    Returns:
        List of what stands in for `model.outputs`.
    """
    values = dict(zip(map(id, model.inputs), inputs, strict=True))
    for call in calls(model):
        outputs = visit(call, [values[id(x)] for x in call.inputs])
        values.update(zip(map(id, call.outputs), outputs, strict=True))
    return [values[id(x)] for x in model.outputs]


def arguments_with(call, values):
    """Returns `(args, kwargs)` of `call` with its tensors replaced.

    Args:
        call: A `Call`.
        values: Dict from `id` of a `KerasTensor` to what stands in for it.
    """
    return call.arguments.fill_in(values)


def has_array_arguments(call):
    """Whether `call` was made with an array or tensor that is not symbolic."""
    stand_ins = dict.fromkeys(map(id, call.inputs))
    return any(
        getattr(leaf, "shape", ())
        for leaf in keras.tree.flatten(arguments_with(call, stand_ins))
    )


def operation_class(tensors):
    """Returns the class of the operation that `tensors` came out of.

    The functions of `keras.ops` are public, the classes that they put into a
    functional graph are not.

    Args:
        tensors: A `KerasTensor`, or a list of what one operation returned.
    """
    return type(producer(keras.tree.flatten(tensors)[0]))


def application_layer(module, name):
    """Returns a layer class of `keras.applications`, `None` if it is not there.

    Those that an architecture defines for itself are exported nowhere.
    """
    path = f"keras.src.applications.{module}"
    try:
        return getattr(importlib.import_module(path), name, None)
    except ImportError:
        return None


def weight_name(weight):
    """Returns the name that a layer gave to `weight`; "variable" if none.

    Keras tells those without a name apart by a number, in all layers of a
    process together.
    """
    return re.sub(r"^variable_\d+$", "variable", weight.name)


def producer(tensor):
    """Returns the operation that a `KerasTensor` came out of."""
    return tensor._keras_history.operation


def structures(model):
    """Returns inputs and outputs of a functional model as they were nested."""
    function = _function(model)
    return function._inputs_struct, function._outputs_struct


def strategy_scope(model):
    """Returns the scope in which variables for `model` must be made.

    Outside of it they would silently not be distributed. Only the TensorFlow
    trainer has `distribute_strategy`.
    """
    if hasattr(model, "distribute_strategy"):
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()


def repair_distributed_fit():
    """Lets `fit` work on several machines, and on uneven batches.

    Two private places of Keras's TensorFlow trainer fail there (Keras 3.8 to
    3.15, keras-team/keras#20585): `_maybe_symbolic_build` averages a batch over
    the replicas, which must be of one machine and have as many examples each,
    and `reduce_per_replica` takes the first axis of results that have none.
    Both are replaced by what does the same where Keras's own works; not in a
    Keras of another major version, nor where one of the places is gone.
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
        return  # A Keras that does it in another way, and maybe right.
    if getattr(trainer, "_repaired_by_keras_prunetrain", False):
        return
    trainer._repaired_by_keras_prunetrain = True
    reduce = trainer.reduce_per_replica

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

    def maybe_symbolic_build(self, iterator=None, data_batch=None):
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

    trainer.reduce_per_replica = reduce_per_replica
    trainer.TensorFlowTrainer._maybe_symbolic_build = maybe_symbolic_build


def on_several_machines(strategy):
    """Whether `strategy` has replicas in other processes.

    What Keras asks as well; `cluster_resolver` has no answer for one worker.
    """
    return getattr(strategy.extended, "_in_multi_worker_mode", bool)()


def compile_like(model, smaller, optimizer):
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
            # A loss that is scaled has a LossScaleOptimizer by now.
            "auto_scale_loss": False,
        },
    )


def adopt_class(smaller, model, clones):
    """Makes `smaller` an object of `model`'s class, with what that one holds.

    A user's subclass has methods (`train_step`) and attributes of its own; its
    `__init__` takes who knows what, so it cannot be asked for a new object.

    Args:
        smaller: The rebuilt model; modified.
        model: The original.
        clones: Dict from the `id` of a layer of `model` to its counterpart.
    """
    if type(smaller) is not type(model):
        smaller.__class__ = type(model)
    for name, value in _own_attributes(model, smaller).items():
        if is_graph(value) and id(value) not in clones:
            shared = [x.name for x in value.layers if id(x) in clones]
            if shared:
                raise ValueError(
                    f"'{model.name}.{name}' is a model that shares layers with "
                    f"'{model.name}' ({', '.join(shared[:3])}, ...) and would "
                    "go on with the old ones. Make it anew when it is needed, "
                    "or nest it in the model."
                )
        setattr(smaller, name, _with_clones(value, clones))


def take_over(model, smaller):
    """Lets the object `model` go on as `smaller`, inside a running `fit`.

    The user, `fit` and the callbacks hold `model`; re-initializing a functional
    model leaves its old layers tracked beside the new ones, so the object gets
    the attributes of the other one. What belongs to the run stays: its metrics
    with their values, the optimizer object, and the loop's own flags.

    Args:
        model: The model that is being trained; modified.
        smaller: A compiled model of the same class; useless afterwards.
    """
    optimizer = model.optimizer
    # Loss and metrics have this list as well. Keras lets it know the tracker of
    # the model that it comes from, and so it would keep all the old layers.
    names = getattr(model, "output_names", None)
    if hasattr(names, "tracker"):
        names.tracker = None
    _adopt_optimizer(optimizer, smaller.optimizer)
    kept = {name: vars(model)[name] for name in _OF_THE_RUN & set(vars(model))}
    vars(model).clear()
    vars(model).update(vars(smaller))
    vars(model).update(kept)
    vars(model)["optimizer"] = optimizer
    model.make_train_function(force=True)


# Attributes that do not change when the model shrinks. `build` and `quantize`
# are closures over the object itself, made by `Layer.__new__`.
_OF_THE_RUN = {
    "_compile_config",
    "_compile_loss",
    "_compile_metrics",
    "_eval_epoch_iterator",
    "_initial_epoch",
    "_loss_tracker",
    "build",
    "history",
    "quantize",
    "stop_training",
}


def _own_attributes(model, smaller):
    names = set(vars(model)) - set(vars(smaller)) - _OF_THE_RUN
    return {name: vars(model)[name] for name in names}


def _with_clones(value, clones):
    if isinstance(value, list | tuple | dict):
        return keras.tree.map_structure(
            lambda leaf: clones.get(id(leaf), leaf), value
        )
    return clones.get(id(value), value)


def _adopt_optimizer(optimizer, smaller):
    """Gives `optimizer` the variables of its counterpart `smaller`.

    Callbacks and users hold the object, and those of the optimizers that it
    wraps.
    """
    inner = inner_optimizers(optimizer)
    for name, counterpart in inner_optimizers(smaller).items():
        _adopt_optimizer(inner[name], counterpart)
    kept = {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, keras.optimizers.Optimizer)
        # Of `MultiOptimizer`: its members, and which weight is whose.
        or name in ("_inner_optimizers", "_optimizer_map")
    }
    vars(optimizer).update(vars(smaller))
    vars(optimizer).update(kept)


def inner_optimizers(optimizer):
    """Returns the optimizers that `optimizer` wraps, a dict.

    `LossScaleOptimizer` has an attribute of its own for it, `MultiOptimizer` a
    list; nothing public names both.
    """
    inner = {}
    for name, value in vars(optimizer).items():
        members = value if isinstance(value, list) else [value]
        for i, member in enumerate(members):
            if isinstance(member, keras.optimizers.Optimizer):
                inner[f"{name}[{i}]"] = member
    return inner


def copy_optimizer(optimizer):
    """Returns a new optimizer with the settings of `optimizer`, no slots.

    A learning rate that is a schedule or a function is passed as an object:
    serialized, it would have to be registered.
    """
    rate = vars(optimizer).get("_learning_rate")
    is_object = rate is not None and not isinstance(rate, keras.Variable)
    try:
        if is_object:
            vars(optimizer)["_learning_rate"] = keras.ops.convert_to_tensor(0.0)
        config = optimizer.get_config()
        if is_object:
            config["learning_rate"] = rate
        return type(optimizer).from_config(config)
    except Exception as error:
        raise ValueError(
            f"Cannot make a second {type(optimizer).__name__} for the smaller "
            "model. Check that its `get_config` returns all that its "
            "`__init__` takes, and register its class and those that it wraps "
            "with `keras.saving.register_keras_serializable`. Keras says: "
            f"{error}"
        ) from error
    finally:
        if is_object:
            vars(optimizer)["_learning_rate"] = rate


def values_of(variable):
    """Returns the values of `variable` as an array.

    `convert_to_numpy` copies a tensor of TensorFlow twice and a variable three
    times, which takes a large model as long as all the rest; this once.
    """
    tensor = keras.ops.convert_to_tensor(variable)
    if keras.config.backend() == "tensorflow":
        return np.asarray(tensor)
    return keras.ops.convert_to_numpy(tensor)


class Unfilled(keras.initializers.Zeros):
    """Takes memory for a variable that is going to be assigned, not more.

    Writing zeros into it takes a large model as long as its values.
    """

    def __call__(self, shape, dtype=None):
        if keras.config.backend() != "tensorflow":
            return super().__call__(shape, dtype)
        import tensorflow as tf

        # As an array: a tuple takes TensorFlow three times as long.
        shape = np.array(shape, "int32")
        dtype = tf.as_dtype(keras.backend.standardize_dtype(dtype))
        return tf.raw_ops.Empty(shape=shape, dtype=dtype)


@contextlib.contextmanager
def unfilled_slots(optimizer):
    """Lets `optimizer` and those in it make slots that are `Unfilled`.

    Which initializer a slot gets is written in `Optimizer.build`; all of them
    make it by `Optimizer.add_variable`.
    """
    optimizers = [optimizer, *_wrapped_optimizers(optimizer)]
    for one in optimizers:
        vars(one)["add_variable"] = _without_initializer(one.add_variable)
    try:
        yield
    finally:
        for one in optimizers:
            del vars(one)["add_variable"]


def _without_initializer(add_variable):
    def add_unfilled(shape, initializer="zeros", **kwargs):
        return add_variable(shape, initializer=Unfilled(), **kwargs)

    return add_unfilled


def _wrapped_optimizers(optimizer):
    for inner in inner_optimizers(optimizer).values():
        yield inner
        yield from _wrapped_optimizers(inner)


def scale_learning_rate(optimizer, ratio, count):
    """Lets `optimizer` train with another learning rate than it shows.

    Schedules, callbacks and users read `Optimizer.learning_rate`, change it and
    write it back: a ratio in it would be multiplied again and again. So the
    ratio is there only inside `Optimizer.apply`, where the step reads the rate,
    for the update as well as for decoupled weight decay. Both objects get
    methods of their own; `restore_learning_rate` takes them off again.

    Args:
        optimizer: An optimizer; those that it wraps are scaled, too.
        ratio: Float.
        count: Function of `update_count` (a tensor) that returns the step at
            which a `LearningRateSchedule` is read.
    """
    restore_learning_rate(optimizer)
    for inner in _leaf_optimizers(optimizer):
        _scale_one(inner, ratio, count)


def update_count(optimizer):
    """Returns the step at which `optimizer` reads a schedule, an integer.

    `Optimizer.iterations` leaves out the steps that only accumulate gradients.
    """
    inner = _leaf_optimizers(optimizer)[0]
    return int(keras.ops.convert_to_numpy(inner._iterations))


def scheduled_rate(optimizer):
    """Returns what a schedule gives the next step; `None` if there is none.

    The schedule has moved on once the step is done, and `learning_rate` does
    not tell that it is one.
    """
    inner = _leaf_optimizers(optimizer)
    rate = getattr(inner[0], "_learning_rate", None)
    is_schedule = isinstance(
        rate, keras.optimizers.schedules.LearningRateSchedule
    )
    if len(inner) > 1 or not is_schedule:
        return None
    return float(rate(update_count(optimizer)))


def restore_learning_rate(optimizer):
    """Undoes `scale_learning_rate`."""
    for inner in _leaf_optimizers(optimizer):
        for name in ("apply", "_get_current_learning_rate"):
            vars(inner).pop(name, None)


def _scale_one(optimizer, ratio, count):
    apply = optimizer.apply
    read = optimizer._get_current_learning_rate
    # A count: replicas are threads that meet in the middle of `apply`.
    applying = []

    def scaled_apply(*args, **kwargs):
        applying.append(True)
        try:
            return apply(*args, **kwargs)
        finally:
            applying.pop()

    def scaled_rate():
        rate = optimizer._learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            # As Keras does: accumulated gradients count as updates here.
            rate = rate(count(optimizer._iterations))
        else:
            rate = read()
        return rate * ratio if applying else rate

    vars(optimizer)["apply"] = scaled_apply
    vars(optimizer)["_get_current_learning_rate"] = scaled_rate


def _leaf_optimizers(optimizer):
    inner = inner_optimizers(optimizer)
    if not inner:
        return [optimizer]
    return [leaf for x in inner.values() for leaf in _leaf_optimizers(x)]


def carry_exclusions(optimizer, smaller, pairs):
    """Excludes from weight decay what `exclude_from_weight_decay` excluded.

    That is in no config. The variables are kept by a key of their own.

    Args:
        optimizer: The optimizer of the model.
        smaller: That of the smaller model; modified.
        pairs: Pairs of a variable and its counterpart in the smaller model.
    """
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    keys = getattr(optimizer, "_exclude_from_weight_decay", set())
    if pattern is not None or keys:
        smaller._exclude_from_weight_decay_pattern = pattern
        smaller._exclude_from_weight_decay = {
            smaller._var_key(new)
            for old, new in pairs
            if optimizer._var_key(old) in keys
        }
        smaller._exclude_from_weight_decay_cache = {}


def optimizer_variables(optimizer):
    """Returns what an optimizer holds, by attribute name.

    Names of slots differ from class to class (`momentums`, `_velocities`), and
    the order of `Optimizer.variables` from version to version; the lists among
    the attributes, one entry for each trainable variable, do not.

    Returns:
        The list of the variables that it updates; a dict from attribute name
        to a list of slots, in the same order, each a variable or `None`; and
        a dict from attribute name to a single variable.
    """
    updated = list(optimizer._trainable_variables)
    slots, singles = {}, {}
    for name, value in vars(optimizer).items():
        if name in ("_variables", "_trainable_variables"):
            continue
        if isinstance(value, keras.Variable):
            singles[name] = value
        elif (
            isinstance(value, list)
            and len(value) == len(updated)
            and any(isinstance(slot, keras.Variable) for slot in value)
        ):
            slots[name] = value
    return updated, slots, singles


def example_count(model, steps):
    """Returns how many examples the epoch's training steps have seen so far.

    `fit` weighs the mean of the loss by the examples of each step, so the
    weights add up to their number. A `train_step` of the user's own may count
    steps instead, or nothing: then `None`. On several replicas this is an
    exchange, so that all of them have to call it.

    Args:
        model: The model, while it trains.
        steps: Integer. How many steps the epoch has had.
    """
    count = int(keras.ops.convert_to_numpy(model._loss_tracker.count))
    own_step = type(model).train_step is not keras.Model.train_step
    return None if own_step and count <= steps else count


def device_bytes():
    """Returns the memory that one replica has on its device.

    Of a GPU what TensorFlow may allocate there, which only `device_lib` tells;
    of the machine a CPU's share, if there are several logical ones.
    """
    import tensorflow as tf
    from tensorflow.python.client import device_lib

    limits = [
        device.memory_limit
        for device in device_lib.list_local_devices()
        if device.device_type == "GPU"
    ]
    if limits:
        return min(limits)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # "max", or no such limit.
        limit = pathlib.Path("/sys/fs/cgroup/memory.max").read_text()
        total = min(total, int(limit))
    return total // len(tf.config.list_logical_devices("CPU"))


def sibling_callbacks():
    """Returns the callbacks that are handed a model in the same list.

    To be called from `Callback.set_model`. `CallbackList` tells its members
    nothing about each other, but it is a caller.
    """
    frame = sys._getframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList):
            return list(caller.callbacks)
        frame = frame.f_back
    return []


def fit_argument(name):
    """Returns what the running `Model.fit` was called with, `None` outside.

    To be called from a callback. `Callback.params` holds what `fit` made of
    some of its arguments, not the arguments.
    """
    frame = sys._getframe()
    while frame is not None:
        is_fit = frame.f_code.co_name == "fit" and name in frame.f_locals
        if is_fit and isinstance(frame.f_locals.get("self"), keras.Model):
            return frame.f_locals[name]
        frame = frame.f_back
    return None


def _function(model):
    # `Sequential` keeps its graph in a functional model of its own.
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if hasattr(model, "_nodes_by_depth") else None

"""The private parts of Keras that this package needs, all in one place.

The docstrings say which private attributes are read and why no public one is
enough. The tests of these modules fail when a new Keras moves an attribute.
"""

from keras_prunetrain.keras_internals.backward import (
    DataGradient,
    data_gradient_of,
    has_known_call,
    is_rematerialized,
    replace_data_gradient,
    restore_data_gradient,
)
from keras_prunetrain.keras_internals.callers import (
    calling_list,
    fit_argument,
    running_fits,
)
from keras_prunetrain.keras_internals.gradients import release_gradients
from keras_prunetrain.keras_internals.graph import (
    Call,
    application_layer,
    arguments_with,
    calls,
    calls_of,
    graph_of,
    has_array_arguments,
    is_graph,
    mask_position,
    operation_class,
    producer,
    structures,
)
from keras_prunetrain.keras_internals.guards import guard_hooks, guard_loop
from keras_prunetrain.keras_internals.identity import (
    TRAINER_ATTRIBUTES,
    broken_state,
    forget_calls,
    operations_in,
    optimizer_successors,
    set_states,
    successors,
)
from keras_prunetrain.keras_internals.in_step import (
    gradient_of,
    multiplied,
    scale_in_step,
    sum_over_replicas,
    update_in_step,
)
from keras_prunetrain.keras_internals.kernels import release_kernels
from keras_prunetrain.keras_internals.layer import (
    Part,
    attribute_of,
    base_attributes,
    blank_copy,
    carry_settings,
    fill_copy,
    is_part,
    own_attributes,
    parts,
    replace_part,
    set_attribute,
    set_trainable,
    track,
    variable_like,
)
from keras_prunetrain.keras_internals.learning_rate import (
    restore_learning_rate,
    scale_learning_rate,
    scheduled_rate,
    shown_rate,
    update_count,
)
from keras_prunetrain.keras_internals.list_hooks import wrap_hook
from keras_prunetrain.keras_internals.optimizer import (
    build_copy,
    carry_exclusions,
    copy_optimizer,
    inner_optimizers,
    leaf_optimizers,
    optimizer_pairs,
    optimizer_variables,
)
from keras_prunetrain.keras_internals.random_state import (
    random_state,
    set_random_state,
)
from keras_prunetrain.keras_internals.retrying import RetriedStep
from keras_prunetrain.keras_internals.second_order import hessian_products
from keras_prunetrain.keras_internals.skipping import Passes, skip_steps
from keras_prunetrain.keras_internals.step_hooks import (
    StepHook,
    UpdateHook,
    add_step_hook,
    add_update_hook,
    remove_step_hook,
    remove_update_hook,
)
from keras_prunetrain.keras_internals.step_sizes import (
    OptimizerKind,
    StepSize,
    optimizer_kind,
)
from keras_prunetrain.keras_internals.trainer import (
    announce_steps,
    compile_like,
    example_count,
    on_several_machines,
    renew_steps,
    repair_distributed_fit,
    strategy_scope,
)
from keras_prunetrain.keras_internals.variables import (
    Unfilled,
    precise,
    values_of,
    weight_name,
)

__all__ = [
    "TRAINER_ATTRIBUTES",
    "Call",
    "DataGradient",
    "OptimizerKind",
    "Part",
    "Passes",
    "RetriedStep",
    "StepHook",
    "StepSize",
    "Unfilled",
    "UpdateHook",
    "add_step_hook",
    "add_update_hook",
    "announce_steps",
    "application_layer",
    "arguments_with",
    "attribute_of",
    "base_attributes",
    "blank_copy",
    "broken_state",
    "build_copy",
    "calling_list",
    "calls",
    "calls_of",
    "carry_exclusions",
    "carry_settings",
    "compile_like",
    "copy_optimizer",
    "data_gradient_of",
    "example_count",
    "fill_copy",
    "fit_argument",
    "forget_calls",
    "gradient_of",
    "graph_of",
    "guard_hooks",
    "guard_loop",
    "has_array_arguments",
    "has_known_call",
    "hessian_products",
    "inner_optimizers",
    "is_graph",
    "mask_position",
    "is_part",
    "is_rematerialized",
    "leaf_optimizers",
    "multiplied",
    "on_several_machines",
    "operation_class",
    "operations_in",
    "optimizer_kind",
    "optimizer_pairs",
    "optimizer_successors",
    "optimizer_variables",
    "own_attributes",
    "parts",
    "precise",
    "producer",
    "random_state",
    "release_gradients",
    "release_kernels",
    "remove_step_hook",
    "remove_update_hook",
    "renew_steps",
    "repair_distributed_fit",
    "replace_data_gradient",
    "replace_part",
    "restore_data_gradient",
    "restore_learning_rate",
    "running_fits",
    "scale_in_step",
    "scale_learning_rate",
    "scheduled_rate",
    "set_attribute",
    "set_random_state",
    "set_states",
    "set_trainable",
    "shown_rate",
    "skip_steps",
    "strategy_scope",
    "structures",
    "successors",
    "sum_over_replicas",
    "track",
    "update_count",
    "update_in_step",
    "values_of",
    "variable_like",
    "weight_name",
    "wrap_hook",
]

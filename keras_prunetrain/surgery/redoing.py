"""A cut written down, so that it can be done again in another process.

The same program builds the same first model. The cuts that a training has made
so far, done again one after the other, lead to the same smaller architecture. A
backup then gives the values of its variables.
"""

import gc
from typing import Any

import keras
import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.branches import Addition
from keras_prunetrain.channels.liveness import Plan
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.channels.walk import Visit, run_graph
from keras_prunetrain.surgery.reconfigure import prepare_cut
from keras_prunetrain.surgery.takeover import take_over


def record_of_cut(plan: Plan) -> dict[str, Any]:
    """Returns the part of `plan` that decides the smaller architecture.

    A dict of names, numbers and arrays that refers to no object of the model.
    """
    places = _places(plan.numbering)
    return {
        "alive": plan.alive,
        "additions": [
            [places[x.key], list(x.keep), x.constant]
            for x in plan.additions.values()
        ],
        "removed": sorted(places[key] for key in plan.removed),
        "layers": len(places),
    }


def plan_again(model: keras.Model, record: dict[str, Any]) -> Plan:
    """Returns the `Plan` from which `record` was made, for an equal model.

    Args:
        model: A functional model with the architecture that was cut then. Its
            weights may have other values.
        record: As of `record_of_cut`.

    Raises:
        ValueError: If the model has another architecture.
    """
    numbering = number_channels(model)
    alive = np.asarray(record["alive"], bool)
    here = numbering.size, len(numbering.layers)
    there = len(alive), record["layers"]
    if here != there:
        raise ValueError(
            f"The cut was made in another model than '{model.name}': in one of "
            f"{there[0]} channels and {there[1]} layers. Received: {here[0]} "
            f"channels and {here[1]} layers. Build the model as the first "
            "time, and call `prune_whole_groups` if it was called then"
        )
    keys = list(numbering.layers)
    outputs = _outputs_of_calls(model)
    return Plan(
        numbering=numbering,
        alive=alive,
        score=np.zeros(numbering.size),
        living=[None] * len(numbering.labels),
        additions={
            outputs[keys[i]]: Addition(keys[i], tuple(keep), constant)
            for i, keep, constant in record["additions"]
        },
        removed=frozenset(keys[i] for i in record["removed"]),
        reasons={},
    )


def repeat_cuts(
    model: keras.Model,
    records: list[dict[str, Any]],
    trainer: keras.Model | None = None,
) -> None:
    """Makes `model` as small as it was, without the values of its weights.

    Args:
        model: The model before its first cut; modified.
        records: As of `record_of_cut`, one for each cut.
        trainer: As of `prepare_cut`.

    Raises:
        ValueError: If the cuts were made in another model.
    """
    for record in records:
        plan = plan_again(model, record)
        take_over(model, prepare_cut(model, plan, trainer))
    gc.collect()  # The layers of all the models in between.


def _places(numbering):
    """Returns a dict from the key of a layer to its place among all.

    The names that Keras gives differ from one model to the next.
    """
    return {key: i for i, key in enumerate(numbering.layers)}


def _outputs_of_calls(model):
    """Returns a dict from the key of an operation to the `id` of its output.

    Only an operation that is called once can lose a branch.
    """
    outputs = {}

    def visit(visit: Visit):
        if keras_internals.is_graph(visit.call.operation):
            return None
        outputs[visit.key] = id(visit.call.outputs[0])
        return [None] * len(visit.call.outputs)

    run_graph(model, [None] * len(model.inputs), visit)
    return outputs

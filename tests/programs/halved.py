"""What is left of a model if half of the channels that may go are dead."""

import collections
import pathlib
import tempfile
from typing import NamedTuple

import keras
import numpy as np

import keras_prunetrain as kpt
from keras_prunetrain.channels.numbering import number_channels
from tests.masked import silence, some_alive
from tests.networks import shake
from tests.programs.watched import outputs


class Halved(NamedTuple):
    """One model, before and after.

    Attributes:
        parameters: Integer, of the model.
        left: Integer, the parameters that are left.
        held: Dict from a reason why channels stay to how many it holds.
        held_whole: Dict from each layer of which no channel may go to the
            reason.
        difference: Float, the largest one of the outputs from those of the
            model whose dead weights are zero, also once saved and loaded.
        signal: Float, how much the outputs differ between inputs.
    """

    parameters: int
    left: int
    held: dict[str, int]
    held_whole: dict[str, str]
    difference: float
    signal: float


def halve(model):
    """Draws new weights and the half that dies, and cuts; returns `Halved`."""
    draw(model)
    numbering = number_channels(model)
    silence(numbering, some_alive(numbering, np.random.default_rng(0)))
    expected = outputs(model)
    smaller = kpt.reconfigure(model)
    both = outputs(smaller), outputs(loaded(smaller))
    found = zip(*both, expected, strict=True)
    held, held_whole = reasons(model)
    return Halved(
        parameters=model.count_params(),
        left=smaller.count_params(),
        held=held,
        held_whole=held_whole,
        difference=max(
            float(np.abs(x - y).max()) for *new, y in found for x in new
        ),
        signal=min(float(np.ptp(y, axis=0).max()) for y in expected),
    )


def loaded(model):
    """What a file of `model` holds."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        return keras.saving.load_model(path)


def draw(model):
    """Draws all weights anew, but those of layers that prepare the data."""
    prepared = [
        (x, x.get_weights())
        for x in model.layers
        if isinstance(x, keras.layers.STFTSpectrogram)
    ]
    shake(model)
    for weight in model.weights:
        if weight.name == "kernel":  # Half of what it reads will be zero.
            weight.assign(2.0 * weight)
    for layer, weights in prepared:
        layer.set_weights(weights)


def reasons(model):
    """What holds channels: how many for each reason, and whole layers."""
    held, whole = collections.Counter(), {}
    for row in kpt.channel_report(model):
        found = [x.rpartition(" (") for x in row.held_by]
        for reason, _, count in found:
            held[reason] += int(count[:-1])
        if len(found) == 1 and int(found[0][2][:-1]) == row.channels:
            whole[row.layer] = found[0][0].rpartition("): ")[2]
    return dict(held), whole

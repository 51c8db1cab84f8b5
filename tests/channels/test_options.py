"""The options of a cut: one list, which all who name them agree with."""

import dataclasses
import inspect

import keras_prunetrain as kpt
from keras_prunetrain.channels.options import CutOptions


def test_reconfigure_takes_the_options_and_their_defaults():
    (_, *arguments) = inspect.signature(kpt.reconfigure).parameters.values()
    assert {x.name: x.default for x in arguments} == {
        x.name: x.default for x in dataclasses.fields(CutOptions)
    }


def test_callbacks_and_their_documentation_take_every_option():
    every = dataclasses.asdict(CutOptions())
    threshold = every.pop("threshold")
    pruning = kpt.PruneTrainCallback(threshold=threshold, reconfigure=every)
    assert pruning.threshold == threshold
    for described in (kpt.PruneTrainCallback, kpt.ReconfiguringCallback):
        for name in every:
            assert f"`{name}`" in described.__doc__


def test_layers_to_skip_that_come_one_by_one_are_known_to_every_cut():
    assert CutOptions(skip=(name for name in ["stem"])).skip == ("stem",)

"""What a report says of the loss, and of branches that leave."""

import keras
import pytest

import keras_prunetrain as kpt
from keras_prunetrain.channels.liveness import plan_cut
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.fit.record import penalty_share, record_of
from tests import networks


def model():
    """Has a lasso of 2, both sides of a kernel that is 1, and an L1 of 4."""
    inputs = keras.Input((1,))
    x = keras.layers.Dense(
        1, kernel_initializer="ones", kernel_regularizer=kpt.GroupLasso(1.0)
    )(inputs)
    x = keras.layers.Dense(
        1,
        kernel_initializer="ones",
        kernel_regularizer=keras.regularizers.L1(4.0),
    )(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    ("loss", "share"),
    [
        (4.0 + 8.0, 0.25),  # Of a task loss of 6 and the lasso.
        (4.0, 0.0),  # A loss of nothing but other penalties, and less.
        (3.0, 0.0),
        (float("nan"), 0.0),
    ],
)
def test_the_share_of_the_lasso_leaves_other_penalties_out(loss, share):
    assert penalty_share(model(), loss) == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize(("beta", "kept"), [(0.0, []), (0.5, ["add"])])
def test_an_addition_is_named_where_it_goes_on_adding_a_constant(beta, kept):
    model = networks.residual().model
    networks.kill(model, {"conv1": range(4)}, {"conv2": range(4)})
    norm = model.get_layer("conv2_bn")
    norm.beta.assign(norm.beta + beta)

    model.compile("sgd", "mse")
    meter = kpt.EpochMeter()
    meter.set_model(model)

    record = record_of(plan_cut(model, CutOptions()), 0, meter, None, 0.0)

    assert {"conv1", "conv2", "conv2_bn"} <= set(record.removed_layers)
    assert record.channels_after["conv1"] == 0
    # Other layers still have the channels of the shortcut around it.
    assert record.channels_after["conv2"] == 0
    assert record.constants_kept == kept

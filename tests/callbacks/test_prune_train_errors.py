"""Bad input: said what, where and how to fix, and nothing is changed."""

import keras
import numpy as np
import pytest

from keras_prunetrain import GroupLasso, PruneTrainCallback
from tests.callbacks.fits import examples, factors, network


@pytest.mark.parametrize(
    "ratio", [0, 1, -1, 1.5, float("nan"), True, "0.25", None, 10**400]
)
def test_penalty_ratio_must_be_a_fraction(ratio):
    with pytest.raises(
        ValueError, match=f"`penalty_ratio` .* Received: penalty_ratio={ratio}"
    ):
        PruneTrainCallback(penalty_ratio=ratio)


@pytest.mark.parametrize("interval", [0, -2, 1.5, None, True, "10"])
def test_interval_must_be_a_number_of_epochs(interval):
    with pytest.raises(
        ValueError, match=f"`interval` .* at least 1. Received: .*={interval}"
    ):
        PruneTrainCallback(interval=interval)


@pytest.mark.parametrize(
    "threshold", [-1, float("inf"), float("nan"), True, "0.1", None, 10**400]
)
def test_threshold_must_be_a_magnitude(threshold):
    with pytest.raises(
        ValueError, match=f"`threshold` .* Received: threshold={threshold}"
    ):
        PruneTrainCallback(threshold=threshold)


@pytest.mark.parametrize("epochs", [-1, 0.5, True, None, "1"])
def test_finetune_epochs_must_be_a_number(epochs):
    with pytest.raises(
        ValueError, match=f"`finetune_epochs` .* Received: .*={epochs}"
    ):
        PruneTrainCallback(finetune_epochs=epochs)


def test_reconfigure_takes_known_arguments_only():
    with pytest.raises(
        ValueError, match="'score'. Received: 'channels', 'threshold'"
    ):
        PruneTrainCallback(reconfigure={"threshold": 0.1, "channels": 2})


def test_layers_to_skip_are_no_dict():
    with pytest.raises(ValueError, match="`skip` must be a layer, a name, a f"):
        PruneTrainCallback(reconfigure={"skip": {"stem": True}})


@pytest.mark.parametrize("argument", ["channel_multiple", "min_channels"])
@pytest.mark.parametrize("value", [0, 1.5, "2"])
def test_arguments_of_reconfigure_are_checked(argument, value):
    message = f"`{argument}` must be an integer, .*: {argument}={value!r}"
    with pytest.raises(ValueError, match=message):
        PruneTrainCallback(reconfigure={argument: value})


@pytest.mark.parametrize("fold", ["no", 1, None])
def test_fold_must_be_a_bool(fold):
    with pytest.raises(ValueError, match="`fold` must be True or False"):
        PruneTrainCallback(reconfigure={"fold": fold})


@pytest.mark.parametrize("arguments", [5, "fold", ["skip"]])
def test_further_arguments_must_be_a_dict(arguments):
    with pytest.raises(ValueError, match="`reconfigure` must be a dict"):
        PruneTrainCallback(reconfigure=arguments)


@pytest.mark.parametrize("factor", [0, -1, "1", True, 1e-320, 1e300, 10**400])
def test_factor_must_be_a_number_that_a_float32_can_hold(factor):
    with pytest.raises(ValueError, match="`factor` .* Received: factor="):
        PruneTrainCallback(factor=factor)


@pytest.mark.parametrize("log_dir", [5, "", True, ["logs"]])
def test_log_dir_must_be_a_path(log_dir):
    with pytest.raises(ValueError, match="`log_dir` must be the path of a fo"):
        PruneTrainCallback(log_dir=log_dir)


def test_score_must_be_a_function():
    with pytest.raises(ValueError, match="`score` must be a function of a"):
        PruneTrainCallback(reconfigure={"score": "magnitude"})


def test_numbers_of_numpy_are_numbers():
    pruning = PruneTrainCallback(
        np.float32(0.25),
        np.int64(5),
        np.float64(1e-3),
        reconfigure={"channel_multiple": np.int32(2)},
        finetune_epochs=np.int16(1),
    )
    assert pruning.settings() == {
        "penalty_ratio": 0.25,
        "interval": 5,
        "threshold": 1e-3,
        "finetune_epochs": 1,
        "solver": "auto",
        "coupled": False,
        "factor": None,
    }
    # What workers compare is what they write.
    assert "np" not in str(pruning.settings())


def refuses(model, pruning, match, **kwargs):
    """Checks that `fit` raises before it changes anything."""
    images, labels = examples()
    model(images[:1])
    weights, optimizer = model.get_weights(), model.optimizer
    regularizers = [weight.regularizer for weight in model.weights]
    with pytest.raises(ValueError, match=match):
        model.fit(
            images,
            labels,
            **{"epochs": 2, "callbacks": [pruning], "verbose": 0} | kwargs,
        )
    assert model.optimizer is optimizer
    assert optimizer.iterations == 0
    assert [weight.regularizer for weight in model.weights] == regularizers
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert pruning.reports == [] and pruning.factor is None
    # And nothing is in the way of going on without the callback.
    model.fit(images, labels, verbose=0)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.flatten = keras.layers.Flatten()

    def call(self, x):
        return self.dense(self.flatten(x))


def test_a_subclassed_model_is_refused():
    model = Subclassed()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    refuses(model, PruneTrainCallback(), "Subclassed.*functional API")


def test_a_sequential_needs_its_input_before_training():
    layers = [
        keras.layers.Conv2D(4, 3, name="conv"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3, name="dense"),
    ]
    model = keras.Sequential(layers)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    with pytest.raises(ValueError, match=r"begins with `keras.Input\(shape\)`"):
        model.fit(*examples(), callbacks=[PruneTrainCallback()], verbose=0)
    assert not model.built

    # The advice works.
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))

    class KillOne(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            conv, dense = (self.model.get_layer(x) for x in ("conv", "dense"))
            keep = np.array([1.0, 0.0, 1.0, 1.0])
            conv.kernel.assign(conv.kernel * keep)
            dense.kernel.assign(dense.kernel * keep[:, None])

    model.fit(
        *examples(), callbacks=[KillOne(), PruneTrainCallback()], verbose=0
    )
    assert model.get_layer("conv").filters == 3


@pytest.mark.parametrize("skip", ["stage9_*", ["stem", "absent"]])
def test_skip_must_match_a_layer(skip):
    pruning = PruneTrainCallback(reconfigure={"skip": skip})
    refuses(network(), pruning, "`skip` names '(stage9_|absent).*stem_bn")


@pytest.mark.parametrize(
    ("skip", "match"),
    [
        (lambda layer: layer.filters, "in `skip` fails for .*AttributeError"),
        (np.array(2), r"`skip` names array\(2\), which is no layer"),
    ],
)
def test_skip_must_name_layers(skip, match):
    pruning = PruneTrainCallback(reconfigure={"skip": skip})
    refuses(network(), pruning, match)


@pytest.mark.parametrize(
    ("score", "match"),
    [
        (lambda label: [1.0] * 99, "`score` must return .* for each of the"),
        (lambda label: label.gamma, "`score` fails for .*AttributeError"),
    ],
)
def test_a_score_that_fails_is_refused_before_the_first_step(score, match):
    pruning = PruneTrainCallback(reconfigure={"score": score})
    refuses(network(), pruning, match)


def test_a_model_without_an_optimizer_is_refused():
    model = network()
    model.compile(optimizer=None, loss="mse")
    with pytest.raises(ValueError, match="was compiled with `optimizer=None`"):
        model.fit(*examples(), callbacks=[PruneTrainCallback()], verbose=0)
    assert not any(weight.regularizer for weight in model.weights)


def test_some_epoch_must_have_lasso():
    pruning = PruneTrainCallback(finetune_epochs=2)
    refuses(network(), pruning, "finetune_epochs=2, and epochs=2 in `fit`")


def test_loss_must_be_positive_for_a_share_of_it():
    model = network(
        compiled={"loss": lambda labels, logits: 0.0 * logits - 1.0}
    )
    with pytest.raises(ValueError, match="must be positive .* -1.0 for the fi"):
        model.fit(*examples(), callbacks=[PruneTrainCallback()], verbose=0)


def test_advice_for_a_loss_that_is_not_positive_works():
    lasso = GroupLasso(1e-3)
    model = network(
        compiled={"loss": lambda labels, logits: 0.0 * logits - 1.0},
        regularizers={"inner": lasso},
    )
    model.fit(*examples(), callbacks=[PruneTrainCallback()], verbose=0)
    np.testing.assert_allclose(factors(model), [0, 1e-3, 0, 0], rtol=1e-6)


class Silent(keras.Model):
    def train_step(self, data):
        logs = super().train_step(data)
        return {"accuracy": logs["accuracy"]}


def test_logs_must_tell_the_loss():
    model = network(Silent)
    with pytest.raises(ValueError, match=r"Return it .*logs=\['accuracy'\]"):
        model.fit(*examples(), callbacks=[PruneTrainCallback()], verbose=0)

"""The callback inside `fit`, against the same run driven by hand."""

import dataclasses
import functools
import json
import logging
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_prunetrain import (
    GroupLasso,
    PruneTrainCallback,
    model_cost,
    reconfigure,
)
from keras_prunetrain.fit import meter
from tests.callbacks.fits import (
    KERNELS,
    TRACED,
    Kill,
    examples,
    factors,
    kill,
    network,
    norms,
    squares,
    widths,
)

L2 = 0.01
RATIO = 0.5
EPOCHS = 2
DEATHS = {0: {"inner": [0, 3]}, 1: {"inner": [1], "stage": [2]}}
DENSITY = [16 / 18, 14 / 18]  # Of 3 + 6 + 6 + 3 channels.
WIDTHS = {"stem": 5, "inner": 3, "last": 5, "logits": 3}
VALIDATION = examples(10, seed=1)


def callback(**kwargs):
    return PruneTrainCallback(RATIO, 1, **kwargs)


def fit(model, pruning, *before, after=(), data=None, **kwargs):
    """Three steps an epoch, the last one of 8 examples; DEATHS by default."""
    kwargs = {"epochs": EPOCHS} | kwargs
    if data is None:
        data = examples()
    if isinstance(data, tuple):
        kwargs |= {"x": data[0], "y": data[1], "batch_size": 16}
    else:
        kwargs["x"] = data
    callbacks = [*before, *([pruning] if pruning else []), *after]
    return model.fit(
        callbacks=callbacks or None, shuffle=False, verbose=0, **kwargs
    )


class SetFactor(keras.callbacks.Callback):
    """Eq. 3 by NumPy after the first batch: the paper, by hand."""

    def __init__(self, lassos):
        super().__init__()
        self.lassos = lassos
        self.factor = None

    def on_train_begin(self, logs=None):
        self.penalty = L2 * squares(self.model)
        self.norms = norms(self.model)

    def on_train_batch_end(self, batch, logs=None):
        if self.factor is None:
            task_loss = logs["loss"] - self.penalty
            self.factor = RATIO * task_loss / (self.norms * (1 - RATIO))
            for lasso in self.lassos:
                lasso.factor = self.factor


@functools.cache
def run_by_hand(option=None):
    """Alternates `fit` and `reconfigure`; the references of this file."""
    model = network(l2=L2)
    lassos = []
    for name, axes in KERNELS.items():
        kernel, lasso = model.get_layer(name).kernel, GroupLasso(axes=axes)
        lassos.append(lasso)
        kernel.regularizer = functools.partial(both, kernel.regularizer, lasso)
    calibration = SetFactor(lassos)
    history = {}
    for epoch in range(EPOCHS):
        record = fit(
            model,
            None,
            Kill(DEATHS),
            calibration,
            validation_data=VALIDATION,
            initial_epoch=epoch,
            epochs=epoch + 1,
            **options(option),
        )
        for name, values in record.history.items():
            history.setdefault(name, []).extend(values)
        model = reconfigure(model)
    return model.get_weights(), history, calibration.factor


def both(first, second, kernel):
    return first(kernel) + second(kernel)


def options(name):
    if name == "sample_weight":
        return {"sample_weight": np.linspace(0.1, 2.0, 40)}
    return {}


def assert_same_as_by_hand(model, pruning, history, option=None):
    weights, expected, factor = run_by_hand(option)
    assert widths(model) == WIDTHS
    np.testing.assert_allclose(pruning.factor, factor, rtol=1e-5)
    for found, wanted in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    added = {"density", "training_flops", "val_task_loss"}
    assert history.history.keys() == expected.keys() | added
    for name, values in expected.items():
        np.testing.assert_allclose(
            history.history[name], values, rtol=1e-3, err_msg=name
        )
    assert [report.epoch for report in pruning.reports] == [0, 1]


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return tuple(x[16 * i : 16 * i + 16] for x in examples())


DATA = {
    "tf.data": lambda: tf.data.Dataset.from_tensor_slices(examples()).batch(16),
    "PyDataset": Batches,
}


@functools.cache
def standard_run():
    """Returns model, callback, history and `Record` of the run; not to change.

    Eager, on arrays, with a learning rate that does not change.
    """
    model, pruning, record = network(l2=L2), callback(), Record()
    history = fit(
        model, pruning, Kill(DEATHS), record, validation_data=VALIDATION
    )
    return model, pruning, history, record


def test_fit_shrinks_the_model_as_the_same_run_by_hand():
    model, pruning, history, _ = standard_run()
    assert_same_as_by_hand(model, pruning, history)
    assert model.run_eagerly


@pytest.mark.parametrize("kind", DATA)
def test_other_data_and_a_traced_step_make_no_difference(kind):
    traced = TRACED if kind == "tf.data" else None
    model, pruning = network(l2=L2, compiled=traced), callback()
    history = fit(
        model,
        pruning,
        Kill(DEATHS),
        data=DATA[kind](),
        validation_data=VALIDATION,
    )
    assert_same_as_by_hand(model, pruning, history)


@pytest.mark.long
def test_weights_of_examples_count():
    # Keras turns the weights of classes into such.
    option = "sample_weight"
    model, pruning = network(l2=L2), callback()
    history = fit(
        model,
        pruning,
        Kill(DEATHS),
        validation_data=VALIDATION,
        **options(option),
    )
    assert_same_as_by_hand(model, pruning, history, option)
    assert pruning.factor != run_by_hand()[2]


class OwnStep(keras.Model):
    """Trains like any model, in its own words."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tracker = keras.metrics.Mean(name="loss")
        self.seen = []
        self.favourites = [self.get_layer("stem"), self.get_layer("inner")]

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        variables = self.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self.tracker.update_state(loss, sample_weight=keras.ops.shape(x)[0])
        return {"loss": self.tracker.result()}


def test_a_train_step_of_the_users_own_goes_on():
    model, pruning = (
        network(OwnStep, l2=L2, compiled=TRACED | {"metrics": None}),
        callback(),
    )
    model.note = "mine"
    tracker = model.tracker

    history = fit(model, pruning, Kill(DEATHS)).history

    weights, expected, factor = run_by_hand()
    assert type(model) is OwnStep
    for found, wanted in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(pruning.factor, factor, rtol=1e-5)
    assert model.note == "mine"
    assert model.tracker is tracker
    assert tracker in model.metrics  # So that each epoch resets it.
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-3)
    assert model.favourites == [
        model.get_layer("stem"),
        model.get_layer("inner"),
    ]
    # The number of examples is unknown.
    assert np.isnan(history["training_flops"]).all()
    np.testing.assert_allclose(history["density"], DENSITY)


class Record(keras.callbacks.Callback):
    """What the lasso was at each batch."""

    def __init__(self):
        super().__init__()
        self.losses, self.factors = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])
        self.factors.append(max(factors(self.model)))


def test_steps_per_execution():
    model = network(l2=L2, compiled=TRACED | {"steps_per_execution": 3})
    pruning, record = callback(), Record()
    penalty, sum_of_norms = L2 * squares(model), norms(model)

    history = fit(model, pruning, Kill(DEATHS), record)

    # The mean over the first three batches, less the L2 at its beginning.
    expected = (record.losses[0] - penalty) / sum_of_norms
    np.testing.assert_allclose(pruning.factor, expected, rtol=1e-5)
    assert record.factors == [0.0, pytest.approx(pruning.factor)]
    assert model.steps_per_execution == 3
    assert model.optimizer.iterations == 3 * EPOCHS
    assert widths(model) == WIDTHS
    assert history.history["training_flops"][0] == (
        40 * model_cost(network()).training_flops
    )


def cross_entropy(model, images, labels):
    logits = keras.ops.convert_to_numpy(model(images, training=True))
    logits = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -log_probabilities[np.arange(len(labels)), labels].mean()


def test_factor_makes_the_lasso_the_wanted_share_of_the_first_loss():
    # Eq. 3, the task loss by NumPy: without L2, which is half of all here.
    model = network(l2=0.1, dropout=0.0)
    images, labels = examples()
    task_loss = cross_entropy(
        network(l2=0.1, dropout=0.0), images[:16], labels[:16]
    )
    sum_of_norms = norms(model)
    pruning = callback()
    fit(model, pruning, epochs=1)
    penalty = pruning.factor * sum_of_norms
    share = penalty / (task_loss + penalty)
    np.testing.assert_allclose(share, RATIO, rtol=1e-4)


def test_factor_is_set_after_the_first_batch_and_never_again():
    _, pruning, _, record = standard_run()
    assert record.factors[0] == 0.0
    # The records are taken before the callback acts on the batch.
    np.testing.assert_allclose(record.factors[1:], pruning.factor, rtol=1e-6)


def test_second_fit_goes_on_with_the_factor_of_the_first():
    model, pruning, record = network(), callback(), Record()
    fit(model, pruning, Kill(DEATHS), epochs=1)
    factor = pruning.factor
    history = fit(
        model, pruning, Kill(DEATHS), record, initial_epoch=1, epochs=2
    )
    assert pruning.factor == factor
    np.testing.assert_allclose(record.factors, factor, rtol=1e-6)
    assert [report.epoch for report in pruning.reports] == [0, 1]
    np.testing.assert_allclose(history.history["density"], DENSITY[1:])
    assert model.optimizer.iterations == 6


def test_fit_without_the_callback_is_free_of_lasso():
    model, pruning = network(l2=L2, compiled=TRACED), callback()
    fit(model, pruning, Kill(DEATHS))
    history = fit(model, None, epochs=4, initial_epoch=3)
    assert factors(model) == [0.0] * 4
    np.testing.assert_allclose(
        float(sum(model.losses)), L2 * squares(model), rtol=1e-5
    )
    assert "density" not in history.history


@pytest.mark.long
def test_saved_model_loads_where_the_package_is_not_installed(tmp_path):
    model = network(l2=L2)
    fit(model, callback(), Kill(DEATHS))
    model.save(tmp_path / "small.keras")
    images = examples()[0]
    np.save(tmp_path / "images.npy", images)
    program = f"""
import sys
sys.modules["keras_prunetrain"] = None  # Importing it fails.
import keras, numpy
model = keras.saving.load_model("{tmp_path}/small.keras")
assert model.optimizer.iterations == {3 * EPOCHS}
images = numpy.load("{tmp_path}/images.npy")
numpy.save("{tmp_path}/outputs.npy", model(images))
model.train_on_batch(images, numpy.zeros(len(images)))
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "outputs.npy"), model(images), atol=1e-5
    )


def test_model_is_the_callers_object_and_works_after_fit(tmp_path):
    model = network()
    before = model.count_params()
    fit(model, callback(), Kill(DEATHS))
    images, labels = examples()
    logits = model.predict(images, batch_size=8, verbose=0)
    np.testing.assert_allclose(logits, model(images), atol=1e-5)
    assert model.count_params() < before
    entropy = keras.losses.sparse_categorical_crossentropy(
        labels, logits, from_logits=True
    )
    loss, accuracy = model.evaluate(images, labels, verbose=0)
    np.testing.assert_allclose(loss, np.mean(entropy), rtol=1e-4)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).mean())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(images), model(images), atol=1e-6)
    for old, new in zip(
        model.optimizer.variables, loaded.optimizer.variables, strict=True
    ):
        np.testing.assert_allclose(old, new)


class BreakOff(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if self.model.optimizer.iterations == 4:
            raise RuntimeError("power cut")


def test_an_interrupted_fit_is_gone_on_with():
    model, pruning, record = network(l2=L2), callback(), Record()
    with pytest.raises(RuntimeError, match="power cut"):
        fit(model, pruning, Kill(DEATHS), after=[BreakOff()])
    factor = pruning.factor
    assert factor is not None
    own = keras.regularizers.L2

    fit(model, pruning, Kill(DEATHS), record, initial_epoch=1)

    # One lasso on each kernel, not the old one beside a new one.
    np.testing.assert_allclose(record.factors, factor, rtol=1e-6)
    assert widths(model) == WIDTHS
    for name in KERNELS:
        assert type(model.get_layer(name).kernel.regularizer) is own


def test_what_an_interrupted_fit_left_does_not_bind_another_callback():
    model, pruning = network(), callback()
    with pytest.raises(RuntimeError, match="power cut"):
        fit(model, pruning, after=[BreakOff()])
    other = PruneTrainCallback(0.9, interval=1)
    fit(model, other, epochs=1)
    assert other.factor > 5 * pruning.factor  # By Eq. 3, about 9 times.
    assert factors(model) == [0.0] * 4


class Losses(keras.callbacks.Callback):
    """The penalties during each epoch, and the L2 alone."""

    def __init__(self):
        super().__init__()
        self.lasso = []

    def on_train_batch_end(self, batch, logs=None):
        penalties = float(sum(self.model.losses))
        self.lasso.append(penalties - L2 * squares(self.model))


def test_last_epochs_are_fine_tuned_without_lasso():
    model, pruning, losses = (
        network(l2=L2),
        PruneTrainCallback(RATIO, interval=10, finetune_epochs=2),
        Losses(),
    )
    deaths = {0: {"inner": [0]}, 1: {"inner": [1]}, 2: {"inner": [1, 2]}}
    fit(model, pruning, Kill(deaths), after=[losses], epochs=3)
    lasso = np.reshape(losses.lasso, (3, 3))
    assert (lasso[0] > 0.1).all()
    np.testing.assert_allclose(lasso[1:], 0.0, atol=1e-5)
    # When the lasso ends and once more at the very end, not in between.
    assert [report.epoch for report in pruning.reports] == [0, 2]
    assert widths(model)["inner"] == 3


@pytest.mark.long
def test_fine_tuning_equals_a_fit_without_callback():
    def run(finetune_epochs, epochs):
        model = network(compiled=TRACED)
        pruning = callback(finetune_epochs=finetune_epochs)
        # Nothing dies, so that nothing else has the step traced anew.
        fit(model, pruning, epochs=epochs)
        return model

    model, other = run(1, 2), run(0, 1)
    fit(other, None, epochs=2, initial_epoch=1)
    for found, wanted in zip(
        model.get_weights(), other.get_weights(), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_own_lasso_without_a_factor_gets_one_and_no_other_layer_does():
    lasso = GroupLasso(axes=(-1,))
    model = network(regularizers={"inner": lasso})
    kernel = model.get_layer("inner").get_weights()[0].reshape(-1, 6)
    sum_of_norms = np.sqrt(np.square(kernel).sum(0)).sum()
    pruning, record = callback(), Record()
    fit(model, pruning, Kill(DEATHS), record)
    np.testing.assert_allclose(
        pruning.factor, record.losses[0] / sum_of_norms, rtol=1e-4
    )
    assert model.get_layer("inner").kernel.regularizer is lasso
    expected = [0.0, pruning.factor, 0.0, 0.0]
    np.testing.assert_allclose(factors(model), expected, rtol=1e-6)


@pytest.mark.parametrize("finetune_epochs", [0, 1])
def test_own_lassos_keep_their_own_factors(finetune_epochs):
    weak, strong = GroupLasso(1e-3), GroupLasso(5e-3, axes=(-2,))
    model = network(regularizers={"inner": weak, "logits": strong})
    pruning, record = callback(finetune_epochs=finetune_epochs), Record()
    fit(model, pruning, Kill(DEATHS), after=[record], epochs=2)
    np.testing.assert_allclose(factors(model), [0, 1e-3, 0, 5e-3], rtol=1e-6)
    np.testing.assert_allclose(record.factors[:3], 5e-3, rtol=1e-6)
    if finetune_epochs:
        assert record.factors[3:] == [0.0] * 3
    np.testing.assert_allclose(pruning.factor, 5e-3, rtol=1e-6)


def test_reports_tell_what_went_and_what_it_saved():
    model, pruning, _, _ = standard_run()
    dense = dataclasses.replace(model_cost(network()), per_layer={})
    first, second = pruning.reports
    assert first.channels_before == dict.fromkeys(KERNELS, 6) | {"logits": 3}
    assert first.channels_after == first.channels_before | {"inner": 4}
    assert second.channels_before == first.channels_after
    assert second.channels_after == WIDTHS
    assert first.keep["inner"] == [1, 2, 4, 5]
    assert second.keep["inner"] == [0, 2, 3]
    assert second.keep["stem"] == second.keep["last"] == [0, 1, 3, 4, 5]
    assert first.cost_before == dense
    assert first.cost_after == second.cost_before
    assert second.cost_after == dataclasses.replace(
        model_cost(model), per_layer={}
    )
    assert first.removed_layers == first.constants_kept == []
    assert first.held == {"logits": ["model output (3)"]}
    for report in pruning.reports:
        assert report.batch_size == 16
        assert report.learning_rate == pytest.approx(0.05)
        assert report.seconds > 0
    assert first.first_step_seconds > 0
    assert second.first_step_seconds == 0.0  # There was none.


class Clock(keras.callbacks.Callback):
    """Stands still, but for a second in each epoch at first.

    Validation takes a minute, always.
    """

    def __init__(self, pruning):
        super().__init__()
        self.now = 0.0
        self._pruning = pruning

    def perf_counter(self):
        return self.now

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0 and not self._pruning.reports:
            self.now += 1.0

    def on_test_batch_end(self, batch, logs=None):
        self.now += 60.0


def test_reports_tell_how_much_shorter_an_epoch_has_become(monkeypatch):
    model, pruning = network(), callback()
    clock = Clock(pruning)
    monkeypatch.setattr(meter, "time", clock)
    fit(
        *(model, pruning, Kill(DEATHS), clock),
        validation_data=examples(8),
    )
    first, second = pruning.reports
    assert (first.seconds_saved, second.seconds_saved) == (0.0, 1.0)
    assert "at first" not in str(first)
    for saved, text in ((2.5, "2.5 s shorter"), (-0.5, "0.5 s longer")):
        report = dataclasses.replace(second, seconds_saved=saved)
        assert f"epochs {text} than at first" in str(report)


def test_a_report_is_one_line_that_says_what_changed():
    line = str(standard_run()[1].reports[0])
    assert line.startswith("Epoch ")
    assert "\n" not in line
    for part in ("channels 21 -> 19", "batch 16", "learning rate 0.05"):
        assert part in line


def test_keep_leads_from_the_first_weights_to_the_last():
    # Nothing learns, so that the weights that are left are the first ones.
    model, pruning = network(compiled={"optimizer": "sgd"}), callback()
    model.optimizer.learning_rate = 0.0
    kernels = {name: model.get_layer(name).get_weights()[0] for name in KERNELS}
    fit(model, pruning, Kill(DEATHS))
    keep = {name: np.arange(kernels[name].shape[-1]) for name in KERNELS}
    for report in pruning.reports:
        keep = {name: keep[name][report.keep[name]] for name in KERNELS}
    for name, reads in (("inner", "stem"), ("last", "inner")):
        np.testing.assert_array_equal(
            model.get_layer(name).get_weights()[0],
            kernels[name][:, :, keep[reads]][..., keep[name]],
        )


def test_reports_can_be_written_as_json():
    model, pruning = network(), callback()
    fit(model, pruning, Kill({0: {"inner": range(6)}}), epochs=1)
    (report,) = pruning.reports
    text = json.dumps(dataclasses.asdict(report))
    assert json.loads(text) == dataclasses.asdict(report)
    # The whole branch went.
    assert {"inner", "last"} <= set(report.removed_layers)
    assert report.channels_after["inner"] == report.channels_after["last"] == 0
    assert report.keep["inner"] == []
    assert report.first_step_seconds == 0.0  # There was none.


def test_penalty_ratio_is_reported_as_it_was_reached():
    model, pruning = network(l2=L2), PruneTrainCallback(RATIO, interval=2)
    model.optimizer.learning_rate = 1e-6  # So that it stays where it began.
    kill(model, "inner", [0])
    fit(model, pruning, epochs=2)
    assert pruning.reports[0].penalty_ratio == pytest.approx(RATIO, abs=0.05)


def test_history_counts_channels_and_flops():
    history = standard_run()[2].history

    def flops(stage, inner):
        macs = 64 * 9 * (3 * stage + 2 * stage * inner) + 3 * stage
        return 40 * 3 * 2 * macs  # 40 examples, the last batch has 8.

    assert history["training_flops"] == [flops(6, 6), flops(6, 4)]
    np.testing.assert_allclose(history["density"], DENSITY)


class EvaluateInBetween(keras.callbacks.Callback):
    """Resets the metrics of the epoch, in which `fit` counts examples."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.evaluate(*VALIDATION, verbose=0)


def test_flops_are_right_when_another_callback_evaluates():
    model, pruning = network(), callback()
    history = fit(model, pruning, EvaluateInBetween(), epochs=2).history
    expected = 40 * model_cost(model).training_flops
    assert history["training_flops"] == [expected] * 2


def said(caplog):
    """The package's records; TensorFlow warns of tracing often."""
    return [x for x in caplog.records if x.name == "keras_prunetrain"]


class Poison(keras.callbacks.Callback):
    """Breaks a weight for one epoch's end."""

    def __init__(self, name, value):
        super().__init__()
        self.name, self.value = name, value

    def on_epoch_end(self, epoch, logs=None):
        variable = self.model.get_layer(self.name).weights[-1]
        if epoch == 0:
            self.saved = variable.numpy()
            variable.assign(np.full(variable.shape, self.value, "float32"))


class Heal(Poison):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            variable = self.model.get_layer(self.name).weights[-1]
            variable.assign(self.saved)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["last", "stem_bn"])
def test_no_surgery_while_a_weight_is_not_finite(name, value, caplog):
    model, pruning = network(), callback()
    deaths = dict.fromkeys((0, 1), {"inner": [0]})
    fit(model, pruning, Kill(deaths), Heal(name, value), epochs=2)
    (record,) = said(caplog)
    assert record.levelno == logging.WARNING
    assert "No reconfiguration after epoch 0" in record.getMessage()
    assert "not finite" in record.getMessage()
    # Once all is well again, the surgery is made up for.
    assert [report.epoch for report in pruning.reports] == [1]
    assert model.optimizer.iterations == 6


def test_training_goes_on_with_a_loss_that_is_nan(caplog):
    model, pruning = network(), callback()
    images, labels = examples()
    images[20] = np.nan  # In the second batch of each epoch.
    history = fit(model, pruning, data=(images, labels), epochs=2).history
    assert np.isnan(history["loss"]).all()
    assert model.optimizer.iterations == 6
    assert pruning.reports == []
    assert "No reconfiguration after epoch 1: the loss (nan)" in caplog.text
    assert "lower the learning rate" in caplog.text
    assert "A longer training" not in caplog.text


def test_calibration_waits_for_a_finite_loss_and_says_so_once(caplog):
    model, pruning = network(compiled={"optimizer": "sgd"}), callback()
    model.optimizer.learning_rate = 0.0
    images, labels = examples()
    images[0] = np.nan
    fit(model, pruning, data=(images, labels), epochs=1)
    assert pruning.factor is None
    waits = [x for x in said(caplog) if "calibrated" in x.getMessage()]
    assert len(waits) == 1
    model = network()
    fit(model, pruning, epochs=1)
    assert pruning.factor > 0


def test_nothing_dead_is_said_once(caplog):
    model, pruning = network(), callback()
    history = fit(model, pruning, epochs=3)
    fit(model, pruning, epochs=1)
    (record,) = said(caplog)
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert f"No channel of '{model.name}' fell below" in message
    assert "Trained weights" in message and "need the `factor`" in message
    assert "threshold=0.0001" in record.getMessage()
    assert history.history["density"] == [1.0] * 3
    assert pruning.reports == []


def test_nothing_to_prune_is_said_and_training_goes_on(caplog):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(3, 8)(inputs)
    model = keras.Model(inputs, keras.layers.Flatten()(x))
    model.compile("sgd", "sparse_categorical_crossentropy")
    pruning = callback()
    history = fit(model, pruning)
    assert len(history.history["loss"]) == EPOCHS
    (record,) = said(caplog)
    assert "Nothing to prune" in record.getMessage()
    assert "channel_report(model)" in record.getMessage()
    assert pruning.reports == [] and pruning.factor is None


def test_lasso_alone_makes_channels_die():
    # Large steps come to rest at a tenth of this threshold.
    model = network(dropout=0.0, compiled={"optimizer": "sgd"})
    model.optimizer.learning_rate = 0.04
    pruning = PruneTrainCallback(0.95, interval=2, threshold=0.05)
    history = fit(model, pruning, data=examples(64), epochs=8)
    assert len(pruning.reports) > 1
    assert history.history["density"][-1] < 0.7
    assert history.history["accuracy"][-1] > 0.5


def test_user_keeps_the_optimizer_object():
    model = network(compiled={"optimizer": keras.optimizers.Adam(1e-3)})
    optimizer = model.optimizer
    fit(model, callback(), Kill(DEATHS))
    assert model.optimizer is optimizer
    assert optimizer.iterations == 3 * EPOCHS
    assert optimizer._trainable_variables == model.trainable_variables
    optimizer.learning_rate = 0.0
    kernel = model.get_layer("inner").get_weights()[0]
    fit(model, None, epochs=1)
    np.testing.assert_array_equal(
        model.get_layer("inner").get_weights()[0], kernel
    )


def test_user_keeps_an_optimizer_inside_a_loss_scale():
    inner = keras.optimizers.SGD(0.05, momentum=0.9)
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
    model = network(l2=L2, compiled={"optimizer": scaled})
    pruning = callback()
    history = fit(model, pruning, Kill(DEATHS), validation_data=VALIDATION)
    assert model.optimizer is scaled
    assert scaled.inner_optimizer is inner
    assert_same_as_by_hand(model, pruning, history)
    inner.learning_rate = inner.momentum = 0.0
    kernel = model.get_layer("inner").get_weights()[0]
    fit(model, None, epochs=1)
    np.testing.assert_array_equal(
        model.get_layer("inner").get_weights()[0], kernel
    )


def test_user_keeps_the_optimizers_of_a_multi_optimizer():
    members = keras.optimizers.SGD(0.05, momentum=0.9), keras.optimizers.Adam()
    both = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(members[0], {"inner/.*": members[1]})
    )
    model = network(compiled={"optimizer": both})
    pruning = callback()
    fit(model, pruning, Kill(DEATHS))
    assert len(pruning.reports) == 2
    assert pruning.reports[0].learning_rate is None
    assert model.optimizer is both
    assert {id(x) for x in both.optimizers} == {id(x) for x in members}
    assert members[1].iterations == both.iterations == 3 * EPOCHS
    members[1].learning_rate = 0.0
    kernel = model.get_layer("inner").get_weights()[0]
    fit(model, None, epochs=1)
    np.testing.assert_array_equal(
        model.get_layer("inner").get_weights()[0], kernel
    )


def test_random_states_go_on():
    # That they do in the runs above as well shows only in their numbers.
    model = network()
    fit(model, callback(), Kill({0: {"inner": [0]}}), epochs=1)
    other = network()
    fit(other, None, epochs=1)
    states = [
        [x.numpy() for x in m.variables if "seed" in x.path]
        for m in (model, other)
    ]
    np.testing.assert_array_equal(*states)
    assert len(states[0]) == 1


class Watch(keras.callbacks.Callback):
    """Weak references to what a smaller model replaces."""

    old = ()

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            kernel = self.model.get_layer("inner").kernel
            slot = self.model.optimizer.variables[-1]
            replaced = (kernel, kernel.value, slot)
            self.old = [weakref.ref(x) for x in replaced]


def test_old_weights_are_freed_at_once(tmp_path):
    model, watch = network(compiled=TRACED), Watch()

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            alive.append([reference() is not None for reference in watch.old])

    alive = []
    deaths = {2: {"inner": [0]}}
    pruning = callback(log_dir=tmp_path)  # Neither do logs keep them.
    fit(model, pruning, watch, Kill(deaths), after=[Look()], epochs=3)
    assert alive == [[], [True] * 3, [False] * 3]


def test_mixed_precision():
    model, pruning = network(l2=L2, dtype="mixed_bfloat16"), callback()
    record = Record()
    penalty, sum_of_norms = L2 * squares(model), norms(model)
    history = fit(model, pruning, Kill(DEATHS), record).history
    assert widths(model) == WIDTHS
    assert model.get_layer("inner").compute_dtype == "bfloat16"
    assert model.get_layer("inner").kernel.dtype == "float32"
    # The penalties are computed in float32.
    expected = (record.losses[0] - penalty) / sum_of_norms
    np.testing.assert_allclose(pruning.factor, expected, rtol=1e-5)
    assert np.isfinite(history["loss"]).all()


class StopAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            self.model.stop_training = True


def test_every_fit_that_stops_early_ends_with_a_reconfiguration():
    model, pruning = network(), PruneTrainCallback(RATIO, interval=10)
    for positions in ([0, 3], [1]):
        kills = Kill({0: {"inner": positions}})
        fit(model, pruning, kills, after=[StopAt(0)])
    assert widths(model)["inner"] == 3
    assert [report.epoch for report in pruning.reports] == [0, 0]
    assert model.optimizer.iterations == 6


def test_a_fit_of_no_epochs_changes_nothing():
    model, pruning = network(), callback()
    kill(model, "inner", [0])
    fit(model, pruning, initial_epoch=3, epochs=3)
    assert widths(model)["inner"] == 6
    assert factors(model) == [0.0] * 4


def test_arguments_reach_reconfigure():
    model = network()
    pruning = callback(
        reconfigure={"channel_multiple": 2, "skip": model.get_layer("last")}
    )
    deaths = {0: {"inner": [0]}, 1: {"inner": [1, 2], "stage": [0, 1]}}
    fit(model, pruning, Kill(deaths))
    # `last` holds all that it reads and writes, which is everything here.
    assert widths(model) == widths(network())
    assert model.get_layer("last").kernel.regularizer is None

    model = network()
    pruning = callback(reconfigure={"channel_multiple": 2, "skip": "stem"})
    fit(model, pruning, Kill(deaths))
    assert widths(model) == {"stem": 6, "inner": 4, "last": 6, "logits": 3}
    assert [report.epoch for report in pruning.reports] == [1]


def test_interval_and_threshold():
    model = network()
    model.optimizer.learning_rate = 1e-6  # Weights stay as they are set.
    pruning = PruneTrainCallback(RATIO, interval=3, threshold=0.03)

    class Weaken(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch in (0, 3):
                kill(self.model, "inner", [0], value=0.02)
                kill(self.model, "inner", [1], value=0.04)

    history = fit(model, pruning, Weaken(), epochs=5).history
    # The second time in the last epoch, which is no multiple of three.
    np.testing.assert_allclose(
        history["density"][2:], [17 / 18] * 2 + [16 / 18]
    )
    assert [report.epoch for report in pruning.reports] == [2, 4]
    assert widths(model) == {"stem": 6, "inner": 4, "last": 6, "logits": 3}


def any_size(size=None):
    image = keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3, name="a")(image)
    x = layers.Conv2D(4, 3, name="b")(x)
    outputs = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, outputs)
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    return model


def test_images_of_any_size_cost_what_those_that_are_trained_on_do():
    model = any_size()
    pruning = PruneTrainCallback(interval=1, threshold=0.3)
    history = model.fit(*examples(), callbacks=[pruning], verbose=0).history
    (report,) = pruning.reports
    dense = model_cost(any_size(8))
    assert report.cost_before == dataclasses.replace(dense, per_layer={})
    after = model_cost(model, (8, 8, 3))
    assert report.cost_after == dataclasses.replace(after, per_layer={})
    assert history["training_flops"] == [40 * dense.training_flops]


def test_a_backbone_of_any_size_is_trained():
    x = image = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, name="a")(x)
    base = keras.Model(image, layers.GlobalAveragePooling2D()(x), name="base")
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Dense(3)(base(image)))
    model.compile("sgd", "mse", run_eagerly=True)
    images, labels = examples()
    history = model.fit(
        images,
        np.eye(3)[labels],
        verbose=0,
        callbacks=[PruneTrainCallback(interval=1)],
    ).history
    macs = 3 * 3 * 3 * 4 * 6 * 6 + 4 * 3
    assert history["training_flops"] == [40 * 3 * 2 * macs]


def test_images_whose_size_nobody_knows_are_trained_on_without_flops():
    model = any_size()
    pruning = PruneTrainCallback(interval=1, threshold=0.3)
    batches = (examples(4, seed=i) for i in range(10))

    history = model.fit(
        batches,
        steps_per_epoch=10,
        shuffle=False,
        callbacks=[pruning],
        verbose=0,
    ).history

    assert pruning.reports[0].cost_before is None
    assert "channels 11 -> " in str(pruning.reports[0])
    assert np.isnan(history["training_flops"]).all()
    assert history["density"][-1] < 1


def test_another_model_is_calibrated_anew():
    pruning = PruneTrainCallback(interval=1)
    first, second = network(), network(l2=0.1)
    first.fit(*examples(), callbacks=[pruning], verbose=0)
    factor, reports = pruning.factor, pruning.reports
    fresh = PruneTrainCallback(interval=1)
    network(l2=0.1).fit(*examples(), callbacks=[fresh], verbose=0)

    second.fit(*examples(seed=1), callbacks=[pruning], verbose=0)

    assert pruning.factor not in (None, factor)
    assert pruning.reports is not reports

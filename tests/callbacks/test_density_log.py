"""What TensorBoard is told is what happened, once, and in its place."""

import contextlib
import fractions
import json
import logging
import math
import re
import shutil
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.plugins.custom_scalar import layout_pb2

import keras_prunetrain as kpt
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.tensorboard import dashboard
from keras_prunetrain.tensorboard.event_writer import MAGNITUDES, SCORES
from keras_prunetrain.tensorboard.hparams import settings_of
from tests.callbacks.fits import Kill, examples, network, widths
from tests.disks import full_disk
from tests.masked import silence

PLAN = {0: {"inner": [0]}, 2: {"stage": [2]}}


VALIDATION = examples(16, seed=2)


def fit(model, *callbacks, count=8, epochs=4, **kwargs):
    return model.fit(
        *examples(count),
        epochs=epochs,
        verbose=0,
        callbacks=[Kill(PLAN), *callbacks],
        **kwargs,
    ).history


def events(folder):
    """Dict from a tag to a dict from a step to what was logged, once."""
    found = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in event_file_loader.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                steps = found.setdefault(value.tag, {})
                assert event.step not in steps, f"{value.tag} twice"
                steps[event.step] = tf.make_ndarray(value.tensor)
    return found


def curve(found, tag):
    return [float(value) for _, value in sorted(found[tag].items())]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    model = network()
    pruning = kpt.PruneTrainCallback(interval=1, log_dir=folder)
    history = fit(model, pruning, count=40, validation_data=VALIDATION)
    return model, pruning, history, events(folder), folder


def test_curves_agree_with_history_and_reports(run):
    model, pruning, history, found, _ = run
    assert len(pruning.reports) == 2
    for tag, name in {
        "density/model": "density",
        "cost/training_flops": "training_flops",
    }.items():
        np.testing.assert_allclose(curve(found, tag), history[name], rtol=1e-6)
    before, between, after = (
        pruning.reports[0].cost_before,
        pruning.reports[0].cost_after,
        pruning.reports[1].cost_after,
    )
    trained = [before, between, between, after]
    for tag, values in {
        "cost/relative_training_flops": [
            cost.training_flops / before.training_flops for cost in trained
        ],
        "cost/parameters": [
            cost.parameters for cost in (between, between, after, after)
        ],
        "memory/activation_bytes_per_example": [
            cost.activation_bytes for cost in trained
        ],
        "training/learning_rate": [0.05] * 4,
        "training/batch_size": [32] * 4,  # Of 40 examples: 32 and 8.
    }.items():
        np.testing.assert_allclose(curve(found, tag), values, rtol=1e-6)
    seconds = found["time/reconfiguration_seconds"]
    assert {step: pytest.approx(float(x)) for step, x in seconds.items()} == {
        report.epoch: report.seconds for report in pruning.reports
    }
    # In the epoch behind it.
    seconds = found["time/first_step_seconds"]
    assert {step: pytest.approx(float(x)) for step, x in seconds.items()} == {
        report.epoch + 1: report.first_step_seconds
        for report in pruning.reports
    }
    shares = found["training/penalty_ratio"]
    for report in pruning.reports:
        # Before and after what was dead had gone.
        assert float(shares[report.epoch]) == pytest.approx(
            report.penalty_ratio, rel=0.05
        )


def test_each_layer_has_a_curve(run):
    model, _, _, found, _ = run
    first = widths(network())
    for layer, width in widths(model).items():
        left = curve(found, f"channels/{layer}")
        assert len(left) == 4
        assert left[-1] == pytest.approx(width / first[layer])
    assert curve(found, "channels/inner") == pytest.approx([5 / 6] * 4)
    assert curve(found, "channels/stem") == pytest.approx([1, 1, 5 / 6, 5 / 6])


def test_heads_and_the_channels_in_them_have_curves_of_their_own(tmp_path):
    steps = keras.Input((8, 24))
    x = layers.MultiHeadAttention(2, 3, value_dim=4, name="att")(steps, steps)
    x = layers.Dense(3, name="logits")(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(steps, x)
    numbering = number_channels(model)
    heads, values = numbering.inner["att"].values()
    alive = np.ones(numbering.size, bool)
    alive[[heads[0], values[0]]] = False
    silence(numbering, alive)
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    x, y = examples(8)
    pruning = kpt.PruneTrainCallback(interval=1, log_dir=tmp_path)
    model.fit(x.reshape(8, 8, 24), y, epochs=2, verbose=0, callbacks=[pruning])
    assert pruning.reports[0].channels_after == {
        "att": 24,
        "att/num_heads": 1,
        "att/value_dim": 3,
        "logits": 3,
    }
    found = events(tmp_path)
    assert curve(found, "channels/att/num_heads") == [0.5, 0.5]
    assert curve(found, "channels/att/value_dim") == [0.75, 0.75]
    groups = dashboard.stages(number_channels(model))
    inner = ["att/num_heads", "att/value_dim"]
    assert groups["8"] == ["att", *inner]
    for name, left in zip(inner, (1, 3), strict=True):
        assert found[f"{MAGNITUDES}/{name}"][1][:, 2].sum() == left


def test_histograms_show_the_largest_magnitude_of_each_channel(run):
    model, pruning, _, found, _ = run
    for layer in widths(model):
        check_histogram(found, model, layer, 3, pruning.threshold)


def check_histogram(found, model, layer, step, threshold):
    kernel = model.get_layer(layer).get_weights()[0]
    largest = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(axis=0)
    above = np.log10(largest / threshold)
    buckets = found[f"{MAGNITUDES}/{layer}"][step]
    full = buckets[buckets[:, 2] > 0]
    assert buckets[:, 2].sum() == len(largest)
    np.testing.assert_allclose(full[0, 0], above.min(), atol=1e-5)
    np.testing.assert_allclose(full[-1, 1], above.max(), atol=1e-5)


def by_bias(label):
    """Scores channels by the bias that the layer adds to them."""
    bias = label.weight.name == "bias"
    return np.abs(keras.ops.convert_to_numpy(label.weight)) if bias else None


def test_histograms_show_the_score_that_chooses_the_channels(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.get_layer("conv").bias.assign([0.01, 0.1, 1.0, 10.0])
    pruning = kpt.PruneTrainCallback(
        threshold=1e-3, reconfigure={"score": by_bias}, log_dir=tmp_path
    )
    images, _ = examples(8)
    model.fit(images, np.ones((8, 3)), verbose=0, callbacks=[pruning])
    found = events(tmp_path)
    assert not [tag for tag in found if tag.startswith(MAGNITUDES)]
    buckets = found[f"{SCORES}/conv"][0]
    full = buckets[buckets[:, 2] > 0]
    assert buckets[:, 2].sum() == 4
    np.testing.assert_allclose([full[0, 0], full[-1, 1]], [1, 4], atol=1e-5)


def test_a_score_of_weights_that_are_not_finite_has_no_histogram(tmp_path):
    class Diverge(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            for weight in self.model.trainable_weights:
                weight.assign(np.full(weight.shape, np.nan))

    pruning = kpt.PruneTrainCallback(
        reconfigure={"score": by_bias}, log_dir=tmp_path
    )
    history = fit(network(), Diverge(), pruning, epochs=2)
    assert len(history["loss"]) == 2
    found = events(tmp_path)
    assert not [tag for tag in found if tag.startswith((MAGNITUDES, SCORES))]
    assert len(curve(found, "density/model")) == 2


def test_an_epoch_can_be_looked_at_as_soon_as_it_is_over(tmp_path):
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(sorted(events(tmp_path)["density/model"]))

    log = kpt.DensityLog(tmp_path)
    fit(network(), log, Look(), epochs=2)
    assert seen == [[0], [0, 1]]


def test_what_is_not_finite_is_left_out_of_the_histograms(tmp_path):
    class Diverge(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            inner = self.model.get_layer("inner").kernel
            last = self.model.get_layer("last").kernel
            values = inner.numpy()
            values[..., 0], values[..., 1] = np.nan, np.inf
            inner.assign(values)
            last.assign(np.full(last.shape, np.nan))

    log = kpt.DensityLog(tmp_path)
    network().fit(*examples(16), verbose=0, callbacks=[Diverge(), log])
    found = events(tmp_path)
    # Of 6 channels each: left, right and count of each bin.
    for layer, count in {"inner": 4, "last": 0}.items():
        assert found[f"{MAGNITUDES}/{layer}"][0][:, 2].sum() == count


@pytest.mark.parametrize("threshold", [0.05, 0.0, None])
def test_histograms_are_relative_to_the_threshold(tmp_path, threshold):
    model = network()
    log = kpt.DensityLog(tmp_path, threshold=0.02)
    callbacks = [log]
    if threshold is not None:
        callbacks = [kpt.PruneTrainCallback(threshold=threshold), log]
    model.fit(*examples(40), verbose=0, callbacks=callbacks)
    for layer in widths(model):
        check_histogram(events(tmp_path), model, layer, 0, threshold or 0.02)


def test_the_final_figures_are_those_of_the_last_epoch(run):
    _, _, history, found, _ = run
    for name, values in history.items():
        assert curve(found, f"final/{name}") == [pytest.approx(values[-1])]


def test_each_reconfiguration_is_a_text_with_all_layers(run):
    _, pruning, _, found, _ = run
    texts = found["reconfigurations"]
    assert list(texts) == [report.epoch for report in pruning.reports]
    for report in pruning.reports:
        text = texts[report.epoch].item().decode()
        assert text.startswith(str(report))
        for layer, before in report.channels_before.items():
            after = report.channels_after[layer]
            assert f"| {layer} | {before} | {after} |" in text


def test_the_heat_map_is_drawn_when_something_changed_and_at_the_end(run):
    found = run[3]
    assert sorted(found["channels_of_layers"]) == [0, 2, 3]
    width, height, png = found["channels_of_layers"][3]
    assert png.startswith(b"\x89PNG")
    assert int(width) == 800


def hparams_data(folder, name):
    from tensorboard.plugins.hparams import plugin_data_pb2

    (path,) = folder.glob("events.out.tfevents.*")
    (content,) = [
        value.metadata.plugin_data.content
        for event in event_file_loader.EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag == f"_hparams_/{name}"
    ]
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def session(folder):
    """What *HParams* shows in the row of a run."""
    return hparams_data(folder, "session_start_info").session_start_info


def columns(folder):
    """The columns of *HParams*, if TensorBoard reads this run first."""
    infos = hparams_data(folder, "experiment").experiment.hparam_infos
    return sorted(info.name for info in infos)


def test_hparams_have_the_same_columns_whichever_run_is_read_first(
    run, tmp_path
):
    fit(network(), kpt.DensityLog(tmp_path), epochs=1)
    assert columns(tmp_path) == columns(run[4])
    # TensorBoard shows only the first five.
    assert columns(tmp_path)[0] == "algorithm"


@pytest.mark.parametrize(
    "pruning",
    [
        kpt.TargetPruneCallback(0.5),
        kpt.EarlyCroPCallback(0.5, examples(24), when=1),
    ],
    ids=lambda pruning: type(pruning).__name__,
)
def test_every_method_has_the_same_columns(pruning, run):
    known = settings_of(run[1], run[0]).keys()
    assert settings_of(pruning, run[0]).keys() == known


def test_the_settings_are_hparams(run):
    settings = session(run[4]).hparams
    assert settings["algorithm"].string_value == "PruneTrainCallback"
    assert settings["penalty_ratio"].number_value == 0.25
    assert settings["interval"].number_value == 1
    assert settings["learning_rate"].number_value == pytest.approx(0.05)


def test_runs_of_the_same_settings_are_rows_of_their_own(tmp_path):
    rows = []
    for place in ("one/logs/run", "two/logs/run", "two/logs/other"):
        fit(network(), kpt.DensityLog(tmp_path / place), epochs=1)
        rows.append(session(tmp_path / place).group_name)
    assert len(set(rows)) == 3
    assert [row.split()[0] for row in rows] == [
        *("logs/run", "logs/run", "logs/other"),
    ]


@pytest.mark.parametrize("of_callback", [False, True])
def test_validation_takes_no_time(tmp_path, of_callback):
    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.started = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.started

        def on_test_batch_end(self, batch, logs=None):
            time.sleep(0.5)

    class Sleep(keras.callbacks.Callback):
        """Takes its time behind the validation."""

        def on_epoch_end(self, epoch, logs=None):
            time.sleep(0.4)

    clock = Clock()
    log = kpt.DensityLog(tmp_path)
    if of_callback:
        log = kpt.PruneTrainCallback(log_dir=tmp_path)
    fit(network(), Sleep(), log, clock, epochs=1, validation_data=VALIDATION)
    (seconds,) = curve(events(tmp_path), "time/epoch_seconds")
    assert 0.4 <= seconds <= clock.seconds - 0.5


def test_a_dense_training_is_logged_as_well(tmp_path):
    model = network()
    fit(model, kpt.DensityLog(tmp_path), epochs=2)
    found = events(tmp_path)
    flops = kpt.model_cost(model).training_flops
    assert curve(found, "cost/training_flops") == [flops * 8] * 2
    assert curve(found, "density/model") == [1.0, 1.0]
    assert curve(found, "training/penalty_ratio") == [0.0, 0.0]
    assert "reconfigurations" not in found


def test_a_dense_training_shows_the_share_of_its_own_lasso(tmp_path):
    model = network(regularizers={"inner": kpt.GroupLasso(0.01)})
    model.optimizer.learning_rate = 0.0  # So that the penalty stays.
    history = fit(model, kpt.DensityLog(tmp_path), epochs=1)
    (share,) = curve(events(tmp_path), "training/penalty_ratio")
    (loss,) = history["loss"]
    assert share == pytest.approx(float(sum(model.losses)) / loss, rel=1e-4)
    assert share > 0.01
    assert session(tmp_path).hparams["algorithm"].string_value == "dense"


@pytest.mark.parametrize("known", [True, False])
def test_images_of_any_size_are_logged(tmp_path, known):
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, name="a")(image)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(3, name="b")(x))
    model.compile("sgd", "mse", run_eagerly=True)
    x, y = examples(8)
    data = (x, np.eye(3)[y])
    model.fit(
        *(data if known else [(batch for batch in [data])]),
        verbose=0,
        shuffle=False,
        steps_per_epoch=1,
        callbacks=[kpt.PruneTrainCallback(log_dir=tmp_path)],
    )
    found = events(tmp_path)
    assert curve(found, "channels/a") == [1.0]
    if known:  # Their size is that of the arrays.
        flops = kpt.model_cost(model, (8, 8, 3)).training_flops
        assert curve(found, "cost/training_flops") == [8 * flops]
    else:
        assert "cost/training_flops" not in found


def test_what_a_growing_batch_takes_is_logged(tmp_path):
    batch = kpt.DynamicBatch(8, 4, memory_budget=2**30, maximum=16)
    model = network()
    history = model.fit(
        batch.arrays(*examples(40)),
        epochs=4,
        shuffle=False,
        verbose=0,
        callbacks=[
            Kill(PLAN),
            kpt.PruneTrainCallback(interval=1, batch=batch, log_dir=tmp_path),
        ],
    ).history
    assert history["batch_size"] == [8, 16, 16, 16]
    found = events(tmp_path)
    for tag, name in {
        "training/batch_size": "batch_size",
        "training/learning_rate": "learning_rate",
        "memory/training_bytes": "memory_bytes",
        "cost/training_flops": "training_flops",
    }.items():
        np.testing.assert_allclose(curve(found, tag), history[name], rtol=1e-6)


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_what_two_replicas_send_is_logged(tmp_path, strategy):
    with strategy.scope():
        model = network(compiled={"run_eagerly": False})
    pruning = kpt.PruneTrainCallback(log_dir=tmp_path)
    history = fit(model, pruning, epochs=1)
    found = events(tmp_path)
    sent = curve(found, "communication/bytes")
    assert sent == history["communication_bytes"]
    assert "memory/training_bytes" not in found


def test_kernels_without_known_flops_are_logged(tmp_path):
    class Mixing(keras.layers.Layer):  # Without a rule, and so without FLOPs.
        def build(self, shape):
            self.kernel = self.add_weight((shape[-1], 4), name="kernel")

        def call(self, x):
            return x @ self.kernel

    model = keras.Sequential([keras.Input((6, 3)), Mixing()])
    model.compile("sgd", "mse", run_eagerly=True)
    assert kpt.model_cost(model).training_flops == 0
    rng = np.random.default_rng(0)
    model.fit(
        rng.normal(size=(8, 6, 3)),
        rng.normal(size=(8, 6, 4)),
        verbose=0,
        callbacks=[kpt.DensityLog(tmp_path)],
    )
    found = events(tmp_path)
    assert "cost/parameters" in found
    assert "cost/relative_training_flops" not in found


# Runs that go on, and folders of other runs.


def test_a_second_fit_goes_on_counting(tmp_path):
    model = network()
    pruning = kpt.PruneTrainCallback(interval=1, log_dir=tmp_path)
    first = fit(model, pruning, epochs=2)
    second = fit(model, pruning, epochs=1)
    third = fit(model, pruning, epochs=5, initial_epoch=3)
    found = events(tmp_path)
    densities = first["density"] + second["density"] + third["density"]
    assert curve(found, "density/model") == pytest.approx(densities)
    assert sorted(found["density/model"]) == [0, 1, 2, 3, 4]
    assert sorted(found["final/density"]) == [1, 2, 4]


@pytest.mark.long
def test_a_run_goes_on_in_another_process(tmp_path):
    model = network()
    pruning = kpt.PruneTrainCallback(interval=1, log_dir=tmp_path / "logs")
    fit(model, pruning, epochs=2)
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    pruning = kpt.PruneTrainCallback(interval=1, log_dir=tmp_path / "logs")
    fit(model, pruning, epochs=4, initial_epoch=2)
    found = events(tmp_path / "logs")
    assert sorted(found["density/model"]) == [0, 1, 2, 3]
    # Still of the model that the run began with.
    assert curve(found, "channels/inner") == pytest.approx([5 / 6] * 4)
    assert curve(found, "density/model")[-1] == pytest.approx(16 / 18)
    assert len(found["custom_scalars__config__"]) == 1


def test_an_epoch_that_is_trained_once_more_is_not_logged_twice(tmp_path):
    model = network()
    fit(model, kpt.DensityLog(tmp_path), epochs=3)
    fit(model, kpt.DensityLog(tmp_path), epochs=5, initial_epoch=2)
    assert sorted(events(tmp_path)["density/model"]) == [0, 1, 2, 3, 4]


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


def reloaded(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


def test_a_run_that_stopped_early_can_go_on(tmp_path):
    model = network()
    logs = tmp_path / "logs"
    fit(model, kpt.PruneTrainCallback(log_dir=logs), Stop())
    assert widths(model)["inner"] == 5  # Cut when it had stopped.
    found = events(logs)
    # Of the epoch itself, and of the model that is left.
    assert curve(found, "density/model") == [1.0]
    assert curve(found, "final/density") == [pytest.approx(17 / 18)]
    assert curve(found, "final/parameters") == [model.count_params()]
    assert list(found["reconfigurations"]) == [0]
    log = kpt.DensityLog(logs)
    fit(reloaded(model, tmp_path), log, epochs=2, initial_epoch=1)
    assert sorted(events(logs)["density/model"]) == [0, 1]


def test_a_run_goes_on_from_before_its_last_reconfiguration(tmp_path):
    model = network()
    before = tmp_path / "before.keras"
    logs = tmp_path / "logs"
    saver = keras.callbacks.ModelCheckpoint(before)
    pruning = kpt.PruneTrainCallback(interval=1, log_dir=logs)
    fit(model, saver, pruning, epochs=1)
    model = keras.saving.load_model(before)
    assert widths(model)["inner"] == 6
    pruning = kpt.PruneTrainCallback(interval=1, log_dir=logs)
    fit(model, pruning, epochs=2, initial_epoch=1)
    found = events(logs)
    assert sorted(found["density/model"]) == [0, 1]
    assert sorted(found["reconfigurations"]) == [0]


@pytest.mark.parametrize("initial_epoch", [1, 2])
def test_a_resumed_fit_without_a_new_epoch_logs_nothing(
    tmp_path, initial_epoch
):
    model = network()
    fit(model, kpt.DensityLog(tmp_path), epochs=2)
    found = events(tmp_path)
    log = kpt.DensityLog(tmp_path)
    fit(model, log, epochs=2, initial_epoch=initial_epoch)
    assert events(tmp_path).keys() == found.keys()


def test_a_second_phase_logs_its_own_callback(tmp_path):
    model, log = network(), kpt.DensityLog(tmp_path)
    fit(model, kpt.PruneTrainCallback(interval=1), log, epochs=1)
    fit(model, kpt.PruneTrainCallback(interval=1), log, epochs=3)
    assert sorted(events(tmp_path)["reconfigurations"]) == [0, 1, 3]


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_callback_that_logs_one_run_refuses_another_model(tmp_path, epochs):
    log = kpt.DensityLog(tmp_path)
    fit(network(), log, epochs=epochs)  # Nothing has gone from it yet.
    for _ in range(2):  # Nor is it accepted at the second try.
        with pytest.raises(ValueError, match="the log of another run"):
            fit(network(), log)


def test_a_folder_that_was_emptied_takes_a_new_run(tmp_path):
    folder = tmp_path / "logs"
    fit(network(), kpt.DensityLog(folder), epochs=2)
    log, model = kpt.DensityLog(folder), network()
    with pytest.raises(ValueError, match="or delete this one"):
        fit(model, log, epochs=1)
    shutil.rmtree(folder)
    fit(model, log, epochs=1)
    found = events(folder)
    assert list(found["density/model"]) == [0]
    assert "custom_scalars__config__" in found


def test_a_callback_logs_another_run_where_the_first_was_deleted(tmp_path):
    folder = tmp_path / "logs"
    log = kpt.DensityLog(folder)
    fit(network(), log, epochs=2)
    shutil.rmtree(folder)
    fit(network(), log, epochs=1)
    assert list(events(folder)["density/model"]) == [0]


def test_a_run_that_broke_off_in_its_first_epoch_can_begin_late(tmp_path):
    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model, log = network(), kpt.DensityLog(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(model, log, Break())
    fit(model, log, epochs=7, initial_epoch=5)
    fit(model, kpt.DensityLog(tmp_path), epochs=8, initial_epoch=7)
    assert sorted(events(tmp_path)["density/model"]) == [0, 1, 2]


def test_a_run_whose_log_begins_late_has_a_dashboard(tmp_path):
    model = network()
    fit(model, kpt.DensityLog(tmp_path), epochs=7, initial_epoch=5)
    found = events(tmp_path)
    assert sorted(found["density/model"]) == [0, 1]
    assert list(found["custom_scalars__config__"]) == [0]
    assert list(found["final/density"]) == [1]
    # The next process goes on from there.
    assert_refused(tmp_path, "initial_epoch=8", epochs=9, initial_epoch=8)
    assert_refused(tmp_path, "initial_epoch=5", epochs=9, initial_epoch=5)
    fit(model, kpt.DensityLog(tmp_path), epochs=8, initial_epoch=7)
    assert sorted(events(tmp_path)["density/model"]) == [0, 1, 2]


def test_a_second_fit_that_skips_epochs_leaves_no_gap(tmp_path):
    model, log = network(), kpt.DensityLog(tmp_path)
    fit(model, log, epochs=2)
    fit(model, log, epochs=6, initial_epoch=5)
    assert sorted(events(tmp_path)["density/model"]) == [0, 1, 2]


def test_a_part_of_another_network_does_not_go_on_with_its_run(tmp_path):
    model = network()
    fit(model, kpt.DensityLog(tmp_path), epochs=2)
    x = model.get_layer("stem").output
    part = keras.Model(model.input, layers.Flatten()(x))
    part.compile("sgd", "mse", run_eagerly=True)
    assert_refused(
        tmp_path, "other layers or channels", part, epochs=3, initial_epoch=2
    )


def test_without_tensorboard_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert_refused(tmp_path, "pip install tensorboard")


@pytest.mark.parametrize(
    "threshold", [0.0, -1.0, float("nan"), None, "1", True]
)
def test_a_threshold_that_has_no_logarithm_is_refused(tmp_path, threshold):
    with pytest.raises(
        ValueError, match="`threshold` must be a number above 0"
    ):
        kpt.DensityLog(tmp_path, threshold)


def test_a_threshold_may_be_any_real_number(tmp_path):
    log = kpt.DensityLog(tmp_path, fractions.Fraction(1, 1000))
    fit(network(), log, epochs=1)
    assert len(events(tmp_path)["density/model"]) == 1


def test_curves_are_whole_beside_keras_own_log(tmp_path):
    other = keras.callbacks.TensorBoard(tmp_path / "keras", update_freq=7)
    fit(network(), other, kpt.DensityLog(tmp_path / "logs"), epochs=2)
    found = events(tmp_path / "logs")
    assert len(found["density/model"]) == 2
    assert "final/density" in found


def test_examples_of_an_evaluation_are_not_counted(tmp_path):
    class Evaluate(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.evaluate(*examples(7), verbose=0)

    model = network()
    model.fit(
        *examples(40),
        verbose=0,
        callbacks=[Evaluate(), kpt.DensityLog(tmp_path)],
    )
    found = events(tmp_path)
    flops = kpt.model_cost(model).training_flops
    assert curve(found, "cost/training_flops") == [flops * 40]
    assert curve(found, "training/batch_size") == [32]


def test_the_batch_size_is_that_of_a_full_batch(tmp_path):
    model = network()
    callbacks = [kpt.DensityLog(tmp_path)]
    model.fit(*examples(40), batch_size=16, verbose=0, callbacks=callbacks)
    # Not the mean of batches of 16, 16 and 8.
    assert curve(events(tmp_path), "training/batch_size") == [16]


def test_what_is_not_known_is_not_logged(tmp_path):
    class Deaf(keras.Model):
        def train_step(self, data):
            logs = super().train_step(data)
            self._loss_tracker.reset_state()
            return logs

    fit(network(Deaf), kpt.PruneTrainCallback(log_dir=tmp_path), epochs=1)
    found = events(tmp_path)
    assert "density/model" in found
    assert "cost/training_flops" not in found
    assert "training/batch_size" not in found
    assert "final/training_flops" not in found  # NaN in the history.


@pytest.mark.parametrize("of_callback", [False, True])
def test_an_evaluation_before_training_is_no_epoch(tmp_path, of_callback):
    model, log = network(), kpt.DensityLog(tmp_path)
    if of_callback:
        log = kpt.PruneTrainCallback(log_dir=tmp_path)
    for _ in range(2):
        model.evaluate(*examples(8), verbose=0, callbacks=[log])
    fit(model, log, epochs=1)
    assert list(events(tmp_path)["time/epoch_seconds"]) == [0]


def test_a_folder_of_another_machine_is_refused():
    with pytest.raises(ValueError, match="a folder of this machine"):
        kpt.DensityLog("gs://bucket/logs")


def assert_refused(folder, match, model=None, **kwargs):
    model = model or network()
    weights = model.get_weights()
    with pytest.raises(ValueError, match=match):
        fit(model, kpt.DensityLog(folder), **kwargs)
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)  # Before the first step.


def test_the_folder_of_another_run_is_refused(tmp_path):
    fit(network(), kpt.DensityLog(tmp_path), epochs=2)
    assert_refused(tmp_path, "another run: it has the epochs up to 2, and")
    assert_refused(tmp_path, "initial_epoch=3`", epochs=4, initial_epoch=3)
    other = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten()])
    other.add(layers.Dense(3))
    other.compile("sgd", "mse", run_eagerly=True)
    assert_refused(
        tmp_path, "other layers or channels", other, epochs=3, initial_epoch=2
    )


def test_the_folder_of_a_run_whose_record_is_damaged_is_refused(tmp_path):
    model = network()
    fit(model, kpt.DensityLog(tmp_path), epochs=2)
    path = tmp_path / "density_log.json"
    text = path.read_text()
    record = json.loads(text)
    for damaged in (
        text[:20],
        "[]",
        json.dumps(record | {"densities": [[1.0]]}),
        json.dumps({k: v for k, v in record.items() if k != "channels"}),
        "[" * 100_000,
        *(
            json.dumps(record | {key: value})
            for key, value in (
                *(("layers", x) for x in (5, {"stem": "6"}, {"stem": -6})),
                *(("channels", x) for x in ("18", None, 0, True)),
                ("training_flops", "many"),
                ("offset", 0.5),
                *(("densities", x) for x in (5, [], [[1.0, "x", 1, 1]] * 2)),
                ("densities", [[1.0, float("nan"), 1, 1]] * 2),
            )
        ),
    ):
        path.write_text(damaged)
        assert_refused(
            tmp_path,
            "density_log.json, cannot be read",
            model,
            epochs=3,
            initial_epoch=2,
        )
        assert path.read_text() == damaged


@pytest.mark.parametrize(
    "folder", ["", 5, None, b"logs", ["logs"], "\ud800", "a\0b"]
)
def test_what_is_no_path_is_refused(folder):
    with pytest.raises(ValueError, match="`log_dir` must be the path of"):
        kpt.DensityLog(folder)
    if folder is not None:  # `None`: without a log.
        with pytest.raises(ValueError, match="`log_dir` must be the path of"):
            kpt.PruneTrainCallback(log_dir=folder)


class Say(keras.callbacks.Callback):
    """Puts strings and vectors into the logs."""

    def on_epoch_end(self, epoch, logs=None):
        logs["word"], logs["pair"] = "text", np.array([1.0, 2.0])


def test_what_is_no_single_number_has_no_curve(tmp_path):
    model = network(compiled={"metrics": [Classes()]})
    history = fit(
        model, Say(), kpt.PruneTrainCallback(log_dir=tmp_path), epochs=2
    )
    assert np.shape(history["classes"]) == (2, 3)
    found = events(tmp_path)
    assert len(curve(found, "density/model")) == 2
    assert "final/loss" in found
    assert not {f"final/{name}" for name in ("classes", "word", "pair")} & set(
        found
    )


class Classes(keras.metrics.Metric):
    """A number for each class, as `F1Score()` has by default."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        pass

    def result(self):
        return keras.ops.arange(3)


class Spoil(keras.callbacks.Callback):
    """Does something to the folder of the log behind the second epoch."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil = spoil

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            self.spoil()


@pytest.mark.parametrize("of_callback", [False, True])
@pytest.mark.parametrize("how", ["gone", "full"])
def test_a_log_that_cannot_be_written_does_not_end_the_training(
    tmp_path, caplog, of_callback, how
):
    folder = tmp_path / "logs"
    log = kpt.DensityLog(folder)
    if of_callback:
        log = kpt.PruneTrainCallback(log_dir=folder)
    with contextlib.ExitStack() as stack:
        spoil = {
            "gone": lambda: shutil.rmtree(folder),
            "full": lambda: stack.enter_context(full_disk()),
        }
        history = fit(network(), log, Spoil(spoil[how]), epochs=4)
    assert len(history["loss"]) == 4
    said = [x for x in caplog.messages if "cannot write into" in x]
    assert len(said) == 1


def test_the_next_fit_logs_again_where_the_folder_was_gone(tmp_path):
    folder = tmp_path / "logs"
    log = kpt.DensityLog(folder)
    fit(network(), log, Spoil(lambda: shutil.rmtree(folder)), epochs=4)
    fit(network(), log, epochs=2)
    assert len(curve(events(folder), "density/model")) == 2


def test_a_link_in_the_folder_is_not_written_through(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    folder = tmp_path / "logs"
    folder.mkdir()
    for name in ("density_log.json", "density_log.new"):
        (folder / name).symlink_to(tmp_path / "gone")
    (folder / "density_log.new").unlink()
    (folder / "density_log.new").symlink_to(mine)
    fit(network(), kpt.DensityLog(folder), epochs=1)
    assert mine.read_text() == "mine"
    assert not (tmp_path / "gone").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(tmp_path / "file" / "logs", "cannot write into .*file/logs")
    # A system that says there is no such place, of a folder to be made.
    assert_refused("/proc/logs", "cannot write into '/proc/logs'")


def test_it_must_stand_behind_the_callback_that_it_logs(tmp_path):
    pruning, log = kpt.PruneTrainCallback(), kpt.DensityLog(tmp_path)
    with pytest.raises(ValueError, match="in front of the PruneTrainCallback"):
        fit(network(), log, pruning)
    fit(network(), pruning, log, epochs=1)
    found = events(tmp_path)
    assert list(found["reconfigurations"]) == [0]


def test_without_matplotlib_there_is_no_heat_map(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        fit(network(), kpt.DensityLog(tmp_path), epochs=1)
    assert "needs matplotlib" in caplog.text
    found = events(tmp_path)
    assert "channels_of_layers" not in found
    assert "density/model" in found


# The dashboard.


def logged_layout(found):
    content = found["custom_scalars__config__"][0].item()
    return layout_pb2.Layout.FromString(content)


def charts(layout):
    return [chart for part in layout.category for chart in part.chart]


def test_stages_are_layers_of_one_size_in_running_order():
    numbering = number_channels(kpt.models.resnet20())
    groups = dashboard.stages(numbering)
    assert list(groups) == ["32x32", "16x16", "8x8", "vectors"]
    assert groups["vectors"] == ["logits"]
    names = [name for group in groups.values() for name in group]
    written = {x.layer for x in numbering.labels if x.is_kernel}
    assert sorted(names) == sorted(written)


def test_a_size_that_comes_again_is_a_stage_of_its_own():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="a")(image)
    x = layers.Conv2D(4, 3, padding="same", strides=2, name="b")(x)
    x = layers.Conv2DTranspose(4, 2, strides=2, name="c")(x)
    x = layers.Conv2D(4, 3, padding="same", strides=2, name="d")(x)
    x = layers.Conv2DTranspose(4, 2, strides=2, name="e")(x)
    groups = dashboard.stages(number_channels(keras.Model(image, x)))
    assert groups == {
        **{"8x8": ["a"], "4x4": ["b"], "8x8 (2)": ["c"]},
        **{"4x4 (2)": ["d"], "8x8 (3)": ["e"]},
    }


def test_each_layer_is_a_line_in_one_chart_of_few():
    groups = dashboard.stages(number_channels(kpt.models.resnet50_cifar()))
    drawn = charts(dashboard.layout(groups))
    titles = [chart.title for chart in drawn]
    assert len(set(titles)) == len(titles)
    for names in groups.values():
        for name in names:
            tag = f"channels/{name}"
            matching = [
                chart
                for chart in drawn
                if any(re.search(p, tag) for p in chart.multiline.tag)
            ]
            assert len(matching) == 1
    assert all(2 <= len(chart.multiline.tag) <= 7 for chart in drawn)


def test_every_chart_of_the_dashboard_has_a_curve(run):
    found = run[3]
    for chart in charts(logged_layout(found)):
        for pattern in chart.multiline.tag:
            assert any(re.search(pattern, tag) for tag in found), chart.title


def test_a_layer_that_goes_in_the_first_epoch_is_in_its_chart(tmp_path):
    model = network()
    model.fit(
        *examples(40),
        epochs=2,
        verbose=0,
        callbacks=[
            Kill({0: {"inner": range(6)}}),
            kpt.PruneTrainCallback(interval=1, log_dir=tmp_path),
        ],
    )
    assert "inner" not in [layer.name for layer in model.layers]
    found = events(tmp_path)
    assert curve(found, "channels/inner") == [0.0, 0.0]
    drawn = charts(logged_layout(found))
    tags = [tag for chart in drawn for tag in chart.multiline.tag]
    assert "^channels/inner$" in tags


def test_what_sdgp_keeps_of_each_gradient_has_a_chart(tmp_path):
    log = kpt.DensityLog(tmp_path)
    fit(network(), log, kpt.SDGPCallback(1, 2, dense_last=0.5), epochs=2)
    found = events(tmp_path)
    for layer in ("inner", "last"):
        # One point: of the second epoch there is nothing to measure.
        (kept,) = curve(found, f"kept_gradient/{layer}")
        assert 0.5 < kept < 1.0
    *others, drawn = charts(logged_layout(found))
    titles = [chart.title for chart in others]
    assert "Training FLOPs of an epoch / dense, on n:m hardware" in titles
    assert "FLOPs of an epoch that only n:m hardware leaves out" in titles
    assert drawn.title.startswith("Kept of the gradients")
    assert drawn.multiline.tag[:2] == [
        *("^kept_gradient/inner$", "^kept_gradient/last$"),
    ]
    sparse, dense = curve(found, "cost/relative_training_flops")
    assert sparse < dense == 1.0
    (left_out,) = curve(found, "cost/emulated_flops")
    flops = curve(found, "cost/training_flops")
    assert flops[0] + left_out == flops[1]


def test_the_heat_map_is_dark_where_little_is_left():
    densities = np.ones((4, 3))
    densities[2:, 1] = 0.0
    picture = dashboard.heat_map(densities, ["a", "b", "c"]).astype(int)
    # Viridis: yellow is 1, dark violet 0.
    yellow = (np.abs(picture - [253, 231, 37]).sum(axis=-1) < 30).sum()
    violet = (np.abs(picture - [68, 1, 84]).sum(axis=-1) < 30).sum()
    assert yellow > 4 * violet
    assert violet > 1000
    rows, columns = np.nonzero(
        np.abs(picture[:, :600] - [68, 1, 84]).sum(axis=-1) < 30
    )
    assert columns.min() > picture.shape[1] * 0.4  # The later epochs.


def test_the_record_is_json_that_says_what_is_left(run):
    model, _, _, _, folder = run
    record = json.loads((folder / "density_log.json").read_text())
    assert record["layers"] == widths(network())
    last = dict(zip(record["layers"], record["densities"][-1], strict=True))
    assert math.isclose(last["stem"], widths(model)["stem"] / 6)

"""EarlyCroPCallback: the moment, the target, and what it refuses."""

import contextlib
import logging

import keras
import numpy as np
import pytest

import keras_prunetrain as kpt
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.gradient_flow import Batch, gradient_flow
from tests.callbacks.fits import examples, network
from tests.callbacks.test_backup_and_restore import Break, Trained
from tests.callbacks.test_density_log import curve, events, logged_layout

DATA = examples(24)


def pruning_of(sparsity=0.4, data=DATA, **kwargs):
    return kpt.EarlyCroPCallback(sparsity, data, **kwargs)


def fit(model, pruning, epochs=4, callbacks=(), data=DATA, **kwargs):
    return model.fit(
        *(*data, 8, epochs),
        verbose=0,
        callbacks=[pruning, *callbacks],
        **kwargs,
    )


def size(model, target):
    if target == "channels":
        numbering = number_channels(model)
        return numbering.size - len(numbering.frozen)
    cost = kpt.model_cost(model)
    return cost.parameters if target == "parameters" else cost.forward_flops


@pytest.mark.parametrize("target", ["channels", "parameters", "flops"])
def test_the_target_is_met_by_one_cut_after_the_given_epoch(target):
    model = network()
    before = size(model, target)
    pruning = pruning_of(target=target, when=2)
    history = fit(model, pruning).history
    assert 0.4 < size(model, target) / before <= 0.6
    assert [report.epoch for report in pruning.reports] == [1]
    assert history["density"][0] == 1.0 > history["density"][1]
    assert history["density"][1] == history["density"][-1]


def test_the_channels_that_matter_least_to_the_gradient_flow_go():
    model = network(dropout=0.0)
    pruning = pruning_of(when=1)
    seen = {}

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                numbering = number_channels(self.model)
                x, y = DATA
                # Arrays are read in batches of 32.
                flow = gradient_flow(self.model, [Batch(x[:32], y[:32])])
                seen["scores"] = flow.channel_scores(numbering, "gradient_flow")
                seen["layers"] = {
                    x.layer: x.numbers for x in numbering.kernels("out")
                }

    model.fit(*(*DATA, 8, 2), verbose=0, callbacks=[See(), pruning])
    (report,) = pruning.reports
    candidates = np.union1d(seen["layers"]["stem"], seen["layers"]["inner"])
    kept = np.concatenate(
        [seen["layers"][x][report.keep[x]] for x in ("stem", "inner")]
    )
    gone = np.setdiff1d(candidates, kept)
    scores = seen["scores"]
    assert len(gone) and scores[gone].max() <= scores[kept].min()


def test_the_history_shows_the_distance_until_the_moment():
    model = network()
    pruning = pruning_of(sparsity=0.1, when="lazy")
    history = fit(model, pruning)
    epochs = len(pruning.moment.distances)
    assert 2 <= epochs < 4
    assert pruning.reports[0].epoch == epochs - 1
    found = history.history["weight_distance"]
    assert found[:epochs] == pruning.moment.distances
    assert len(found) == 4 and np.isnan(found[epochs:]).all()


@pytest.mark.parametrize(
    "structured", [pytest.param(True, marks=pytest.mark.long), False]
)
def test_curve_and_moment_are_in_the_logs(structured, tmp_path, caplog):
    pruning = pruning_of(when=2, structured=structured, log_dir=tmp_path / "a")
    log = kpt.DensityLog(tmp_path / "b")
    with caplog.at_level(logging.INFO, "keras_prunetrain"):
        fit(network(), pruning, 3, [log])
    said = "is pruned after 2 epochs (when=2)."
    assert caplog.text.count(said) == 1
    assert pruning.moment.chosen == 2
    for folder in (tmp_path / "a", tmp_path / "b"):
        found = events(folder)
        np.testing.assert_allclose(
            curve(found, "training/weight_distance"), pruning.moment.distances
        )
        assert list(found["notes"]) == [1]
        assert found["notes"][1].item().decode().endswith(said)
        assert "final/weight_distance" not in found
        assert "Distance from the first" in str(logged_layout(found))


def test_what_is_pruned_before_the_first_step_is_said_in_the_logs(tmp_path):
    fit(network(), pruning_of(when="start", log_dir=tmp_path), 2)
    found = events(tmp_path)
    assert b"before the first step" in found["notes"][0].item()
    assert "training/weight_distance" not in found
    assert "Distance from the first" not in str(logged_layout(found))


def test_a_metric_of_that_name_stays(caplog):
    metric = keras.metrics.SparseCategoricalAccuracy(name="weight_distance")
    model = network(compiled={"metrics": [metric, "accuracy"]})
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        history = fit(model, pruning_of(when=1), epochs=1).history
    assert history["weight_distance"] == history["accuracy"]
    assert "keeps the model's own metrics 'weight_distance'" in caplog.text


def test_a_criterion_that_never_fires_is_said(caplog):
    model = network()
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        pruning = pruning_of(when="paper_code")
        fit(model, pruning)  # Half of 4 epochs are too few for the criterion.
    said = "after 2 epochs (when='paper_code'), though the weights have not met"
    assert said in caplog.text
    assert [report.epoch for report in pruning.reports] == [1]


@pytest.mark.parametrize("when", ["lazy", 3])
def test_a_fit_that_ends_before_the_moment_is_said(when, caplog):
    model = network()
    pruning = pruning_of(when=when, last_epoch=3, first_epoch=3)
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        fit(model, pruning, epochs=2)
        assert f"before the moment when={when!r}, 2 epochs" in caplog.text
        caplog.clear()
        fit(model, pruning, epochs=1)  # A second `fit` goes on.
    assert "has not been pruned" not in caplog.text
    assert len(pruning.reports) == 1


def test_the_first_weights_are_dropped_after_the_cut():
    pruning = pruning_of(when=2)
    model = network()
    fit(model, pruning, epochs=1)
    assert pruning.get_state()["moment"]["origin"] is not None
    fit(model, pruning, epochs=1)
    assert pruning.get_state()["moment"]["origin"] is None


def test_a_model_without_free_channels_is_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    data = np.ones((8, 3)), np.ones((8, 1))
    with pytest.raises(ValueError, match="can be at most 0: every layer"):
        fit(model, pruning_of(data=data), data=data)


def test_all_channels_but_one_may_go():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(10), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    data = np.ones((8, 3)), np.ones((8, 1))
    fit(model, pruning_of(0.9, data, when="start"), epochs=1, data=data)
    assert model.layers[0].units == 1


def test_at_the_start_no_dense_step_is_taken():
    model = network()
    before = size(model, "flops")
    pruning = pruning_of(when="start", target="flops")
    history = fit(model, pruning, epochs=2).history
    assert 0.4 < size(model, "flops") / before <= 0.6
    flops = history["training_flops"]
    after = kpt.model_cost(model).training_flops
    assert flops == [24 * after] * 2
    assert pruning.reports[0].seconds_saved == 0.0


@pytest.mark.long
@pytest.mark.parametrize("score", ["snip", "grasp", "synflow"])
@pytest.mark.parametrize("structured", [True, False])
def test_other_scores_meet_the_target(score, structured):
    model = network()
    before = size(model, "channels")
    pruning = pruning_of(when="start", score=score, structured=structured)
    fit(model, pruning, epochs=1)
    if structured:
        assert 0.4 < size(model, "channels") / before <= 0.6
    else:
        assert kpt.mask_report(model).density == pytest.approx(0.6, abs=0.01)


def test_iterations_score_anew_at_one_moment():
    model = network()
    before = size(model, "channels")
    pruning = pruning_of(when=1, iterations=2)
    fit(model, pruning, epochs=2)
    assert [report.epoch for report in pruning.reports] == [0, 0]
    assert 0.4 < size(model, "channels") / before <= 0.6


@pytest.mark.long
def test_iterations_with_epochs_between_them():
    model = network()
    before = size(model, "flops")
    sizes = []

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            sizes.append(size(self.model, "flops") / before)

    pruning = pruning_of(0.6, when=1, iterations=3, interval=2, target="flops")
    history = fit(model, pruning, 7, [See()]).history
    assert [report.epoch for report in pruning.reports] == [0, 2, 4]
    # Each cut leaves the same part: the third root of 0.4.
    for i, most in enumerate([0.737, 0.543, 0.4]):
        assert 0.7 * most < sizes[2 * i] == sizes[2 * i + 1] <= most + 1e-3
    assert sizes[-1] == sizes[4]
    assert np.isfinite(history["weight_distance"]).tolist() == [True] + 6 * [
        False
    ]
    assert pruning.moment.chosen == 1


@pytest.mark.long
def test_at_the_start_the_first_of_several_cuts_precedes_the_first_step():
    pruning = pruning_of(when="start", iterations=2, interval=1)
    model = network()
    before = kpt.model_cost(model).training_flops
    first, second, third = fit(model, pruning, 3).history["training_flops"]
    assert 24 * before > first > second == third
    assert [report.epoch for report in pruning.reports] == [0, 0]


def test_a_second_fit_does_the_cuts_that_are_left(caplog):
    model = network()
    before = size(model, "channels")
    pruning = pruning_of(when=1, iterations=2, interval=2)
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        fit(model, pruning, 2)
        assert "has been pruned in 1 of 2 iterations" in caplog.text
        assert "ended before 2 epochs had passed since the last" in caplog.text
        caplog.clear()
        fit(model, pruning, 2)
    assert [report.epoch for report in pruning.reports] == [0, 0]
    assert "iterations" not in caplog.text
    assert 0.5 < size(model, "channels") / before <= 0.6


def test_epochs_of_an_earlier_fit_do_not_count():
    pruning = pruning_of(sparsity=0.8, target="parameters", when="paper_code")
    fit(network(), pruning, 6, initial_epoch=2)
    # By no criterion: after half of these four epochs.
    assert pruning.moment.chosen == 2


def test_before_the_first_step_is_no_warning(caplog):
    with caplog.at_level(logging.INFO, "keras_prunetrain"):
        fit(network(), pruning_of(when="start"), 1)
    (record,) = [x for x in caplog.records if "is pruned" in x.getMessage()]
    assert record.levelno == logging.INFO


@pytest.mark.parametrize("method", ["lasso", "target"])
def test_another_method_goes_on_with_what_is_left(method):
    model = network(dropout=0.0)
    fit(model, pruning_of(0.2, when=1), 2)
    before = size(model, "flops")
    if method == "lasso":
        later = kpt.PruneTrainCallback(
            interval=1, solver="proximal", factor=50.0
        )
    else:
        later = kpt.TargetPruneCallback(flops=0.5, warmup=1, decay=1, rounds=1)
    history = fit(model, later, 3).history
    assert np.isfinite(history["loss"]).all()
    assert later.reports and size(model, "flops") <= 0.9 * before
    x = DATA[0][:4]
    assert np.isfinite(model.predict(x, verbose=0)).all()


@pytest.mark.long
def test_the_last_epoch_leaves_room_for_all_iterations():
    pruning = pruning_of(when="paper_code", iterations=3, interval=1)
    fit(network(), pruning, 4)  # Half of the epochs would be one too late.
    assert [report.epoch for report in pruning.reports] == [0, 1, 2]


def test_an_iterator_of_scoring_data_is_read_once():
    model = network()
    pruning = pruning_of(data=iter([DATA]), when=2)
    fit(model, pruning, 1)
    fit(model, pruning, 1)
    assert len(pruning.reports) == 1


def test_nothing_more_happens_afterwards():
    model = network()
    pruning = pruning_of(when=1)
    fit(model, pruning, epochs=2)
    after = size(model, "flops")
    fit(model, pruning, epochs=2)
    assert size(model, "flops") == after and len(pruning.reports) == 1


def test_the_strongest_channel_of_each_layer_stays():
    model = network()
    fit(model, pruning_of(sparsity=0.8, when=1), epochs=2)
    assert model.get_layer("stem").filters >= 1
    assert model.get_layer("inner").filters >= 1


def test_a_regression_with_two_outputs():
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, name="conv")(image)
    x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = [keras.layers.Dense(1, name=n)(x) for n in ("left", "right")]
    model = keras.Model(image, outputs)
    model.compile("sgd", ["mse", "mae"], run_eagerly=True)
    x, y = DATA
    targets = [y.astype("float32"), -y.astype("float32")]
    pruning = kpt.EarlyCroPCallback(0.4, (x, targets), when=1)
    model.fit(x, targets, 8, 2, verbose=0, callbacks=[pruning])
    assert model.get_layer("conv").filters < 8


def test_the_data_may_be_a_data_set():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(DATA).batch(8)
    sizes = []
    for scoring in (data, DATA):
        model = network(dropout=0.0)
        pruning = pruning_of(data=scoring, when=1)
        model.fit(data, epochs=2, shuffle=False, verbose=0, callbacks=[pruning])
        sizes.append(size(model, "channels"))
    assert sizes[0] == sizes[1]


def test_a_train_step_without_a_loss_is_refused_before_the_first_step():
    model = network(compiled={"loss": None})
    model.train_step = lambda data: pytest.fail("A step was taken.")
    with pytest.raises(ValueError, match="needs `compile.*No loss to"):
        fit(model, pruning_of(when=1))


@pytest.mark.long
def test_on_two_replicas_the_same_channels_go(strategy):
    found = []
    for scope in (strategy.scope(), contextlib.nullcontext()):
        with scope:
            model = network(
                synchronized=True, dropout=0.0, compiled={"run_eagerly": False}
            )
        pruning = pruning_of(when=1)
        fit(model, pruning, epochs=2, shuffle=False)
        found.append(pruning.reports[0].keep)
    assert found[0] == found[1]


def program(folder, stop=None, epochs=4, **kwargs):
    """A program that is started again after it was killed at `stop`."""
    model = network()
    pruning = pruning_of(**{"when": "paper_code", "last_epoch": 2} | kwargs)
    history = model.fit(
        *(*DATA, 8, epochs),
        verbose=0,
        shuffle=False,
        callbacks=[kpt.BackupAndRestore(folder), pruning, Break(stop)],
    )
    return Trained(model, pruning, history)


def test_a_training_goes_on_whose_small_model_could_not_meet_the_target(
    tmp_path,
):
    low = {"sparsity": 0.8, "target": "flops", "score": "snip", "when": 1}
    with pytest.raises(RuntimeError, match="killed"):
        program(tmp_path / "pieces", (2, 1), **low)
    pieces = program(tmp_path / "pieces", **low)
    pieces.equals(program(tmp_path / "whole", **low))
    assert len(pieces.pruning.reports) == 1


@pytest.mark.long
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path):
    for stop in [(1, 1), (2, 1)]:
        with pytest.raises(RuntimeError, match="killed"):
            program(tmp_path / "pieces", stop)
    pieces = program(tmp_path / "pieces")
    pieces.equals(program(tmp_path / "whole"))
    assert pieces.pruning.reports[0].epoch == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "stop", "expected"),
    [
        ({"when": 1, "iterations": 2, "interval": 2}, (2, 1), [0, 2]),
        (
            {"when": "start", "iterations": 3, "interval": 1},
            *((1, 1), [0, 0, 1]),
        ),
    ],
)
def test_an_interruption_between_two_iterations(
    settings, stop, expected, tmp_path
):
    with pytest.raises(RuntimeError, match="killed"):
        program(tmp_path / "pieces", stop, **settings)
    pieces = program(tmp_path / "pieces", **settings)
    pieces.equals(program(tmp_path / "whole", **settings))
    assert [x.epoch for x in pieces.pruning.reports] == expected


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sparsity": 0}, "`sparsity` is the part of the model that goes"),
        ({"sparsity": 1.0}, "`sparsity` is the part of the model that goes"),
        ({"target": "bytes"}, "'channels', 'parameters', 'flops'"),
        ({"when": "late"}, "`when` must be"),
        ({"score": "taylor"}, "'gradient_flow', 'snip', 'grasp', 'synflow'"),
        ({"iterations": 0}, "`iterations` must be"),
        ({"interval": -1}, "`interval` must be an integer of at least 0"),
        ({"interval": 1}, "Pass `iterations`, the number of cuts, as well"),
        ({"reconfigure": {"score": len}}, "Received: 'score'"),
        ({"when": np.array([1, 2])}, "`when` must be"),
        ({"structured": "no"}, "`structured` must be True or False"),
        (
            {"structured": False, "reconfigure": {"skip": ["logits"]}},
            "`reconfigure` is for a model that becomes smaller",
        ),
        (
            {"structured": False, "batch": kpt.DynamicBatch(8)},
            "`batch` is for a model that becomes smaller",
        ),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        pruning_of(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sparsity": 0.99}, "can be at most"),
        ({"data": 3}, "The scoring data must be"),
        ({"data": "train"}, "The scoring data must be"),
        ({"data": DATA[0]}, "The scoring data must be"),
        ({"data": (DATA[0],)}, "The arrays of the scoring data must be"),
        ({"data": (DATA[0], DATA[1][:3])}, "with as many examples each"),
        ({"data": []}, "have no batch"),
        ({"data": (DATA[0][:, :5], DATA[1])}, "on batch 1 of the scoring"),
        ({"data": (DATA[0], DATA[0])}, "on batch 1 of the scoring"),
        (
            {"data": (DATA[0][:, :5], DATA[1]), "score": "synflow"},
            "on batch 1 of the scoring",
        ),
        ({"data": [DATA, (DATA[0][..., :2], DATA[1])]}, "on batch 2 of the"),
        (
            {"data": (*DATA, np.full(24, np.nan))},
            "is not finite on batch 1 of the scoring data. .* sample weights",
        ),
        (
            {"sparsity": 0.999, "structured": False},
            "leaves 1 weights to the 4 kernels",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(kwargs, message):
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        fit(model, pruning_of(**kwargs))
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)

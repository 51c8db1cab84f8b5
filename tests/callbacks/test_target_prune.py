"""TargetPruneCallback: the target, the rounds, and what it leaves alone."""

import contextlib
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_prunetrain as kpt
from keras_prunetrain import saliency
from keras_prunetrain.channels.numbering import number_channels
from tests import optimizers
from tests.callbacks.fits import TRACED, examples, network
from tests.callbacks.test_backup_and_restore import Break, Trained

COSTS = {"flops": "forward_flops"} | {
    name: name for name in ("parameters", "activation_bytes")
}


def fit(model, pruning, epochs=5, callbacks=(), **kwargs):
    x, y = examples(24)
    return model.fit(
        x,
        y,
        batch_size=8,
        epochs=epochs,
        verbose=0,
        callbacks=[pruning, *callbacks],
        **kwargs,
    )


def to_target(*args, reconfigure=None, **kwargs):
    """Returns the callback; layers of six channels have no counts to spare."""
    return kpt.TargetPruneCallback(
        *args,
        reconfigure={"channel_multiple": 1} | (reconfigure or {}),
        **kwargs,
    )


def cost(model, name="flops"):
    return getattr(kpt.model_cost(model), COSTS[name])


@pytest.mark.parametrize("name", COSTS)
def test_the_target_is_met(name):
    model = network()
    before = cost(model, name)
    pruning = to_target(**{name: 0.75}, decay=2)
    history = fit(model, pruning).history
    # A channel of the residual stage takes a sixth of the activations.
    assert 0.6 <= cost(model, name) / before <= 0.75
    assert [report.epoch for report in pruning.reports] == [1, 2]
    assert pruning.reports[-1].penalty_ratio == 0.0
    assert history["density"][0] == 1.0 > history["density"][-1]
    flops = np.array(history["training_flops"]) / 24
    assert flops[0] == flops[1] > flops[2] > flops[3] == flops[4]


@pytest.mark.parametrize("name", optimizers.sampled())
def test_it_is_met_under_every_optimizer(name):
    model = network(compiled={"optimizer": optimizers.ALL[name]()})
    before = cost(model)
    pruning = to_target(0.5, decay=2)
    fit(model, pruning, epochs=4)
    assert 0.3 < cost(model) / before <= 0.5


def test_all_epochs_together_cost_the_target():
    model = network()
    first = kpt.model_cost(model).training_flops
    pruning = to_target(training_flops=0.6, decay=2, max_layer_cut=0.9)
    history = fit(model, pruning, epochs=10).history
    share = sum(history["training_flops"]) / (10 * 24 * first)
    assert 0.5 < share <= 0.6


@pytest.mark.parametrize(
    "score", ["taylor", "magnitude", "gradient_flow", "random"]
)
def test_the_lowest_scores_go(score):
    model = network()
    seen = {}

    class See(kpt.TargetPruneCallback):
        def plan(self):
            seen["plan"] = super().plan()
            seen["scores"] = seen["plan"].score
            return seen["plan"]

    data = examples(24) if score in saliency.ON_DATA else None
    pruning = See(0.6, score=score, scoring_data=data, rounds=1)
    fit(model, pruning)
    scores, alive = seen["scores"], seen["plan"].alive
    numbering = seen["plan"].numbering
    for label in numbering.kernels("out"):
        here = scores[label.numbers]
        kept = alive[label.numbers]
        if not kept.all():  # All of a layer's channels cost the same.
            assert here[~kept].max() <= here[kept].min()
    assert not alive.all()


def test_a_score_of_the_users_decides():
    def last_first(numbering):
        return np.arange(numbering.size, dtype="float64")[::-1]

    model = network()
    pruning = to_target(0.6, score=last_first, rounds=1)
    fit(model, pruning)
    keep = pruning.reports[0].keep
    for layer in ("stem", "inner", "last"):
        assert keep[layer] == list(range(len(keep[layer])))
    assert len(keep["inner"]) < 6


class Copy(keras.callbacks.Callback):
    """Copies the dense model, with its optimizer, when channels are zero."""

    def __init__(self, epoch):
        super().__init__()
        self.at, self.copy = epoch, None

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.at:
            self.copy = network(dropout=0.0)
            self.copy.optimizer.build(self.copy.trainable_variables)
            for new, old in (
                *zip(self.copy.weights, self.model.weights, strict=True),
                *zip(
                    self.copy.optimizer.variables,
                    self.model.optimizer.variables,
                    strict=True,
                ),
            ):
                new.assign(old)


def test_what_is_left_trains_as_in_the_masked_dense_model():
    model, copy = network(dropout=0.0), Copy(1)
    pruning = to_target(0.3, rounds=1)
    x, y = examples(24)
    model.fit(
        *(x, y, 8, 4),
        verbose=0,
        shuffle=False,
        callbacks=[copy, pruning],
    )
    dense = copy.copy
    keep = pruning.reports[0].keep
    gone = np.delete(np.arange(6), keep["stem"])
    assert len(gone)
    kernel = dense.get_layer("stem").kernel.numpy()
    assert not kernel[..., gone].any()
    dense.fit(x, y, 8, 2, verbose=0, shuffle=False)
    assert not dense.get_layer("stem").kernel.numpy()[..., gone].any()
    for name, reads in (("inner", "stem"), ("last", "inner")):
        expected = dense.get_layer(name).kernel.numpy()
        expected = expected[:, :, keep[reads]][..., keep[name]]
        found = model.get_layer(name).kernel.numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), dense.predict(x, verbose=0), atol=1e-4
    )


def test_before_the_first_round_it_is_dense_training():
    weights = []
    for pruning in (to_target(0.5, warmup=2), None):
        model = network()
        stop = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs, model=model: (
                weights.append(model.get_weights()) if epoch == 2 else None
            )
        )
        keras.utils.set_random_seed(0)
        x, y = examples(24)
        model.fit(
            *(x, y, 8, 4),
            verbose=0,
            callbacks=[stop, *([pruning] if pruning else [])],
        )
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.long
def test_nothing_more_happens_after_the_last_round_nor_in_another_fit():
    model = network(compiled=TRACED)
    pruning = to_target(0.5)
    fit(model, pruning)
    assert "apply" not in vars(model.optimizer)
    size, variables = cost(model), model.trainable_variables
    fit(model, pruning)
    assert cost(model) == size and len(pruning.reports) == 1
    for one, other in zip(variables, model.trainable_variables, strict=True):
        assert one is other


@pytest.mark.long
def test_the_target_can_be_of_another_model():
    model = network()
    first = kpt.model_cost(model)
    fit(model, to_target(0.7, rounds=1))
    fit(model, to_target(0.5, rounds=1, of=first))
    assert 0.3 < cost(model) / first.forward_flops <= 0.5


@pytest.mark.long
def test_another_model_gets_a_target_of_its_own():
    pruning = to_target(0.5, rounds=1)
    for _ in range(2):
        model = network()
        before = cost(model)
        fit(model, pruning)
        assert len(pruning.reports) == 1
        assert 0.3 < cost(model) / before <= 0.5


def test_skipped_layers_stay_and_layers_keep_multiples():
    model = network()
    pruning = to_target(
        0.75, reconfigure={"skip": "stem", "channel_multiple": 2}
    )
    fit(model, pruning)
    assert model.get_layer("stem").filters == 6
    assert model.get_layer("inner").filters in (2, 4)


@pytest.mark.long
def test_on_two_replicas_the_target_is_met_alike(strategy):
    found = []
    for scope in (strategy.scope(), contextlib.nullcontext()):
        with scope:
            model = network(
                synchronized=True, dropout=0.0, compiled={"run_eagerly": False}
            )
        pruning = to_target(0.5, decay=2)
        x, y = examples(24)
        model.fit(*(x, y, 8, 4), verbose=0, shuffle=False, callbacks=[pruning])
        found.append([report.keep for report in pruning.reports])
    assert found[0] == found[1]
    assert len(found[0]) == 2


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_in_mixed_precision(policy):
    model = network(dtype=policy)
    if policy == "mixed_float16":
        model.compile(
            keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=True,
        )
    before = cost(model)
    fit(model, to_target(0.5))
    assert 0.3 < cost(model) / before <= 0.5


def test_the_batch_grows_with_each_cut():
    model, batch = network(), kpt.DynamicBatch(8, 4, maximum=16)
    pruning = to_target(activation_bytes=0.6, batch=batch)
    history = model.fit(
        batch.arrays(*examples(48), shuffle=False),
        epochs=5,
        verbose=0,
        shuffle=False,
        callbacks=[pruning],
    ).history
    assert history["batch_size"][0] == 8 < history["batch_size"][-1]


@pytest.mark.long
def test_a_log_shows_target_and_channels(tmp_path):
    fit(network(), to_target(0.5, log_dir=tmp_path))
    text = (tmp_path / "density_log.json").read_text()
    assert "densities" in text


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    "steps_per_execution", [1, pytest.param(2, marks=pytest.mark.long)]
)
def test_data_of_unknown_length(steps_per_execution):
    x, y = examples(24)
    model = network(
        compiled=TRACED | {"steps_per_execution": steps_per_execution}
    )
    before = cost(model)

    def batches():
        for i in range(0, 24, 8):
            yield x[i : i + 8], y[i : i + 8]

    data = tf.data.Dataset.from_generator(
        batches,
        output_signature=(
            tf.TensorSpec((None, 8, 8, 3)),
            tf.TensorSpec((None,), tf.int32),
        ),
    )
    for warmup in (0, 1):
        model = network(
            compiled=TRACED | {"steps_per_execution": steps_per_execution}
        )
        pruning = to_target(0.5, warmup=warmup)
        model.fit(data, epochs=3, verbose=0, shuffle=False, callbacks=[pruning])
        assert 0.3 < cost(model) / before <= 0.5


@pytest.mark.parametrize(
    ("steps_per_execution", "decay", "warned"),
    [
        *((2, 1, False), (3, 1, True)),
        *(
            pytest.param(*values, marks=pytest.mark.long)
            for values in ((1, 1, False), (9, 1, True), (3, 2, False))
        ),
    ],
)
def test_rounds_of_one_execution_are_warned_of_before_training(
    steps_per_execution, decay, warned, caplog
):
    model = network(compiled={"steps_per_execution": steps_per_execution})
    pruning = to_target(0.5, decay=decay, rounds=1)
    seen = []

    class See(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append("without shrinking" in caplog.text)

    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        fit(model, pruning, epochs=2 + decay, callbacks=[See()])
    assert seen == [warned] * (2 + decay)
    assert len(pruning.reports) == 1


def test_an_iterator_of_scoring_data_serves_all_rounds():
    model = network()
    before = cost(model)
    pruning = to_target(
        0.5,
        score="snip",
        scoring_data=iter([examples(24)]),
        warmup=0,
        decay=2,
    )
    fit(model, pruning, epochs=3)
    assert len(pruning.reports) == 2
    assert 0.3 < cost(model) / before <= 0.5


def test_a_training_that_ends_in_a_round_says_so(caplog):
    model = network()
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", True)
    )
    pruning = to_target(0.5, warmup=0, decay=2, rounds=1)
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        fit(model, pruning, callbacks=[stop])
    assert "`fit` has ended before the channels were cut" in caplog.text
    assert "apply" not in vars(model.optimizer)
    assert not pruning.reports
    fit(model, pruning)  # It begins anew.
    assert pruning.reports


def test_gradients_that_are_not_finite_put_the_choice_off(caplog):
    model = network()
    x, y = examples(24)
    x = x.copy()
    x[:8] = np.nan
    pruning = to_target(0.5, warmup=0, decay=1)
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        model.fit(x, y, 8, 3, verbose=0, shuffle=False, callbacks=[pruning])
    assert caplog.text.count("the channels are chosen later") == 1
    assert not pruning.reports


def test_a_rate_that_drops_too_early_is_warned_of(caplog):
    drop = keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: 1e-3 if epoch else 1e-2
    )
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        fit(network(), to_target(0.5), callbacks=[drop])
    assert "The learning rate drops before the last channels go" in caplog.text


@pytest.mark.parametrize(("boundary", "warned"), [(3, True), (6, False)])
def test_a_schedule_of_the_optimizer_is_seen(boundary, warned, caplog):
    # 3 steps in each epoch; the round ends with epoch 1.
    rate = keras.optimizers.schedules.PiecewiseConstantDecay(
        [boundary - 1], [0.05, 0.005]
    )
    model = network(compiled={"optimizer": keras.optimizers.SGD(rate)})
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        fit(model, to_target(0.5))
    assert ("The learning rate drops before" in caplog.text) == warned


class OwnStep(keras.Model):
    """Trains with no optimizer, or with one for each half of the weights.

    Attributes:
        optimizers: List of optimizers, none to train with none.
    """

    optimizers = ()

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            loss = self.compute_loss(x, y, predicted)
        self._loss_tracker.update_state(loss)
        weights = self.trainable_variables
        gradients = tape.gradient(loss, weights)
        for optimizer, part in zip(
            self.optimizers, (slice(0, 3), slice(3, None)), strict=False
        ):
            optimizer.apply(gradients[part], weights[part])
        return self.compute_metrics(x, y, predicted)


class _Hidden:
    """Optimizers that no list or dict holds."""

    def __init__(self, optimizers):
        self._optimizers = optimizers

    def __iter__(self):
        return iter(self._optimizers)


def refused(message, model=None, epochs=5, **kwargs):
    model = model or network()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        fit(model, to_target(**kwargs), epochs)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not vars(model.optimizer).get("apply")


def test_what_cannot_work_is_refused_before_the_first_step():
    refused("the least that", flops=0.01)
    refused(
        "least that .* can have is 1:", flops=0.5, reconfigure={"skip": "*"}
    )
    refused("training_flops` must be above 0.4", training_flops=0.3)
    refused("at inference, and the least", training_flops=0.42)
    refused("At least one epoch must follow", epochs=2, flops=0.5)
    refused("one number for each", flops=0.5, score=lambda n: np.ones(3))
    refused("`skip` names 'no'", flops=0.5, reconfigure={"skip": "no"})


def test_a_model_without_flops_is_refused():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.BatchNormalization()]
    )
    model.compile("sgd", "mse")
    data = np.ones((8, 3))
    with pytest.raises(ValueError, match="least that .* can have is 1:"):
        model.fit(data, data, verbose=0, epochs=5, callbacks=[to_target(0.5)])


@pytest.mark.parametrize("score", ["taylor", "magnitude"])
def test_a_train_step_without_the_optimizer_is_refused(score):
    model = network(OwnStep, compiled={"metrics": []})
    with pytest.raises(ValueError, match="does not call `apply` of the opt"):
        fit(model, to_target(0.5, score=score))


def test_weights_of_an_optimizer_that_is_no_attribute_are_refused():
    model = network(OwnStep, compiled={"metrics": []})
    optimizers = [model.optimizer, keras.optimizers.SGD(0.01)]
    model.optimizers = _Hidden(optimizers)
    with pytest.raises(ValueError, match="for inner/kernel, last/kernel"):
        fit(model, to_target(0.5))


@pytest.mark.parametrize("several", [False, True])
def test_parts_of_the_weights_may_be_trained_in_turns(several):
    model = network(OwnStep, compiled={"metrics": []})
    optimizers = [model.optimizer, keras.optimizers.SGD(0.01, 0.9)]
    if not several:
        optimizers[1] = model.optimizer
        model.optimizer.build(model.trainable_variables)
    model.optimizers = optimizers
    before = cost(model)
    fit(model, to_target(0.5))
    assert 0.3 < cost(model) / before <= 0.5
    assert model.optimizers[1] is optimizers[1]


def test_steps_that_a_loss_scale_skips_do_not_count(caplog):
    model = network(dtype="mixed_float16")
    model.compile(
        keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.05),
            # Of the first 6 steps, none is taken in float16.
            initial_scale=2.0**24,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    taken = []

    class See(Vanishing):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            taken.append(int(self.model.optimizer.iterations))

    pruning = See(0.5, warmup=0, decay=4, rounds=1)
    before = cost(model)
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        fit(model, pruning, epochs=5)
    assert taken[0] == taken[1] == 0 < taken[11]
    assert pruning.largest == [0.0]
    assert not caplog.records
    assert 0.3 < cost(model) / before <= 0.5


class Vanishing(kpt.TargetPruneCallback):
    """Notes the largest weight of the channels that go, at each cut."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.largest = []

    def plan(self):
        plan = super().plan()
        gone = [
            np.moveaxis(x.weight.numpy(), x.axis, 0)[~plan.alive[x.numbers]]
            for x in plan.numbering.labels
            if x.weight.trainable
        ]
        self.largest.append(max(np.abs(x).max() for x in gone if x.size))
        return plan


class OfVariables(keras.regularizers.Regularizer):
    """Needs the variable: Keras does not hand over a tensor."""

    def __call__(self, x):
        return 0.01 * keras.ops.sum(keras.ops.square(x.value)) / len(x.path)

    def get_config(self):
        return {}


def test_regularizers_get_the_variable_as_in_keras():
    model = network(
        regularizers={"inner": OfVariables(), "last": OfVariables()}
    )
    pruning = Vanishing(0.5)
    fit(model, pruning)
    assert pruning.largest == [0.0]


def test_a_choice_that_was_put_off_still_shrinks_the_channels():
    model = network()
    x, y = examples(48)
    pruning = Vanishing(0.5, warmup=0, decay=1)

    class Infinite(keras.callbacks.Callback):
        """Spoils the gradients' sum in the first epoch; not the weights."""

        def on_train_batch_end(self, batch, logs=None):
            if pruning.epoch == 1 and batch == 4:  # In 1 of 5 steps, not yet.
                assert self.model.get_layer("inner").kernel.numpy().all()
            if pruning.epoch == 0:
                sums = pruning._round._shrinking._sums
                sums.assign(np.full(sums.shape, np.inf))

    model.fit(*(x, y, 8, 3), verbose=0, callbacks=[Infinite(), pruning])
    assert [report.epoch for report in pruning.reports] == [1]
    assert pruning.largest == [0.0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "exactly one target"),
        ({"flops": 0.5, "parameters": 0.5}, "exactly one target"),
        ({"flops": 2}, "`flops` must be a fraction"),
        ({"flops": 0.5, "score": "tailor"}, "`score` must be one of"),
        ({"flops": 0.5, "score": "gradient_flow"}, "Received: scoring_data=N"),
        ({"flops": 0.5, "warmup": 1.5}, "`warmup` must be"),
        ({"flops": 0.5, "decay": 0}, "`decay` must be"),
        ({"flops": 0.5, "rounds": 0}, "`rounds` must be"),
        ({"flops": 0.5, "max_layer_cut": 1}, "`max_layer_cut` must be"),
        ({"flops": 0.5, "of": 3}, "`of` must be a `Cost`"),
        ({"flops": 0.5, "reconfigure": {"fold": True}}, "Received: 'fold'"),
        ({"flops": 0.5, "batch": 8}, "`batch` must be a `DynamicBatch`"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        to_target(**kwargs)


def program(folder, stop=None, flops=0.5, **kwargs):
    """A program that is started again after it was killed at `stop`."""
    model = network()
    pruning = to_target(flops, **{"decay": 3, "rounds": 2} | kwargs)
    x, y = examples(24)
    history = model.fit(
        *(x, y, 8, 6),
        verbose=0,
        shuffle=False,
        callbacks=[
            kpt.BackupAndRestore(folder, save_freq=1),
            pruning,
            Break(stop),
        ],
    )
    return Trained(model, pruning, history)


@pytest.mark.long
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path):
    # Before the rounds, before and after the choice, between two rounds and
    # after them.
    stops = [(0, 1), (1, 0), (1, 2), (2, 1), (3, 0), (3, 2), (4, 1)]
    for stop in stops:
        with pytest.raises(RuntimeError, match="killed"):
            program(tmp_path / "pieces", stop)
    pieces = program(tmp_path / "pieces")
    pieces.equals(program(tmp_path / "whole"))
    assert len(pieces.pruning.reports) == 2


def test_a_training_goes_on_whose_small_model_could_not_meet_the_target(
    tmp_path,
):
    low = {"flops": 0.25, "decay": 1, "rounds": 1, "max_layer_cut": 0.9}
    with pytest.raises(RuntimeError, match="killed"):
        program(tmp_path / "pieces", (3, 1), **low)
    pieces = program(tmp_path / "pieces", **low)
    pieces.equals(program(tmp_path / "whole", **low))
    assert len(pieces.pruning.reports) == 1


def test_channels_of_a_stage_have_one_number_and_go_together():
    model = network()
    numbering = number_channels(model)
    outs = {x.layer: x.numbers for x in numbering.kernels("out")}
    np.testing.assert_array_equal(outs["stem"], outs["last"])
    pruning = to_target(0.3, max_layer_cut=0.7)
    fit(model, pruning)
    keep = pruning.reports[0].keep
    assert keep["stem"] == keep["last"] and len(keep["stem"]) < 6

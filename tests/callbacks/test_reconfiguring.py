"""Another method of pruning: a score and a callback, by public names alone."""

import json

import keras
import numpy as np
import pytest

import keras_prunetrain as kpt

# A score of five lines ...


def gamma(label):
    """Scores channels by the scale that batch normalization gives them."""
    if label.weight.name != "gamma":
        return None
    return np.abs(keras.ops.convert_to_numpy(label.weight))


# ... and a callback of twenty.


class LargestGammas(kpt.ReconfiguringCallback):
    """Keeps the channels with the largest gammas, in one cut."""

    def __init__(self, kept, epoch, **kwargs):
        super().__init__(reconfigure={"score": gamma}, **kwargs)
        self.kept, self.cut_after = kept, epoch

    def is_due(self, epoch):
        return epoch == self.cut_after

    def plan(self):
        norms = keras.layers.BatchNormalization
        layers = [x for x in self.model.layers if isinstance(x, norms)]
        gammas = np.abs(np.concatenate([x.get_weights()[0] for x in layers]))
        self.threshold = np.quantile(gammas, 1.0 - self.kept)
        return super().plan()

    def settings(self):
        return super().settings() | {"kept": self.kept}


GAMMAS = np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.7], "float32")


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, name="conv", use_bias=False)(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(x))
    model.get_layer("norm").gamma.assign(GAMMAS)
    # So small a step that the gammas keep their order.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss)
    return model


def arrays():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(24, 8, 8, 3)).astype("float32")
    return images, rng.integers(3, size=24).astype("int32")


def fit(model, data, pruning, epochs):
    return model.fit(
        data, epochs=epochs, callbacks=[pruning], shuffle=False, verbose=0
    ).history


def test_another_method_prunes_inside_fit_with_log_records_and_batch(tmp_path):
    model, batch = network(), kpt.DynamicBatch(4, 4, memory_budget=2**20)
    pruning = LargestGammas(0.5, epoch=1, batch=batch, log_dir=tmp_path)

    history = fit(model, batch.arrays(*arrays()), pruning, epochs=4)

    (report,) = pruning.reports
    assert report.epoch == 1
    assert report.keep == {"conv": [1, 3, 5], "logits": [0, 1, 2]}
    assert report.cost_after.parameters == model.count_params()
    assert (report.batch_size, report.batch_size_after) == (4, 24)
    assert report.penalty_ratio == 0.0
    assert report.first_step_seconds > 0.0
    norm = model.get_layer("norm")
    np.testing.assert_allclose(norm.gamma, GAMMAS[1::2], atol=0.05)
    # Of 3 channels of the images, 6 of the convolution and 3 logits.
    np.testing.assert_allclose(history["density"], [1.0, 0.75, 0.75, 0.75])
    assert history["batch_size"] == [4, 4, 24, 24]
    np.testing.assert_allclose(
        history["learning_rate"], [1e-3, 1e-3, 6e-3, 6e-3]
    )
    assert model.optimizer.iterations == 6 + 6 + 1 + 1
    record = json.loads((tmp_path / "density_log.json").read_text())
    assert record["densities"] == [[1.0, 1.0], *[[0.5, 1.0]] * 3]


def test_nothing_of_it_stays_behind(tmp_path):
    model, batch = network(), kpt.DynamicBatch(4, 4, memory_budget=2**20)
    before = vars(model).keys()
    pruning = LargestGammas(0.5, epoch=1, batch=batch)
    data = batch.arrays(*arrays(), shuffle=False)
    fit(model, data, pruning, epochs=3)
    optimizer = model.optimizer
    assert not {"apply", "_get_current_learning_rate"} & set(vars(optimizer))
    assert vars(model).keys() - before <= {"history"}
    assert float(optimizer.learning_rate) == pytest.approx(1e-3)
    model.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    images = arrays()[0]
    np.testing.assert_allclose(loaded(images), model(images), atol=1e-6)
    # The rate was scaled in the step that was traced for these very data.
    for one in (model, loaded):
        one.fit(data, steps_per_epoch=1, shuffle=False, verbose=0)
    for one, other in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


class Halfway(kpt.ReconfiguringCallback):
    def is_due(self, epoch):
        return epoch + 1 == self.params["epochs"] // 2


def test_without_a_plan_of_its_own_a_method_cuts_what_is_dead():
    model, pruning = network(), Halfway()
    conv, logits = model.get_layer("conv"), model.get_layer("logits")
    alive = np.array([1, 1, 0, 1, 1, 1], "float32")
    conv.kernel.assign(conv.kernel * alive)
    logits.kernel.assign(logits.kernel * alive[:, None])
    model.optimizer.learning_rate = 0.0  # What is dead stays dead.
    model.fit(*arrays(), epochs=4, verbose=0, callbacks=[pruning])
    (report,) = pruning.reports
    assert report.epoch == 1
    assert report.keep["conv"] == [0, 1, 3, 4, 5]


def test_a_method_is_told_of_each_cut_and_of_plans_that_remove_nothing():
    told = []

    class EachEpoch(kpt.ReconfiguringCallback):
        def is_due(self, epoch):
            return True

        def after_cut(self, report):
            told.append((self.epoch, report and report.keep["conv"]))
            assert self.model.get_layer("conv").filters == 5

    model, pruning = network(), EachEpoch()
    model.optimizer.learning_rate = 0.0
    x, y = arrays()
    kernels = [model.get_layer(name).kernel for name in ("conv", "logits")]
    dead = np.array([1, 1, 0, 1, 1, 1], "float32")
    kernels[0].assign(kernels[0] * dead)
    kernels[1].assign(kernels[1] * dead[:, None])

    class Diverge(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                logs["loss"] = np.nan

    model.fit(x, y, epochs=3, verbose=0, callbacks=[Diverge(), pruning])
    assert told == [(0, [0, 1, 3, 4, 5]), (2, None)]


def test_a_method_must_say_when_it_is_due():
    class Base(kpt.ReconfiguringCallback):
        pass

    with pytest.raises(TypeError, match="abstract class Base with.* .?is_due"):
        Base()


def test_two_methods_do_not_go_together():
    model = network()
    with pytest.raises(ValueError, match="Received: Halfway, PruneTrainCa"):
        model.fit(
            *arrays(),
            verbose=0,
            callbacks=[Halfway(), kpt.PruneTrainCallback()],
        )
    assert model.optimizer.iterations == 0


class Wrong(Halfway):
    def __init__(self, plan=None, settings=None):
        super().__init__()
        self._plan, self._settings = plan, settings

    def plan(self):
        return self._plan

    def settings(self):
        return self._settings


@pytest.mark.parametrize("plan", [None, np.ones(12, bool), {"conv": [0]}])
def test_what_a_method_plans_must_be_a_plan(plan):
    pruning = Wrong(plan, settings={})
    with pytest.raises(ValueError, match="`plan` of Wrong must return a `Plan"):
        network().fit(*arrays(), epochs=2, verbose=0, callbacks=[pruning])


@pytest.mark.parametrize(
    ("settings", "received"),
    [
        (None, "None"),
        ({"kept": np.ones(2)}, "kept=array"),
        ({"kept": [1]}, "kept=.1."),
        ({3: 1}, "3=1"),
    ],
)
def test_settings_that_no_log_can_show_are_refused_first(settings, received):
    model, pruning = network(), Wrong(settings=settings)
    message = f"`settings` of Wrong must return a dict.* Received: {received}"
    with pytest.raises(ValueError, match=message):
        model.fit(*arrays(), epochs=2, verbose=0, callbacks=[pruning])
    assert model.optimizer.iterations == 0


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin"])
def test_a_hook_that_does_not_call_the_base_is_named(hook):
    class Silent(Halfway):
        pass

    setattr(Silent, hook, lambda self, *arguments, **options: None)
    message = rf"`{hook}` of Silent .* `super\(\)\.{hook}"
    with pytest.raises(ValueError, match=message):
        network().fit(*arrays(), epochs=2, verbose=0, callbacks=[Silent()])

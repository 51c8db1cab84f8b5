"""EarlyCroP weight by weight: exact zeros in every step."""

import contextlib
import zipfile

import keras
import numpy as np
import pytest

import keras_prunetrain as kpt
from keras_prunetrain import keras_internals
from keras_prunetrain.fit.masks import kernels_of, largest, next_masks
from keras_prunetrain.gradient_flow import Batch, gradient_flow
from tests import optimizers
from tests.callbacks.fits import examples, network
from tests.callbacks.test_backup_and_restore import Break, Trained

DATA = examples(24)


def pruning_of(sparsity=0.9, **kwargs):
    arguments = {"when": 1, "structured": False} | kwargs
    return kpt.EarlyCroPCallback(sparsity, DATA, **arguments)


class Zeros(keras.callbacks.Callback):
    """Counts the zeros of kernels after each step."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def on_train_batch_end(self, batch, logs=None):
        self.counts.append(zeros(self.model))


def zeros(model):
    kernels = kernels_of(model)
    return sum(int((v.numpy() == 0.0).sum()) for v in kernels.values())


def size(model):
    return sum(int(np.prod(v.shape)) for v in kernels_of(model).values())


def fit(model, pruning, epochs=3, callbacks=()):
    return model.fit(
        *(*DATA, 8, epochs),
        verbose=0,
        shuffle=False,
        callbacks=[pruning, *callbacks],
    )


@pytest.mark.parametrize("name", optimizers.sampled())
def test_weights_and_slots_stay_zero_under_every_optimizer(name):
    model = network(compiled={"optimizer": optimizers.ALL[name]()})
    pruning, counts = pruning_of(), Zeros()
    fit(model, pruning, 2, [counts])
    gone = size(model) - round(0.1 * size(model))
    assert counts.counts[3:] == [gone] * 3
    masks = pruning._masks.masks
    for optimizer in keras_internals.leaf_optimizers(model.optimizer):
        updated, slots, _ = keras_internals.optimizer_variables(optimizer)
        for i, weight in enumerate(updated):
            for of_all in slots.values():
                slot = of_all[i]
                is_alike = slot is not None and slot.shape == weight.shape
                if is_alike and weight.path in masks:
                    assert not slot.numpy()[~masks[weight.path]].any()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_in_mixed_precision(policy):
    model = network(dtype=policy)
    fit(model, pruning_of())
    assert zeros(model) >= round(0.9 * size(model))


def test_the_weights_that_matter_least_to_the_gradient_flow_go():
    model = network(dropout=0.0)
    pruning, seen = pruning_of(0.5), {}

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            flow = gradient_flow(self.model, [Batch(*DATA)])
            seen.setdefault("scores", flow.weight_scores("gradient_flow"))
            seen.setdefault("kernels", kernels_of(self.model))

    model.fit(*(*DATA, 8, 1), verbose=0, callbacks=[See(), pruning])
    kept, gone = [], []
    for path, weight in seen["kernels"].items():
        mask = pruning._masks.masks[path]
        kept.append(seen["scores"][id(weight)][mask])
        gone.append(seen["scores"][id(weight)][~mask])
    kept, gone = np.concatenate(kept), np.concatenate(gone)
    assert abs(len(gone) - len(kept)) <= 1
    assert gone.max() <= kept.min()


@pytest.mark.parametrize("score", ["gradient_flow", "grasp", "synflow"])
def test_no_kernel_is_empty(score):
    model = network()
    fit(model, pruning_of(0.985, score=score, when="start"), 1)
    kept = [row.kept for row in kpt.mask_report(model)]
    assert min(kept) >= 1 and sum(kept) == round(0.015 * size(model))


def test_biases_and_scales_of_several_axes_are_no_kernels():
    x = keras.Input((4, 6))
    y = keras.layers.GRU(5, return_sequences=True)(x)
    y = keras.layers.MultiHeadAttention(2, 3)(y, y)
    y = keras.layers.LayerNormalization(axis=(1, 2))(keras.layers.PReLU()(y))
    y = keras.layers.RMSNormalization(axis=(1, 2))(y)
    y = keras.layers.SpectralNormalization(keras.layers.Dense(2))(y)
    model = keras.Model(x, y)
    found = {path.rsplit("/", 1)[-1] for path in kernels_of(model)}
    assert found == {"kernel", "recurrent_kernel"}
    axes = {len(v.shape) for v in model.weights if v.name == "bias"}
    assert axes == {1, 2}
    named = {row.kernel for row in kpt.mask_report(model)}
    assert named == set(kernels_of(model))


def test_a_model_of_which_nothing_trains_is_refused():
    model = network()
    model.trainable = False
    with pytest.raises(ValueError, match="has no kernel that trains"):
        fit(model, pruning_of(when="start"), 1)


@pytest.mark.parametrize("is_first", [True, False])
def test_early_stopping_brings_back_no_weight_that_has_gone(is_first):
    class Worse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["score"] = float(epoch)  # The first epoch, which is dense.

    model, pruning = network(), pruning_of(when=2)
    stopping = keras.callbacks.EarlyStopping(
        "score", mode="min", patience=9, restore_best_weights=True
    )
    others = [pruning, stopping] if is_first else [stopping, pruning]
    model.fit(*(*DATA, 8, 4), verbose=0, callbacks=[Worse(), *others])
    assert stopping.best_epoch >= 1
    assert zeros(model) == size(model) - round(0.1 * size(model))


@pytest.mark.parametrize("eagerly", [True, False])
@pytest.mark.parametrize("is_scaled", [True, False])
def test_gradients_of_what_has_gone_count_in_no_norm(is_scaled, eagerly):
    norm, steps = 0.01, []
    optimizer = keras.optimizers.SGD(1.0, global_clipnorm=norm)
    if is_scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 2.0**4)
    model = network(compiled={"optimizer": optimizer, "run_eagerly": eagerly})

    class Step(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            weights = self.model.trainable_variables
            self.before = [v.numpy() for v in weights]

        def on_train_batch_end(self, batch, logs=None):
            pairs = zip(
                self.model.trainable_variables, self.before, strict=True
            )
            steps.append(
                np.sqrt(sum(((v.numpy() - w) ** 2).sum() for v, w in pairs))
            )

    fit(model, pruning_of(0.95, when="start"), 1, [Step()])
    np.testing.assert_allclose(steps, norm, rtol=1e-4)


def test_the_rows_of_an_embedding_stay_zero():
    words = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(12, 4)(words)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(words, keras.layers.Dense(3)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    rng = np.random.default_rng(0)
    data = rng.integers(12, size=(24, 5)), rng.integers(3, size=24)
    pruning = kpt.EarlyCroPCallback(0.5, data, when=1, structured=False)
    counts = Zeros()
    model.fit(*(*data, 8, 2), verbose=0, callbacks=[pruning, counts])
    assert counts.counts[3:] == [size(model) // 2] * 3
    assert "embeddings" in str(kpt.mask_report(model))


@pytest.mark.parametrize("score", ["gradient_flow", "snip", "synflow"])
def test_a_loaded_model_goes_on_with_the_zeros_of_its_file(score, tmp_path):
    model = network()
    fit(model, pruning_of(score=score), 3)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    gone = [v.numpy() == 0.0 for v in kernels_of(loaded).values()]
    fit(loaded, pruning_of(score=score, when="start"), 1)
    now = [v.numpy() == 0.0 for v in kernels_of(loaded).values()]
    for one, other in zip(gone, now, strict=True):
        np.testing.assert_array_equal(one, other)


def test_iterations_end_at_the_same_density():
    model = network()
    fit(model, pruning_of(iterations=3), 1)
    assert zeros(model) == size(model) - round(0.1 * size(model))


@pytest.mark.parametrize(
    "score", ["grasp", pytest.param("gradient_flow", marks=pytest.mark.long)]
)
def test_what_has_gone_stays_gone_in_later_iterations(score):
    model = network()
    pruning, counts = pruning_of(score=score, iterations=3, interval=1), Zeros()
    masks = []

    class See(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            masks.append(pruning._masks and pruning._masks.masks)

    fit(model, pruning, 4, [counts, See()])
    # Each iteration keeps the same part: the third root of 0.1.
    kept = [size(model) - x for x in counts.counts[::3]]
    expected = [size(model) * 0.1 ** (i / 3) for i in range(4)]
    np.testing.assert_allclose(kept, expected, atol=0.5)
    assert counts.counts[3:6] == [counts.counts[3]] * 3
    assert masks[0] is None
    for earlier, later in zip(masks[1:], masks[2:], strict=False):
        for name, mask in later.items():
            assert not (mask & ~earlier[name]).any()


def test_what_an_earlier_mask_leaves_out_stays_out_whatever_its_score():
    model, rng = network(), np.random.default_rng(0)
    scores = {id(v): rng.random(v.shape) for v in kernels_of(model).values()}
    earlier = next_masks(model, scores, 0.5)
    turned = {key: 1.0 - score for key, score in scores.items()}
    later = next_masks(model, turned, 0.25, earlier)
    kept = sum(mask.sum() for mask in later.masks.values())
    assert kept == round(0.25 * size(model))
    for name, mask in later.masks.items():
        assert not (mask & ~earlier.masks[name]).any()


def test_the_largest_of_all_arrays_together():
    scores = {"a": np.array([[3.0, 1.0]]), "b": np.array([2.0, 2.0, 0.0])}
    found = largest(scores, 2)
    np.testing.assert_array_equal(found["a"], [[True, False]])
    np.testing.assert_array_equal(found["b"], [True, False, False])


def test_kernels_of_the_same_path_have_masks_of_their_own():
    def tower(name):
        image = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(5, 3, name="conv")(image)
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(image, x, name=name)

    image = keras.Input((8, 8, 3))
    x = keras.layers.Concatenate()(
        [tower("left")(image), tower("right")(image)]
    )
    model = keras.Model(image, keras.layers.Dense(3)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True)
    assert [v.path for v in model.trainable_variables].count("conv/kernel") == 2
    names = kernels_of(model)
    assert list(names)[:2] == ["conv/kernel", "conv/kernel#2"]
    fit(model, pruning_of(), 2)
    assert zeros(model) == size(model) - round(0.1 * size(model))


def test_before_the_moment_it_is_dense_training():
    model = network()
    counts = Zeros()
    fit(model, pruning_of(when=2), 3, [counts])
    assert counts.counts[:6] == [0] * 6 and counts.counts[6] > 0


def test_they_stay_zero_in_a_second_fit_and_nothing_is_left_on_the_model():
    model = network()
    pruning = pruning_of()
    fit(model, pruning)
    gone = zeros(model)
    assert "apply" not in vars(model.optimizer)
    fit(model, pruning)
    assert zeros(model) == gone
    assert "apply" not in vars(model.optimizer)
    x, y = DATA
    model.fit(x, y, 8, verbose=0)  # Without the callback they train again.
    assert zeros(model) < gone
    first = []

    class See(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            first.append(zeros(self.model))

    fit(model, pruning, 1, [See()])
    assert first == [gone] * 3


@pytest.mark.long
def test_masks_of_weights_that_were_cut_in_between_are_refused():
    model = network()
    pruning = pruning_of()
    fit(model, pruning, 2)
    other = kpt.EarlyCroPCallback(0.4, DATA, when="start")
    fit(model, other, 1)
    assert len(other.reports) == 1
    before = model.get_weights()
    with pytest.raises(ValueError, match="no longer has: .*logits/kernel"):
        fit(model, pruning)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert "apply" not in vars(model.optimizer)
    pruning.forget()
    fit(model, pruning, 2)
    assert zeros(model) == size(model) - round(0.1 * size(model))


def test_a_layer_may_be_frozen_afterwards():
    model = network()
    pruning = pruning_of()
    fit(model, pruning, 2)
    gone = zeros(model)
    model.get_layer("inner").trainable = False
    model.compile("adam", model.loss, run_eagerly=True)
    fit(model, pruning, 1)
    model.get_layer("inner").trainable = True
    assert zeros(model) == gone


def test_at_the_start_the_first_step_has_zeros():
    model = network()
    counts = Zeros()
    fit(model, pruning_of(when="start"), 1, [counts])
    assert counts.counts == [size(model) - round(0.1 * size(model))] * 3


@pytest.mark.long
def test_on_two_replicas(strategy):
    masks = []
    for scope in (strategy.scope(), contextlib.nullcontext()):
        with scope:
            model = network(
                synchronized=True, dropout=0.0, compiled={"run_eagerly": False}
            )
        pruning = pruning_of()
        fit(model, pruning, 2)
        assert zeros(model) == size(model) - round(0.1 * size(model))
        masks.append(pruning._masks.masks)
    same = [
        (one == other).mean()
        for one, other in zip(masks[0].values(), masks[1].values(), strict=True)
    ]
    assert min(same) > 0.99  # Rounding may exchange two weights.


@pytest.mark.long
def test_the_file_is_smaller_by_compression(tmp_path):
    sizes = []
    for sparsity in (0.1, 0.95):
        model = network()
        fit(model, pruning_of(sparsity), 2)
        path = tmp_path / f"{sparsity}.keras"
        model.save(path)
        packed = tmp_path / f"{sparsity}.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(
                "weights",
                b"".join(v.numpy().tobytes() for v in model.trainable_weights),
            )
        sizes.append(packed.stat().st_size)
        loaded = keras.saving.load_model(path)
        kept = [
            [x.kept for x in kpt.mask_report(one)] for one in (loaded, model)
        ]
        assert kept[0] == kept[1]
    assert sizes[1] < 0.3 * sizes[0]


def test_the_report_counts_zeros():
    model = network()
    kernel = model.get_layer("stem").kernel
    value = np.ones(kernel.shape)
    value[..., :3] = 0.0
    kernel.assign(value)
    report = kpt.mask_report(model)
    (row,) = [x for x in report if x.kernel == kernel.path]
    assert (row.size, row.kept, row.density) == (162, 81, 0.5)
    assert 0.5 < report.density < 1.0
    assert "50.0%" in str(report) and "162" in str(report)
    with pytest.raises(ValueError, match="`model` must be a `keras.Model`"):
        kpt.mask_report(3)


def program(folder, stop=None, **kwargs):
    """A program that is started again after it was killed at `stop`."""
    model = network()
    pruning = pruning_of(**kwargs)
    history = model.fit(
        *(*DATA, 8, 4),
        verbose=0,
        shuffle=False,
        callbacks=[kpt.BackupAndRestore(folder), pruning, Break(stop)],
    )
    return Trained(model, pruning, history)


@pytest.mark.long
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path):
    for stop in [(1, 1), (2, 1)]:
        with pytest.raises(RuntimeError, match="killed"):
            program(tmp_path / "pieces", stop)
    pieces = program(tmp_path / "pieces")
    pieces.equals(program(tmp_path / "whole"))


@pytest.mark.long
def test_an_interruption_between_two_iterations(tmp_path):
    settings = {"iterations": 3, "interval": 1}
    with pytest.raises(RuntimeError, match="killed"):
        program(tmp_path / "pieces", (2, 1), **settings)
    pieces = program(tmp_path / "pieces", **settings)
    whole = program(tmp_path / "whole", **settings)
    pieces.equals(whole)
    masks = [x.pruning._masks.masks.values() for x in (pieces, whole)]
    for one, other in zip(*masks, strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_process_may_name_the_layers_otherwise(tmp_path):
    def run(stop):
        model = keras.Sequential(
            [keras.Input((8, 8, 3)), keras.layers.Flatten()]
            + [keras.layers.Dense(3)]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, run_eagerly=True)
        backup = kpt.BackupAndRestore(tmp_path / "backup")
        fit(model, pruning_of(), 3, [backup, Break(stop)])
        return model

    with pytest.raises(RuntimeError, match="killed"):
        run((1, 1))
    model = run(None)  # Its layer is `dense_1` if that one's was `dense`.
    assert zeros(model) == size(model) - round(0.1 * size(model))


def test_a_target_for_channels_is_refused():
    with pytest.raises(ValueError, match="Leave it out with structured=False"):
        pruning_of(target="flops")

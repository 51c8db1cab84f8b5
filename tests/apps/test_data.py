import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from apps import data
from apps.refusal import RefusedError


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def cifar10():
    tfds = pytest.importorskip("tensorflow_datasets")
    if not tfds.builder("cifar10").is_prepared():
        pytest.skip(
            "CIFAR-10 is not prepared; run python tools/prepare_cifar10.py"
        )
    return data.load("cifar10")


def numbered(size=300, padding=4, flips=True):
    """A data set whose labels number the images."""
    images = np.random.default_rng(0).integers(
        0, 256, (size, 32, 32, 3), dtype="uint8"
    )
    examples = (images, np.arange(size, dtype="int32"))
    return data.Dataset(
        name="numbered",
        train=examples,
        validation=examples,
        classes=size,
        padding=padding,
        flips=flips,
    )


def test_downscaled_pixels_are_the_rounded_means_of_blocks():
    whole = numbered(size=5)
    half = whole.downscaled(16)
    assert half.image_shape == (16, 16, 3)
    assert half.padding == 2
    for images, small in zip(
        (whole.train[0], whole.validation[0]),
        (half.train[0], half.validation[0]),
        strict=True,
    ):
        rows = images.astype(float).reshape(5, 16, 2, 32, 3).mean(axis=2)
        means = rows.reshape(5, 16, 16, 2, 3).mean(axis=3)
        np.testing.assert_array_equal(small, np.floor(means + 0.5))
    np.testing.assert_array_equal(half.train[1], whole.train[1])
    np.testing.assert_allclose(
        half.mean, half.train[0].mean(axis=(0, 1, 2)), rtol=1e-12
    )


def test_images_are_not_downscaled_to_a_size_that_does_not_divide_theirs():
    with pytest.raises(RefusedError, match="32x32 pixels cannot .* 12x12"):
        numbered(size=2).downscaled(12)


def read(batches):
    """All images and labels of one epoch."""
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def crop_with_numpy(image, top, left, flip, padding):
    padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)])
    crop = padded[top : top + image.shape[0], left : left + image.shape[1]]
    return crop[:, ::-1] if flip else crop


def placement(dataset, images, labels):
    """Finds offsets and flip of each augmented image by trying all."""
    padding = dataset.padding
    originals = (dataset.train[0] - dataset.mean) / dataset.std
    found = []
    for image, label in zip(images, labels, strict=True):
        matches = [
            (top, left, flip)
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for flip in (False, True)
            if np.abs(
                image
                - crop_with_numpy(originals[label], top, left, flip, padding)
            ).max()
            < 1e-5
        ]
        assert len(matches) == 1
        found += matches
    return np.array(found)


def test_each_image_appears_exactly_once_in_an_epoch():
    dataset = numbered()
    batches = dataset.training_batches(64, seed=0)
    for _ in range(2):
        _, labels = read(batches)
        np.testing.assert_array_equal(np.sort(labels), np.arange(300))


def test_images_keep_their_labels():
    dataset = numbered()
    images, labels = read(dataset.training_batches(64, 0, augment=False))
    expected = (dataset.train[0] - dataset.mean) / dataset.std
    np.testing.assert_allclose(images, expected[labels], atol=1e-5)


def test_the_last_batch_is_partial_and_the_number_of_steps_is_known():
    dataset = numbered()
    for batches in (
        dataset.training_batches(64, seed=0),
        dataset.validation_batches(64),
    ):
        assert tf.data.experimental.cardinality(batches) == 5
        sizes = [len(labels) for _, labels in batches]
        assert sizes == [64, 64, 64, 64, 44]


def test_batches_have_the_types_and_shapes_that_training_expects(digits):
    for batches in (
        digits.training_batches(64, seed=0),
        digits.validation_batches(64),
    ):
        images, labels = batches.element_spec
        assert images == tf.TensorSpec((None, 8, 8, 1), tf.float32)
        assert labels == tf.TensorSpec((None,), tf.int32)


def test_no_epoch_waits_for_the_tuner_of_its_iterator():
    dataset = numbered()
    for batches in (
        dataset.training_batches(64, seed=0),
        dataset.validation_batches(64),
    ):
        assert batches.options().autotune.enabled is False


def test_offsets_and_flips_differ_within_a_batch_and_cover_their_range():
    dataset = numbered()
    images, labels = next(
        dataset.training_batches(256, seed=0).as_numpy_iterator()
    )
    tops, lefts, flips = placement(dataset, images, labels).T
    assert set(tops) == set(lefts) == set(range(9))
    # Binomial with 256 draws: 5 standard deviations around one half.
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / np.sqrt(256)
    for one, other in [(tops, lefts), (tops, flips), (lefts, flips)]:
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(256)


def test_an_image_is_augmented_anew_in_each_epoch():
    dataset = numbered(size=100)
    batches = dataset.training_batches(50, seed=0)
    epochs = []
    for _ in range(2):
        images, labels = read(batches)
        epochs.append(placement(dataset, images, labels)[np.argsort(labels)])
    same = (epochs[0] == epochs[1]).all(axis=1)
    assert same.mean() < 0.1  # 1 / 162 by chance.


def test_how_an_image_is_augmented_does_not_depend_on_which_it_is():
    # Order and dice from one seed would be the same numbers: of 81 images, the
    # first of an epoch would always be shifted down by its index modulo 9.
    draws = numbered(size=81).training_draws(seed=0)
    indices, dice = np.array(
        list(draws.take(1).repeat(300).as_numpy_iterator())
    ).T
    tops, lefts, flips = data.read_dice(dice, padding=4)
    for drawn, choices in [(tops, 9), (lefts, 9), (flips, 2)]:
        share = 1 / choices
        same = (indices % choices == drawn).mean()
        assert abs(same - share) < 5 * np.sqrt(share * (1 - share) / 300)


def test_digits_are_never_flipped():
    dataset = numbered(flips=False)
    images, labels = next(
        dataset.training_batches(128, seed=0).as_numpy_iterator()
    )
    assert not placement(dataset, images, labels)[:, 2].any()
    assert not data.load("digits").flips


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
    def two_epochs(seed):
        batches = numbered().training_batches(64, seed)
        return [read(batches) for _ in range(2)]

    first, again, other = two_epochs(1), two_epochs(1), two_epochs(2)
    for (images, labels), (images_again, labels_again) in zip(
        first, again, strict=True
    ):
        np.testing.assert_array_equal(labels, labels_again)
        np.testing.assert_array_equal(images, images_again)
    assert (first[0][1] != first[1][1]).any()  # Epochs differ.
    assert (first[0][1] != other[0][1]).any()


def test_augmentation_does_not_depend_on_the_batch_size():
    images, labels = read(numbered().training_batches(64, seed=3))
    images_again, labels_again = read(numbered().training_batches(7, seed=3))
    np.testing.assert_array_equal(labels, labels_again)
    np.testing.assert_array_equal(images, images_again)


@pytest.mark.parametrize("shape", [(32, 32, 3), (16, 24, 1)])
def test_shifting_and_flipping_matches_numpy(shape):
    generator = np.random.default_rng(1)
    images = generator.normal(size=(50, *shape)).astype("float32")
    tops, lefts = generator.integers(0, 9, (2, 50))
    flips = generator.integers(0, 2, 50).astype(bool)
    expected = [
        crop_with_numpy(*arguments, padding=4)
        for arguments in zip(images, tops, lefts, flips, strict=True)
    ]
    found = data.shift_and_flip(images, tops, lefts, flips, padding=4)
    np.testing.assert_array_equal(found, expected)


def test_an_image_that_is_not_shifted_stays_as_it_is():
    images = np.random.default_rng(2).normal(size=(3, 8, 8, 1))
    middle = np.full(3, 2)
    found = data.shift_and_flip(
        images, middle, middle, np.zeros(3, bool), padding=2
    )
    np.testing.assert_array_equal(found, images)


def test_padding_is_zero_after_normalization():
    dataset = numbered(size=1)
    images, labels = next(
        dataset.training_batches(1, seed=0).as_numpy_iterator()
    )
    ((top, left, _),) = placement(dataset, images, labels)
    outside = abs(top - 4) * 32 + abs(left - 4) * (32 - abs(top - 4))
    assert outside > 0
    assert (images == 0).all(axis=-1).sum() == outside


@pytest.mark.parametrize("channels", [1, 3])
def test_training_images_are_normalized_per_channel(channels, digits):
    dataset = {1: digits, 3: numbered()}[channels]
    images, _ = read(dataset.training_batches(512, 0, augment=False))
    images = images.astype("float64")
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), 1, atol=1e-5)


def test_validation_images_are_in_order_and_not_augmented(digits):
    images, labels = read(digits.validation_batches(100))
    expected = (digits.validation[0] - digits.mean) / digits.std
    np.testing.assert_allclose(images, expected, atol=1e-5)
    np.testing.assert_array_equal(labels, digits.validation[1])


def test_digits_hold_out_a_stratified_fifth_without_overlap(digits):
    assert (digits.train_size, digits.validation_size) == (1437, 360)
    assert digits.image_shape == (8, 8, 1)
    train, held_out = (
        {image.tobytes() for image in images}
        for images, _ in (digits.train, digits.validation)
    )
    # All images differ, so that the two sets of bytes show every overlap.
    assert len(train) + len(held_out) == 1797
    assert not train & held_out
    share = np.bincount(digits.validation[1]) / np.bincount(digits.train[1])
    np.testing.assert_allclose(share, 0.25, atol=0.01)


def test_digits_are_the_original_ones(digits):
    from sklearn.datasets import load_digits

    originals = {
        (image.astype("uint8").tobytes(), label)
        for image, label in zip(*load_digits(return_X_y=True), strict=True)
    }
    assert originals >= {
        (image.tobytes(), label)
        for image, label in zip(*digits.train, strict=True)
    }


def test_all_runs_hold_out_the_same_digits_unless_told_otherwise(digits):
    again, other = data.load("digits"), data.load("digits", seed=1)
    np.testing.assert_array_equal(digits.train[1], again.train[1])
    assert (digits.train[1] != other.train[1]).any()


def test_cifar10_is_the_one_that_papers_use(cifar10):
    assert cifar10.image_shape == (32, 32, 3)
    assert (cifar10.train_size, cifar10.validation_size) == (50_000, 10_000)
    for _, labels in (cifar10.train, cifar10.validation):
        assert (np.bincount(labels) == len(labels) / 10).all()
    mean, std = cifar10.mean / 255, cifar10.std / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-4)
    np.testing.assert_allclose(std, [0.2470, 0.2435, 0.2616], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "classes"), [("cifar10", 10), ("cifar100", 100)]
)
def test_a_prepared_data_set_is_read_with_its_own_splits(
    name, classes, tmp_path
):
    import tensorflow_datasets as tfds

    images = numbered(size=30).train[0]
    labels = np.arange(30) % classes

    def example(index):
        known = {"id": str(index), "image": images[index], "coarse_label": 0}
        wanted = {"label": labels[index]}
        return {key: (known | wanted)[key] for key in builder.info.features}

    builder = tfds.builder(name, data_dir=tmp_path)
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=builder.version,
        features=builder.info.features,
        split_datasets={
            "train": [(index, example(index)) for index in range(20)],
            "test": [(index, example(index)) for index in range(20, 30)],
        },
        data_dir=tmp_path,
    )
    dataset = data.load(name, data_dir=str(tmp_path))
    assert dataset.classes == classes
    for split, indices in [
        (dataset.train, range(20)),
        (dataset.validation, range(20, 30)),
    ]:
        found = {
            (image.tobytes(), label)
            for image, label in zip(*split, strict=True)
        }
        assert found == {(images[i].tobytes(), labels[i]) for i in indices}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_an_unprepared_data_set_says_at_once_how_to_prepare_it(name, tmp_path):
    import tensorflow_datasets  # noqa: F401, takes its time before the clock.

    start = time.perf_counter()
    with pytest.raises(ValueError, match="is not prepared") as raised:
        data.load(name, data_dir=str(tmp_path))
    assert time.perf_counter() - start < 5
    message = str(raised.value)
    assert f"builder('{name}', data_dir='{tmp_path}')" in message
    tool = f"python tools/prepare_cifar10.py --data_dir={tmp_path}"
    assert (tool in message) == (name == "cifar10")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_command_in_that_message_is_one_that_python_takes(name, tmp_path):
    with pytest.raises(ValueError) as raised:
        data.load(name, data_dir=str(tmp_path))
    (line,) = (
        line for line in str(raised.value).splitlines() if "python -c" in line
    )
    code = line.split('"')[1].replace(".download_and_prepare()", ".info")
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr


def test_a_home_directory_in_the_path_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=f"data_dir='{tmp_path}/sets'"):
        data.load("cifar100", data_dir="~/sets")


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="digits, cifar10, cifar100"):
        data.load("mnist")


def test_a_batch_needs_at_least_one_image(digits):
    with pytest.raises(ValueError, match="at least 1, but it is 0"):
        digits.training_batches(0, seed=0)
    with pytest.raises(ValueError, match="at least 1, but it is -1"):
        digits.validation_batches(-1)

"""Small image data sets in memory, as batches that `fit` takes.

A `Dataset` holds all its images as NumPy arrays of bytes. An epoch is a stream
of pairs (which image, which dice): the first number picks an image, the second
decides how it is shifted and flipped. Only then the stream is cut into batches,
and everything else is one gather per batch:

    order and dice -> batch -> pick images -> normalize -> shift and flip

So each image has dice of its own, they do not depend on the batch size, and no
step works on single images, which would keep a core busy that training needs.
"""

import dataclasses
import os

import numpy as np
import tensorflow as tf

from apps.refusal import RefusedError

_CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
NAMES = ("digits", *_CIFAR_CLASSES)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images for training and validation, and how to batch them.

    Attributes:
        name: One of `NAMES`.
        train: Images and labels to learn from: `uint8`, shape
            `(train_size, height, width, channels)`, and `int32`, shape
            `(train_size,)`, in `[0, classes)`.
        validation: The same for images that are never trained on.
        classes: Number of classes.
        padding: Largest shift of a training image, in pixels.
        flips: Whether a mirrored image still belongs to its class.
        mean: Mean of the training images per channel, in their own unit.
        std: Their standard deviation per channel, in the same unit.
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    classes: int
    padding: int
    flips: bool
    mean: np.ndarray = dataclasses.field(init=False)
    std: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self):
        mean, std = _channel_moments(self.train[0])
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    @property
    def image_shape(self):
        """Height, width and channels of an image."""
        return self.train[0].shape[1:]

    @property
    def train_size(self):
        """Number of training images."""
        return len(self.train[1])

    @property
    def validation_size(self):
        """Number of validation images."""
        return len(self.validation[1])

    def downscaled(self, size):
        """Returns this data set with square images of `size` pixels a side.

        Each pixel is the rounded mean of a block of pixels, and the shifts
        shrink along. An epoch of images half as high takes a quarter of the
        time, so that more settings and seeds can be compared.

        Args:
            size: Integer that divides height and width.

        Raises:
            RefusedError: If it does not.
        """
        height, width, channels = self.image_shape
        if height != width or size < 1 or height % size:
            raise RefusedError(
                f"Images of {height}x{width} pixels cannot be downscaled to "
                f"{size}x{size}: choose an --image_size that divides them."
            )
        block = height // size

        def means(images):
            blocks = images.reshape(-1, size, block, size, block, channels)
            # Of the bytes; a sum of integers is exact in any order.
            sums = blocks.sum(axis=(2, 4), dtype="uint32")
            return ((sums + block**2 // 2) // block**2).astype("uint8")

        return dataclasses.replace(
            self,
            train=(means(self.train[0]), self.train[1]),
            validation=(means(self.validation[0]), self.validation[1]),
            padding=self.padding // block,
        )

    def training_batches(self, batch_size, seed, augment=True):
        """Returns one epoch of training, in a new order each time it is read.

        The last batch of an epoch is smaller if need be: no image is dropped.

        Args:
            batch_size: Images per batch.
            seed: Integer that decides order and augmentation of all epochs,
                together with TensorFlow's global seed where one is set.
            augment: Whether to shift and flip the images.

        Returns:
            `tf.data.Dataset` of known cardinality with normalized images,
            `float32` of shape `(batch, *image_shape)`, and `int32` labels.
        """
        draws = self.training_draws(seed).batch(_checked(batch_size))
        return self.drawn_batches(draws, augment=augment)

    def training_draws(self, seed):
        """Decides which image comes when, and how it is augmented.

        Between this and `drawn_batches` stands whatever forms the batches, be
        it one whose size changes during training.

        Args:
            seed: As in `training_batches`.

        Returns:
            Unbatched `tf.data.Dataset` of `train_size` pairs of `int64`: the
            index of an image and its dice, in `[0, 2**32)`.
        """
        # Two seeds: from one seed, order and dice would be the same numbers,
        # and an image would tend to be augmented alike in each epoch.
        order_seed, dice_seed = map(
            int, np.random.SeedSequence(seed).generate_state(2)
        )
        order = tf.data.Dataset.range(self.train_size).shuffle(
            self.train_size, seed=order_seed, reshuffle_each_iteration=True
        )
        dice = tf.data.Dataset.random(
            seed=dice_seed, rerandomize_each_iteration=True
        )
        return tf.data.Dataset.zip(order, dice)

    def drawn_batches(self, draws, augment=True):
        """Replaces batches of `training_draws` by the images that they name.

        Args:
            draws: Batched `tf.data.Dataset` of pairs (index, dice).
            augment: Whether to shift and flip the images.

        Returns:
            `tf.data.Dataset` as of `training_batches`.
        """
        images, labels = _on_cpu(self.train)

        def examples(indices, dice):
            batch = self._normalized(tf.gather(images, indices))
            if augment:
                tops, lefts, flips = read_dice(dice, self.padding)
                flips &= self.flips
                batch = shift_and_flip(batch, tops, lefts, flips, self.padding)
            return batch, tf.gather(labels, indices)

        return _map_ahead(draws, examples)

    def validation_batches(self, batch_size):
        """Returns the validation images in their fixed order, not augmented.

        Args:
            batch_size: Images per batch; the last batch may be smaller.

        Returns:
            `tf.data.Dataset` as of `training_batches`.
        """
        with tf.device("/CPU:0"):
            examples = tf.data.Dataset.from_tensor_slices(self.validation)
        return _map_ahead(
            examples.batch(_checked(batch_size)),
            lambda images, labels: (self._normalized(images), labels),
        )

    def _normalized(self, images):
        """Gives each channel mean 0 and variance 1 over the training set."""
        # Spread over the whole image: TensorFlow adds and multiplies three
        # times as fast as with one number per channel.
        scale = np.broadcast_to(1 / self.std, self.image_shape)
        shift = np.broadcast_to(-self.mean / self.std, self.image_shape)
        images = tf.cast(images, tf.float32)
        return images * scale.astype("float32") + shift.astype("float32")


def read_dice(dice, padding):
    """Decides from its dice how each image is shifted and flipped.

    Args:
        dice: `int64` of shape `(batch,)`, uniform in `[0, 2**32)`.
        padding: Largest shift, in pixels.

    Returns:
        `tops` and `lefts`, `int64` in `[0, 2 * padding]`, and `flips`,
        boolean: all of shape `(batch,)`, uniform, independent of each other.
    """
    positions = 2 * padding + 1
    tops, dice = dice % positions, dice // positions
    lefts, dice = dice % positions, dice // positions
    return tops, lefts, dice % 2 == 1


def shift_and_flip(images, tops, lefts, flips, padding):
    """Crops each image out of its padded self, and mirrors some of them.

    The padding is zero AFTER normalization, the mean colour, as in He et al.
    2016: a shifted image continues as convolutions with zero padding continue
    it, and the mean of a batch stays near zero.

    Args:
        images: Normalized `float32` images of shape
            `(batch, height, width, channels)`.
        tops: Integers of shape `(batch,)` in `[0, 2 * padding]`: first row of
            each crop. `padding` leaves the image in its place.
        lefts: The same for the first column.
        flips: Booleans of shape `(batch,)`: whether to mirror left and right.
        padding: Pixels to add on each side.

    Returns:
        Tensor of the shape of `images`.
    """
    height, width = images.shape[1:3]
    padded = tf.pad(images, [[0, 0], [padding] * 2, [padding] * 2, [0, 0]])
    rows = tops[:, None] + tf.range(height, dtype=tops.dtype)
    columns = tf.range(width, dtype=lefts.dtype)
    columns = tf.where(flips[:, None], columns[::-1], columns)
    columns = lefts[:, None] + columns
    padded = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(padded, columns, axis=2, batch_dims=1)


def load(name, data_dir=None, seed=0):
    """Reads a data set into memory.

    Args:
        name: `"digits"` (comes with scikit-learn), `"cifar10"` or
            `"cifar100"` (must have been prepared by TensorFlow Datasets).
        data_dir: Where TensorFlow Datasets keeps its data; `None` for its
            default, `~/tensorflow_datasets`. Digits do not need it.
        seed: Chooses the held-out fifth of the digits; CIFAR has a validation
            split of its own. This is not the seed of a training: runs can only
            be compared, and averaged, if they hold out the same images.

    Returns:
        `Dataset`.

    Raises:
        RefusedError: If the data is not there.
    """
    if name == "digits":
        return _digits(seed)
    if name in _CIFAR_CLASSES:
        return _cifar(name, data_dir)
    raise RefusedError(
        f"There is no data set '{name}'. Choose one of: {', '.join(NAMES)}."
    )


def _digits(seed):
    """Reads the 1,797 handwritten digits, as they are, 8x8 pixels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = digits.images.astype("uint8")
    train, held_out, train_labels, held_out_labels = train_test_split(
        images[..., None],
        digits.target.astype("int32"),
        test_size=0.2,
        stratify=digits.target,
        random_state=seed,
    )
    return Dataset(
        name="digits",
        train=(train, train_labels),
        validation=(held_out, held_out_labels),
        classes=10,
        padding=1,
        flips=False,
    )


def _cifar(name, data_dir):
    """Reads CIFAR as TensorFlow Datasets has prepared it."""
    # Takes seconds to import, which digits need not wait for.
    import tensorflow_datasets as tfds

    # TFDS takes "~" for a directory of that name.
    expanded = data_dir and os.path.expanduser(data_dir)
    builder = tfds.builder(name, data_dir=expanded)
    # Asked first, because where there is no route to the data host, TFDS
    # tries to download for minutes.
    if not builder.is_prepared():
        raise RefusedError(_how_to_prepare(name, expanded, builder.data_dir))

    def split(key):
        images, labels = tfds.as_numpy(
            builder.as_dataset(split=key, batch_size=-1, as_supervised=True)
        )
        return images, labels.astype("int32")

    return Dataset(
        name=name,
        train=split("train"),
        validation=split("test"),
        classes=_CIFAR_CLASSES[name],
        padding=4,
        flips=True,
    )


def _how_to_prepare(name, data_dir, place):
    """Writes the error message for a data set that is not on this machine."""
    directory = "" if data_dir is None else f", data_dir='{data_dir}'"
    message = (
        f"The data set '{name}' is not prepared: expected it in {place}.\n"
        "With access to its data host, download and prepare it with\n\n"
        '    python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}'{directory}).download_and_prepare()\"\n"
    )
    if name == "cifar10":
        option = "" if data_dir is None else f" --data_dir={data_dir}"
        message += (
            "\nor, with npm and without that host, with\n\n"
            f"    python tools/prepare_cifar10.py{option}\n"
        )
    return message


def _channel_moments(images):
    """Returns mean and standard deviation per channel of `uint8` images."""
    # From the counts of the 256 values: exact, and without a copy of the data
    # set in floating point, eight times its size.
    counts = np.stack(
        [
            np.bincount(images[..., channel].ravel(), minlength=256)
            for channel in range(images.shape[-1])
        ]
    )
    shares = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
    return mean, np.sqrt(variance)


def _map_ahead(batches, function):
    """Applies `function` to `batches`, some ahead of what is asked for."""
    # Not left to autotuning: with it (TensorFlow 2.21), one iterator in six
    # closes only when its tuner next wakes up, which can take as long again as
    # the epoch did. `fit` closes an iterator after each epoch.
    options = tf.data.Options()
    options.autotune.enabled = False
    return (
        batches.map(function, num_parallel_calls=4, deterministic=True)
        .prefetch(4)
        .with_options(options)
    )


def _on_cpu(arrays):
    """Makes tensors in host memory, also where there is a GPU."""
    with tf.device("/CPU:0"):
        return tuple(tf.convert_to_tensor(array) for array in arrays)


def _checked(batch_size):
    """Returns `batch_size` if it is one."""
    if batch_size < 1:
        raise ValueError(
            f"The batch size must be at least 1, but it is {batch_size}."
        )
    return batch_size

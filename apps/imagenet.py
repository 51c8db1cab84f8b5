"""ImageNet-like data: JPEG files, decoded and augmented while training runs.

    order -> read -> decode a random part -> resize, flip, normalize -> batch

Every image has dice of its own, which decide the part of it that is shown, so
an epoch does not depend on how many threads decode. Only that part is decoded,
which is most of the speed.
"""

import dataclasses
import os
import pathlib
import re
from concurrent import futures

import numpy as np
import tensorflow as tf

from apps.refusal import RefusedError

NAMES = ("imagenet2012", "folder", "fake")
# Of the training images of ImageNet, in [0, 255].
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
# The part of the area that is shown, and its shape (Szegedy et al. 2015).
_AREA = (0.08, 1.0)
_ASPECT_RATIO = (3 / 4, 4 / 3)
_CENTRAL = 0.875  # 224 of 256 pixels.


# What reading and decoding an image may raise.
ERRORS_OF_IMAGES = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,  # A folder.
    tf.errors.DataLossError,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Encoded, labelled images, and how to make training batches of them.

    Attributes:
        name: One of `NAMES`.
        train: Unbatched `tf.data.Dataset` of pairs: an encoded image or the
            path of one, a scalar string, and its label, `int32`. In a new
            order at each pass, of known size.
        validation: The same, in a fixed order.
        classes: Number of classes.
        image_size: Height and width of what the network sees, in pixels.
        are_paths: Whether the strings are paths.
    """

    name: str
    train: tf.data.Dataset
    validation: tf.data.Dataset
    classes: int
    image_size: int
    are_paths: bool

    @property
    def image_shape(self):
        """Height, width and channels of an image."""
        return (self.image_size, self.image_size, 3)

    @property
    def train_size(self):
        """Number of training images."""
        return int(self.train.cardinality())

    @property
    def validation_size(self):
        """Number of validation images."""
        return int(self.validation.cardinality())

    def training_draws(self, seed):
        """Returns decoded and augmented images with labels, unbatched."""
        dice = tf.data.Dataset.random(
            seed=seed, rerandomize_each_iteration=True
        ).batch(2, drop_remainder=True)
        return tf.data.Dataset.zip(self.train, dice).map(
            lambda example, dice: (
                self._normalized(
                    random_part(self.encoded(example[0]), dice, self.image_size)
                ),
                example[1],
            ),
            num_parallel_calls=_cores(),
            deterministic=True,
        )

    def drawn_batches(self, draws):
        """Returns batches of `training_draws`, some ahead of what is asked."""
        return _without_tuner(draws.prefetch(2))

    def validation_batches(self, batch_size):
        """Returns the middle of each validation image, in batches."""
        examples = self.validation.map(
            lambda image, label: (
                self._normalized(
                    central_part(self.encoded(image), self.image_size)
                ),
                label,
            ),
            num_parallel_calls=_cores(),
        )
        return _without_tuner(examples.batch(batch_size).prefetch(2))

    def encoded(self, image):
        """Returns the bytes of an image of `train` or `validation`."""
        return tf.io.read_file(image) if self.are_paths else image

    def problem(self, image):
        """Returns why an image cannot be read, a sentence, or `None`."""
        try:
            _decoded(self.encoded(image))
        except ERRORS_OF_IMAGES as error:
            name = os.fsdecode(image) if self.are_paths else "An image"
            # Without the names of TensorFlow's operations.
            why = re.sub(r"^{{.*?}} *| *\[Op:.*$", "", error.message)
            return f"{name} cannot be read as an image: {why.rstrip('.')}."
        return None

    def _normalized(self, image):
        return (tf.cast(image, tf.float32) - _MEAN) / _STD


def random_part(encoded, dice, size):
    """Decodes a random part of an image, resizes it and mirrors it or not.

    Args:
        encoded: Scalar string, a JPEG (or a PNG: ImageNet has one).
        dice: `int64` of shape `(2,)`, the seed.
        size: Integer, height and width of the result in pixels.

    Returns:
        `float32` of shape `(size, size, 3)`, in `[0, 255]`.
    """
    box = _box_of_random_part(_shape(encoded), dice)
    image = _decoded_part(encoded, box)
    image = tf.image.resize(image, (size, size))
    # With a seed of its own: the first number drawn from `dice` decides the
    # shape of the part, and only wide ones would be mirrored.
    image = tf.image.stateless_random_flip_left_right(
        image, tf.add(dice, [0, 1])
    )
    return tf.ensure_shape(image, (size, size, 3))


def central_part(encoded, size):
    """Decodes the middle of an image, 7/8 of its shorter side; as above."""
    shape = _shape(encoded)
    side = tf.cast(
        _CENTRAL * tf.cast(tf.reduce_min(shape[:2]), tf.float32), tf.int32
    )
    side = tf.maximum(side, 1)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    image = _decoded_part(encoded, tf.stack([top, left, side, side]))
    image = tf.image.resize(image, (size, size))
    return tf.ensure_shape(image, (size, size, 3))


def _box_of_random_part(shape, dice):
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.zeros((1, 0, 4)),
        seed=dice,
        min_object_covered=0.0,
        aspect_ratio_range=_ASPECT_RATIO,
        area_range=_AREA,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], extent[:2]], axis=0)


def _shape(encoded):
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.extract_jpeg_shape(encoded),
        lambda: tf.shape(_decoded(encoded)),
    )


def _decoded_part(encoded, box):
    """Decodes `box` (top, left, height, width) only, where JPEG allows it."""
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_and_crop_jpeg(
            encoded, box, channels=3, dct_method="INTEGER_FAST"
        ),
        lambda: tf.slice(
            _decoded(encoded),
            tf.concat([box[:2], [0]], axis=0),
            tf.concat([box[2:], [3]], axis=0),
        ),
    )


def _decoded(encoded):
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def broken_image(images):
    """Looks for an image that cannot be read.

    The error that ends a training does not name the image. To look at all of
    them takes about as long as an epoch of a small network.

    Args:
        images: An `Images`.

    Returns:
        A sentence that names the first one; `None` if all can be read.
    """
    print("An image may be broken. Looking at all of them ...", flush=True)
    with futures.ThreadPoolExecutor(_cores()) as executor:
        for split in (images.validation, images.train):
            for some, _ in split.batch(256):
                found = executor.map(images.problem, some.numpy())
                for sentence in filter(None, found):
                    return sentence
    return None


def load(name, image_size=224, data_dir=None, seed=0):
    """Opens a data set; images are read when they are needed.

    Args:
        name: `"imagenet2012"` (prepared by TensorFlow Datasets), `"folder"`
            (`data_dir/train/CLASS/*.JPEG` and `data_dir/validation/...`; any
            other name of the second folder will do), or `"fake"` (some JPEGs
            made up on the spot, for a smoke test).
        image_size: Height and width of what the network sees, in pixels.
        data_dir: Where the data lies; for `"imagenet2012"` `None` for the
            default of TensorFlow Datasets.
        seed: Of the order of the training images.

    Returns:
        `Images`.

    Raises:
        RefusedError: If the data is not there.
    """
    loaders = {"imagenet2012": _prepared, "folder": _folder, "fake": _fake}
    if name not in loaders:
        raise RefusedError(
            f"There is no data set '{name}'. Choose one of: {', '.join(NAMES)}."
        )
    train, validation, classes, are_paths = loaders[name](data_dir, seed)
    return Images(name, train, validation, classes, image_size, are_paths)


def _prepared(data_dir, seed):
    # Takes seconds to import.
    import tensorflow_datasets as tfds

    expanded = data_dir and os.path.expanduser(data_dir)
    builder = tfds.builder("imagenet2012", data_dir=expanded)
    if not builder.is_prepared():
        raise RefusedError(
            "The data set 'imagenet2012' is not prepared: expected it in "
            f"{builder.data_dir}.\nIts archives need an account at "
            "image-net.org; see "
            "https://www.tensorflow.org/datasets/catalog/imagenet2012. With a "
            "folder of JPEG files, use --dataset=folder --data_dir=FOLDER."
        )

    def split(key, **options):
        examples = builder.as_dataset(
            split=key,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(shuffle_seed=seed),
            **options,
        )
        pairs = examples.map(
            lambda x: (x["image"], tf.cast(x["label"], tf.int32)),
            num_parallel_calls=_cores(),
        )
        count = builder.info.splits[key].num_examples
        return pairs.apply(tf.data.experimental.assert_cardinality(count))

    train = split("train", shuffle_files=True)
    # Encoded, so that many of them fit: 100 KB each. Files are shuffled, too.
    train = train.shuffle(min(train.cardinality(), 16_384), seed=seed)
    classes = builder.info.features["label"].num_classes
    return train, split("validation"), classes, False


def _folder(data_dir, seed):
    root = pathlib.Path(os.path.expanduser(data_dir or "."))
    splits = sorted(x for x in root.glob("*") if x.is_dir())
    others = [x for x in splits if x.name != "train"]
    if root / "train" not in splits or len(others) != 1:
        raise RefusedError(
            "A folder of images has two folders in it, 'train' and another one "
            "for validation, with a folder for each class: "
            f"{root}/train/CLASS/*.JPEG. Found in {root}: "
            f"{', '.join(x.name for x in splits) or 'no folder'}."
        )
    names = sorted(x.name for x in (root / "train").iterdir() if x.is_dir())
    labels = {name: label for label, name in enumerate(names)}

    def split(folder):
        files = sorted(
            file
            for file in folder.glob("*/*")
            if file.suffix.lower() in (".jpeg", ".jpg", ".png")
        )
        unknown = {file.parent.name for file in files} - labels.keys()
        if unknown or not files:
            what = f"classes {', '.join(sorted(unknown)[:3])}, not in 'train'"
            raise RefusedError(
                f"{folder} has {what if unknown else 'no images'}."
            )
        return tf.data.Dataset.from_tensor_slices(
            (
                [str(file) for file in files],
                np.array([labels[file.parent.name] for file in files], "int32"),
            )
        )

    train = split(root / "train")
    return (
        train.shuffle(train.cardinality(), seed=seed),
        split(others[0]),
        len(labels),
        True,
    )


def _fake(data_dir, seed):
    """Makes JPEGs up: the class is the colour, the sizes differ."""
    del data_dir
    rng = np.random.default_rng(0)
    classes, count = 4, 64
    images, labels = [], np.arange(count, dtype="int32") % classes
    for label in labels:
        image = rng.integers(0, 128, (*rng.integers(40, 90, 2), 3))
        image[..., label % 3] += 40 * (1 + label // 3)
        encoded = tf.io.encode_jpeg(image.astype("uint8"))
        images.append(encoded.numpy())
    train = tf.data.Dataset.from_tensor_slices((images, labels))
    return train.shuffle(count, seed=seed), train.take(16), classes, False


def _cores():
    return max(1, len(os.sched_getaffinity(0)))


def _without_tuner(data):
    # See `data._map_ahead`: its tuner delays the end of an epoch. And each
    # worker takes its part of every batch, whatever files that came from.
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    options.autotune.enabled = False
    return data.with_options(options)

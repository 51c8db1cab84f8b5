"""JPEG files as training data, and the program that trains on them."""

import json
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from apps import imagenet, train_imagenet
from tests import workers
from tests.apps.programs import files, run

ROOT = pathlib.Path(__file__).parents[2]


def picture(height=60, width=90):
    """A smooth image whose colours tell where one is in it."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * y / height, 255 * x / width
    return np.stack([red, green, 0 * x + 100], -1).astype("uint8")


ENCODERS = {
    "jpeg": lambda image: tf.io.encode_jpeg(image, quality=100),
    "png": tf.io.encode_png,
}


@pytest.fixture(params=ENCODERS)
def encoded(request):
    return ENCODERS[request.param](picture())


def test_a_random_part_is_a_part_in_its_place(encoded):
    seen = set()
    for i in range(20):
        image = imagenet.random_part(encoded, [i, 0], 16).numpy()
        assert image.shape == (16, 16, 3)
        assert np.abs(image[..., 2] - 100).max() < 8
        # Red grows downwards; green to one side, mirrored or not.
        assert (np.diff(image[..., 0].mean(axis=1)) > 0).all()
        slope = np.diff(image[..., 1].mean(axis=0))
        assert (slope > 0).all() or (slope < 0).all()
        seen.add(bool(slope[0] > 0))
        corners = image[0, 0, 0], image[-1, -1, 0]
        assert 0 <= corners[0] < corners[1] <= 255
    assert seen == {True, False}


def test_parts_of_one_shape_are_mirrored_and_not():
    encoded = ENCODERS["png"](picture())
    seen = set()
    for i in range(60):
        image = imagenet.random_part(encoded, [i, 0], 16).numpy()
        red, green = (np.ptp(image[..., colour]) / 255 for colour in (0, 1))
        mirrored = bool(image[0, 0, 1] > image[0, -1, 1])
        seen.add((bool(90 * green > 60 * red), mirrored))
    assert len(seen) == 4  # Wide and high ones, mirrored and not.


def test_the_same_dice_show_the_same_part(encoded):
    one, other, third = (
        imagenet.random_part(encoded, dice, 16).numpy()
        for dice in ([3, 1], [3, 1], [3, 2])
    )
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - third).max() > 10


def test_the_central_part_is_seven_eighths_of_the_shorter_side(encoded):
    image = imagenet.central_part(encoded, 52).numpy()  # 7/8 of 60 pixels.
    expected = picture()[4:56, 19:71]
    assert np.abs(image - expected).max() < 8


def test_batches_are_normalized_and_each_image_comes_once():
    images = imagenet.load("fake", image_size=32)
    labels = []
    for batch, label in images.drawn_batches(images.training_draws(0).batch(8)):
        assert batch.shape[1:] == (32, 32, 3)
        assert abs(float(tf.reduce_mean(batch))) < 2
        labels += label.numpy().tolist()
    assert sorted(labels) == sorted(16 * [0, 1, 2, 3])
    (first, *_) = images.validation_batches(16)
    assert first[0].shape == (16, 32, 32, 3)
    assert images.validation_size == 16


def test_epochs_differ_in_order_and_in_parts_and_runs_do_not():
    def epochs():
        images = imagenet.load("fake", image_size=32)
        draws = images.training_draws(seed=1).batch(64)
        return [next(iter(draws)) for _ in range(2)]

    (first, second), (again, _) = epochs(), epochs()
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[1].numpy() != second[1].numpy()).any()
    # The same images, by their labels' classes, in other parts.
    sums = [sorted(x[0].numpy().sum((1, 2, 3))) for x in (first, second)]
    assert np.abs(np.subtract(*sums)).max() > 1


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("val", 1)):
        for name in ("cat", "dog"):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for i in range(count):
                data = ENCODERS["jpeg"](picture(40 + 10 * i)).numpy()
                (place / f"{i}.JPEG").write_bytes(data)
    return tmp_path


def test_a_folder_of_images_is_a_data_set(folder):
    images = imagenet.load("folder", 32, str(folder))
    assert (images.train_size, images.validation_size) == (6, 2)
    assert images.classes == 2
    (batch,) = images.drawn_batches(images.training_draws(0).batch(6))
    assert sorted(batch[1].numpy()) == [0, 0, 0, 1, 1, 1]
    (validation,) = images.validation_batches(2)
    assert validation[1].numpy().tolist() == [0, 1]


def test_a_folder_that_is_none_is_refused(folder):
    with pytest.raises(ValueError, match="has two folders in it"):
        imagenet.load("folder", 32, str(folder / "train"))
    (folder / "val" / "cow").mkdir()
    (folder / "val" / "cow" / "0.JPEG").write_bytes(b"")
    with pytest.raises(ValueError, match="classes cow, not in 'train'"):
        imagenet.load("folder", 32, str(folder))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("how", ["cut off", "empty", "no image"])
def test_an_image_that_cannot_be_decoded_is_named(folder, split, how):
    path = folder / split / "dog" / "0.JPEG"
    whole = path.read_bytes()
    damaged = {
        "cut off": whole[: len(whole) // 2],
        "empty": b"",
        "no image": b"<html>404</html>",
    }
    path.write_bytes(damaged[how])
    sentence = imagenet.broken_image(imagenet.load("folder", 32, folder))
    assert sentence.startswith(f"{path} cannot be read as an image: ")
    assert len(sentence.splitlines()) == 1
    assert "{{" not in sentence and "[Op" not in sentence


@pytest.mark.long
def test_a_broken_image_ends_a_run_with_a_message(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    # A random part of it may be whole; its middle is not.
    path = folder / "val" / "dog" / "0.JPEG"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SystemExit) as caught:
        run(
            *(train_imagenet, "--dataset=folder", f"--data_dir={folder}"),
            *("--network=resnet8", "--method=dense", "--image_size=32"),
            *("--epochs=1", "--batch_size=4", f"--workdir={workdir}"),
        )
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read as an image: ")
    assert message.endswith(
        "Replace it or take it away, and start again. What was recorded until "
        f"then is in {workdir}."
    )
    # The lock is off, and the recipe is there.
    assert (workdir / "recipe.json").exists()
    assert not (workdir / ".prunetrain.lock").exists()


def test_images_that_are_too_small_for_the_network_cost_no_run(tmp_path):
    (tmp_path / "notes.txt").write_text("of an earlier run")
    before = files(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run(
            *(train_imagenet, "--dataset=fake", "--network=InceptionV3"),
            *("--method=dense", "--image_size=32", "--batch_size=4"),
            f"--workdir={tmp_path}",
        )
    message = str(caught.value)
    assert message.startswith(
        "--network=InceptionV3 cannot be built for images of 32x32 pixels: "
    )
    assert message.endswith(" Choose another network, or other images.")
    assert files(tmp_path) == before


def test_what_is_no_fault_of_an_image_is_not_taken_for_one(folder):
    assert imagenet.broken_image(imagenet.load("folder", 32, folder)) is None
    assert imagenet.broken_image(imagenet.load("fake", 32)) is None


def test_imagenet_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'imagenet2012' is not prepared"):
        imagenet.load("imagenet2012", data_dir=str(tmp_path))


def test_prepared_imagenet_is_read_encoded(tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.builder("imagenet2012", data_dir=tmp_path)

    def example(index):
        return {
            "image": picture(40 + index),
            "label": 7 * index,
            "file_name": f"{index}.JPEG",
        }

    tfds.dataset_builders.store_as_tfds_dataset(
        name="imagenet2012",
        version=builder.version,
        features=builder.info.features,
        split_datasets={
            "train": [(index, example(index)) for index in range(6)],
            "validation": [(index, example(index)) for index in range(3)],
        },
        data_dir=tmp_path,
    )
    images = imagenet.load("imagenet2012", 32, str(tmp_path))
    assert (images.train_size, images.validation_size) == (6, 3)
    assert images.classes == 1000
    assert images.train.element_spec[0].dtype == tf.string
    (batch,) = images.drawn_batches(images.training_draws(0).batch(6))
    assert batch[0].shape == (6, 32, 32, 3)
    assert sorted(batch[1].numpy()) == [0, 7, 14, 21, 28, 35]


@pytest.mark.long
def test_the_program_trains_and_leaves_its_files(tmp_path):
    process = subprocess.run(
        [
            *(sys.executable, "apps/train_imagenet.py", "--dataset=fake"),
            *("--network=MobileNet", "--image_size=32", "--epochs=2"),
            *("--batch_size=16", "--interval=1", "--threshold=0.08"),
            *("--granularity=8", "--strategy=mirrored"),
            f"--workdir={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert "Epoch 1: channels" in process.stdout
    rows = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["density"] < 1
    assert rows[0]["updates"] == 4
    assert rows[1]["updates"] == -(-64 // rows[1]["batch_size"])
    assert {"memory_bytes", "gradient_bytes", "learning_rate"} <= set(rows[0])
    assert json.loads((tmp_path / "result.json").read_text())["epochs"] == 2
    assert (tmp_path / "model.keras").exists()


@pytest.mark.long
def test_two_workers_that_were_killed_go_on_to_the_same_weights(tmp_path):
    command = [
        *(sys.executable, "apps/train_imagenet.py", "--dataset=fake"),
        *("--network=resnet8", "--image_size=32", "--epochs=2"),
        *("--batch_size=16", "--interval=1", "--threshold=0.2"),
        *("--strategy=multiworker", f"--workdir={tmp_path}"),
    ]
    kill_behind_an_epoch(command, tmp_path)
    for text, code in workers.run(command, command):
        assert code == 0, text[-3000:]
    for folder in (tmp_path, tmp_path / "worker1"):
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["epoch"] for row in rows] == [0, 1]
    first, second = (
        json.loads((folder / "result.json").read_text())
        for folder in (tmp_path, tmp_path / "worker1")
    )
    assert first["reconfigurations"] == second["reconfigurations"] > 0
    assert first["val_accuracy"] == second["val_accuracy"]
    one, other = (
        keras.saving.load_model(folder / "model.keras", compile=False)
        for folder in (tmp_path, tmp_path / "worker1")
    )
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    assert (tmp_path / "tensorboard" / "density_log.json").exists()
    assert not (tmp_path / "worker1" / "tensorboard").exists()


def kill_behind_an_epoch(command, folder):
    """Kills two workers once both have written what a backup holds."""
    errors = [folder.with_name(f"stderr{i}") for i in range(2)]
    processes = workers.start([command, command], errors)
    deadline = time.monotonic() + workers.SECONDS
    try:
        while len(list(folder.glob("backups/*.npz"))) < 2:
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()

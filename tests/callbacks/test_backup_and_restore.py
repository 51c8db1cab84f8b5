"""A training that breaks off goes on as if it had not, to the last bit."""

import collections
import os
import random
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_file_loader

import keras_prunetrain as kpt
from tests.callbacks.fits import Kill, examples, network

EPOCHS = 5
STEPS = 5  # Of 8 examples each.
# Channels that die, and leave after the epoch, in two cuts.
DEATHS = {1: {"inner": [0, 3]}, 3: {"stage": [2], "inner": [1]}}
# All channels inside the branch: it leaves.
BRANCH_DIES = {1: {"inner": list(range(6))}}


class Break(keras.callbacks.Callback):
    """Ends `fit` with an exception, after a step of an epoch."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            raise RuntimeError("killed")


class Trained:
    """All that a training leaves behind."""

    def __init__(self, model, pruning, history):
        self.model = model
        self.pruning = pruning
        self.history = history

    def equals(self, other):
        """Compares to the last bit."""
        assert self.history.epoch == other.history.epoch
        assert self.history.history.keys() == other.history.history.keys()
        for key, values in self.history.history.items():
            assert repr(values) == repr(other.history.history[key]), key
        pairs = zip(self.model.variables, other.model.variables, strict=True)
        self._equal(pairs)
        slots = self.model.optimizer.variables, other.model.optimizer.variables
        self._equal(zip(*slots, strict=True))
        if self.pruning is not None:
            mine, others = self.pruning.reports, other.pruning.reports
            assert [r.keep for r in mine] == [r.keep for r in others]
            assert [r.cost_after for r in mine] == [
                r.cost_after for r in others
            ]
            factors = [getattr(x.pruning, "factor", 0) for x in (self, other)]
            assert factors[0] == factors[1]
            batches = self.pruning.batch, other.pruning.batch
            assert batches[0] is None or batches[0].size == batches[1].size

    def _equal(self, pairs):
        for one, another in pairs:
            np.testing.assert_array_equal(
                keras.ops.convert_to_numpy(one),
                keras.ops.convert_to_numpy(another),
                err_msg=one.path,
            )


def train(
    folder,
    stop=None,
    *,
    deaths=DEATHS,
    batch=None,
    save_freq="epoch",
    behind=(),
    before=(),
    epochs=EPOCHS,
    pruned=True,
    coupled=False,
    data=None,
    **kwargs,
):
    """The program that is started again and again."""
    model = network(**kwargs)
    x, y = examples(40)
    batch = batch and batch()
    pruning = kpt.PruneTrainCallback(
        interval=2, batch=batch, log_dir=folder / "log", coupled=coupled
    )
    backup = kpt.BackupAndRestore(folder / "backups", save_freq=save_freq)
    data = data(x, y) if data else {"x": x, "y": y, "shuffle": False}
    if batch is not None:
        data = {"x": batch.arrays(x, y, seed=3), "shuffle": False}
    else:
        data.setdefault("batch_size", 8)
    data.setdefault("validation_data", (x[:8], y[:8]))
    history = model.fit(
        **data,
        epochs=epochs,
        verbose=0,
        callbacks=[
            *before,
            Kill(deaths),
            backup,
            *([pruning] if pruned else []),
            *behind,
            Break(stop),
        ],
    )
    return Trained(model, pruning if pruned else None, history)


def curves(folder):
    """All of a log that is no time, as often as it is there."""
    found = collections.Counter()
    for path in sorted((folder / "log").glob("events.out.tfevents.*")):
        for event in event_file_loader.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if not value.tag.startswith(("time/", "_hparams_")):
                    content = value.tensor.SerializeToString()
                    if value.tag == "reconfigurations":
                        content = None  # A text that says how long it took.
                    found[value.tag, event.step, content] += 1
    return found


def adam():
    return keras.optimizers.Adam(0.01)


def averaged():
    return keras.optimizers.SGD(
        0.05, momentum=0.9, use_ema=True, gradient_accumulation_steps=2
    )


def scaled():
    return keras.optimizers.LossScaleOptimizer(
        keras.optimizers.AdamW(0.01), initial_scale=4.0, dynamic_growth_steps=3
    )


def scheduled():
    return keras.optimizers.Lamb(
        keras.optimizers.schedules.ExponentialDecay(0.05, 3, 0.9)
    )


def scaled_for_float16():
    return keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.05, momentum=0.9),
        initial_scale=2.0**20,  # Too large: the first updates are skipped.
        dynamic_growth_steps=4,
    )


def falling():
    """Falls with each epoch."""
    return [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.8 * rate)
    ]


class OwnStep(keras.Model):
    """Trains with a step of its own, and counts the steps."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps = self.add_weight(
            shape=(), dtype="int32", trainable=False, name="steps"
        )

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            # With noise that grows with each step.
            noise = keras.random.normal(keras.ops.shape(x))
            scale = keras.ops.cast(self.steps, "float32") / 100.0
            predicted = self(x + scale * noise, training=True)
            loss = self.compute_loss(x, y, predicted)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        self.steps.assign_add(1)
        self._loss_tracker.update_state(loss)
        return self.compute_metrics(x, y, predicted)


def weighted(x, y):
    weights = {0: 1.0, 1: 2.0, 2: 0.5}
    return {"x": x, "y": y, "shuffle": False, "class_weight": weights}


def growing():
    return kpt.DynamicBatch(8, 4, memory_budget=2**30, maximum=20)


def shuffled(x, y):
    """Another order in each pass, and another brightness of each image.

    Each validation is of another half of its images.
    """
    validation = tf.data.Dataset.from_tensor_slices((x[:16], y[:16]))
    images = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(40, seed=2)
    noise = tf.data.Dataset.random(seed=4, rerandomize_each_iteration=True)
    examples = tf.data.Dataset.zip(images, noise).map(
        lambda pair, noise: (
            pair[0] + tf.cast(noise % 7, "float32") / 10.0,
            pair[1],
        )
    )
    return {
        "x": examples.batch(8).prefetch(2),
        "validation_data": validation.shuffle(16, seed=5).take(8).batch(4),
        "batch_size": None,
        "shuffle": False,
    }


def shuffled_arrays(x, y):
    return {"x": x, "y": y}


CASES = {
    "sgd": {},
    "shuffled": {"data": shuffled},
    "shuffled arrays": {"data": shuffled_arrays},
    "adam": {"compiled": {"optimizer": adam}},
    "coupled groups": {"coupled": True, "compiled": {"optimizer": adam}},
    "average and accumulation": {"compiled": {"optimizer": averaged}},
    "loss scale": {"compiled": {"optimizer": scaled}},
    "schedule and growing batch": {
        "compiled": {"optimizer": scheduled},
        "batch": growing,
    },
    "muon": {"compiled": {"optimizer": lambda: keras.optimizers.Muon(0.01)}},
    "lamb": {"compiled": {"optimizer": lambda: keras.optimizers.Lamb(0.01)}},
    "lion": {"compiled": {"optimizer": lambda: keras.optimizers.Lion(1e-4)}},
    "mixed_float16": {
        "compiled": {"optimizer": scaled_for_float16},
        "dtype": "mixed_float16",
    },
    "learning rate scheduler": {"behind": falling},
    "class weights": {"data": weighted},
    "own step": {"model_class": OwnStep},
    "branch that leaves": {"deaths": BRANCH_DIES},
    "dense": {"pruned": False},
}


def made(case):
    """The arguments of a case, with objects of their own."""
    found = {**case}
    if "compiled" in case:
        found["compiled"] = {"optimizer": case["compiled"]["optimizer"]()}
    if "behind" in case:
        found["behind"] = case["behind"]()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Each case, trained without a break."""
    done = {}

    def of(name):
        if name not in done:
            folder = tmp_path_factory.mktemp("whole")
            done[name] = train(folder, **made(CASES[name])), curves(folder)
        return done[name]

    return of


@pytest.mark.parametrize(
    "name",
    [
        name
        if name == "shuffled"
        else pytest.param(name, marks=pytest.mark.long)
        for name in CASES
    ],
)
def test_a_training_in_pieces_equals_the_whole_one(name, whole, tmp_path):
    case = CASES[name]
    for stop in ((0, 1), (2, 0), (4, 1)):
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path, stop, **made(case))
    pieces = train(tmp_path, **made(case))
    expected, logged = whole(name)
    pieces.equals(expected)
    assert not (tmp_path / "backups").exists()
    if case.get("pruned", True):
        assert len(pieces.pruning.reports) == (1 if "branch" in name else 2)
        assert curves(tmp_path) == logged


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "last"),
    [
        pytest.param("shuffled", (4, 3), marks=pytest.mark.long),
        ("schedule and growing batch", (4, 0)),
    ],
)
def test_a_training_goes_on_in_the_middle_of_an_epoch(
    name, last, whole, tmp_path
):
    case = CASES[name]
    for stop in ((0, 2), (2, 1), last):
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path, stop, save_freq=2, **made(case))
    trained = []
    steps = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: trained.append(batch)
    )
    pieces = train(tmp_path, behind=[steps], save_freq=2, **made(case))
    pieces.equals(whole(name)[0])
    assert len(trained) <= 3  # Of the last epoch only.


class Told(keras.callbacks.Callback):
    """Tells the process to end, in the middle of a step of an epoch."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == (2, 2):
            os.kill(os.getpid(), self.number)
            self.handler = signal.getsignal(self.number)


@pytest.mark.parametrize(
    ("number", "error", "status"),
    [
        (signal.SIGTERM, SystemExit, (143,)),
        pytest.param(
            signal.SIGINT, KeyboardInterrupt, (), marks=pytest.mark.long
        ),
    ],
)
def test_a_process_that_is_told_to_end_finishes_its_step(
    number, error, status, whole, tmp_path, caplog
):
    before = signal.getsignal(number)
    told = Told(number)
    with pytest.raises(error) as raised:
        train(tmp_path, behind=[told], data=shuffled)
    assert told.handler is before  # A second signal does what it always does.
    assert raised.value.args == status
    assert signal.getsignal(number) is before
    assert f"go on from the last backup in '{tmp_path}/backups'" in caplog.text
    assert (tmp_path / "backups" / "backup-00002-0000003.npz").exists()
    train(tmp_path, data=shuffled).equals(whole("shuffled")[0])
    assert signal.getsignal(number) is before


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def pickled(path):
    np.savez(path, state=np.array([Bomb()], dtype=object))


class Bomb:
    def __reduce__(self):
        return os._exit, (1,)


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory):
    """The folder of a training that was killed in its fourth epoch."""
    folder = tmp_path_factory.mktemp("broken_off")
    with pytest.raises(RuntimeError, match="killed"):
        train(folder, (3, 1), data=shuffled)
    return folder


@pytest.mark.parametrize("damage", [flip, cut_short, empty, pickled])
def test_the_backup_before_a_damaged_one_is_taken(
    damage, broken_off, whole, tmp_path, caplog
):
    shutil.copytree(broken_off, tmp_path, dirs_exist_ok=True)
    older, newer = sorted((tmp_path / "backups").glob("*.npz"))
    damage(newer)
    epochs = []
    first = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: epochs.append(epoch)
    )
    if damage is flip:
        again = train(tmp_path, behind=[first], data=shuffled)
        again.equals(whole("shuffled")[0])
    else:
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path, (2, 0), behind=[first], data=shuffled)
    assert f"The backup '{newer}' is damaged" in caplog.text
    assert older.name == "backup-00002-0000000.npz"
    assert epochs[0] == 2


def test_a_folder_without_a_whole_backup_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, (1, 1))
    (path,) = (tmp_path / "backups").glob("*.npz")
    flip(path)
    with pytest.raises(ValueError, match="No backup in .* can be read"):
        train(tmp_path)
    assert path.exists()


OPTIONS = "penalty_ratio", "interval", "threshold", "reconfigure"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"compiled": {"optimizer": "adam"}}, "optimizer was 'SGD' and is 'A"),
        (
            {"compiled": {"optimizer": keras.optimizers.SGD(0.1)}},
            "learning_rate was 0.05",
        ),
        ({"another network": True}, "weights was"),
        ({"examples": 32}, "steps was 5 and is 4"),
        ({"penalty_ratio": 0.5}, "penalty_ratio was 0.25 and is 0.5"),
        ({"interval": 3}, "interval was 2 and is 3"),
        ({"threshold": 0.1}, "threshold was 0.0001 and is 0.1"),
        (
            {"reconfigure": {"channel_multiple": 2}},
            r"reconfigure\['channel_multiple'\] was '1' and is '2'",
        ),
        (
            {"reconfigure": {"min_channels": 2, "fold": True}},
            r"\['min_channels'\] was '1' and is '2'; .*\['fold'\] was 'False'",
        ),
        (
            {"reconfigure": {"skip": "inner"}},
            r"reconfigure\['skip'\] was \[\] and is \[\d\]\.",
        ),
        (
            {"reconfigure": {"score": lambda label: label.magnitudes()}},
            r"\['score'\] was 'magnitude' and is '<lambda>'",
        ),
    ],
)
def test_a_backup_of_another_training_is_refused(other, message, broken_off):
    before = sorted((broken_off / "backups").iterdir())
    model = network(compiled=other.get("compiled"))
    if "another network" in other:
        layers = keras.layers
        model = keras.Sequential(
            [keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)]
        )
        model.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=True,
        )
    weights = model.get_weights()
    x, y = examples(other.get("examples", 40))
    with pytest.raises(ValueError, match=message):
        model.fit(
            x,
            y,
            batch_size=8,
            epochs=EPOCHS,
            verbose=0,
            callbacks=[
                kpt.BackupAndRestore(broken_off / "backups"),
                kpt.PruneTrainCallback(
                    **{
                        "interval": 2,
                        **{k: v for k, v in other.items() if k in OPTIONS},
                    }
                ),
            ],
        )
    for one, other in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert sorted((broken_off / "backups").iterdir()) == before


def test_two_trainings_do_not_share_a_folder(tmp_path):
    class Second(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            with pytest.raises(ValueError, match="Another process trains"):
                train(tmp_path)
            self.refused = True

    second = Second()
    train(tmp_path, behind=[second], epochs=1, deaths={})
    assert second.refused


@pytest.mark.long
def test_a_backup_that_cannot_be_written_ends_no_training(tmp_path, caplog):
    class Replace(keras.callbacks.Callback):
        """Puts a file in the place of the folder."""

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                shutil.rmtree(tmp_path / "backups")
                (tmp_path / "backups").write_text("")

    trained = train(tmp_path, behind=[Replace()])
    assert trained.history.epoch == list(range(EPOCHS))
    assert "No backup after step 0 of epoch 3" in caplog.text


def test_a_place_that_is_no_folder_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "backups").write_text("mine")
    with pytest.raises(ValueError, match="cannot write into"):
        train(tmp_path)
    assert (tmp_path / "backups").read_text() == "mine"


class Memory(keras.callbacks.Callback):
    """Remembers, and draws at random."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        drawn = [random.random(), np.random.rand()]
        drawn += keras.random.uniform((1,)).numpy().tolist()
        drawn += tf.random.uniform((1,)).numpy().tolist()
        self.seen.append(drawn)

    def get_state(self):
        return {"seen": self.seen, "pair": (np.arange(3.0), None)}

    def set_state(self, state):
        self.seen = state["seen"]
        np.testing.assert_array_equal(state["pair"][0], np.arange(3.0))
        assert state["pair"][1] is None


@pytest.mark.long
def test_callbacks_and_random_generators_go_on(tmp_path):
    def others():
        return [
            Memory(),
            keras.callbacks.ReduceLROnPlateau(
                "val_loss", 0.5, patience=1, min_delta=1.0, cooldown=1
            ),
            keras.callbacks.EarlyStopping("val_accuracy", patience=3),
        ]

    expected, found = others(), others()
    whole = train(tmp_path / "whole", behind=expected, epochs=6)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "pieces", (3, 1), behind=others(), epochs=6)
    train(tmp_path / "pieces", behind=found, epochs=6).equals(whole)
    assert found[0].seen == expected[0].seen
    for name in ("wait", "best", "cooldown_counter"):
        assert getattr(found[1], name) == getattr(expected[1], name)
    for name in ("wait", "best", "stopped_epoch", "best_epoch"):
        assert getattr(found[2], name) == getattr(expected[2], name)
    assert whole.model.optimizer.learning_rate < 0.05


def test_a_callback_in_front_is_in_the_backup_as_after_the_epoch(
    whole, tmp_path
):
    """The place of the callback in the list does not matter."""
    model, (x, y) = network(), examples(40)
    late = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: model.optimizer.learning_rate.assign(
            0.5 ** (epoch + 1)
        )
    )
    folder = tmp_path / "backups"
    with pytest.raises(RuntimeError, match="killed"):
        model.fit(
            x,
            y,
            epochs=3,
            verbose=0,
            callbacks=[kpt.BackupAndRestore(folder), late, Break((2, 0))],
        )
    again = network()
    again.fit(
        x, y, epochs=2, verbose=0, callbacks=[kpt.BackupAndRestore(folder)]
    )
    assert float(again.optimizer.learning_rate) == 0.25


def test_a_finished_fit_leaves_nothing_behind(tmp_path):
    model, (x, y) = network(), examples(40)
    for _ in range(2):
        history = model.fit(
            x,
            y,
            epochs=2,
            verbose=0,
            callbacks=[kpt.BackupAndRestore(tmp_path / "backups")],
        )
        assert history.epoch == [0, 1]
    assert not (tmp_path / "backups").exists()
    kept = kpt.BackupAndRestore(tmp_path / "b", keep=3, delete_checkpoint=False)
    model.fit(x, y, epochs=4, verbose=0, callbacks=[kept])
    assert sorted(path.name for path in (tmp_path / "b").glob("*.npz")) == [
        f"backup-0000{epoch}-0000000.npz" for epoch in (2, 3, 4)
    ]


@pytest.mark.long
@pytest.mark.parametrize("save_freq", ["epoch", 2])
def test_replicas_go_on(save_freq, strategy, tmp_path):
    def program(stop=None):
        with strategy.scope():
            model = network(compiled={"run_eagerly": False})
        x, y = examples(40)
        pruning = kpt.PruneTrainCallback(interval=1)
        history = model.fit(
            x,
            y,
            batch_size=8,
            shuffle=False,
            epochs=3,
            verbose=0,
            callbacks=[
                Kill({0: DEATHS[1]}),
                pruning,
                kpt.BackupAndRestore(tmp_path / str(stop is None), save_freq),
                Break(stop),
            ],
        )
        return Trained(model, pruning, history)

    whole = program()
    with pytest.raises(RuntimeError, match="killed"):
        program((1, 2))
    (tmp_path / "False").rename(tmp_path / "True")
    pieces = program()
    assert pieces.history.epoch == [0, 1, 2]
    pieces.equals(whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backup_dir": ""}, "`backup_dir` must be"),
        ({"backup_dir": None}, "`backup_dir` must be"),
        ({"save_freq": "batch"}, "`save_freq` must be"),
        ({"save_freq": 0}, "`save_freq` must be"),
        ({"save_freq": True}, "`save_freq` must be"),
        ({"keep": 0}, "`keep` must be"),
        ({"keep": True}, "`keep` must be"),
        ({"delete_checkpoint": "no"}, "`delete_checkpoint` must be"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kpt.BackupAndRestore(**{"backup_dir": "backups", **arguments})

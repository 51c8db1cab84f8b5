"""One training run: recipe in, a folder of records and a model out."""

import contextlib
import dataclasses
import pathlib
import sys

import keras

import keras_prunetrain as kpt
from apps import methods, networks, records
from apps.environment import cpu_flags
from apps.recorder import Recorder
from apps.refusal import RefusedError, StoppedError
from apps.workdir import BACKUPS, LOGS, Workdir


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on.

    Attributes:
        method: `"dense"`, `"narrow"`, `"prunetrain"`, `"targetprune"` or
            `"earlycrop"`; or `"crop"`, `"snip"`, `"grasp"` or `"synflow"`,
            which are `"earlycrop"` with a certain `score` before the first
            step.
        dataset: Name of a data set, for the record.
        network: Name of a function in `keras_prunetrain.models` or in
            `keras.applications`.
        epochs: Passes over the training images.
        batch_size: Images per optimizer update.
        seed: Of initial weights, order of images and augmentation.
        learning_rate: Before the drops.
        learning_rate_drops: Epochs at whose beginning it is divided by 10.
        momentum: Of SGD.
        global_clipnorm: The norm to which the gradients of all weights together
            are clipped; `None` for none.
        weight_decay: On all trainable weights: coupled (an L2 penalty of half
            this factor in the loss), or AdamW's own.
        dtype_policy: Keras's, `"float32"` or `"mixed_bfloat16"`.
        penalty_ratio, interval, threshold, finetune_epochs, factor: Arguments
            of `PruneTrainCallback`; other methods ignore them.
        granularity: That of a `DynamicBatch`, with the memory of the first
            architecture as its budget; `None` for a fixed batch size.
        width: Channels of the first stage of a network of
            `keras_prunetrain.models`, before anything makes it narrower;
            `None` for its own.
        image_size: Pixels of the sides of an image; `None` for their own.
        target_flops: What the inference of a narrow network, or of one that
            is pruned to a target, is to cost at most, a fraction of the cost at
            full width; `None` for the other methods.
        training_flops, warmup, decay, rounds, score: Arguments of
            `TargetPruneCallback`; other methods ignore them. A `warmup` or
            `decay` of 1 and more is a number of epochs.
        optimizer: `"sgd"`, `"adam"` or `"adamw"`.
        solver, coupled: Arguments of `PruneTrainCallback`; other methods ignore
            them.
        when: Argument of `EarlyCroPCallback`, as text.
        sparsity: The part of the weights that this callback sets to zero one by
            one; `None` if whole channels go.
        iterations, iteration_interval: Arguments `iterations` and `interval` of
            this callback.
        channel_multiple: What layers keep a multiple of, as text: a number, or
            `"auto"`; `None` for the callback's own default.
        skip: Names or patterns of the layers that keep all of their channels.
        sdgp: n and m of an `SDGPCallback`, `"2:4"`; `None` for none.
        sdgp_mode, sdgp_dense_last: Its `mode` and `dense_last`.
        initial_run: Folder of a finished run of the same network, whose last
            weights this training begins with; `None` for random ones.
    """

    method: str
    dataset: str
    network: str
    epochs: int
    batch_size: int
    seed: int
    learning_rate: float
    learning_rate_drops: tuple[int, ...]
    momentum: float
    weight_decay: float
    dtype_policy: str
    penalty_ratio: float
    interval: int
    threshold: float
    finetune_epochs: int
    granularity: int | None = None
    width: int | None = None
    image_size: int | None = None
    target_flops: float | None = None
    training_flops: float | None = None
    warmup: float = 0.05
    decay: float = 0.1
    rounds: int = 4
    score: str | None = None
    optimizer: str = "sgd"
    solver: str = "auto"
    coupled: bool = False
    when: str = "lazy"
    sparsity: float | None = None
    global_clipnorm: float | None = None
    iterations: int = 1
    iteration_interval: int = 0
    channel_multiple: str | None = None
    skip: tuple[str, ...] = ()
    sdgp: str | None = None
    sdgp_mode: str = "rescaled"
    sdgp_dense_last: float = 0.0
    initial_run: str | None = None
    factor: float | None = None


def train(recipe, data, workdir, strategy=None, restart=False):
    """Trains as `recipe` says and writes the records of the run.

    A run that was interrupted goes on where it was.

    Args:
        recipe: A `Recipe`.
        data: A `data.Dataset` or `imagenet.Images`.
        workdir: Folder for `recipe.json`, `metrics.jsonl` (a line per epoch),
            `reconfigurations.jsonl`, `channels.npz` (layer -> largest
            magnitude of each output channel of its kernel, shape
            `(epochs, channels)`, NaN once a channel is gone, and for epochs to
            come), `tensorboard` with event files, `backups` while the run goes
            on, and at the end `model.keras` and `result.json`. Made if it does
            not exist. Of several workers, all but the first write into folders
            of their own in it.
        strategy: A `tf.distribute.Strategy`; `None` for one device.
        restart: Whether the records of an earlier run are replaced, when the
            training begins, even if that run has finished or could go on.

    Returns:
        What `result.json` holds, a dict.

    Raises:
        RefusedError: If the run cannot begin, or if an earlier one of another
            recipe is in `workdir`; nothing has been replaced then.
        StoppedError: If a record cannot be written.
    """
    _check_batch_size(recipe, data, strategy)
    keras.config.set_dtype_policy(recipe.dtype_policy)
    narrow = None
    if recipe.method == "narrow":
        narrow = networks.narrowed(recipe, data)
    # Behind the networks that were built to find the width: the weights are
    # those of a dense run of this width.
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = networks.compiled(recipe, data, narrow)
    folder = pathlib.Path(workdir)
    with Workdir(folder / _own_folder(strategy), folder / BACKUPS) as files:
        if files.take_up(dataclasses.asdict(recipe), restart):
            print(
                f"The run in {files.folder} has finished already. --restart "
                "trains it once more."
            )
            return records.result(files.folder)
        if narrow:
            print(narrow)
        if is_emulated(recipe.dtype_policy):
            print(
                "This processor has no AVX-512, so TensorFlow emulates numbers "
                "of 16 bits: steps of a ResNet-20 took 6 times as long in "
                "mixed_bfloat16 as in float32, and 2 times in mixed_float16. "
                "--dtype_policy=float32 is faster here."
            )
        try:
            if recipe.initial_run is not None:
                networks.take_weights(model, recipe.initial_run)
            recorder = _fit(model, recipe, data, files, strategy)
            with files.replacing("model.keras") as path:
                model.save(path)
            result = recorder.result(model)
            if narrow:
                result |= narrow.figures
            files.write_json("result.json", result)
            files.delete_backups()  # Until now the run could go on from them.
        except ValueError as error:
            if files.begun:
                raise
            raise RefusedError(f"This run cannot begin: {error}") from error
        except OSError as error:
            raise StoppedError(
                "The training has ended, because its records cannot be written "
                f"into {files.folder}: {error}. Those that were written before "
                "are kept. Free some space or choose another --workdir, and "
                "start again."
            ) from error
    return result


def is_emulated(policy):
    """Whether this machine can compute in a dtype policy, but only slowly.

    Measured on a processor without AVX-512
    (`tools/benchmarks/dtype_policies.py`). Other devices than CPUs, processors
    with AVX-512, and those of which the system tells nothing, are taken to be
    fast.
    """
    on_cpu = keras.distribution.list_devices()[0].startswith("cpu")
    known = cpu_flags() if on_cpu else set()
    return policy != "float32" and bool(known) and "avx512f" not in known


def _check_batch_size(recipe, data, strategy):
    if recipe.batch_size > data.train_size:
        raise RefusedError(
            f"--batch_size={recipe.batch_size} is more than the "
            f"{data.train_size} training images of {recipe.dataset}. Choose a "
            "smaller one."
        )
    replicas = _replicas(strategy)
    if recipe.batch_size < replicas:
        raise RefusedError(
            f"--batch_size={recipe.batch_size} leaves some of the {replicas} "
            "devices without an image. Choose a larger one."
        )


def _fit(model, recipe, data, files, strategy):
    """Trains `model`; returns the `Recorder` of the run."""
    draws = data.training_draws(recipe.seed)
    pruning = methods.pruning(recipe, data)
    batch = pruning and pruning.batch
    batches = data.drawn_batches(
        _fixed_batches(draws, recipe.batch_size, strategy)
        if batch is None
        else batch(draws)
    )
    meter = kpt.EpochMeter()
    recorder = Recorder(files, recipe, pruning, meter)
    backup = kpt.BackupAndRestore(files.backups, delete_checkpoint=False)
    model.fit(
        batches,
        validation_data=data.validation_batches(recipe.batch_size),
        epochs=recipe.epochs,
        callbacks=[
            *_callbacks(recipe, files, pruning),
            *(meter, recorder, backup),
        ],
        shuffle=False,  # The data set shuffles itself; else Keras warns.
        verbose=1 if sys.stdout.isatty() else 2,
    )
    return recorder


def _callbacks(recipe, files, pruning):
    """Returns the callbacks that train and log, in the order they act in."""
    drops = keras.callbacks.LearningRateScheduler(
        lambda epoch: (
            recipe.learning_rate
            * 0.1 ** sum(epoch >= drop for drop in recipe.learning_rate_drops)
        )
    )
    # Behind the one that may still refuse the model, and in front of those that
    # write: so the records of an earlier run stay until this one begins.
    begin = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: files.begin(dataclasses.asdict(recipe))
    )
    # The histograms of dense and shrinking runs can be laid side by side.
    log = kpt.DensityLog(files.path(LOGS), recipe.threshold or 1e-4)
    return [
        *(drops, *methods.sdgp(recipe)),
        *([pruning] if pruning else []),
        *(begin, log),
    ]


def _replicas(strategy):
    return strategy.num_replicas_in_sync if strategy else 1


def _fixed_batches(draws, size, strategy):
    """Forms batches of which each replica gets a part.

    TensorFlow fills one replica after the other: the last batch may leave some
    without an example, on which layers fail. It is left out then; the images
    are shuffled, so that it is another one in each epoch.
    """
    replicas = _replicas(strategy)
    rest = int(draws.cardinality()) % size
    # The first ones have the larger parts.
    is_short = 0 < rest <= size - size // replicas
    return draws.batch(size, drop_remainder=is_short)


def _own_folder(strategy):
    """Returns the folder of this worker: none of its own for the first."""
    if kpt.is_first_worker(strategy):
        return ""
    resolver = strategy.cluster_resolver
    return f"{resolver.task_type}{resolver.task_id}"

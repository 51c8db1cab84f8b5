"""What is typed wrong, and the page that shows what is said about it."""

import os
import pathlib
import re
import tempfile
import traceback

import keras
import numpy as np
from absl import flags

import keras_prunetrain as kpt
from apps import train_cifar, train_imagenet
from tests.apps.programs import parsed

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
OWN = [str(ROOT / "keras_prunetrain"), str(ROOT / "apps")]

# Sections of the page, each with the calls that fail. `model` is compiled, `x`
# and `y` are its data, `file` is the path of a text file.
CALLS = {
    "PruneTrainCallback": [
        "kpt.PruneTrainCallback(penalty_ratio=0)",
        "kpt.PruneTrainCallback(penalty_ratio=True)",
        "kpt.PruneTrainCallback(penalty_ratio=float('nan'))",
        "kpt.PruneTrainCallback(interval=2.5)",
        "kpt.PruneTrainCallback(threshold=-1)",
        "kpt.PruneTrainCallback(threshold=float('inf'))",
        "kpt.PruneTrainCallback(finetune_epochs=-1)",
        "kpt.PruneTrainCallback(factor=0)",
        "kpt.PruneTrainCallback(solver='newton')",
        "kpt.PruneTrainCallback(coupled='yes')",
        "kpt.PruneTrainCallback(batch=128)",
        "kpt.PruneTrainCallback(log_dir='')",
        "kpt.PruneTrainCallback(submodels=[])",
        "kpt.PruneTrainCallback(reconfigure=['skip'])",
        "kpt.PruneTrainCallback(reconfigure={'channels': 8})",
        "kpt.PruneTrainCallback(reconfigure={'fold': 'no'})",
        "kpt.PruneTrainCallback(reconfigure={'channel_multiple': 'fast'})",
        "kpt.PruneTrainCallback(reconfigure={'score': 'magnitude'})",
        "model.fit(x, y, epochs=2, verbose=0, callbacks=["
        "kpt.PruneTrainCallback(finetune_epochs=2)])",
        "model.fit(x, y, verbose=0, callbacks=["
        "kpt.PruneTrainCallback(submodels=['encoder'])])",
        "trainer.fit(x, y, verbose=0, callbacks=["
        "kpt.PruneTrainCallback(submodels=['encoder'])])",
        "trainer.fit(x, y, verbose=0, callbacks=["
        "kpt.PruneTrainCallback(submodels=['teacher'])])",
        "unbuilt.fit(x, y, verbose=0, callbacks=[kpt.PruneTrainCallback()])",
        "trainer.fit(x, y, verbose=0, callbacks=["
        "kpt.PruneTrainCallback(batch=kpt.DynamicBatch(4))])",
        "model.fit(x, y, verbose=0, callbacks=["
        "kpt.PruneTrainCallback(reconfigure={'skip': 'stage9_*'})])",
        "model.fit(x, y, verbose=0, callbacks=["
        "kpt.PruneTrainCallback(), kpt.PruneTrainCallback()])",
        "model.fit(x, y, verbose=0, callbacks=[kpt.PruneTrainCallback(), "
        "keras.callbacks.BackupAndRestore('backups')])",
        "model.fit(x, y, verbose=0, callbacks=["
        "kpt.DensityLog('logs'), kpt.PruneTrainCallback()])",
        "model.fit(x, y, verbose=0, callbacks=["
        "kpt.PruneTrainCallback(batch=kpt.DynamicBatch(4))])",
    ],
    "TargetPruneCallback": [
        "kpt.TargetPruneCallback()",
        "kpt.TargetPruneCallback(flops=0.5, parameters=0.5)",
        "kpt.TargetPruneCallback(flops=50)",
        "kpt.TargetPruneCallback(flops=0.5, score='tailor')",
        "kpt.TargetPruneCallback(flops=0.5, warmup=1.5)",
        "kpt.TargetPruneCallback(flops=0.5, decay=0)",
        "kpt.TargetPruneCallback(flops=0.5, rounds=0)",
        "kpt.TargetPruneCallback(flops=0.5, max_layer_cut=1)",
        "kpt.TargetPruneCallback(flops=0.5, of=model)",
        "kpt.TargetPruneCallback(flops=0.5, reconfigure={'fold': True})",
        "model.fit(x, y, epochs=2, verbose=0, callbacks=["
        "kpt.TargetPruneCallback(flops=0.5)])",
        "model.fit(x, y, epochs=5, verbose=0, callbacks=["
        "kpt.TargetPruneCallback(flops=0.001)])",
        "model.fit(x, y, epochs=5, verbose=0, callbacks=["
        "kpt.TargetPruneCallback(training_flops=0.3)])",
        "model.fit(x, y, epochs=5, verbose=0, callbacks=["
        "kpt.TargetPruneCallback(flops=0.5, score=lambda n: [1.0, 2.0])])",
    ],
    "EarlyCroPCallback": [
        "kpt.EarlyCroPCallback(1, (x, y))",
        "kpt.EarlyCroPCallback(0.5, (x, y), target='bytes')",
        "kpt.EarlyCroPCallback(0.5, (x, y), when='late')",
        "kpt.EarlyCroPCallback(0.5, (x, y), 'flops', structured=False)",
        "kpt.mask_report('model.keras')",
        "kpt.EarlyCroPCallback(0.5, (x, y), score='taylor')",
        "kpt.EarlyCroPCallback(0.5, (x, y), iterations=0)",
        "kpt.EarlyCroPCallback(0.5, (x, y), interval=2)",
        "kpt.EarlyCroPCallback(0.5, (x, y), first_epoch=4, last_epoch=2)",
        "model.fit(x, y, epochs=4, verbose=0, callbacks=["
        "kpt.EarlyCroPCallback(0.999, (x, y))])",
        "model.fit(x, y, epochs=4, verbose=0, callbacks=["
        "kpt.EarlyCroPCallback(0.5, 'train')])",
        "kpt.TargetPruneCallback(flops=0.5, score='gradient_flow')",
    ],
    "with_sdgp and SDGPCallback": [
        "kpt.with_sdgp('model.keras')",
        "kpt.with_sdgp(model)",
        "kpt.with_sdgp(model, n=5)",
        "kpt.with_sdgp(model, mode='largest')",
        "kpt.with_sdgp(model, m=8, layers='hidden')",
        "kpt.with_sdgp(model, layers='conv*')",
        "kpt.with_sdgp(model, layers=())",
        "kpt.with_sdgp(model, layers='hidden', seed=0.5)",
        "kpt.with_sdgp(kpt.with_sdgp(model, layers='hidden'), layers='hidden')",
        "kpt.without_sdgp('model.keras')",
        "kpt.SDGPCallback(n=0)",
        "kpt.SDGPCallback(dense_last=1)",
        "model.fit(x, y, verbose=0, callbacks=[kpt.SDGPCallback()])",
    ],
    "DynamicBatch": [
        "kpt.DynamicBatch(0)",
        "kpt.DynamicBatch(128, granularity=0)",
        "kpt.DynamicBatch(128, maximum=64)",
        "kpt.DynamicBatch(128, memory_budget=float('inf'))",
        "kpt.DynamicBatch(128, memory_budget='gpu')",
        "kpt.DynamicBatch(128, scaling='cubic')",
        "kpt.DynamicBatch(128, scaling=lambda ratio: float('nan'))",
        "kpt.DynamicBatch(4)(x)",
        "kpt.DynamicBatch(400).arrays(x, y)",
        "kpt.DynamicBatch(4).arrays(x, y[:-1])",
        "kpt.DynamicBatch(4).arrays(x, y, seed=-1)",
        "setattr(kpt.DynamicBatch(4), 'size', 0)",
    ],
    "BackupAndRestore": [
        "kpt.BackupAndRestore('')",
        "kpt.BackupAndRestore('backups', save_freq='batch')",
        "kpt.BackupAndRestore('backups', keep=0)",
        "kpt.BackupAndRestore('backups', delete_checkpoint=None)",
        "model.fit(x, y, verbose=0, callbacks=[kpt.BackupAndRestore(file)])",
    ],
    "DensityLog": [
        "kpt.DensityLog('')",
        "kpt.DensityLog('logs', threshold=0)",
        "kpt.DensityLog('logs').follow('training')",
        "model.fit(x, y, verbose=0, callbacks=[kpt.DensityLog(file)])",
    ],
    "reconfigure and channel_report": [
        "kpt.reconfigure('model.keras')",
        "kpt.reconfigure(model, threshold=True)",
        "kpt.reconfigure(model, threshold=float('inf'))",
        "kpt.reconfigure(model, channel_multiple=0)",
        "kpt.reconfigure(model, channel_multiple=2.0)",
        "kpt.reconfigure(model, channel_multiple='fast')",
        "kpt.reconfigure(model, min_channels='2')",
        "kpt.reconfigure(model, fold='no')",
        "kpt.reconfigure(model, skip='stage9_*')",
        "kpt.reconfigure(model, skip={'hidden': True})",
        "kpt.reconfigure(model, score=3)",
        "kpt.reconfigure(model, score=lambda label: [1.0])",
        "kpt.channel_report(None)",
        "kpt.plot_channels(None, 'channels.png')",
        "kpt.prune_whole_groups(model)",
    ],
    "Costs and memory": [
        "kpt.model_cost(None)",
        "kpt.model_cost(model, (8, 8, 8, 8))",
        "kpt.training_bytes(keras.Sequential(name='new'), 8)",
        "kpt.training_bytes(model, -1)",
        "kpt.gradient_bytes(None)",
        "kpt.communication_bytes(-1, 2)",
        "kpt.communication_bytes(100, 0)",
    ],
    "GroupLasso and rules": [
        "kpt.GroupLasso(factor=-1.0)",
        "kpt.GroupLasso(factor=float('nan'))",
        "kpt.GroupLasso(axes=(1.5,))",
        "kpt.GroupLasso(axes=())",
        "kpt.LayerRule('carries', in_axis={'kernel': 'last'})",
        "kpt.LayerRule('mixes', inner={'num_heads': {'query/kernel': 1}})",
        "kpt.register_rule(keras.layers.Dense, kpt.LayerRule('flows'))",
        "kpt.register_rule('Dense', kpt.LayerRule('carries'))",
    ],
    "Networks and machines": [
        "kpt.models.resnet20((32, 32), 10)",
        "kpt.models.resnet20((32, 32, 3), 0)",
        "kpt.models.resnet20((32, 32, 3), 10, width=0)",
        "kpt.multi_worker_strategy(timeout_seconds=0)",
    ],
}
COMMANDS = {
    "Training programs": [
        "train_cifar --workdir=run --epochs=0",
        "train_cifar --workdir=run --seed=-1",
        "train_cifar --workdir=run --learning_rate=nan",
        "train_cifar --workdir=run --momentum=2",
        "train_cifar --workdir=run --width=0",
        "train_cifar --workdir=run --network=resnet21",
        "train_cifar --workdir=run --method=narrow",
        "train_cifar --workdir=run --method=dense --target_flops=0.5",
        "train_cifar --workdir=run --method=narrow --target_flops=2",
        "train_imagenet --workdir=run --method=narrow --target_flops=0.5",
        "train_cifar --workdir=run --learning_rate_drops=20,half",
        "train_cifar --workdir=run --epochs=5 --finetune_epochs=5",
        "train_cifar --workdir=run --sdgp=4:2",
        "train_cifar --workdir=run --sdgp=2:4 --sdgp_dense_last=1",
        "train_cifar --workdir=",
        "train_cifar --workdir=file",
        "train_cifar --workdir=gs://bucket/run",
        "train_cifar --workdir=run --dense=run",
        "train_imagenet --workdir=run --image_size=31",
    ],
}


class Trainer(keras.Model):
    """Trains a model that it holds, and holds another one that is frozen."""

    def __init__(self, student):
        super().__init__(name="distiller")
        self.student = student
        self.teacher = keras.models.clone_model(student)
        self.teacher.trainable = False

    def call(self, x):
        return self.student(x)


def namespace():
    """What the calls use."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4, "relu", name="hidden"),
            keras.layers.Dense(2, name="logits"),
        ],
        name="classifier",
    )
    model.compile("sgd", "mse", run_eagerly=True)
    trainer = Trainer(model)
    trainer.compile("sgd", "mse", run_eagerly=True)
    unbuilt = Trainer(keras.Sequential([keras.layers.Dense(2)], name="student"))
    unbuilt.compile("sgd", "mse", run_eagerly=True)
    return {
        "kpt": kpt,
        "keras": keras,
        "model": model,
        "trainer": trainer,
        "unbuilt": unbuilt,
        "x": np.zeros((8, 4), "float32"),
        "y": np.zeros((8, 2), "float32"),
        "file": "file",
    }


def message_of(typed):
    """Returns what is said about a call or a command, in an empty folder.

    Raises:
        AssertionError: If nothing is, or if another library says it.
    """
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        pathlib.Path("file").write_text("no folder")
        try:
            if typed.startswith("train_"):
                program, *words = typed.split()
                programs = {
                    "train_cifar": train_cifar,
                    "train_imagenet": train_imagenet,
                }
                parsed(programs[program], *words)
            else:
                eval(typed, namespace())
        except (ValueError, flags.Error) as error:
            _check_origin(typed, error)
            return str(error).replace(folder, ".")
        finally:
            os.chdir(before)
    raise AssertionError(f"Nothing is said about {typed}")


def _check_origin(typed, error):
    if isinstance(error, flags.Error):
        return
    (*_, last) = traceback.extract_tb(error.__traceback__)
    assert last.filename.startswith(tuple(OWN)), (
        f"{last.filename} says about {typed}: {error}"
    )


def page():
    """Returns the text of the page, made anew."""
    parts = [
        "# Error messages for wrong input",
        "",
        "Each call on this page raises a `ValueError`, and each command ends "
        "with a message,\nbefore anything is trained, changed or written. "
        "`model` is a small `Sequential`,\n'classifier', and `trainer` a model "
        "that holds and trains others, 'distiller'.\n`tools/errors.py` writes "
        "the messages here, and a test compares them.",
    ]
    for title, calls in {**CALLS, **COMMANDS}.items():
        parts += ["", f"## {title}"]
        for typed in calls:
            quoted = re.sub(r"^", "> ", message_of(typed).rstrip(), flags=re.M)
            parts += ["", f"    {typed}", "", quoted]
    return "\n".join(parts) + "\n"


def entries(text):
    """Returns a dict from what is typed to what a page says about it."""
    found = {}
    for block in re.split(r"\n    (?=\S)", text)[1:]:
        typed, _, rest = block.partition("\n")
        lines = [x[2:] for x in rest.splitlines() if x.startswith("> ")]
        found[typed] = "\n".join(lines)
    return found

"""Records which epoch the criteria of EarlyCroP pick, on three networks.

    python tools/benchmarks/moment.py

Each network trains dense, by the recipe of `apps/train_cifar.py` without drops
of the learning rate, as in the first epochs of a longer training. After each
epoch, both distances are measured: from the weights before the first step, as
`when="lazy"` does, and from those after the first epoch, as the authors' code
does. From these curves follows the epoch that either criterion picks for each
sparsity, and the accuracy of the dense network at that moment.

A network that the result file has already, with the same settings, is not
trained again, so the program may be ended after any network and started again.
Nothing is timed: other work may run beside it. All of it takes some 10 minutes
of one core.
"""

import json
import os
import pathlib
import sys

# TensorFlow's notes on devices that are not there; before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The package of this checkout, also if that of another one is installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402

from apps import data, networks, recipe_flags, train_cifar  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402
from keras_prunetrain.fit.moment import Moment  # noqa: E402

SEED = 0
SPARSITIES = (0.5, 0.75, 0.9, 0.95, 0.98)
CRITERIA = ("lazy", "paper_code")
# The flags of `apps/train_cifar.py` for each network. VGG-11 halves the image
# five times, so that it needs all of its pixels; it has an eighth of its width.
NETWORKS = {
    "resnet8_digits": ("--dataset=digits", "--network=resnet8", "--epochs=20"),
    "resnet20_cifar10_16x16": (
        *("--dataset=cifar10", "--image_size=16"),
        *("--network=resnet20", "--epochs=8"),
    ),
    "vgg11_width8_cifar10": (
        *("--dataset=cifar10", "--network=vgg11", "--width=8"),
        "--epochs=8",
    ),
}


class Distances(keras.callbacks.Callback):
    """Measures the distances of both criteria after each epoch.

    Attributes:
        curves: Dict from a criterion to the list of its distances.
    """

    def __init__(self):
        super().__init__()
        # What is picked is found later: only the distances count here.
        self._moments = {x: Moment(x, 0.5, 1, 1) for x in CRITERIA}

    @property
    def curves(self):
        return {x: moment.distances for x, moment in self._moments.items()}

    def on_train_begin(self, logs=None):
        for moment in self._moments.values():
            moment.begin(self.model)

    def on_epoch_end(self, epoch, logs=None):
        for moment in self._moments.values():
            moment.end_epoch(self.model)


def main(argv, values=flags.FLAGS):
    del argv
    record(pathlib.Path(values.output), NETWORKS)


def record(path, networks):
    """Writes what is not there yet of each network into the file `path`."""
    content = json.loads(path.read_text()) if path.exists() else {}
    found = content.get("networks", {})
    for name, settings in networks.items():
        if found.get(name, {}).get("settings") != list(settings):
            found[name] = measured(settings)
            content = environment([SEED]) | {"networks": found}
            path.write_text(json.dumps(content, indent=1) + "\n")
        print(name, *table(found[name]), sep="\n", flush=True)


def measured(settings):
    """Trains a network; returns its curves and the epochs picked, a dict."""
    values = flags.FlagValues()
    train_cifar.define(values)
    fixed = "--method=dense", f"--seed={SEED}", "--workdir=none"
    values(["moment", *fixed, *settings])
    recipe = recipe_flags.recipe(values)
    examples = data.load(recipe.dataset)
    if recipe.image_size is not None:
        examples = examples.downscaled(recipe.image_size)
    keras.utils.set_random_seed(SEED)
    model = networks.compiled(recipe, examples)
    distances = Distances()
    history = model.fit(
        examples.training_batches(recipe.batch_size, SEED),
        validation_data=examples.validation_batches(recipe.batch_size),
        epochs=recipe.epochs,
        callbacks=[distances],
        shuffle=False,  # The data set shuffles itself; else Keras warns.
        verbose=2,
    ).history
    accuracies = history["val_accuracy"]
    return {
        "settings": list(settings),
        "val_accuracy": accuracies,
        "distances": distances.curves,
        "picked": picks(distances.curves, accuracies),
    }


def picks(curves, accuracies):
    """Returns what each criterion picks for each sparsity.

    Args:
        curves: Dict from a criterion to the list of distances.
        accuracies: List of the accuracy after each epoch.

    Returns:
        List of dicts: criterion, whether whole channels go, sparsity, and
        `epochs`, after how many the network would be pruned, with its accuracy
        then; `None` if the criterion is not met in these epochs.
    """
    found = []
    for criterion, distances in curves.items():
        # The paper's criterion is the same for channels and single weights.
        kinds = (True, False) if criterion == "paper_code" else (None,)
        for structured in kinds:
            for sparsity in SPARSITIES:
                epochs = picked(criterion, sparsity, structured, distances)
                found.append(
                    {
                        "criterion": criterion,
                        "structured": structured,
                        "sparsity": sparsity,
                        "epochs": epochs,
                        "val_accuracy": epochs and accuracies[epochs - 1],
                    }
                )
    return found


def picked(criterion, sparsity, structured, distances):
    """Returns after how many epochs a criterion is met first, or `None`."""
    moment = Moment(criterion, sparsity, 1, len(distances) + 1, structured)
    for distance in distances:
        moment.distances.append(distance)
        if moment.has_come:
            return len(moment.distances)
    return None


def table(network):
    """Yields the lines of what is picked for a network."""
    curve = ", ".join(f"{x:.3f}" for x in network["distances"]["lazy"])
    yield f"  distances: {curve}"
    for row in network["picked"]:
        kind = {True: " channels", False: " weights", None: ""}
        accuracy = row["val_accuracy"]
        yield (
            f"  {row['criterion']}{kind[row['structured']]}, sparsity "
            f"{row['sparsity']}: after {row['epochs']} epochs"
            + ("" if accuracy is None else f", {accuracy:.2%}")
        )


if __name__ == "__main__":
    flags.DEFINE_string(
        "output",
        str(ROOT / "tools" / "results" / "moment.json"),
        "File to write the result to, and to go on with.",
    )
    tf.config.experimental.enable_op_determinism()
    app.run(main)

"""Checks of a trainer, a model that trains functional models that it holds."""

import collections
import logging

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.trainers import optimizers_of, unbuilt_in, updated_by

_LOG = logging.getLogger("keras_prunetrain")


class PartsCheck(keras.callbacks.Callback):
    """Checks that each part of a trainer is trained, by one optimizer.

    An optimizer may learn only in its first step which weights it updates, so
    some of this is seen after the first step.

    Args:
        network: The `network_of` the model that `fit` trains.
        batch_grows: Boolean. Whether there is a `DynamicBatch`.
    """

    def __init__(self, network: keras.Model, batch_grows: bool = False):
        super().__init__()
        self._parts = [x for x in network.layers if keras_internals.is_graph(x)]
        self._batch_grows = batch_grows
        self._warned = False
        self._awaits_step = True
        self._steps = {}  # Of the optimizers of the parts, by their `id`s.

    def on_train_begin(self, logs=None):
        self._awaits_step = True
        self._steps = {
            id(x): _steps_of(x)
            for x in (getattr(part, "optimizer", None) for part in self._parts)
            if x is not None
        }
        if self._batch_grows:
            raise ValueError(
                f"'{self.model.name}' trains functional models that it holds. "
                "How often a step calls each of them is not known, and so the "
                "memory that an example takes is not. Leave `batch` out."
            )
        self._warn_of_unbuilt()
        self._warn_of_copies()
        self._warn_of_several()

    def on_train_batch_end(self, batch, logs=None):
        if self._awaits_step:
            self._awaits_step = False
            self._check_trained()
            self._warn_of_several()

    def _warn_of_unbuilt(self):
        unbuilt = unbuilt_in(self.model)
        if unbuilt:
            _LOG.warning(
                "%s of '%s' keep their channels, because they have not been "
                "built: let each begin with `keras.Input(shape)`, or call it "
                "with some examples before `fit`.",
                *(", ".join(map(repr, unbuilt)), self.model.name),
            )

    def _warn_of_copies(self):
        """Warns of a model whose weights may be assigned from those of a part.

        A moving average of a network is one that is not made smaller with it.
        """
        shapes = {x.name: _shapes(x) for x in self._parts}
        known = set(map(id, self._parts))
        for other in self.model.layers:
            twins = [k for k, v in shapes.items() if v and v == _shapes(other)]
            if twins and id(other) not in known:
                _LOG.warning(
                    "'%s' of '%s' has weights of the same shapes as '%s', and "
                    "keeps its channels. If the training copies the weights of "
                    "the one into the other, as for a moving average, it will "
                    "fail once their shapes differ: keep the channels of '%s' "
                    "with reconfigure={'skip': '%s'}.",
                    *(other.name, self.model.name),
                    *(twins[0], twins[0], twins[0]),
                )

    def _check_trained(self):
        """Raises a `ValueError` for a part that no optimizer updates."""
        known = updated_by(self._optimizers())
        for part in self._parts:
            if not any(id(v) in known for v in part.trainable_variables):
                raise ValueError(
                    f"No optimizer of '{self.model.name}' has updated "
                    f"'{part.name}' in the first step, so none of its channels "
                    "would ever go, or all at random. Name the models that "
                    "train in `submodels`, or set `trainable = False` on "
                    f"'{part.name}'; keep optimizers as attributes."
                )

    def _warn_of_several(self):
        """Warns, once, of a weight that two optimizers update."""
        holders = collections.defaultdict(list)
        # That of `compile` may be built, and idle in a trainer with others.
        for optimizer in filter(_steps_of, self._optimizers()):
            for v in updated_by([optimizer]).values():
                holders[id(v)].append((optimizer.name, v.path))
        several = [x for x in holders.values() if len(x) > 1]
        if several and not self._warned:
            self._warned = True
            (one, path), (other, _) = several[0][:2]
            _LOG.warning(
                "The optimizers '%s' and '%s' of '%s' both update '%s'. Its "
                "slots are carried over in both. A penalty, or channels that "
                "shrink, act in each step of both.",
                *(one, other, self.model.name, path),
            )

    def _optimizers(self):
        """Returns those of the model, a list.

        The optimizer of a part may be a rest of the part's own training, and
        counts once it has taken a step.
        """
        return [
            x
            for x in optimizers_of(self.model)
            if self._steps.get(id(x)) != _steps_of(x)
        ]


def _steps_of(optimizer):
    return int(keras.ops.convert_to_numpy(optimizer.iterations))


def _shapes(model):
    return [tuple(weight.shape) for weight in model.weights]

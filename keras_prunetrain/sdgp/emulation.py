"""What the pruned backward passes of a model share, and those of its layers."""

import enum
import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_prunetrain import keras_internals
from keras_prunetrain.sdgp.pattern import Blocks, Pattern
from keras_prunetrain.sdgp.pruning import pruned, shape_drawn

# The same numbers on all devices. In a step that XLA compiles they are others.
_ALGORITHM = "philox"


class Phase(enum.IntEnum):
    """What the backward passes of a step do."""

    DENSE = 0
    SPARSE = 1
    MEASURED = 2  # Sparse, and the mass of what is kept is summed up.


class Emulation:
    """What the pruned layers of a model share.

    The variables are no part of the model: they are neither saved nor trained.

    Args:
        model: The model, under whose strategy the variables are made.
        pattern: The `Pattern`.
        seed: Integer of the random modes, or `None` for one from Python's
            random generator.

    Attributes:
        pattern: The `Pattern`.
    """

    def __init__(
        self, model: keras.Model, pattern: Pattern, seed: int | None = None
    ):
        self.pattern = pattern
        self._phase = Phase.SPARSE
        with keras_internals.strategy_scope(model):
            self._switch = _variable(int(self._phase), "int64", "sdgp_phase")
            self._generator = None
            if pattern.is_random:
                # Keras takes no integer of NumPy's.
                seed = None if seed is None else int(seed)
                self._generator = keras.random.SeedGenerator(seed)

    @property
    def phase(self) -> Phase:
        """The `Phase` of the next step. Setting it traces nothing anew."""
        return self._phase

    @phase.setter
    def phase(self, phase: Phase) -> None:
        if phase != self._phase:
            self._switch.assign(int(phase))
            self._phase = phase

    @property
    def random_state(self) -> keras.Variable | None:
        """The variable of the random generator; `None` if there is none."""
        return None if self._generator is None else self._generator.state

    def is_in(self, phase: Phase) -> Any:
        """Returns whether a step is in `phase` or above it, a tensor."""
        return ops.greater_equal(
            ops.convert_to_tensor(self._switch), int(phase)
        )

    def draw_seed(self) -> Any:
        """Returns a seed for one layer in one step; `None` if none is needed.

        Replicas have different ones, so that their errors average out.
        """
        if self._generator is None:
            return None
        import tensorflow as tf

        seed = self._generator.next()
        context = tf.distribute.get_replica_context()
        replica = 0 if context is None else context.replica_id_in_sync_group
        return tf.random.experimental.stateless_fold_in(
            seed, replica, alg=_ALGORITHM
        )


class LayerGradient:
    """Prunes the gradient of one layer's output, for that of its input.

    The clones of the layer in smaller models share this object.

    Args:
        model: The model, under whose strategy the variables are made.
        emulation: Its `Emulation`.
        layer: The layer.

    Attributes:
        emulation: The `Emulation`.
    """

    def __init__(
        self,
        model: keras.Model,
        emulation: Emulation,
        layer: keras.layers.Layer,
    ):
        self.emulation = emulation
        # Each group of a grouped convolution has a product of its own.
        self._groups = getattr(layer, "groups", 1)
        self._is_depthwise = is_depthwise(layer)
        data_format = getattr(layer, "data_format", "channels_last")
        self._channels_first = data_format == "channels_first"
        with keras_internals.strategy_scope(model):
            self._mass = _variable(np.zeros(2), "float32", "sdgp_mass")

    def __call__(self, gradient: Any) -> Any:
        """Returns `gradient`, pruned if the step is in a phase that prunes."""
        seed = self.emulation.draw_seed()
        return ops.cond(
            self.emulation.is_in(Phase.SPARSE),
            lambda: self._pruned(gradient, seed),
            lambda: gradient,
        )

    def _pruned(self, gradient, seed):
        x = ops.moveaxis(gradient, 1, -1) if self._channels_first else gradient
        blocks = self._blocks(x.shape[-1])
        # Of equal rank for all layers: (batch, pixels, channels).
        rows = ops.reshape(x, (ops.shape(x)[0], -1, blocks.channels))
        kept = _compiled(blocks)(rows, drawn=_drawn(rows, blocks, seed))
        kept = ops.reshape(kept, ops.shape(x))
        ops.cond(
            self.emulation.is_in(Phase.MEASURED),
            lambda: self._add_mass(x, kept),
            lambda: ops.convert_to_tensor(False),
        )
        return ops.moveaxis(kept, -1, 1) if self._channels_first else kept

    def _blocks(self, channels):
        return Blocks(self.emulation.pattern, channels, self._groups)

    def _add_mass(self, gradient, kept):
        sizes = ops.abs(ops.cast(gradient, "float32"))
        of_kept = ops.where(kept != 0, sizes, 0.0)
        self._mass.assign(
            self._mass + ops.stack([ops.sum(of_kept), ops.sum(sizes)])
        )
        return ops.convert_to_tensor(True)

    @property
    def kept_mass(self) -> float:
        """Which part of the gradient's L1 mass was kept in the measured steps.

        NaN if there were none, or no gradient.
        """
        kept, total = self.mass
        return float(kept / total) if total > 0 else math.nan

    @property
    def mass(self) -> np.ndarray:
        """The mass of what was kept, and of all, as a mean over the replicas.

        Those of other machines do not count.
        """
        return np.mean(_on_replicas(self._mass), axis=0)

    @mass.setter
    def mass(self, mass: np.ndarray) -> None:
        self._mass.assign(mass)

    def share(self, channels: int) -> float:
        """Returns which part of the products is left, for n:m hardware.

        No such hardware multiplies depthwise kernels, whose products run along
        no channels.

        Args:
            channels: Integer, those of the layer's output.
        """
        is_dense = self.emulation.phase == Phase.DENSE
        if is_dense or self._is_depthwise:
            return 1.0
        return self._blocks(channels).share


def layer_gradient(layer: keras.Operation) -> LayerGradient | None:
    """Returns the `LayerGradient` of a layer, `None` if it has none."""
    found = keras_internals.data_gradient_of(layer)
    return found if isinstance(found, LayerGradient) else None


def kept_share(layer: keras.Operation) -> float:
    """Returns which part of a layer's data gradient n:m hardware computes."""
    gradient = layer_gradient(layer)
    return 1.0 if gradient is None else gradient.share(channels_of(layer))


def channels_of(layer: keras.layers.Layer) -> int:
    """Returns how many channels a convolution or a dense layer writes."""
    if is_depthwise(layer):
        return math.prod(layer.kernel.shape[-2:])
    if isinstance(layer, keras.layers.Dense):
        return layer.units
    return layer.filters


def is_depthwise(layer: keras.Operation) -> bool:
    """Whether `layer` is a depthwise convolution."""
    return isinstance(
        layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D
    )


def _variable(value, dtype, name):
    # TensorFlow keeps an int32 on the host, where XLA cannot reach it.
    return keras.Variable(value, dtype=dtype, trainable=False, name=name)


def _on_replicas(variable):
    """Returns the values of a variable on the replicas of this machine."""
    return [
        np.asarray(x)
        for x in getattr(variable.value, "values", [variable.value])
    ]


@functools.cache
def _compiled(blocks: Blocks) -> Callable[[Any, Any], Any]:
    """Returns `pruned` for these `Blocks`, as a function of the others.

    XLA computes it in one pass over the memory, where TensorFlow takes one for
    each operation: a fifth of the time on a CPU. The function is the same for
    all models, so that each shape is compiled once in a process.
    """
    import tensorflow as tf

    return tf.function(
        functools.partial(pruned, blocks=blocks),
        autograph=False,
        jit_compile=_has_compiler(),
        reduce_retracing=True,
    )


@functools.cache
def _has_compiler():
    """Whether XLA works here; not all builds of TensorFlow have it."""
    import tensorflow as tf

    with tf.init_scope():
        try:
            tf.function(tf.abs, jit_compile=True)(tf.zeros(1))
        except Exception:  # Which one depends on what is missing.
            return False
    return True


def _drawn(gradient, blocks, seed):
    """Returns the random numbers of a step; `None` for a mode without.

    They are drawn outside of `_compiled`, where XLA would draw each of them
    again for each of its uses.
    """
    if seed is None:
        return None
    import tensorflow as tf

    shape = shape_drawn(gradient, blocks)
    return tf.random.stateless_uniform(shape, seed, alg=_ALGORITHM)

"""Measures what 2:4 data gradients would save on hardware that has them.

    pip install torch
    python tools/benchmarks/sparse_gemm.py --network=ResNet50 --batch_size=64

TensorFlow and Keras have no kernels for 2:4 sparsity; PyTorch has, on NVIDIA
GPUs of compute capability 8.0 and above (semi-structured sparsity). This
program times the three products of each convolution of a network, as products
of matrices in half precision, and sums up what a step would take. It is the
method of the SDGP paper (McDanel et al. 2022), which reports 15 to 25%.

* forward: (pixels, inputs) x (inputs, channels),
* gradient of the weights: (inputs, pixels) x (pixels, channels),
* gradient of the data: (pixels, channels) x (channels, inputs), dense, and with
  a first matrix of which 2 of every 4 consecutive channels are left.

"inputs" are kernel height x kernel width x input channels. The convolutions
that the paper leaves dense, with at most 3 input channels, are dense here, and
so are those whose sizes the sparse kernels do not take. Compressing the
gradient takes time in each step, and is listed apart: hardware and compilers
differ in how much of it they hide. Choosing the 2 of 4 takes time as well, and
is not measured.

Only the products are timed. What is between them (normalization, activations,
the optimizer) takes the same time in both, so a whole step gains less: how much
less is computed if `--step_seconds` says what a dense step takes.

`--kernels=numpy` multiplies with NumPy on a CPU, and full matrices in the place
of sparse ones. That shows that the program works, and nothing else.
"""

import collections
import json
import math
import os
import pathlib
import statistics
import sys
import time
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from absl import flags  # noqa: E402

from keras_prunetrain import models  # noqa: E402

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import command_line  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402

# Their own, so that a test can import several benchmarks.
_FLAGS = flags.FlagValues()
_NETWORK = flags.DEFINE_string(
    "network",
    "ResNet50",
    "One of keras_prunetrain.models, or of keras.applications.",
    _FLAGS,
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 224, "Pixels of a side.", 1, flag_values=_FLAGS
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Images.", 1, flag_values=_FLAGS
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 30, "Timed runs of each product.", 1, flag_values=_FLAGS
)
_KERNELS = flags.DEFINE_enum(
    "kernels", "torch", ["torch", "numpy"], "Who multiplies.", _FLAGS
)
_STEP_SECONDS = flags.DEFINE_float(
    "step_seconds",
    None,
    "Seconds of a whole dense step on the same device, if they are known.",
    0.0,
    flag_values=_FLAGS,
)
_OUTPUT = flags.DEFINE_string(
    "output",
    str(ROOT / "tools" / "results" / "sparse_gemm.json"),
    "File to write the result to.",
    _FLAGS,
)


_CALLS = 20  # Of a product, one after the other, in each timed run.
# Of the largest number of a product; float16 has ten bits behind the point.
_TOLERANCE = 1e-2


class Layer(NamedTuple):
    """The sizes of the three products of a convolution.

    Attributes:
        pixels: Those of its output, over the batch.
        inputs: Weights of each output channel.
        channels: Those of its output.
        is_first: Whether it has at most 3 input channels.
    """

    pixels: int
    inputs: int
    channels: int
    is_first: bool

    @property
    def forward(self):
        return self.pixels, self.inputs, self.channels

    @property
    def weight_gradient(self):
        return self.inputs, self.pixels, self.channels

    @property
    def data_gradient(self):
        return self.pixels, self.channels, self.inputs


def layers_of(model, batch_size):
    """Returns a dict from each `Layer` of a model to how often it is there."""
    counts = collections.Counter()
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.groups == 1:
            *window, read, channels = layer.kernel.shape
            counts[
                Layer(
                    pixels=batch_size * math.prod(layer.output.shape[1:-1]),
                    inputs=math.prod(window) * read,
                    channels=channels,
                    is_first=read <= 3,
                )
            ] += 1
    return dict(counts)


class NumpyKernels:
    """Multiplies full matrices on a CPU."""

    name = "numpy, full matrices in the place of sparse ones"

    def takes(self, rows, inner, columns):
        return inner % 4 == 0

    def matrix(self, rows, columns):
        rng = np.random.default_rng(0)
        return rng.normal(size=(rows, columns)).astype("float32")

    def pruned(self, matrix):
        """Returns `matrix` with zeros: 2 of 4 numbers of a row are left."""
        blocks = matrix.reshape(len(matrix), -1, 4)
        order = np.argsort(np.abs(blocks), axis=-1)
        kept = blocks.copy()
        np.put_along_axis(kept, order[..., :2], 0.0, axis=-1)
        return kept.reshape(matrix.shape)

    compressed = pruned

    def error(self, product, expected):
        return float(np.abs(product - expected).max() / np.abs(expected).max())

    def seconds(self, function, repeats):
        found = []
        for _ in range(repeats):
            started = time.perf_counter()
            function()
            found.append(time.perf_counter() - started)
        return statistics.median(found)


class TorchKernels:
    """Multiplies on an NVIDIA GPU, in half precision."""

    def __init__(self):
        try:
            import torch
        except ImportError:
            sys.exit(
                "This program multiplies with PyTorch: pip install torch. "
                "--kernels=numpy shows without it that the program works."
            )
        if not torch.cuda.is_available():
            sys.exit(
                "PyTorch finds no NVIDIA GPU. --kernels=numpy shows without "
                "one that the program works."
            )
        if torch.cuda.get_device_capability() < (8, 0):
            sys.exit("This GPU has no kernels for 2:4 sparsity (needs 8.0).")
        self._torch = torch
        self._large = self.matrix(16384, 16384)
        self.name = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"

    def takes(self, rows, inner, columns):
        # The sizes that PyTorch's semi-structured kernels take in float16.
        return rows % 32 == 0 and inner % 64 == 0 and columns % 8 == 0

    def matrix(self, rows, columns):
        torch = self._torch
        return torch.randn(rows, columns, device="cuda", dtype=torch.float16)

    def pruned(self, matrix):
        blocks = matrix.reshape(len(matrix), -1, 4)
        places = blocks.abs().topk(2, dim=-1).indices
        mask = self._torch.zeros_like(blocks).scatter_(-1, places, 1.0)
        return (blocks * mask).reshape(matrix.shape)

    def compressed(self, matrix):
        """Returns a pruned matrix in the format of the sparse kernels."""
        return self._torch.sparse.to_sparse_semi_structured(matrix)

    def error(self, product, expected):
        product, expected = product.float(), expected.float()
        return float((product - expected).abs().max() / expected.abs().max())

    def seconds(self, function, repeats):
        torch = self._torch
        for _ in range(_CALLS):
            function()
        found = []
        for _ in range(repeats):
            begin = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            # Keeps the GPU busy until Python has queued all calls, whose time
            # would count otherwise.
            for _ in range(4):
                self._large @ self._large
            begin.record()
            for _ in range(_CALLS):
                function()
            end.record()
            torch.cuda.synchronize()
            found.append(begin.elapsed_time(end) / 1000 / _CALLS)
        return statistics.median(found)


def timed(layer, kernels, repeats):
    """Returns the seconds of the products of a `Layer`, a dict."""

    def dense(rows, inner, columns):
        a, b = kernels.matrix(rows, inner), kernels.matrix(inner, columns)
        return kernels.seconds(lambda: a @ b, repeats)

    seconds = {
        name: dense(*getattr(layer, name))
        for name in ("forward", "weight_gradient", "data_gradient")
    }
    sizes = rows, inner, columns = layer.data_gradient
    if layer.is_first or not kernels.takes(*sizes):
        return seconds | {"sparse": None, "compression": None}
    gradient = kernels.pruned(kernels.matrix(rows, inner))
    kernel = kernels.matrix(inner, columns)
    sparse = kernels.compressed(gradient)
    error = kernels.error(sparse @ kernel, gradient @ kernel)
    if not error < _TOLERANCE:
        sys.exit(
            f"The sparse product of {rows} x {inner} and {inner} x {columns} "
            f"differs from the dense one by {error:.1%} of the largest number. "
            "Its time would say nothing."
        )
    return seconds | {
        "sparse": kernels.seconds(lambda: sparse @ kernel, repeats),
        "compression": kernels.seconds(
            lambda: kernels.compressed(gradient), repeats
        ),
    }


def step_of(rows, step_seconds=None):
    """Returns what all products of a step take, and what of it is saved.

    Args:
        rows: List of pairs: the seconds of a layer, as of `timed`, and how
            often the layer is there.
        step_seconds: Float, those of a whole dense step; `None` if unknown.
    """
    dense = sparse = compression = of_pruned = 0.0
    for seconds, count in rows:
        others = seconds["forward"] + seconds["weight_gradient"]
        data = seconds["data_gradient"]
        dense += count * (others + data)
        if seconds["sparse"] is None:
            sparse += count * (others + data)
        else:
            sparse += count * (others + seconds["sparse"])
            compression += count * seconds["compression"]
            of_pruned += count * data
    whole = {}
    if step_seconds:
        saved = dense - sparse
        whole = {
            "saved_of_a_step": saved / step_seconds,
            "saved_of_a_step_with_compression": (saved - compression)
            / step_seconds,
        }
    return whole | {
        "dense_seconds": dense,
        "sparse_seconds": sparse,
        "compression_seconds": compression,
        "share_of_pruned_products": of_pruned / dense,
        "saved": 1 - sparse / dense,
        "saved_with_compression": 1 - (sparse + compression) / dense,
    }


def network():
    keras.utils.set_random_seed(0)
    name, size = _NETWORK.value, _IMAGE_SIZE.value
    if name in models.__all__:
        return getattr(models, name)((size, size, 3), 10)
    if not hasattr(keras.applications, name):
        sys.exit(f"--network={name} is none of keras.applications.")
    return getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3)
    )


def main(argv):
    command_line.refuse_words(_FLAGS(argv))
    kernels = NumpyKernels() if _KERNELS.value == "numpy" else TorchKernels()
    layers = layers_of(network(), _BATCH_SIZE.value)
    rows = [
        (timed(layer, kernels, _REPEATS.value), count)
        for layer, count in layers.items()
    ]
    step = step_of(rows, _STEP_SECONDS.value)
    record = environment([0]) | {
        "kernels": kernels.name,
        "network": _NETWORK.value,
        "image_size": _IMAGE_SIZE.value,
        "batch_size": _BATCH_SIZE.value,
        "step_seconds": _STEP_SECONDS.value,
        "step": step,
        "layers": [
            layer._asdict() | {"count": count} | {"seconds": seconds}
            for layer, (seconds, count) in zip(layers, rows, strict=True)
        ],
    }
    output = pathlib.Path(_OUTPUT.value)
    output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{_NETWORK.value}, {kernels.name}: the products of a step")
    for name, value in step.items():
        print(f"  {name.replace('_', ' ')}: {value:.4g}")


if __name__ == "__main__":
    command_line.run(main, _FLAGS)

"""Counts the multiply-accumulates of each kind of kernel.

Every function here can be the `macs` of a `LayerRule`. The arguments are the
layer, the list of the shapes that one call reads, and the list of the shapes
that the call writes, all without the batch. The result is the number of
multiply-accumulates of the call for one example.
"""

import math

import keras

# The shapes of all tensors that a call reads, or writes, without the batch.
Shapes = list[tuple[int, ...]]


def at_outputs(layer: keras.layers.Layer, read: Shapes, written: Shapes) -> int:
    """Counts a convolution: its kernel is applied at every output position."""
    # Groups are part of the shape: (..., in_channels / groups, out_channels).
    return math.prod(layer.kernel.shape) * _positions(layer, written[0])


def at_inputs(layer: keras.layers.Layer, read: Shapes, written: Shapes) -> int:
    """Counts a transposed convolution, applied at every input position."""
    return math.prod(layer.kernel.shape) * _positions(layer, read[0])


def separable(layer: keras.layers.Layer, read: Shapes, written: Shapes) -> int:
    """Counts a depthwise and a pointwise kernel at every output position."""
    kernels = layer.depthwise_kernel, layer.pointwise_kernel
    weights = sum(math.prod(kernel.shape) for kernel in kernels)
    return weights * _positions(layer, written[0])


def dense(layer: keras.layers.Layer, read: Shapes, written: Shapes) -> int:
    """Counts a matrix that is applied to the last axis at every position."""
    return math.prod(layer.kernel.shape) * math.prod(read[0][:-1])


def einsum(layer: keras.layers.Layer, read: Shapes, written: Shapes) -> int:
    """Counts the kernel once for each index of the input's unsummed axes."""
    left, right = layer.equation.split("->")[0].split(",")
    sizes = dict(zip(right.strip(), layer.kernel.shape, strict=True))
    contracted = math.prod(sizes[axis] for axis in sizes if axis in left)
    repeats = math.prod(read[0]) // contracted
    return math.prod(layer.kernel.shape) * repeats


def recurrent(layer: keras.layers.Layer, read: Shapes, written: Shapes) -> int:
    """Counts the matrices of a cell, or of several, in each time step.

    Of a cell of the user's, as of Keras's, all matrices but the biases count.
    """
    return read[0][0] * sum(
        math.prod(weight.shape)
        for weight in layer.cell.weights
        # The bias of a `GRU` is a matrix, too.
        if len(weight.shape) == 2 and weight.name != "bias"
    )


def recurrent_images(
    layer: keras.layers.Layer, read: Shapes, written: Shapes
) -> int:
    """Counts the two kernels of a `ConvLSTM` at every pixel of each step."""
    steps = read[0][0]
    kernels = layer.cell.kernel, layer.cell.recurrent_kernel
    image = written[0][1:] if layer.return_sequences else written[0]
    weights = sum(math.prod(kernel.shape) for kernel in kernels)
    return steps * weights * _positions(layer, image)


def attention(layer: keras.layers.Layer, read: Shapes, written: Shapes) -> int:
    """Counts the projections of queries, keys, values and outputs."""
    return sum(of_projections(layer, read).values())


def of_projections(layer: keras.layers.Layer, read: Shapes) -> dict[int, int]:
    """Returns what each projection of an attention counts.

    Dict from the `id` of a kernel to its multiply-accumulates.
    """
    query, value = (math.prod(shape[:-1]) for shape in read[:2])
    positions = {"key": value, "value": value}
    return {
        id(weight): math.prod(weight.shape)
        * positions.get(weight.path.split("/")[-2], query)
        for weight in layer.weights
        if weight.name == "kernel"
    }


def none(layer: keras.layers.Layer, read: Shapes, written: Shapes) -> int:
    """Counts nothing: the weights are looked up, or multiply elementwise."""
    return 0


def _positions(layer, shape):
    """Returns the number of pixels (or steps, or voxels) of a feature map."""
    first = layer.data_format == "channels_first"
    return math.prod(shape[1:] if first else shape[:-1])

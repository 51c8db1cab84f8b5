"""The benchmark of sparse products, as far as a CPU can test it."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

import keras_prunetrain as kpt
from tests.sdgp import reference

BENCHMARKS = pathlib.Path(__file__).parents[2] / "tools" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import sparse_gemm  # noqa: E402  # isort: skip


def test_the_products_are_those_that_model_cost_counts():
    model = kpt.models.resnet8((16, 16, 3), 10)
    cost = kpt.model_cost(model)
    layers = sparse_gemm.layers_of(model, batch_size=4)
    for product in ("forward", "weight_gradient", "data_gradient"):
        flops = sum(
            2 * np.prod(getattr(layer, product)) * count
            for layer, count in layers.items()
        )
        dense = cost.per_layer["logits"].forward_flops
        assert flops == 4 * (cost.forward_flops - dense), product
    assert [x.inputs for x in layers if x.is_first] == [27]


def seconds(sparse):
    names = ("forward", "weight_gradient", "data_gradient")
    compression = None if sparse is None else 0.25
    return {
        **dict.fromkeys(names, 2.0),
        **{"sparse": sparse, "compression": compression},
    }


def test_what_a_step_saves():
    step = sparse_gemm.step_of([(seconds(None), 1), (seconds(1.0), 3)])
    assert step["dense_seconds"] == 24
    assert step["sparse_seconds"] == 21
    assert step["compression_seconds"] == 0.75
    assert step["share_of_pruned_products"] == 0.25
    assert step["saved"] == 0.125
    assert step["saved_with_compression"] == pytest.approx(2.25 / 24)


def test_what_a_whole_step_saves_if_its_time_is_known():
    rows = [(seconds(1.0), 3)]
    step = sparse_gemm.step_of(rows, step_seconds=30.0)
    assert step["saved_of_a_step"] == pytest.approx(3 / 30)
    with_compression = step["saved_of_a_step_with_compression"]
    assert with_compression == pytest.approx(2.25 / 30)
    assert "saved_of_a_step" not in sparse_gemm.step_of(rows)


def test_a_sparse_product_that_is_wrong_is_not_timed():
    class Wrong(sparse_gemm.NumpyKernels):
        def compressed(self, matrix):
            return 1.1 * matrix

    layer = sparse_gemm.Layer(64, 36, 8, is_first=False)
    assert sparse_gemm.timed(layer, sparse_gemm.NumpyKernels(), 1)["sparse"]
    with pytest.raises(SystemExit, match="differs from the dense one by 10.0%"):
        sparse_gemm.timed(layer, Wrong(), 1)


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is not None, reason="PyTorch is there."
)
def test_without_pytorch_it_says_what_to_install():
    with pytest.raises(SystemExit, match="pip install torch"):
        sparse_gemm.main(["sparse_gemm.py", "--network=resnet8"])


def test_two_of_four_are_left():
    kernels = sparse_gemm.NumpyKernels()
    matrix = kernels.matrix(6, 12)
    np.testing.assert_array_equal(
        kernels.pruned(matrix), reference.magnitude(matrix, 2, 4)
    )


@pytest.mark.parametrize("name", ["repeats", "batch_size", "image_size"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(flags.Error, match=f"{name}=0"):
        sparse_gemm.main(["sparse_gemm.py", "--kernels=numpy", f"--{name}=0"])


def test_a_whole_run_with_numpy(tmp_path, capsys):
    output = tmp_path / "found.json"
    sparse_gemm.main(
        [
            *("sparse_gemm.py", "--network=resnet8", "--image_size=8"),
            *("--batch_size=1", "--repeats=1", "--kernels=numpy"),
            f"--output={output}",
        ]
    )
    record = json.loads(output.read_text())
    assert record["kernels"].startswith("numpy, full matrices")
    kinds = [row["seconds"]["sparse"] is None for row in record["layers"]]
    assert kinds == [row["is_first"] for row in record["layers"]]
    assert "the products of a step" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize("name", ["sparse_gemm", "export_images"])
def test_as_a_program_it_lists_its_flags(name):
    found = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", "--helpshort"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "--output" in found.stdout, found.stderr

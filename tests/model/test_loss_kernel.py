"""The loss's Triton kernel: exact in Triton's interpreter, compiled for the GPUs that it is for, and exact on one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bigtrain.model.loss.loss import linear_cross_entropy
from bigtrain.model.loss.loss_softmax import SoftmaxInPyTorch, softmax_for
from bigtrain.model.loss.shaping import Shaping
from tests.model.loss_helpers import assert_equals_float64, chunk

SHAPINGS = [Shaping(), Shaping(logits_scaling=0.5, softcap=30.0, z_loss_coef=1e-3)]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def environment(require: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of processes that find Triton; launch/setup.sh lays it beside the packages of a CPU build."""
    beside = str(Path(sys.prefix, "triton"))
    monkeypatch.syspath_prepend(beside)
    require("triton")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([beside, os.environ.get("PYTHONPATH", "")])}


def test_the_kernel_is_exact_in_tritons_interpreter(environment: dict[str, str]) -> None:
    assert_passes("interpreted_loss_kernel.py", {**environment, "TRITON_INTERPRET": "1"})


def test_the_kernel_compiles_for_gpus_without_one(environment: dict[str, str]) -> None:
    assert_passes("compiled_loss_kernel.py", environment)


def assert_passes(file: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", file]
    run = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\b[1-9]\d* passed", run.stdout) and "SKIPPED" not in run.stdout, run.stdout


def test_a_cpu_in_any_precision_but_bfloat16_has_its_softmax_from_pytorch() -> None:
    for dtype in (torch.float64, torch.float32, torch.float16):
        softmax, copied_bytes = softmax_for(torch.empty(10, 4, dtype=dtype), Shaping())
        assert isinstance(softmax, SoftmaxInPyTorch) and copied_bytes == 2 * max(dtype.itemsize, 4)


@needs_cuda
@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("classes", [50, 32_000, 50_257, 262_144])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_the_kernel_is_taken_exact_and_the_same_each_time(
    dtype: torch.dtype, classes: int, shaping: Shaping
) -> None:
    from bigtrain.model.loss.loss_kernel import softmax_in_one_kernel

    assert softmax_for(torch.empty(classes, 0, dtype=dtype, device="cuda"), shaping) == (softmax_in_one_kernel, 0)
    products, labels = (x.cuda() for x in chunk(200, classes, dtype))
    gradient, again = products.clone(), products.clone()
    loss = softmax_in_one_kernel(gradient, labels, shaping, True)
    assert_equals_float64(products, labels, shaping, loss, gradient, exact=2**-20)
    for _ in range(20):
        again.copy_(products)
        assert torch.equal(softmax_in_one_kernel(again, labels, shaping, True), loss)
        assert torch.equal(again, gradient)


@needs_cuda
def test_on_a_gpu_logits_take_the_memory_of_one_chunk() -> None:
    """On a gpu logits take the memory of one chunk in their own precision."""
    hidden, weight = (torch.randn(n, 64, device="cuda").bfloat16().requires_grad_() for n in (32_768, 32_000))
    labels = torch.randint(32_000, (32_768,), device="cuda")
    linear_cross_entropy(hidden, weight, labels)  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_cross_entropy(hidden, weight, labels)
    chunk_bytes = 640 << 20
    assert chunk_bytes * 0.9 < torch.cuda.max_memory_allocated() - before < chunk_bytes * 1.1

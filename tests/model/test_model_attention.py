"""Every attention back-end computes the float64 definition, inside documents only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_support import random_boundaries, relative_error
from torch import Tensor

from bigtrain.config.errors import BigtrainError
from bigtrain.model.attention_backends import BACKENDS, attention_backend, reference
from bigtrain.model.attention_rule import AttentionRule

CPU_BACKENDS = ["blockwise", "sdpa"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}


def inputs(tokens: int, heads: int, groups: int, width: int, seed: int, spread: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (heads, heads // groups, heads // groups, heads)
    query, key, value, grad = (torch.randn(tokens, n, width, dtype=torch.float64, generator=generator) for n in shapes)
    return query * spread, key, value, grad


def attend(name: str, tensors: tuple[Tensor, ...], cu_seqlens: Tensor) -> list[Tensor]:
    """Output and the three gradients."""
    query, key, value = (x.detach().requires_grad_() for x in tensors[:3])
    output = BACKENDS[name](
        query, key, value, cu_seqlens, int(cu_seqlens.diff().max()), AttentionRule(query.shape[-1] ** -0.5)
    )
    return [output.detach(), *torch.autograd.grad(output, (query, key, value), tensors[3])]


def assert_close_to_definition(name: str, tensors: tuple[Tensor, ...], cu_seqlens: Tensor, dtype: torch.dtype) -> None:
    rounded = tuple(x.to(dtype) for x in tensors)
    wanted = attend("reference", tuple(x.double() for x in rounded), cu_seqlens)
    for what, a, b in zip(
        ("output", "d query", "d key", "d value"), attend(name, rounded, cu_seqlens), wanted, strict=True
    ):
        assert a.dtype == dtype
        assert relative_error(a, b, floor=1.0) < TOLERANCE[dtype], what  # one token alone has gradients of zero


@pytest.mark.parametrize("name", CPU_BACKENDS)
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 3), length=st.integers(1, 80), groups=st.sampled_from([1, 2, 4]), seed=st.integers(0, 10**6))
def test_backend_equals_the_float64_definition_on_any_packing(
    name: str, rows: int, length: int, groups: int, seed: int
) -> None:
    tensors = inputs(rows * length, 4, groups, 8, seed)
    assert_close_to_definition(name, tensors, random_boundaries(rows, length, seed), torch.float64)


@pytest.mark.parametrize("name", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("boundaries", [[0, 300, 600], [0, 1, 150, 300, 437, 600]])
def test_backend_is_accurate_in_training_precision_over_several_blocks(
    name: str, dtype: torch.dtype, boundaries: list[int]
) -> None:
    tensors = inputs(600, 4, 2, 32, seed=1)
    assert_close_to_definition(name, tensors, torch.tensor(boundaries, dtype=torch.int32), dtype)


def test_blockwise_in_bfloat16_keeps_its_accuracy_when_scores_are_large() -> None:
    """Scores up to 60, where a bfloat16 score by itself would be wrong by up to 0.125, and its weight by 13%."""
    tensors = tuple(x.bfloat16() for x in inputs(256, 2, 1, 64, seed=2, spread=15.0))
    cu_seqlens = torch.tensor([0, 256], dtype=torch.int32)
    wanted = attend("reference", tuple(x.double() for x in tensors), cu_seqlens)
    for actual, expected, tolerance in zip(
        attend("blockwise", tensors, cu_seqlens), wanted, (0.005, 0.02, 0.02, 0.005), strict=True
    ):
        assert relative_error(actual, expected) < tolerance


@pytest.mark.parametrize("name", [*CPU_BACKENDS, "reference"])
def test_documents_never_leak_into_each_other(name: str) -> None:
    """The gradient of one document's outputs is exactly zero in every other document, and in the future."""
    cu_seqlens = torch.tensor([0, 20, 150, 151, 200, 400], dtype=torch.int32)
    query, key, value, _ = inputs(400, 4, 2, 8, seed=3)
    tensors = [x.requires_grad_() for x in (query, key, value)]
    output = BACKENDS[name](*tensors, cu_seqlens, 200, AttentionRule(0.3))
    last_seen = 120
    for grad in torch.autograd.grad(output[20 : last_seen + 1].square().sum(), tensors):
        assert grad[:20].abs().max() == 0
        assert grad[last_seen + 1 :].abs().max() == 0
        assert grad[21 : last_seen + 1].abs().amax((1, 2)).min() > 0


def test_auto_takes_a_backend_that_runs_here() -> None:
    query = torch.randn(4, 2, 8)
    assert attention_backend("auto", query, AttentionRule(1.0)) is BACKENDS["blockwise"]
    assert attention_backend("reference", query, AttentionRule(1.0)) is reference


def test_varlen_is_refused_on_a_cpu() -> None:
    with pytest.raises(BigtrainError, match="cannot run here"):
        attention_backend("varlen", torch.randn(4, 2, 8), AttentionRule(1.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["varlen", "sdpa"])
def test_backend_on_cuda_equals_the_definition(name: str) -> None:
    tensors = tuple(x.cuda() for x in inputs(600, 4, 2, 64, seed=4))
    cu_seqlens = torch.tensor([0, 1, 150, 300, 437, 600], dtype=torch.int32, device="cuda")
    assert attention_backend("auto", tensors[0].bfloat16(), AttentionRule(1.0)) is BACKENDS["varlen"]
    assert_close_to_definition(name, tensors, cu_seqlens, torch.bfloat16)

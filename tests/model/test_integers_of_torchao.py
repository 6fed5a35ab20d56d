"""Promises of integer weights, against torchao: the same scales and codes, and errors no larger than its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.model.compression.quantisation import BITS, largest_code, quantised


@pytest.fixture(scope="module")
def primitives(require: Any) -> Any:
    require("torchao")
    from torchao.quantization import quant_primitives

    return quant_primitives


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(sorted(BITS)),
    rows=st.integers(1, 9),
    groups=st.integers(1, 5),
    group_size=st.sampled_from([2, 8, 32, 64]),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
    seed=st.integers(0, 2**16),
)
def test_scales_and_codes_are_those_of_torchao(
    primitives: Any, kind: str, rows: int, groups: int, group_size: int, scale: float, seed: int
) -> None:
    """Symmetric, without the lowest code, scales in bfloat16; a weight half-way between two codes may take either."""
    generator = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(rows, groups * group_size, generator=generator)
    bits, most = BITS[kind], largest_code(BITS[kind])
    block, target = (1, group_size), torch.int8
    scales, zeros = primitives.choose_qparams_affine(
        weight, primitives.MappingType.SYMMETRIC, block, target, -most, most, eps=1e-30, scale_dtype=torch.bfloat16
    )
    scales, zeros = scales.view(rows, groups), zeros.view(rows, groups)
    codes = primitives.quantize_affine(weight, block, scales.float(), zeros, target, -most, most)
    ours = quantised(weight, bits, group_size)
    assert torch.equal(ours.scales, scales.to(torch.bfloat16))
    exact = weight.double() / scales.double().repeat_interleave(group_size, 1)
    undecided = ((exact.abs() % 1) - 0.5).abs() < 1e-4
    assert torch.equal(ours.codes.where(~undecided, 0), codes.where(~undecided, 0))
    assert (ours.codes - codes).abs().max() <= 1
    theirs = primitives.dequantize_affine(codes, block, scales.float(), zeros, target, -most, most)
    torch.testing.assert_close(ours.dequantised().where(~undecided, 0), theirs.where(~undecided, 0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", sorted(BITS))
def test_errors_are_no_larger_than_those_of_its_configurations(primitives: Any, kind: str) -> None:
    """Of a matrix as models have them, with int8 by rows and int4 by groups of 64, whose lowest code torchao uses."""
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(3)) / 16
    layer = torch.nn.Sequential(torch.nn.Linear(256, 64, bias=False))
    layer[0].weight.data.copy_(weight)
    group_size = 256 if kind == "int8" else 64
    if kind == "int8":
        quantize_(layer, Int8WeightOnlyConfig())
    else:
        quantize_(layer, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group_size)))
    theirs = (layer[0].weight.dequantize() - weight).norm()
    ours = (quantised(weight, BITS[kind], group_size).dequantised() - weight).norm()
    assert ours < 1.1 * theirs, (float(ours), float(theirs))

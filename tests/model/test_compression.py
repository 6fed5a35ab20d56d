"""Masks keep exact numbers of the right weights; integers stand for the nearest numbers; GPTQ is its definition."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bigtrain.base import BigtrainError
from bigtrain.model.compression.gptq import DAMPING, gptq
from bigtrain.model.compression.pruning import (
    cubic_sparsity,
    keep_of_all,
    keep_of_groups,
    keep_of_rows,
    keep_of_tensor,
    number_pruned,
    wanda_scores,
)
from bigtrain.model.compression.quantisation import (
    QuantisedMatrix,
    group_scales,
    largest_code,
    packed,
    quantised,
    unpacked,
)
from tests.refusals import assert_refused

sizes = st.integers(1, 12)
seeds = st.integers(0, 10**6)
shares = st.floats(0, 0.99)


def matrix(rows: int, columns: int, seed: int) -> Tensor:
    """float64, with zeros and equal numbers in it."""
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values * 4).round() / 4 if seed % 2 else values


@given(rows=sizes, columns=sizes, seed=seeds, share=shares)
def test_a_mask_prunes_an_exact_number_of_the_lowest_scores(rows: int, columns: int, seed: int, share: float) -> None:
    """In a tensor, in each row, and over several tensors together."""
    scores, others = matrix(rows, columns, seed).abs(), matrix(columns, rows, seed + 2).abs()
    together = torch.cat([scores.flatten(), others.flatten()])
    kept_of_all = torch.cat([mask.flatten() for mask in keep_of_all([scores, others], share)])
    for own, kept in (
        (scores.flatten(), keep_of_tensor(scores, share).flatten()),
        *zip(scores, keep_of_rows(scores, share), strict=True),
        (together, kept_of_all),
    ):
        assert int((~kept).sum()) == number_pruned(len(own), share)
        if kept.any() and not kept.all():
            assert own[~kept].max() <= own[kept].min()


@given(rows=sizes, groups=st.integers(1, 4), seed=seeds, pattern=st.sampled_from([(2, 4), (1, 2), (4, 8), (3, 4)]))
def test_a_pattern_keeps_the_largest_of_each_group(rows: int, groups: int, seed: int, pattern: tuple[int, int]) -> None:
    kept, of = pattern
    scores = matrix(rows, groups * of, seed).abs()
    mask = keep_of_groups(scores, kept, of)
    for group, own in zip(scores.view(-1, of), mask.view(-1, of), strict=True):
        assert int(own.sum()) == kept and group[own].min() >= group[~own].max()


def test_a_pattern_that_does_not_divide_a_row_is_refused() -> None:
    with pytest.raises(BigtrainError) as caught:
        keep_of_groups(torch.ones(2, 6), 2, 4)
    assert_refused(caught, found="[2, 6]", wanted="a multiple of 4", fix="sparsity")


def test_a_share_that_is_no_binary_fraction_is_rounded_as_written() -> None:
    assert number_pruned(100, 0.29) == 29 and number_pruned(10, 0.55) == 5


def test_wanda_s_score_is_the_weight_times_the_norm_of_its_input() -> None:
    weight, x = matrix(3, 5, 0), matrix(7, 5, 2)
    scores = wanda_scores(weight, x.square().sum(0))
    for i in range(3):
        for j in range(5):
            assert scores[i, j].item() == pytest.approx(abs(weight[i, j].item()) * x[:, j].norm().item(), rel=1e-12)


@given(start=st.integers(0, 50), length=st.integers(1, 100), final=st.floats(0.01, 0.99))
def test_the_cubic_schedule_rises_from_none_to_the_final_share(start: int, length: int, final: float) -> None:
    """Fast first and slow at last, as Zhu and Gupta have it."""
    course = [cubic_sparsity(step, start, start + length, final) for step in range(start + length + 2)]
    assert course[start] == 0 and course[-1] == course[start + length] == final
    rises = [b - a for a, b in zip(course[start:-2], course[start + 1 : -1], strict=True)]
    assert all(rise > 0 for rise in rises) and all(a >= b - 1e-12 for a, b in pairwise(rises))


@given(rows=sizes, columns=sizes, group=st.integers(1, 8), bits=st.sampled_from([4, 8]), seed=seeds)
def test_codes_are_the_nearest_ones_within_half_a_scale(
    rows: int, columns: int, group: int, bits: int, seed: int
) -> None:
    """But for the largest numbers, which the rounding of the scale may put out of reach by 1/256."""
    weight = matrix(rows, columns, seed)
    made = quantised(weight, bits, group)
    back, scales = made.dequantised().double(), made.scales.double().repeat_interleave(group, 1)[:, :columns]
    assert made.codes.abs().max() <= largest_code(bits)
    assert ((back - weight).abs() <= scales / 2 + weight.abs() / 256).all()
    assert (back[weight == 0] == 0).all()


@given(rows=sizes, columns=sizes, seed=seeds, bits=st.sampled_from([4, 8]))
def test_what_is_stored_is_read_back(rows: int, columns: int, seed: int, bits: int) -> None:
    made = quantised(matrix(rows, columns, seed), bits, 3)
    codes, scales = made.stored()
    assert codes.numel() == rows * (-(-columns // 2) if bits == 4 else columns)
    back = QuantisedMatrix.of_stored(codes, scales, bits, 3, columns)
    assert torch.equal(back.dequantised(), made.dequantised())


@given(codes=st.lists(st.integers(-8, 7), min_size=1, max_size=9))
def test_any_codes_of_four_bits_are_packed_two_in_a_byte(codes: list[int]) -> None:
    rows = torch.tensor([codes, codes[::-1]], dtype=torch.int8)
    assert torch.equal(unpacked(packed(rows), len(codes)), rows)


def by_definition(weight: Tensor, hessian: Tensor, bits: int, group: int) -> Tensor:
    """GPTQ with an inverse over the remaining columns at each one; the numbers that its codes stand for."""
    weight, hessian, kept = weight.clone(), hessian.clone(), weight != 0
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += DAMPING * diagonal.mean()
    made = torch.zeros_like(weight)
    for i in range(weight.shape[1]):
        if i % group == 0:
            scales = group_scales(weight[:, i : i + group], bits, group)[:, 0]
        inverse = torch.linalg.inv(hessian[i:, i:])
        codes = (weight[:, i] / scales).round().clamp(-largest_code(bits), largest_code(bits))
        made[:, i] = codes * scales * kept[:, i]
        weight[:, i:] -= ((weight[:, i] - made[:, i]) / inverse[0, 0])[:, None] * inverse[0]
    return made


@given(
    rows=sizes,
    columns=st.integers(1, 24),
    group=st.integers(1, 30),
    block=st.integers(1, 30),
    bits=st.sampled_from([4, 8]),
    seed=seeds,
)
def test_gptq_is_its_definition_with_any_block(
    rows: int, columns: int, group: int, block: int, bits: int, seed: int
) -> None:
    """A pruned weight stays 0, and a feature that is always 0 does no harm. Inputs are random, so no code is a tie."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    weight[weight.abs() < 0.3] = 0
    x = torch.randn(50, columns, generator=generator, dtype=torch.float64)
    x[:, 0] = 0 if seed % 3 == 0 else x[:, -1] + 0.1 * x[:, 0]
    hessian = x.T @ x
    made = gptq(weight, hessian, bits, group, block=block)
    assert torch.equal(made.dequantised().double(), by_definition(weight, hessian, bits, group))
    assert (made.codes[weight == 0] == 0).all()


def test_gptq_changes_products_less_than_rounding_does() -> None:
    """On inputs whose features go together, as those of layers do."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator, dtype=torch.float64)
    x = torch.randn(500, 8, generator=generator, dtype=torch.float64) @ torch.randn(
        8, 64, generator=generator, dtype=torch.float64
    ) + 0.1 * torch.randn(500, 64, generator=generator, dtype=torch.float64)

    def error(made: QuantisedMatrix) -> float:
        return float((x @ (made.dequantised().double() - weight).T).norm())

    assert error(gptq(weight, x.T @ x, 4, 32)) < 0.5 * error(quantised(weight, 4, 32))

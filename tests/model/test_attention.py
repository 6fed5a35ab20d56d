"""Every attention back-end computes the float64 definition of every rule it claims, inside documents only."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from bigtrain.base.errors import BigtrainError
from bigtrain.model.attention.attention_backends import BACKENDS, attention_backend, reference
from bigtrain.model.attention.attention_rule import (
    AttentionRule,
    KeyBoundaries,
    alibi_bias,
    alibi_slopes,
    attention_by_definition,
    relative_position_buckets,
    two_sided_position_buckets,
)
from bigtrain.model.attention.flex_attention import _block_mask
from tests.model.helpers import random_boundaries, relative_error

CPU_BACKENDS = ["blockwise", "sdpa"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}
PLAIN = AttentionRule(scale=0.3)


def inputs(tokens: int, heads: int, groups: int, width: int, seed: int, spread: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (heads, heads // groups, heads // groups, heads)
    query, key, value, grad = (torch.randn(tokens, n, width, dtype=torch.float64, generator=generator) for n in shapes)
    return query * spread, key, value, grad


def random_bias(heads: int, length: int, seed: int) -> Tensor:
    return torch.randn(heads, length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attend(name: str, tensors: tuple[Tensor, ...], cu_seqlens: Tensor, rule: AttentionRule) -> list[Tensor]:
    """Output and all gradients: of query, key, value and the distance bias if there is one."""
    leaves = [x.detach().requires_grad_() for x in tensors[:3]]
    if rule.distance_bias is not None:
        leaves.append(rule.distance_bias.detach().requires_grad_())
        rule = replace(rule, distance_bias=leaves[3])
    query, key, value = leaves[:3]
    output = BACKENDS[name](query, key, value, cu_seqlens, int(cu_seqlens.diff().max()), rule)
    return [output.detach(), *torch.autograd.grad(output, leaves, tensors[3])]


def assert_close_to_definition(
    name: str, tensors: tuple[Tensor, ...], cu_seqlens: Tensor, dtype: torch.dtype, rule: AttentionRule, slack: int = 1
) -> None:
    rounded = tuple(x.to(dtype) for x in tensors)
    wanted = attend("reference", tuple(x.double() for x in rounded), cu_seqlens, rule)
    actual = attend(name, rounded, cu_seqlens, rule)
    for what, a, b in zip(("output", "d query", "d key", "d value", "d bias"), actual, wanted, strict=False):
        assert a.dtype == (rule.distance_bias.dtype if what == "d bias" and rule.distance_bias is not None else dtype)
        assert relative_error(a, b, floor=1.0) < slack * TOLERANCE[dtype], what  # one token alone has gradients of zero
    assert len(actual) == len(wanted)


@pytest.mark.parametrize("name", CPU_BACKENDS)
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 80),
    groups=st.sampled_from([1, 2, 4]),
    window=st.none() | st.integers(1, 90),
    softcap=st.none() | st.sampled_from([0.5, 3.0, 50.0]),
    biased=st.booleans(),
    two_sided=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_backend_equals_the_float64_definition_of_any_rule_on_any_packing(
    name: str,
    rows: int,
    length: int,
    groups: int,
    window: int | None,
    softcap: float | None,
    biased: bool,
    two_sided: bool,
    seed: int,
) -> None:
    tensors = inputs(rows * length, 4, groups, 8, seed)
    bias = random_bias(4, 2 * length - 1 if two_sided else length, seed) if biased else None
    rule = AttentionRule(0.3, window, None if name == "sdpa" else softcap, bias, two_sided)
    assert_close_to_definition(name, tensors, random_boundaries(rows, length, seed), torch.float64, rule)


@settings(max_examples=12, deadline=None)
@given(
    boundaries=st.sets(st.integers(1, 399), max_size=3),
    groups=st.sampled_from([1, 4]),
    window=st.none() | st.sampled_from([1, 2, 127, 128, 129, 200, 270, 399]),
    softcap=st.none() | st.just(2.0),
    biased=st.booleans(),
    two_sided=st.booleans(),
)
def test_blockwise_equals_the_float64_definition_over_several_blocks(
    boundaries: set[int], groups: int, window: int | None, softcap: float | None, biased: bool, two_sided: bool
) -> None:
    tensors = inputs(400, 4, groups, 8, seed=6)
    bias = random_bias(4, 799 if two_sided else 400, seed=7) if biased else None
    rule = AttentionRule(0.3, window, softcap, bias, two_sided)
    cu_seqlens = torch.tensor([0, *sorted(boundaries), 400], dtype=torch.int32)
    assert_close_to_definition("blockwise", tensors, cu_seqlens, torch.float64, rule)


RULES = {
    "plain": PLAIN,
    "window": replace(PLAIN, window=170),
    "bias": replace(PLAIN, distance_bias=alibi_bias(4, 600)),
    "softcap": replace(PLAIN, softcap=4.0, window=170, distance_bias=alibi_bias(4, 600)),
    "two-sided": replace(PLAIN, two_sided=True),
    "two-sided window": replace(PLAIN, two_sided=True, window=65),
    "two-sided bias": replace(PLAIN, two_sided=True, distance_bias=random_bias(4, 1199, seed=8).float()),
}


@pytest.mark.parametrize(
    ("name", "rule"), [(n, r) for n in CPU_BACKENDS for r in RULES if (n, r) != ("sdpa", "softcap")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("boundaries", [[0, 300, 600], [0, 1, 150, 300, 437, 600]])
def test_backend_is_accurate_in_training_precision_over_several_blocks(
    name: str, rule: str, dtype: torch.dtype, boundaries: list[int]
) -> None:
    tensors = inputs(600, 4, 2, 32, seed=1)
    # sdpa takes a bias rounded to the type of the queries.
    slack = 3 if (name, dtype) == ("sdpa", torch.bfloat16) and "bias" in rule else 1
    cu_seqlens = torch.tensor(boundaries, dtype=torch.int32)
    assert_close_to_definition(name, tensors, cu_seqlens, dtype, RULES[rule], slack)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("two_sided", [False, True])
def test_blockwise_in_bfloat16_keeps_its_accuracy_when_scores_are_large(window: int | None, two_sided: bool) -> None:
    """Scores up to 60, where a bfloat16 score by itself would be wrong by up to 0.125, and its weight by 13%."""
    tensors = tuple(x.bfloat16() for x in inputs(256, 2, 1, 64, seed=2, spread=15.0))
    cu_seqlens = torch.tensor([0, 256], dtype=torch.int32)
    rule = AttentionRule(scale=64**-0.5, window=window, two_sided=two_sided)
    wanted = attend("reference", tuple(x.double() for x in tensors), cu_seqlens, rule)
    for actual, expected, tolerance in zip(
        attend("blockwise", tensors, cu_seqlens, rule), wanted, (0.005, 0.02, 0.02, 0.005), strict=True
    ):
        assert relative_error(actual, expected) < tolerance


def test_blockwise_in_bfloat16_finds_the_largest_of_negative_scores() -> None:
    """All scores between -60 and 0: a shift that is not the largest one would lose what the softmax is about."""
    query, key, value, grad = (x.bfloat16() for x in inputs(256, 2, 1, 64, seed=8))
    tensors = query.abs() * 2, -key.abs(), value, grad
    cu_seqlens = torch.tensor([0, 1, 256], dtype=torch.int32)
    wanted = attend("reference", tuple(x.double() for x in tensors), cu_seqlens, PLAIN)
    for actual, expected in zip(attend("blockwise", tensors, cu_seqlens, PLAIN), wanted, strict=True):
        assert relative_error(actual, expected) < 0.02


@pytest.mark.parametrize("name", [*CPU_BACKENDS, "reference"])
@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("biased", [False, True])
def test_documents_never_leak_into_each_other_and_windows_not_at_all(
    name: str, window: int | None, biased: bool
) -> None:
    """The gradient of one document's outputs is exactly zero in every other document, in the future, and in tokens
    that the window has left; and not zero in those that it sees."""
    cu_seqlens = torch.tensor([0, 20, 150, 151, 200, 400], dtype=torch.int32)
    query, key, value, _ = inputs(400, 4, 2, 8, seed=3)
    rule = AttentionRule(0.3, window, None, random_bias(4, 200, seed=4) if biased else None)
    tensors = [x.requires_grad_() for x in (query, key, value)]
    output = BACKENDS[name](*tensors, cu_seqlens, 200, rule)
    first, last = 100, 120
    farthest = 20 if window is None else first - window + 1
    for grad, start in zip(
        torch.autograd.grad(output[first : last + 1].square().sum(), tensors), (first, farthest, farthest), strict=True
    ):
        assert grad[:start].abs().max() == 0
        assert grad[last + 1 :].abs().max() == 0
        assert grad[start : last + 1].abs().amax((1, 2)).min() > 0


@pytest.mark.parametrize("name", [*CPU_BACKENDS, "reference"])
@pytest.mark.parametrize("window", [None, 30])
def test_two_sided_documents_do_not_leak_and_windows_neither(name: str, window: int | None) -> None:
    """The gradient of some outputs of a document is zero in other documents and beyond the window on either side, and
    not zero in all tokens between."""
    cu_seqlens = torch.tensor([0, 20, 150, 151, 200, 400], dtype=torch.int32)
    tensors = [x.requires_grad_() for x in inputs(400, 4, 2, 8, seed=3)[:3]]
    output = BACKENDS[name](*tensors, cu_seqlens, 200, AttentionRule(0.3, window, two_sided=True))
    first, last = 60, 80
    seen = (20, 150) if window is None else (first - window + 1, last + window)
    bounds = ((first, last + 1), seen, seen)
    grads = torch.autograd.grad(output[first : last + 1].square().sum(), tensors)
    for grad, (start, end) in zip(grads, bounds, strict=True):
        assert grad[:start].abs().sum() == grad[end:].abs().sum() == 0
        assert grad[start:end].abs().amax((1, 2)).min() > 0


def test_a_two_sided_window_is_half_of_modernberts_local_attention() -> None:
    """A window of n // 2 + 1 sees what transformers' mask for a local attention of n lets through."""
    from transformers import ModernBertConfig
    from transformers.masking_utils import sliding_window_bidirectional_overlay

    for local_attention in (1, 2, 7, 8):
        theirs = sliding_window_bidirectional_overlay(ModernBertConfig(local_attention=local_attention).sliding_window)
        query, key, value = torch.zeros(1, 20, 1, 1), torch.zeros(1, 20, 1, 1), torch.eye(20)[None, :, None]
        positions = torch.arange(20)[None]
        rule = AttentionRule(1.0, local_attention // 2 + 1, two_sided=True)
        weights = attention_by_definition(query, key, value, positions, positions, rule)[0, :, 0]
        wanted = torch.tensor([[theirs(0, 0, q, k) for k in range(20)] for q in range(20)])
        assert torch.equal(weights > 0, wanted)


@pytest.mark.parametrize("two_sided", [False, True])
def test_blockwise_computes_nothing_outside_the_window(two_sided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer with a window multiplies as many numbers for a token of a long document as for one of a short one."""
    sizes: list[int] = []
    multiply = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b, **kw: (sizes.append(a.numel()), multiply(a, b, **kw))[1])
    per_token = []
    for tokens in (1024, 4096):
        query, key, value, _ = inputs(tokens, 2, 1, 8, seed=5)
        sizes.clear()
        rule = replace(PLAIN, window=128, two_sided=two_sided)
        BACKENDS["blockwise"](query, key, value, torch.tensor([0, tokens]), tokens, rule)
        per_token.append(sum(sizes) / tokens)
    assert per_token[1] < 1.15 * per_token[0]


@settings(max_examples=20, deadline=None)
@given(
    length=st.integers(1, 30),
    cached=st.integers(0, 29),
    empty=st.integers(0, 5),
    window=st.none() | st.integers(1, 30),
    seed=st.integers(0, 10**6),
)
def test_definition_with_a_cache_of_keys_equals_it_without(
    length: int, cached: int, empty: int, window: int | None, seed: int
) -> None:
    """New queries against all keys in slots of any order, some of them empty."""
    cached = min(cached, length - 1)
    query, key, value, _ = (x[None] for x in inputs(length, 4, 2, 8, seed))
    positions = torch.arange(length)[None]
    rule = AttentionRule(0.3, window, 5.0, random_bias(4, length, seed))
    wanted = attention_by_definition(query, key, value, positions, positions, rule)
    order = torch.randperm(length + empty, generator=torch.Generator().manual_seed(seed))
    slots = torch.cat((positions, torch.full((1, empty), -1)), 1)[:, order]
    filled = [torch.cat((x, torch.full((1, empty, 2, 8), 1e3).double()), 1)[:, order] for x in (key, value)]
    actual = attention_by_definition(query[:, cached:], *filled, positions[:, cached:], slots, rule)
    assert relative_error(actual, wanted[:, cached:]) < 1e-12


def test_definition_gives_zero_where_nothing_is_seen() -> None:
    query, key, value, _ = (x[None] for x in inputs(2, 2, 1, 8, seed=0))
    nowhere = torch.full((1, 2), -1)
    assert attention_by_definition(query, key, value, torch.zeros(1, 2).long(), nowhere, PLAIN).abs().max() == 0


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", RULES)
def test_flex_equals_the_definition_without_gradients_on_a_cpu(name: str) -> None:
    query, key, value, _ = inputs(200, 4, 2, 16, seed=9)
    cu_seqlens = torch.tensor([0, 1, 150, 200], dtype=torch.int32)
    rule = replace(RULES[name], window=RULES[name].window and 40)
    with torch.no_grad():
        assert attention_backend("flex", query, rule) is BACKENDS["flex"]
        for boundaries in (cu_seqlens, torch.tensor([0, 200]), cu_seqlens):  # a block mask is kept for its documents
            actual, wanted = (
                BACKENDS[backend](query, key, value, boundaries, 200, rule) for backend in ("flex", "reference")
            )
            assert relative_error(actual, wanted) < 1e-6


def test_auto_takes_a_backend_that_runs_here() -> None:
    query = torch.randn(4, 2, 8)
    for rule in RULES.values():
        assert attention_backend("auto", query, rule) is BACKENDS["blockwise"]
    with torch.no_grad():
        assert attention_backend("auto", query, PLAIN) is BACKENDS["blockwise"]
    assert attention_backend("reference", query, PLAIN) is reference


@pytest.mark.parametrize(
    ("name", "rule", "wanted", "able"),
    [
        ("varlen", "plain", "a CUDA device", "blockwise, sdpa, reference"),
        ("varlen", "bias", "without distance bias", "blockwise, sdpa, reference"),
        ("flex", "plain", "a CUDA device for training", "blockwise, sdpa, reference"),
        ("sdpa", "softcap", "a rule without softcap", "blockwise, reference"),
    ],
)
def test_a_backend_that_cannot_run_is_refused_with_those_that_can(name: str, rule: str, wanted: str, able: str) -> None:
    with pytest.raises(BigtrainError, match="cannot run here") as refused:
        attention_backend(name, torch.randn(4, 2, 8), RULES[rule])
    assert wanted in str(refused.value.wanted)
    assert str(refused.value.fix).endswith(f"one of {able}")


def between(cu_seqlens: Tensor, key_cu_seqlens: Tensor) -> AttentionRule:
    """The rule of cross-attention to documents like these."""
    return AttentionRule(0.3, two_sided=True, keys=KeyBoundaries(key_cu_seqlens, int(key_cu_seqlens.diff().max())))


def cross_inputs(tokens: int, keys: int, seed: int) -> tuple[Tensor, ...]:
    query, _, _, grad = inputs(tokens, 4, 2, 32, seed)
    _, key, value, _ = inputs(keys, 4, 2, 32, seed + 1)
    return query, key, value, grad


@pytest.mark.parametrize("name", [*CPU_BACKENDS, "reference"])
@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=6), seed=st.integers(0))
def test_cross_attention_is_softmax_over_the_document_of_the_same_number(
    name: str, lengths: list[tuple[int, int]], seed: int
) -> None:
    """Output and gradients equal those of plain matrix products, document by document; some of them are empty."""
    sides = zip((3, 5), *lengths, strict=True)
    cu, key_cu = (torch.tensor([0, *accumulate(side)], dtype=torch.int32) for side in sides)
    tensors = cross_inputs(int(cu[-1]), int(key_cu[-1]), seed % 1000)
    leaves = [x.detach().requires_grad_() for x in tensors[:3]]
    parts = zip(
        leaves[0].split(cu.diff().tolist()), *(x.split(key_cu.diff().tolist()) for x in leaves[1:]), strict=True
    )
    outputs = []
    for q, k, v in parts:
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        weights = (torch.einsum("qhd,khd->hqk", q, k) * 0.3).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
    output = torch.cat(outputs)
    wanted = [output.detach(), *torch.autograd.grad(output, leaves, tensors[3])]
    for actual, exact in zip(attend(name, tensors, cu, between(cu, key_cu)), wanted, strict=True):
        assert relative_error(actual, exact, floor=1.0) < 1e-12


@pytest.mark.parametrize("name", [*CPU_BACKENDS, "reference"])
def test_cross_attention_sees_its_own_document_only(name: str) -> None:
    """The gradient of a document's outputs is zero in all keys but those of the same document, and in none of these."""
    cu, key_cu = torch.tensor([0, 10, 40, 50]), torch.tensor([0, 30, 35, 80])
    tensors = [x.requires_grad_() for x in cross_inputs(50, 80, seed=1)[:3]]
    output = BACKENDS[name](*tensors, cu, 30, between(cu, key_cu))
    for grad in torch.autograd.grad(output[12:20].square().sum(), tensors[1:]):
        assert grad[:30].abs().sum() == grad[35:].abs().sum() == 0
        assert grad[30:35].abs().amax((1, 2)).min() > 0


@pytest.mark.parametrize("name", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sides", [([0, 10, 40, 200], [0, 130, 135, 400]), ([0, 300, 340, 500], [0, 40, 400, 900])])
def test_cross_attention_is_accurate_in_training_precision(
    name: str, dtype: torch.dtype, sides: tuple[list[int], list[int]]
) -> None:
    """With documents of several blocks of queries, of keys, and of both."""
    cu, key_cu = (torch.tensor(side) for side in sides)
    tensors = cross_inputs(int(cu[-1]), int(key_cu[-1]), seed=2)
    assert_close_to_definition(name, tensors, cu, dtype, between(cu, key_cu))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_cross_attention_in_blocks_is_that_of_the_definition(softcap: float | None) -> None:
    """In float64, over several blocks on both sides, and with a soft cap."""
    cu, key_cu = torch.tensor([0, 300, 301, 420, 500]), torch.tensor([0, 129, 400, 401, 700])
    rule = replace(between(cu, key_cu), softcap=softcap)
    assert_close_to_definition("blockwise", cross_inputs(500, 700, seed=3), cu, torch.float64, rule)


def test_cross_attention_is_refused_by_the_kernel_of_one_sequence() -> None:
    rule = between(torch.tensor([0, 4]), torch.tensor([0, 9]))
    with pytest.raises(BigtrainError, match="cannot run here") as refused:
        attention_backend("cpp", torch.randn(4, 2, 8), rule)
    assert "queries and keys of one sequence" in str(refused.value.wanted)
    assert "blockwise, sdpa, reference" in str(refused.value.fix)
    assert attention_backend("auto", torch.randn(4, 2, 8), rule) is BACKENDS["blockwise"]


@torch.inference_mode()
def test_the_mask_of_flex_is_made_of_boundaries_of_inference_mode() -> None:
    """Generation makes them there, where tensors know no version."""
    cu, key_cu = torch.tensor([0, 10, 40]), torch.tensor([0, 30, 35])
    mask = _block_mask(cu, 40, 35, between(cu, key_cu))
    assert mask.shape[-2:] == (40, 35)
    assert _block_mask(cu, 40, 35, between(cu, key_cu)) is mask


@pytest.mark.parametrize("changes", [{"window": 3}, {"distance_bias": torch.zeros(2, 7)}, {"two_sided": False}])
def test_cross_attention_by_distance_is_refused(changes: dict[str, Any]) -> None:
    rule = replace(between(torch.tensor([0, 4]), torch.tensor([0, 9])), **changes)
    with pytest.raises(BigtrainError, match="knows no distances"):
        attention_backend("auto", torch.randn(4, 2, 8), rule)


@pytest.mark.parametrize("name", ["blockwise", "sdpa", "reference"])
def test_a_bias_shorter_than_what_tokens_see_is_refused(name: str) -> None:
    query, key, value, _ = inputs(10, 2, 1, 8, seed=0)
    rule = replace(PLAIN, distance_bias=random_bias(2, 6, seed=0))
    with pytest.raises(BigtrainError, match="distance bias"):
        BACKENDS[name](query, key, value, torch.tensor([0, 3, 10]), 7, rule)
    assert_close_to_definition(
        name, inputs(10, 2, 1, 8, seed=0), torch.tensor([0, 3, 10]), torch.float64, replace(rule, window=6)
    )


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16, 20, 71])
def test_alibi_equals_hugging_faces(heads: int) -> None:
    """Theirs is a bias for each key, ours for each distance: the same but for a constant of the query."""
    theirs = build_alibi_tensor(torch.ones(1, 9), heads, torch.float32).view(heads, 9)
    torch.testing.assert_close(alibi_bias(heads, 9), -theirs, rtol=1e-6, atol=0)
    assert alibi_slopes(8) == [2.0**-n for n in range(1, 9)]


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (32, 20), (8, 1000), (64, 4096)])
def test_relative_position_buckets_equal_hugging_faces(buckets: int, distance: int) -> None:
    theirs = T5Attention._relative_position_bucket(
        -torch.arange(5000), bidirectional=False, num_buckets=buckets, max_distance=distance
    )
    assert torch.equal(relative_position_buckets(5000, buckets, distance), theirs)


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (32, 20), (8, 1000), (64, 4096)])
def test_two_sided_position_buckets_equal_hugging_faces(buckets: int, distance: int) -> None:
    theirs = T5Attention._relative_position_bucket(
        -torch.arange(-4999, 5000), bidirectional=True, num_buckets=buckets, max_distance=distance
    )
    assert torch.equal(two_sided_position_buckets(5000, buckets, distance), theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["varlen", "flex", "sdpa"])
def test_backend_on_cuda_equals_the_definition(name: str, rule: str) -> None:
    tensors = tuple(x.cuda() for x in inputs(600, 4, 2, 64, seed=4))
    cu_seqlens = torch.tensor([0, 1, 150, 300, 437, 600], dtype=torch.int32, device="cuda")
    bias = RULES[rule].distance_bias
    on_cuda = replace(RULES[rule], distance_bias=None if bias is None else bias.cuda())
    best = "flex" if "bias" in rule or rule == "softcap" else "varlen"
    assert attention_backend("auto", tensors[0].bfloat16(), on_cuda) is BACKENDS[best]
    try:
        attention_backend(name, tensors[0].bfloat16(), on_cuda)
    except BigtrainError:
        pytest.skip("it does not claim this rule")
    assert_close_to_definition(name, tensors, cu_seqlens, torch.bfloat16, on_cuda)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["varlen", "flex", "sdpa"])
def test_cross_attention_on_cuda_equals_the_definition(name: str) -> None:
    cu, key_cu = (torch.tensor(x, dtype=torch.int32, device="cuda") for x in ([0, 1, 150, 300], [0, 90, 97, 600]))
    tensors = tuple(x.cuda() for x in cross_inputs(300, 600, seed=4))
    rule = between(cu, key_cu)
    assert attention_backend("auto", tensors[0].bfloat16(), rule) is BACKENDS["varlen"]
    assert_close_to_definition(name, tensors, cu, torch.bfloat16, rule)

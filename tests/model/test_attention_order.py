"""Attention in an order, from some tokens only, and with keys for distances: each back-end against loops in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bigtrain.base.errors import BigtrainError
from bigtrain.model.attention.attention_backends import BACKENDS, attention_backend
from bigtrain.model.attention.attention_rule import AttentionRule, KeyBoundaries, OrderRanks, RelativeKeys
from tests.model.helpers import random_boundaries, relative_error

ABLE = ["sdpa", "reference"]
SCALE = 0.3


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_loops(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, rule: AttentionRule, heads: int) -> Tensor:
    """What the docstring of `attention_rule` says, query by query, head by head and key by key."""
    document = [int((cu_seqlens[1:] <= token).sum()) for token in range(len(key))]
    stands = list(range(len(query))) if rule.queries is None else rule.queries.tolist()
    rows = []
    for number, place in enumerate(stands):
        for head in range(heads):
            group = head * key.shape[1] // heads
            scores, seen = [], []
            for other in range(len(key)):
                distance = place - other
                visible = document[other] == document[place]
                if rule.order is not None:
                    visible &= bool(rule.order.of_keys[other] <= rule.order.of_queries[number])
                if not visible or (rule.window is not None and abs(distance) >= rule.window):
                    continue
                score = query[number, head] @ key[other, group]
                if (relative := rule.relative) is not None:
                    score = score + relative.query[number, head] @ relative.key[distance + relative.reach - 1, head]
                score = score * rule.scale
                if rule.distance_bias is not None:
                    score = score + rule.distance_bias[head, distance + rule.zero_distance]
                scores.append(score)
                seen.append(value[other, group])
            if seen:
                rows.append(torch.stack(scores).softmax(0) @ torch.stack(seen))
            else:
                rows.append(torch.zeros(value.shape[-1], dtype=value.dtype) + 0 * query.sum())
    return torch.stack(rows).view(len(query), heads, -1)


def leaves_of(rule: AttentionRule, tensors: tuple[Tensor, ...]) -> tuple[AttentionRule, list[Tensor]]:
    """The rule and the tensors again, as leaves that take gradients."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    if rule.distance_bias is not None:
        rule = replace(rule, distance_bias=rule.distance_bias.detach().requires_grad_())
        leaves.append(rule.distance_bias)
    if rule.relative is not None:
        rule = replace(rule, relative=RelativeKeys(*(x.detach().requires_grad_() for x in rule.relative)))
        leaves += rule.relative
    return rule, leaves


def assert_equal_to_loops(name: str, tensors: tuple[Tensor, ...], cu: Tensor, rule: AttentionRule) -> None:
    grad = numbers(len(tensors[0]), tensors[0].shape[1], tensors[2].shape[2], seed=99)
    found = []
    for by in (name, "loops"):
        own, leaves = leaves_of(rule, tensors)
        if by == "loops":
            output = by_loops(*leaves[:3], cu, own, tensors[0].shape[1])
        else:
            output = BACKENDS[by](*leaves[:3], cu, int(cu.diff().max()), own)
        found.append([output.detach(), *torch.autograd.grad(output, leaves, grad, allow_unused=True)])
    for actual, wanted in zip(*found, strict=True):
        actual, wanted = (torch.zeros(1) if x is None else x for x in (actual, wanted))
        assert relative_error(actual, wanted, floor=1.0) < 1e-11


@st.composite
def rules(draw: st.DrawFn) -> tuple[tuple[Tensor, ...], Tensor, AttentionRule]:
    """Queries, keys and values of packed documents, their boundaries, and a two-sided rule of any parts."""
    rows, length, seed = draw(st.integers(1, 2)), draw(st.integers(1, 9)), draw(st.integers(0, 10**6))
    tokens, heads, groups = rows * length, 2, draw(st.sampled_from([1, 2]))
    generator = torch.Generator().manual_seed(seed)
    stands = None
    if draw(st.booleans()):
        chosen = torch.rand(tokens, generator=generator) < 0.4
        chosen[draw(st.integers(0, tokens - 1))] = True
        stands = chosen.nonzero().flatten()
    queries = tokens if stands is None else len(stands)
    ranks = torch.randint(-1, 4, (tokens,), generator=generator)
    own = ranks if stands is None else ranks[stands]
    rule = AttentionRule(
        SCALE,
        window=draw(st.none() | st.integers(1, 6)),
        distance_bias=numbers(heads, 2 * length - 1, seed=seed) if draw(st.booleans()) else None,
        two_sided=True,
        order=OrderRanks(own - draw(st.integers(0, 1)), ranks) if draw(st.booleans()) else None,
        queries=stands,
        relative=RelativeKeys(numbers(queries, heads, 4, seed=seed), numbers(2 * length + 1, heads, 4, seed=seed + 1))
        if draw(st.booleans())
        else None,
    )
    shapes = ((queries, heads, 4), (tokens, heads // groups, 4), (tokens, heads // groups, 3))
    tensors = tuple(numbers(*shape, seed=seed + 2 + n) for n, shape in enumerate(shapes))
    return tensors, random_boundaries(rows, length, seed), rule


@pytest.mark.parametrize("name", ABLE)
@settings(max_examples=60, deadline=None)
@given(drawn=rules())
def test_any_two_sided_rule_equals_loops_in_float64(name: str, drawn: Any) -> None:
    """Output and gradients of all that takes one: of a rule with or without a window, a distance bias, an order, fewer
    queries than keys, and relative keys."""
    tensors, cu, rule = drawn
    assert_equal_to_loops(name, tensors, cu, rule)


def parts_of(tokens: int, seed: int = 3) -> dict[str, AttentionRule]:
    """A rule of each part, and of all, over documents of at most 60 tokens."""
    ranks = torch.randint(-1, 20, (tokens,), generator=torch.Generator().manual_seed(seed))
    stands = torch.arange(0, tokens, 3)
    plain = AttentionRule(SCALE, two_sided=True)
    keys = numbers(119, 2, 16, seed=6)
    return {
        "order": replace(plain, order=OrderRanks(ranks, ranks)),
        "window": replace(plain, order=OrderRanks(ranks, ranks), window=9),
        "queries": replace(plain, queries=stands),
        "relative": replace(plain, relative=RelativeKeys(numbers(tokens, 2, 16, seed=5), keys)),
        "all": replace(
            plain,
            order=OrderRanks(ranks[stands] - 1, ranks),
            queries=stands,
            relative=RelativeKeys(numbers(len(stands), 2, 16, seed=5), keys),
            distance_bias=numbers(2, 119, seed=7),
        ),
    }


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("part", parts_of(3))
def test_flex_equals_the_definition_in_an_order(part: str) -> None:
    """Without gradients, on a CPU; for documents, ranks and queries that follow each other in its cache of masks."""
    for boundaries, seed in (([0, 1, 50, 110, 150], 1), ([0, 60, 100, 150], 1), ([0, 60, 100, 150], 2)):
        rule, cu = parts_of(150, seed)[part], torch.tensor(boundaries, dtype=torch.int32)
        queries = 150 if rule.queries is None else len(rule.queries)
        tensors = numbers(queries, 2, 16, seed=8), numbers(150, 2, 16, seed=9), numbers(150, 2, 16, seed=10)
        with torch.no_grad():
            assert attention_backend("flex", tensors[0], rule) is BACKENDS["flex"]
            found, wanted = (BACKENDS[name](*tensors, cu, 60, rule) for name in ("flex", "reference"))
        assert relative_error(found, wanted) < 1e-6


@pytest.mark.parametrize("part", parts_of(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sdpa_in_an_order_is_accurate_in_training_precision(part: str, dtype: torch.dtype) -> None:
    rule, cu = parts_of(150)[part], torch.tensor([0, 1, 50, 110, 150], dtype=torch.int32)
    queries = 150 if rule.queries is None else len(rule.queries)
    tensors = numbers(queries, 2, 16, seed=8), numbers(150, 2, 16, seed=9), numbers(150, 2, 16, seed=10)
    rounded = [x.to(dtype) for x in tensors]
    if (relative := rule.relative) is not None:
        rule = replace(rule, relative=RelativeKeys(*(x.to(dtype) for x in relative)))
    wide = rule
    if rule.relative is not None:
        wide = replace(rule, relative=RelativeKeys(*(x.double() for x in rule.relative)))
    found = BACKENDS["sdpa"](*rounded, cu, 60, rule)
    assert found.dtype == dtype
    wanted = BACKENDS["reference"](*(x.double() for x in rounded), cu, 60, wide)
    assert relative_error(found, wanted) < {torch.float32: 2e-6, torch.bfloat16: 3e-2}[dtype]


def test_ranks_that_rise_with_positions_are_the_causal_rule() -> None:
    tensors = [numbers(40, 2, 8, seed=seed) for seed in range(3)]
    cu, ranks = torch.tensor([0, 7, 40]), torch.arange(40)
    causal = BACKENDS["reference"](*tensors, cu, 33, AttentionRule(SCALE))
    ordered = BACKENDS["sdpa"](*tensors, cu, 33, AttentionRule(SCALE, two_sided=True, order=OrderRanks(ranks, ranks)))
    assert relative_error(ordered, causal) < 1e-12


@pytest.mark.parametrize("name", ABLE)
def test_what_comes_later_in_the_order_gets_no_gradient(name: str) -> None:
    """Nor does another document, and a query of a rank that no key has gives exactly zero."""
    generator = torch.Generator().manual_seed(1)
    ranks = torch.cat((torch.randperm(30, generator=generator), torch.randperm(20, generator=generator)))
    tensors = [numbers(50, 2, 8, seed=seed).requires_grad_() for seed in range(3)]
    rule = AttentionRule(SCALE, two_sided=True, order=OrderRanks(ranks - 1, ranks))
    output = BACKENDS[name](*tensors, torch.tensor([0, 30, 50]), 30, rule)
    at = int((ranks[:30] == 12).nonzero())
    for grad in torch.autograd.grad(output[at].square().sum(), tensors[1:], retain_graph=True):
        seen = grad.abs().sum((1, 2)) > 0
        assert torch.equal(seen, (ranks < 12) & (torch.arange(50) < 30))
    first = int((ranks[:30] == 0).nonzero())
    assert output[first].abs().sum() == 0
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(output.square().sum(), tensors))


@pytest.mark.parametrize("part", ["order", "queries", "relative"])
@pytest.mark.parametrize("name", ["varlen", "cpp", "blockwise"])
def test_backends_that_know_no_order_say_so(name: str, part: str) -> None:
    rule, query = parts_of(12)[part], torch.randn(12, 2, 16)
    with pytest.raises(BigtrainError, match="cannot run here") as refused:
        attention_backend(name, query, rule)
    assert f"a rule without {part}" in str(refused.value.wanted) and f"with {part}" in str(refused.value.found)
    assert "sdpa, reference" in str(refused.value.fix)
    assert attention_backend("auto", query, rule) is BACKENDS["sdpa"]
    with torch.no_grad():
        assert attention_backend("auto", query, rule) is BACKENDS["sdpa"]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_keeps_its_masks_in_inference_mode() -> None:
    """Tensors that are made in it count no versions, and generation makes them there."""
    with torch.inference_mode():
        cu, tensors = torch.tensor([0, 5, 9], dtype=torch.int32), [torch.randn(9, 2, 16) for _ in range(3)]
        ranks = torch.zeros(9)
        rule = AttentionRule(SCALE, two_sided=True, order=OrderRanks(ranks, ranks))
        found, wanted = (BACKENDS[name](*tensors, cu, 5, rule) for name in ("flex", "reference"))
        assert relative_error(found, wanted) < 1e-5


@pytest.mark.parametrize("part", ["order", "relative"])
def test_an_order_of_a_one_sided_rule_is_refused(part: str) -> None:
    rule = replace(parts_of(12)[part], two_sided=False)
    with pytest.raises(BigtrainError, match="parts of a two-sided rule"):
        attention_backend("auto", torch.randn(12, 2, 16), rule)


@pytest.mark.parametrize("part", ["order", "queries", "relative"])
def test_an_order_between_two_sequences_is_refused(part: str) -> None:
    rule = replace(parts_of(12)[part], keys=KeyBoundaries(torch.tensor([0, 12]), 12))
    with pytest.raises(BigtrainError, match="knows no distances") as refused:
        attention_backend("auto", torch.randn(12, 2, 16), rule)
    assert part in str(refused.value.found)


@pytest.mark.parametrize("name", ABLE)
def test_relative_keys_that_do_not_reach_are_refused(name: str) -> None:
    rule = AttentionRule(SCALE, two_sided=True, relative=RelativeKeys(torch.zeros(9, 2, 4), torch.zeros(13, 2, 4)))
    tensors = [torch.zeros(9, 2, 4)] * 3
    with pytest.raises(BigtrainError, match="relative keys of attention do not reach"):
        BACKENDS[name](*tensors, torch.tensor([0, 9]), 9, rule)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("part", parts_of(3))
@pytest.mark.parametrize("name", ["flex", "sdpa"])
def test_attention_in_an_order_on_cuda_equals_the_definition(name: str, part: str) -> None:
    """In bf16, output and the gradients of queries, keys and values."""
    cpu, cu = parts_of(150)[part], torch.tensor([0, 1, 50, 110, 150], dtype=torch.int32)
    queries = 150 if cpu.queries is None else len(cpu.queries)
    tensors = numbers(queries, 2, 16, seed=8), numbers(150, 2, 16, seed=9), numbers(150, 2, 16, seed=10)
    grad, found = numbers(queries, 2, 16, seed=11), []
    for by, dtype, device in ((name, torch.bfloat16, "cuda"), ("reference", torch.float64, "cpu")):

        def there(x: Tensor | None, dtype: torch.dtype = dtype, device: str = device) -> Any:
            return None if x is None else x.to(device, dtype if x.is_floating_point() else x.dtype)

        rule = replace(
            cpu,
            order=None if cpu.order is None else OrderRanks(*map(there, cpu.order)),
            queries=there(cpu.queries),
            relative=None if cpu.relative is None else RelativeKeys(*map(there, cpu.relative)),
            distance_bias=there(cpu.distance_bias),
        )
        leaves = [there(x).requires_grad_() for x in tensors]
        output = BACKENDS[by](*leaves, cu.to(device), 60, rule)
        found.append([output, *torch.autograd.grad(output, leaves, there(grad))])
    for actual, wanted in zip(*found, strict=True):
        assert relative_error(actual.cpu(), wanted, floor=1.0) < 3e-2

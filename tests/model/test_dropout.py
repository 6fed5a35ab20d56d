"""Dropout follows from the seed, the site, the address of a row and the place in it, and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from bigtrain.base.errors import BigtrainError
from bigtrain.model import SequenceParallel, build_model
from bigtrain.model.attention.attention_backends import BACKENDS, attention_backend
from bigtrain.model.attention.attention_rule import AttentionRule, KeyBoundaries
from bigtrain.model.cpu.cpu_kernels import obstacle
from bigtrain.model.layers.dropout import (
    AttentionDropout,
    Dropout,
    DropoutKeys,
    dropped,
    kept,
    kept_at,
    kept_in,
    scale_of,
    site_number,
    threshold_of,
)
from tests.model.helpers import packed_batch, random_boundaries, relative_error, small_settings
from tests.model.test_attention import attend, inputs, random_bias

RATES = {
    "embedding_dropout": 0.1, "attention_dropout": 0.2, "hidden_dropout": 0.15, "activation_dropout": 0.1,
    "final_dropout": 0.25,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {"albert": {"embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 2}}
FAMILIES = ["llama", "gpt_neox", "gemma2", "bert", "albert", "modernbert", "t5", "bart"]
ROW_KEYS = torch.tensor([3, 2**62, -5, 9])


def random_keys(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.Generator().manual_seed(seed))


def batch_of(architecture: str, rows: int = 4, length: int = 32) -> dict[str, Any]:
    batch = packed_batch(rows, length, 96, seed=3) | {"row_keys": ROW_KEYS[:rows]}
    if architecture == "encoder_decoder":
        names = ("input_ids", "position_ids", "cu_seqlens", "max_seqlen")
        batch |= {f"encoder_{name}": batch[name] for name in names}
    return batch


def gradients(family: str, batch: dict[str, Any] | None = None, *, compiled: bool = False, **how: Any) -> list[Tensor]:
    """Loss and all gradients of a training step with dropout everywhere, in float64."""
    model = build_model(small_settings(family, **RATES, **SHAPES.get(family, {})), **how)
    model.init_weights(seed=1)
    model = model.double().train()
    if compiled:
        model.compile_blocks()
    loss = model(**(batch or batch_of(model.settings.architecture)))
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


# the bits


def test_the_bits_are_those_of_the_first_version() -> None:
    """Other bits would change what a run does after an update of bigtrain: these were recorded when dropout was new."""
    keys = DropoutKeys.of(torch.tensor([0, -1]), 2).at(site_number("layer 3")).at(site_number("attention_output"))
    rows = ["".join("x."[bit] for bit in row) for row in kept(keys.own.flatten(), 24, 0.5).tolist()]
    assert rows == RECORDED


RECORDED = [
    "x..x.x...x.xxx...x.....x",
    "..xxx.xxx.xxxxxx.xx..x.x",
    "xxxxx.xx...x..xx.xx..x..",
    "..xx...x.xxxxx..xxxx....",
]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.floats(0, 0.999999), st.integers(0, 1000), st.data())
def test_all_ways_to_compute_a_mask_equal_its_definition(count: int, rate: float, seed: int, data: Any) -> None:
    keys = random_keys(3, 5, seed=seed)
    wanted = kept_at(keys[..., None], torch.arange(count), rate)
    assert torch.equal(kept(keys, count, rate), wanted)
    first = data.draw(st.integers(0, count - 1))
    assert torch.equal(kept_in(keys, first, count, rate), wanted[..., first:].transpose(1, 2))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.randn(3, 5, count, generator=torch.Generator().manual_seed(seed)).to(dtype)
        assert torch.equal(dropped(x, keys, rate), torch.where(wanted, x * scale_of(rate), 0.0))


@pytest.mark.skipif(obstacle() is not None, reason="needs the kernels for this CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_and_pytorch_give_equal_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, at widths that fill no vector, with keys that do not follow each other in memory."""
    for width in (1, 15, 16, 31, 64, 100):
        x = torch.randn(7, 9, width, generator=torch.Generator().manual_seed(width)).to(dtype)
        keys = random_keys(9, 7, seed=width).t()
        results = []
        for missing in (None, "a compiler"):
            monkeypatch.setattr("bigtrain.model.layers.dropout.obstacle", lambda missing=missing: missing)
            leaf = x.clone().requires_grad_()
            output = dropped(leaf, keys, 0.3)
            (output * x).sum().backward()
            results.append((output.detach(), leaf.grad))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_drops_what_a_cpu_drops(compiled: bool) -> None:
    """Also where the masks are part of a compiled kernel."""
    x, row_keys = torch.randn(4, 32, 100), ROW_KEYS
    drop = Dropout(0.3, "here")

    def run(device: str) -> Tensor:
        return drop(x.to(device), DropoutKeys.of(row_keys.to(device), 32)).cpu()

    wanted = run("cpu")
    assert torch.equal(torch.compile(run)("cuda") if compiled else run("cuda"), wanted)


# their statistics


def assert_binomial(dropped_places: int, places: int, rate: float) -> None:
    """Within five standard deviations of what independent places have: one chance in 1.7 million to fail."""
    assert abs(dropped_places - places * rate) < 5 * math.sqrt(places * rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_rates_are_met_by_rows_positions_and_channels(rate: float) -> None:
    """Of a whole mask, of each row, each position and each channel; rows of an epoch have keys one after the other
    here, which a good key does not need."""
    keys = DropoutKeys.of(torch.arange(64), 128).at(site_number("attention_output")).own
    mask = ~kept(keys, 128, rate)
    exact = threshold_of(rate) / 2**16
    assert abs(exact - rate) <= 2**-17
    assert_binomial(int(mask.sum()), mask.numel(), exact)
    for dim in range(3):
        sums = mask.movedim(dim, 0).flatten(1).sum(1)
        for found in sums.tolist():
            assert_binomial(found, mask.numel() // len(sums), exact)


@pytest.mark.parametrize(
    "other",
    [
        lambda keys, site: keys.at(site_number("another")).own,
        lambda keys, site: keys.at(site).own.roll(1, 0),
        lambda keys, site: keys.at(site).own.roll(1, 1),
        lambda keys, site: keys.at(site).at(site).own,
    ],
    ids=["site", "row", "position", "path"],
)
def test_masks_of_other_sites_rows_and_positions_are_independent(other: Callable[..., Tensor]) -> None:
    """Two masks agree where independent ones would; neighbouring channels, too, also the two of one word."""
    site = site_number("attention_output")
    keys = DropoutKeys.of(torch.arange(32), 64)
    one, two = kept(keys.at(site).own, 256, 0.5), kept(other(keys, site), 256, 0.5)
    assert_binomial(int((one == two).sum()), one.numel(), 0.5)
    for apart in (1, 2, 3, 16, 32, 128):
        for start in (0, 1):
            pairs = one[..., start::2], one.roll(-apart, -1)[..., start::2]
            assert_binomial(int((pairs[0] == pairs[1]).sum()), pairs[0].numel(), 0.5)


def test_draws_are_uniform_to_the_last_of_their_sixteen_bits() -> None:
    """Each bit of a draw, and each pair of bits, is as often set as not: by the masks at thresholds of a half, read
    from a chi-square of 256 equal classes of the draws."""
    keys = random_keys(4096, seed=5)
    below = torch.stack([(~kept(keys, 64, k / 256)).sum() for k in range(257 - 1)] + [torch.tensor(keys.numel() * 64)])
    classes = below.diff().double()
    expected = keys.numel() * 64 / 256
    statistic = float(((classes - expected) ** 2 / expected).sum())
    assert abs(statistic - 255) < 5 * math.sqrt(2 * 255)


def test_what_is_kept_is_scaled_so_that_the_mean_stays() -> None:
    """For rates that are no multiples of 2^-16, too."""
    for rate in (0.1, 1 / 3, 0.9):
        assert scale_of(rate) * (1 - threshold_of(rate) / 2**16) == pytest.approx(1, abs=1e-12)
    x = torch.ones(64, 512, dtype=torch.float64)
    assert float(dropped(x, random_keys(64), 0.1).mean()) == pytest.approx(1, abs=5 * math.sqrt(0.1 / 0.9 / x.numel()))


def test_without_keys_or_rate_nothing_happens() -> None:
    x, keys = torch.randn(2, 3, 8), DropoutKeys.of(torch.arange(2), 3)
    assert Dropout(0.5, "here")(x, None) is x
    assert Dropout(0.0, "here")(x, keys) is x


# attention


def dropping(cu_seqlens: Tensor, heads: int, rate: float = 0.3, **rule: Any) -> AttentionRule:
    keys = random_keys(int(cu_seqlens[-1]), heads, seed=9)
    return AttentionRule(0.3, dropout=AttentionDropout(keys, rate), **rule)


@pytest.mark.parametrize("name", ["blockwise", "sdpa"])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    groups=st.sampled_from([1, 2]),
    window=st.sampled_from([None, 1, 5]),
    softcap=st.sampled_from([None, 2.0]),
    biased=st.booleans(),
    two_sided=st.booleans(),
)
def test_backend_drops_the_weights_that_the_definition_drops(
    name: str, seed: int, groups: int, window: int | None, softcap: float | None, biased: bool, two_sided: bool
) -> None:
    """Output and all gradients, for any rule on any packing, in float64."""
    cu_seqlens = random_boundaries(3, 50, seed)
    bias = random_bias(4, 99 if two_sided else 50, seed) if biased else None
    rule = dropping(cu_seqlens, 4, window=window, softcap=softcap, distance_bias=bias, two_sided=two_sided)
    tensors = inputs(150, 4, groups, 8, seed)
    for found, wanted in zip(
        attend(name, tensors, cu_seqlens, rule), attend("reference", tensors, cu_seqlens, rule), strict=True
    ):
        assert relative_error(found, wanted, floor=1.0) < 1e-12


@pytest.mark.parametrize("name", ["blockwise", "sdpa", "cpp"])
@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("window", [None, 45])
def test_backend_drops_over_several_blocks_in_bfloat16(name: str, two_sided: bool, window: int | None) -> None:
    """Documents longer than any kernel's block, that begin at odd places; a wrong mask is off by more than a tenth."""
    if name == "cpp" and obstacle() is not None:
        pytest.skip("needs the kernels for this CPU")
    cu_seqlens = torch.tensor([0, 1, 302, 301 + 330, 700], dtype=torch.int32)
    rule = dropping(cu_seqlens, 4, two_sided=two_sided, window=window)
    tensors = tuple(x.bfloat16() for x in inputs(700, 4, 2, 32, seed=1))
    wanted = attend("reference", tuple(x.double() for x in tensors), cu_seqlens, rule)
    for found, exact in zip(attend(name, tensors, cu_seqlens, rule), wanted, strict=True):
        assert relative_error(found, exact) < 1e-2


def test_cross_attention_drops_by_the_position_in_the_encoder() -> None:
    cu_seqlens, key_cu_seqlens = (torch.tensor(x, dtype=torch.int32) for x in ([0, 5, 12, 30], [0, 9, 10, 40]))
    rule = dropping(cu_seqlens, 4, two_sided=True, keys=KeyBoundaries(key_cu_seqlens, 30))
    query, key, value, grad = inputs(40, 4, 2, 8, seed=2)
    tensors = (query[:30], key, value, grad[:30])
    for found, wanted in zip(
        attend("sdpa", tensors, cu_seqlens, rule), attend("reference", tensors, cu_seqlens, rule), strict=True
    ):
        assert relative_error(found, wanted) < 1e-12


def test_the_definition_is_the_softmax_times_the_mask() -> None:
    """PyTorch's formula with the mask written by hand, for one document."""
    query, key, value, _ = inputs(20, 2, 1, 8, seed=4)
    rule = dropping(torch.tensor([0, 20]), 2, rate=0.25, two_sided=True)
    assert rule.dropout is not None
    weights = torch.einsum("qhd,khd->hqk", query, key).mul(0.3).softmax(-1)
    mask = torch.stack([kept_at(rule.dropout.keys[:, h, None], torch.arange(20), 0.25) for h in range(2)])
    wanted = torch.einsum("hqk,khd->qhd", weights * mask / (1 - 0.25), value)
    assert relative_error(BACKENDS["reference"](query, key, value, torch.tensor([0, 20]), 20, rule), wanted) < 1e-12


@pytest.mark.parametrize("name", ["varlen", "flex"])
def test_backends_without_dropout_refuse_it(name: str) -> None:
    rule = dropping(torch.tensor([0, 4]), 2)
    with pytest.raises(BigtrainError, match="cannot run here") as refused:
        attention_backend(name, torch.randn(4, 2, 8), rule)
    assert "model.attention_dropout 0" in str(refused.value.wanted)
    assert "and dropout" in str(refused.value) or "with dropout" in str(refused.value)


# the model


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputation_drops_what_the_forward_pass_dropped(family: str) -> None:
    """Every mode gives the bits of the gradient without recomputation."""
    wanted = gradients(family)
    for how in ("selective", "full", "offloaded"):
        found = gradients(family, activation_checkpointing=how, activation_memory_budget=0.5)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), how


@pytest.mark.long
@pytest.mark.parametrize("family", ["bert", "bart"])
def test_compiled_blocks_drop_the_same(family: str) -> None:
    for found, wanted in zip(gradients(family, compiled=True), gradients(family), strict=True):
        assert relative_error(found, wanted, floor=1e-3) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_dropped_alike_in_any_micro_batch(family: str) -> None:
    """The gradient of a micro-batch is the sum of those of its rows alone; other keys give another one."""
    whole = batch_of("encoder_decoder" if family in ("t5", "bart") else "decoder")
    length = whole["input_ids"].shape[1]
    parts = []
    for row in range(4):
        part = {
            key: value[row : row + 1] if "cu_seq" not in key and "max" not in key else value
            for key, value in whole.items()
        }
        for key in [key for key in part if key.endswith("cu_seqlens")]:
            inside = (part[key] >= row * length) & (part[key] <= (row + 1) * length)
            part[key] = part[key][inside] - row * length
        parts.append(gradients(family, part))
    wanted = gradients(family, whole)
    for found, own in zip([sum(tensors) for tensors in zip(*parts, strict=True)], wanted, strict=True):
        assert relative_error(found, own, floor=1e-3) < 1e-10  # type: ignore[arg-type]
    assert relative_error(gradients(family, whole | {"row_keys": ROW_KEYS + 1})[0], wanted[0]) > 1e-4


def test_layers_that_share_weights_drop_different_channels() -> None:
    """albert uses its blocks several times, each time with masks of its own: equal masks would give equal sums."""
    model = build_model(small_settings("albert", hidden_dropout=0.5, **SHAPES["albert"])).double().train()
    model.init_weights(seed=1)
    seen: list[Tensor] = []
    for layer in model.layers:
        layer.mlp_dropout.register_forward_hook(lambda _module, _inputs, output: seen.append(output == 0))
    model(**batch_of("encoder"))
    assert len(seen) == 4
    assert all(not torch.equal(one, two) for n, one in enumerate(seen) for two in seen[:n])


def test_evaluation_has_no_dropout_and_training_needs_keys() -> None:
    model = build_model(small_settings("bert", **RATES))
    model.init_weights(seed=1)
    plain = build_model(small_settings("bert"))
    plain.init_weights(seed=1)
    batch = batch_of("encoder")
    assert torch.equal(model.eval()(**batch), plain.eval()(**batch))
    assert torch.equal(plain.train()(**batch), plain.eval()(**batch))
    del batch["row_keys"]
    assert torch.equal(model(**batch), plain(**batch))
    with pytest.raises(ValueError, match="row_keys"):
        model.train()(**batch)


def test_ranks_that_share_a_sequence_have_their_parts_of_its_keys() -> None:
    """Tokens and heads have the numbers that they have in the whole model."""
    whole = DropoutKeys.of(ROW_KEYS, 12).at(7)
    attention = AttentionDropout.of(whole, 0.1, 6)
    for rank in range(3):
        ranks = SequenceParallel(rank, 3, None)  # type: ignore[arg-type]  # no communication here
        own = DropoutKeys.of(ROW_KEYS, 12, ranks).at(7)
        assert torch.equal(own.own, whole.own[:, 4 * rank : 4 * rank + 4])
        assert torch.equal(own.whole, whole.whole)
        heads = AttentionDropout.of(own, 0.1, 6, ranks).keys
        assert torch.equal(heads, attention.keys[:, 2 * rank : 2 * rank + 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dropout": 1.0}, "less than 1"),
        ({"attention_dropout": -0.1}, "greater than or equal to 0"),
        ({"activation_dropout": 0.1, "num_experts": 4}, "set activation_dropout to 0"),
    ],
)
def test_rates_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        small_settings("llama", **changes)

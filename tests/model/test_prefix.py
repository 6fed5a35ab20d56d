"""A decoder with prefixes that are seen from both sides: parity, packed documents, training precision, generation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from bigtrain.convert.config_json import config_of
from bigtrain.convert.weights import weight_maps
from bigtrain.model import Sampling, build_model, generate
from bigtrain.model.attention.cache import KeyValueCache
from bigtrain.model.generation import read_prompts
from tests.model.helpers import packed_batch, relative_error, small_settings

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {},
    "gemma2": {"sliding_window": 7, "num_key_value_heads": 2},
    "mixtral": {"num_experts": 4, "sliding_window": None},
}


def built(family: str, dtype: torch.dtype = torch.float64, **how: Any) -> Any:
    model = build_model(small_settings(family, **SHAPES[family]), **how)
    model.init_weights(seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype)


def prefix_batch(rows: int, length: int, seed: int) -> dict[str, Any]:
    """A packed batch whose documents have prefixes of random lengths, which have labels at their last tokens alone."""
    batch = packed_batch(rows, length, 96, seed)
    generator = torch.Generator().manual_seed(seed)
    lengths = batch["cu_seqlens"].diff()
    prefixes = [int(torch.randint(1, max(int(n), 2), (), generator=generator)) for n in lengths]
    last = torch.tensor(prefixes).repeat_interleave(lengths).view(rows, length) - 1
    batch["labels"] = batch["labels"].masked_fill(batch["position_ids"] < last, -100)
    return batch | {"order_ranks": batch["position_ids"].maximum(last)}


def gradients(model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(**batch)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_logits_and_gradients_equal_transformers_with_such_a_mask() -> None:
    """In float64: transformers' GPT-2 with a mask of four dimensions that lets it see what our ranks say."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ours = built("gpt2")
    config = {key: value for key, value in config_of(ours.settings).items() if key != "model_type"}
    theirs = GPT2LMHeadModel._from_config(GPT2Config(**config), attn_implementation="sdpa", dtype=torch.float64).eval()
    maps = weight_maps(ours.settings)
    named = {name: p.detach() for name, p in ours.named_parameters()}
    result = theirs.load_state_dict({k: v for m in maps for k, v in m.to_theirs(named).items()}, strict=False)
    assert not result.unexpected_keys

    length, prefixes = 30, torch.tensor([[9], [21]])
    ids = torch.randint(96, (2, length), generator=torch.Generator().manual_seed(3))
    places = torch.arange(length).expand(2, length)
    seen = (places[:, None, :] <= places[:, :, None]) | (places[:, None, :] < prefixes[:, :, None])
    mask = torch.zeros(2, 1, length, length, dtype=torch.float64).masked_fill(~seen[:, None], float("-inf"))
    their_logits = theirs(ids, attention_mask=mask).logits
    ranks = places.maximum(prefixes - 1)
    torch.testing.assert_close(ours.logits(ids, order_ranks=ranks), their_logits, rtol=1e-9, atol=1e-9)

    labels = torch.cat((ids[:, 1:], torch.full((2, 1), -100)), dim=1).masked_fill(places < prefixes - 1, -100)
    torch.nn.functional.cross_entropy(their_logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    bounds = torch.tensor([0, length, 2 * length], dtype=torch.int32)
    found = gradients(ours, dict(zip(("input_ids", "labels", "position_ids"), (ids, labels, places), strict=True))
                      | {"cu_seqlens": bounds, "max_seqlen": length, "order_ranks": ranks})  # fmt: skip
    del found["loss"]
    wanted = dict(theirs.named_parameters())
    for name, gradient in {k: v for m in maps for k, v in m.to_theirs(found).items()}.items():
        assert relative_error(gradient, wanted[name].grad) < 1e-8, name


@pytest.mark.parametrize("family", SHAPES)
def test_packed_prefixes_are_the_sum_of_their_documents(family: str) -> None:
    """Loss and gradients; and each document alone is one of a row, which knows no other."""
    model, batch = built(family), prefix_batch(2, 40, seed=5)
    model.auxiliary._coefficients = dict.fromkeys(model.auxiliary._coefficients, 0.0)
    together, alone = gradients(model, batch), torch.zeros((), dtype=torch.float64)
    for start, end in pairwise(batch["cu_seqlens"].tolist()):
        ids, labels, ranks = (batch[key].flatten()[start:end][None] for key in ("input_ids", "labels", "order_ranks"))
        logits = model.logits(ids, order_ranks=ranks)[0]
        alone = alone + torch.nn.functional.cross_entropy(logits, labels[0], ignore_index=-100, reduction="sum")
    model.zero_grad()
    alone.backward()
    assert together["loss"].item() == pytest.approx(alone.item(), rel=1e-12)
    for name, parameter in model.named_parameters():
        if not name.endswith("k_proj.bias"):
            assert relative_error(together[name], parameter.grad, floor=1e-6) < 1e-10, name


@pytest.mark.parametrize("family", SHAPES)
def test_a_prefix_sees_itself_and_nothing_that_follows(family: str) -> None:
    """By gradient: of a prefix's first logits all of the prefix that its windows reach, of the next all before."""
    model, ids = built(family), torch.arange(12)[None]
    ranks = torch.arange(12).clamp(min=5)[None]
    embedded: list[Tensor] = []

    def as_leaf(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    model.embed_tokens.register_forward_hook(as_leaf)
    logits = model.logits(ids, order_ranks=ranks)
    for place, seen in ((0, 6), (5, 6), (8, 9)):
        (grad,) = torch.autograd.grad(logits[0, place].square().sum(), embedded, retain_graph=True)
        assert ((grad[0].abs().sum(-1) > 0) == (torch.arange(12) < seen)).all()


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("kept", ["selective", "full", "offloaded"])
def test_recomputed_prefixes_change_no_bit_of_a_gradient(family: str, kept: str) -> None:
    batch = prefix_batch(2, 40, seed=1)
    how = {"attn_implementation": "reference"} if family == "gemma2" else {}
    wanted = gradients(built(family, torch.float32, **how), batch)
    actual = gradients(built(family, torch.float32, activation_checkpointing=kept, **how), batch)
    assert all(torch.equal(actual[name], gradient) for name, gradient in wanted.items())


@pytest.mark.parametrize("family", SHAPES)
def test_a_prompt_is_a_prefix_and_what_is_drawn_follows_it(family: str) -> None:
    """Greedy texts from the cache equal those of a whole forward pass for each token, with the prompt as prefix."""
    model, prompts = built(family).eval(), [[3, 4, 5, 6, 7, 8, 9, 10, 11], [20, 21], [40]]
    made = generate(model, prompts, max_new_tokens=12, sampling=Sampling(temperature=0.0), two_sided_prompts=True)
    for prompt, completion in zip(prompts, made, strict=True):
        text = list(prompt)
        for _ in range(12):
            ranks = torch.arange(len(text)).clamp(min=len(prompt) - 1)[None]
            with torch.no_grad():
                text.append(int(model.logits(torch.tensor([text]), order_ranks=ranks)[0, -1].argmax()))
        assert completion.tokens == text[len(prompt) :]
    with torch.no_grad():
        both, one = (
            read_prompts(model, prompts, KeyValueCache(model.settings, [9, 2, 1], torch.device("cpu")), two_sided=both)
            for both in (True, False)
        )
    assert (both - one).abs().amax(-1)[:2].min() > 1e-3  # and it does see them
    torch.testing.assert_close(both[2], one[2], rtol=0, atol=1e-12)

"""Recurrent language models: PyTorch's layers in float64 as the oracle, packed documents, generation, characters."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from bigtrain.base import BYTE_SYMBOLS
from bigtrain.config import ModelSettings
from bigtrain.config.families import FAMILIES as CHOICES
from bigtrain.model import Recurrent, Sampling, build_model, count_parameters, flops_per_token, generate
from bigtrain.model.language_model import LanguageModel
from bigtrain.model.recurrence.characters import CharacterEmbedding
from tests.model.helpers import packed_batch, relative_error

CELLS = ("lstm", "gru")
FAMILIES = (*CELLS, "char_lstm")
FILTERS = (5, 6, 7)


def shape(family: str, **changes: Any) -> ModelSettings:
    of_family = {"character_filters": FILTERS, "max_token_bytes": 6} if family == "char_lstm" else {}
    return ModelSettings.model_validate(
        {
            "family": family,
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "vocab_size": 96,
            "max_position_embeddings": 64,
            **of_family,
            **changes,
        }
    )


def token_bytes(rows: int, longest: int) -> Tensor:
    """Random bytes, between the marks, of one to `longest` bytes."""
    generator = torch.Generator().manual_seed(5)
    table = torch.zeros(rows, longest + 2, dtype=torch.int16)
    for row in table:
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        row[0], row[length + 1] = BYTE_SYMBOLS - 3, BYTE_SYMBOLS - 2
        row[1 : length + 1] = torch.randint(1, 257, (length,), generator=generator)
    return table


def built(family: str, dtype: torch.dtype = torch.float64, how: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A model in which no two parameters are alike, biases included."""
    chosen = shape(family, **changes)
    model = build_model(chosen, **(how or {}))
    model.init_weights(seed=1)
    if chosen.character_filters:
        model.set_token_bytes(token_bytes(chosen.vocab_size, chosen.max_token_bytes))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.to(dtype)


def gradients(model: LanguageModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def documents(batch: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    ids, labels = batch["input_ids"].flatten(), batch["labels"].flatten()
    return [(ids[a:b][None], labels[a:b][None]) for a, b in pairwise(batch["cu_seqlens"].tolist())]


def torch_layers(model: Recurrent) -> Any:
    """PyTorch's own layers with the model's weights."""
    chosen = model.settings
    kind: Any = {"lstm": nn.LSTM, "gru": nn.GRU}[chosen.cell]
    layers = kind(chosen.embedding_width, chosen.hidden_size, chosen.num_hidden_layers, batch_first=True).double()
    for name, parameter in layers.named_parameters():
        parameter.data.copy_(model.get_parameter(our_name(name)))
    return layers


def our_name(theirs: str) -> str:
    """`weight_ih_l0` is `layers.0.input_gates.weight`."""
    what, part, layer = theirs.split("_")
    return f"layers.{layer[1:]}.{'input' if part == 'ih' else 'state'}_gates.{what}"


@pytest.mark.parametrize(
    "changes", [{}, {"embedding_size": 7}, {"tie_word_embeddings": True}], ids=["", "narrow", "tied"]
)
@pytest.mark.parametrize("family", CELLS)
def test_loss_and_all_gradients_equal_those_of_pytorch_layers(family: str, changes: dict[str, Any]) -> None:
    """In float64, from packed rows; PyTorch's layers read each document alone."""
    model, batch = built(family, **changes), packed_batch(3, 24, 96, seed=4)
    assert len(batch["cu_seqlens"]) > 5
    loss = model(**batch)
    ours = gradients(model, loss)

    layers = torch_layers(model)
    head, bias, table = (
        p.detach().clone().requires_grad_()
        for p in (model.lm_head.weight, model.lm_head.bias, model.embed_tokens.weight)
    )
    wanted = sum(
        F.cross_entropy(
            F.linear(layers(table[ids] * model.settings.embedding_width**0.5)[0][0], head, bias),
            labels[0],
            ignore_index=-100,
            reduction="sum",
        )
        for ids, labels in documents(batch)
    )
    assert isinstance(wanted, Tensor)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    theirs = {our_name(name): p.grad for name, p in layers.named_parameters()} | {"lm_head.bias": bias.grad}
    if changes.get("tie_word_embeddings"):
        theirs["embed_tokens.weight"] = head.grad + table.grad
    else:
        theirs |= {"lm_head.weight": head.grad, "embed_tokens.weight": table.grad}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert relative_error(ours[name], gradient) < 1e-10, name


@settings(max_examples=15, deadline=None)
@given(family=st.sampled_from(FAMILIES), seed=st.integers(0, 100), rows=st.integers(1, 3), length=st.integers(1, 24))
def test_a_packed_batch_is_the_sum_of_its_documents(family: str, seed: int, rows: int, length: int) -> None:
    model, batch = built(family), packed_batch(rows, length, 96, seed)
    together = model(**batch)
    found = gradients(model, together)
    alone = torch.zeros((), dtype=torch.float64)
    for ids, labels in documents(batch):
        logits = model.logits(ids)[0]
        alone = alone + F.cross_entropy(logits, labels[0], ignore_index=-100, reduction="sum")
    assert together.item() == pytest.approx(alone.item(), rel=1e-11, abs=1e-11)
    for name, gradient in gradients(model, alone).items():
        assert relative_error(found[name], gradient, floor=1e-9) < 1e-9, name
    each = model(**batch, each_token=True)
    assert each.sum().item() == pytest.approx(together.item(), rel=1e-5, abs=1e-5)
    assert (each[batch["labels"] == -100] == 0).all()


@pytest.mark.parametrize("family", CELLS)
def test_no_gradient_crosses_the_bounds_of_a_document(family: str) -> None:
    """The gradient of the losses of one document is 0 at the vectors of all other tokens, and of later ones."""
    model, batch = built(family), packed_batch(2, 20, 96, seed=9)
    seen: list[Tensor] = []

    def watch(_: Any, __: Any, vectors: Tensor) -> Tensor:
        seen.append(vectors.detach().requires_grad_())
        return seen[-1]

    hook = model.embed_tokens.register_forward_hook(watch)
    bounds = list(pairwise(batch["cu_seqlens"].tolist()))
    assert len(bounds) > 3
    for start, end in bounds:
        hidden = model.hidden(batch["input_ids"], batch["position_ids"], batch["cu_seqlens"], batch["max_seqlen"])
        last = (start + end - 1) // 2
        hidden.flatten(0, 1)[start : last + 1].sum().backward()
        reached = seen[-1].grad.abs().sum(-1).flatten() > 0
        assert reached[start : last + 1].all()
        assert not reached[:start].any() and not reached[last + 1 :].any()
    hook.remove()


@pytest.mark.parametrize("recompute", ["selective", "full", "offloaded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recomputation_changes_no_bit(family: str, recompute: str) -> None:
    batch = packed_batch(2, 24, 96, seed=3)
    plain, again = (built(family, torch.float32, {"activation_checkpointing": how}) for how in ("none", recompute))
    losses = plain(**batch), again(**batch)
    assert torch.equal(*losses)
    found, wanted = gradients(again, losses[1]), gradients(plain, losses[0])
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("family", CELLS)
def test_compiled_layers_compute_the_same(family: str) -> None:
    batches = [packed_batch(2, 24, 96, seed=seed) for seed in (3, 4)]  # with other numbers of documents and steps
    plain, compiled = built(family, torch.float32), built(family, torch.float32)
    compiled.compile_blocks()
    for batch in batches:
        losses = plain(**batch), compiled(**batch)
        torch.testing.assert_close(*losses)
        found, wanted = gradients(compiled, losses[1]), gradients(plain, losses[0])
        assert all(relative_error(found[name], wanted[name]) < 1e-5 for name in wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_in_bfloat16_are_carried_in_float32(family: str) -> None:
    """A model in bfloat16 is as near to float64 as its rounded weights and vectors let it be."""
    batch = packed_batch(2, 64, 96, seed=3)
    narrow = built(family, torch.bfloat16)
    wide = built(family).requires_grad_()
    for ours, theirs in zip(wide.parameters(), narrow.parameters(), strict=True):
        ours.data.copy_(theirs.data)
    losses = narrow(**batch), wide(**batch)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=5e-3)
    found, wanted = gradients(narrow, losses[0]), gradients(wide, losses[1])
    assert all(relative_error(found[name], wanted[name]) < 0.05 for name in wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_kept_for_generation_give_the_logits_of_the_whole_text(family: str) -> None:
    model = built(family)
    prompts = [[5, 7, 9, 11], [3], [8, 8, 2]]
    made = generate(model, prompts, max_new_tokens=6, sampling=Sampling(temperature=0), end_of_text=[4])
    for prompt, completion in zip(prompts, made, strict=True):
        text = list(prompt)
        for token in completion.tokens:
            assert int(model.logits(torch.tensor([text]))[0, -1].argmax()) == token
            text.append(token)
        alone = generate(model, [prompt], max_new_tokens=6, sampling=Sampling(temperature=0), end_of_text=[4])
        assert alone == [completion]


def test_a_tokens_vector_follows_from_its_bytes_as_kim_et_al_say() -> None:
    """Convolutions over the bytes and marks of a token, tanh, the maximum, a highway layer; written out in a loop."""
    model = built("char_lstm")
    embed = model.embed_tokens
    assert isinstance(embed, CharacterEmbedding)
    ids = torch.randint(96, (2, 9), generator=torch.Generator().manual_seed(1))
    found = model.embed_tokens(ids)
    assert found.shape == (2, 9, sum(FILTERS))
    for row, position in ((0, 0), (1, 8), (1, 3)):
        symbols = [int(each) for each in embed.token_bytes[ids[row, position]] if each]
        padded = max(len(symbols), len(FILTERS))
        vectors = torch.zeros(padded, model.settings.character_size, dtype=torch.float64)
        vectors[: len(symbols)] = embed.bytes.weight[symbols]
        parts = []
        for width, filters in enumerate(embed.filters, start=1):
            last = max(len(symbols) - width, 0)
            windows = torch.stack([vectors[start : start + width].flatten() for start in range(last + 1)])
            parts.append(torch.tanh(windows @ filters.weight.t() + filters.bias).max(0).values)
        x = torch.cat(parts)
        for layer in embed.highway:
            gate = torch.sigmoid(F.linear(x, layer.gate.weight, layer.gate.bias) - 2)
            x = gate * torch.relu(F.linear(x, layer.transform.weight, layer.transform.bias)) + (1 - gate) * x
        torch.testing.assert_close(found[row, position], x * sum(FILTERS) ** 0.5)


def test_the_bytes_of_tokens_are_no_part_of_a_checkpoint() -> None:
    model = built("char_lstm")
    assert "embed_tokens.token_bytes" not in model.state_dict()
    assert count_parameters(model.settings) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", CELLS)
def test_counts_are_those_of_the_formula(family: str) -> None:
    """G (H I + H H + 2 H) parameters a layer, as PyTorch has them, and 6 operations for each that multiplies."""
    gates, width, rows = {"lstm": 4, "gru": 3}[family], 12, 96
    layer = gates * (2 * width * width + 2 * width)
    assert count_parameters(shape(family)) == 2 * rows * width + rows + 2 * layer
    multiplying = 2 * gates * 2 * width * width + rows * width
    assert flops_per_token(shape(family), 64) == flops_per_token(shape(family), 8, causal=True) == 6 * multiplying


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_its_choices(family: str) -> None:
    """They can be written out under the name of another family, too."""
    chosen = shape(family)
    kept = {key: getattr(chosen, key) for key in ("character_filters", "max_token_bytes")}
    spelled_out = shape("llama", **{**CHOICES[family], **kept})
    assert spelled_out.model_dump(exclude={"family"}) == chosen.model_dump(exclude={"family"})


REFUSED = {
    "heads": ({"num_attention_heads": 4}, "num_attention_heads 4 is for blocks with attention"),
    "a window": ({"sliding_window": 8}, "sliding_window 8 is for blocks with attention"),
    "experts": ({"num_experts": 4}, "num_experts 4 is for blocks with attention"),
    "positions": ({"position_embedding": "rope"}, "carries the order of tokens in its states"),
    "a tied head of another width": ({"tie_word_embeddings": True, "embedding_size": 6}, "as wide as hidden_size"),
    "two widths": ({"character_filters": (4,), "embedding_size": 6}, "remove embedding_size"),
    "wide filters": ({"character_filters": (4,) * 9, "max_token_bytes": 6}, "convolutions of up to 9 bytes"),
    "no filters": ({"highway_layers": 2}, "highway_layers 2 is for character_filters, which is empty"),
    "attention": ({"attention_score": "additive"}, "is for architecture recurrent_encoder_decoder"),
    "a decoder's layers": ({"num_decoder_layers": 2}, "is for architecture recurrent_encoder_decoder"),
    "a cell with attention": (
        {"family": "llama", "cell": "gru", "num_attention_heads": 4, "intermediate_size": 8},
        "cell gru is for recurrent models",
    ),
    "no heads": ({"family": "llama", "intermediate_size": 8}, "num_attention_heads is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_the_settings(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ValidationError, match=message):
        shape(**{"family": "lstm", **changes})

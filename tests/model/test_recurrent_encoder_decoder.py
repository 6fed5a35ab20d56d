"""The recurrent encoder-decoder: a float64 loop over single documents as the oracle, and what packing promises."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.model import RecurrentEncoderDecoder, build_model, flops_per_token, generate
from bigtrain.model.recurrence.recurrent_layer import RecurrentLayer
from tests.model.helpers import relative_error
from tests.model.test_encoder_decoder import pairs_batch

SCORES = ("additive", "dot")


def shape(family: str = "luong", **changes: Any) -> ModelSettings:
    return ModelSettings.model_validate(
        {
            "family": family,
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "num_decoder_layers": 3,
            "vocab_size": 96,
            "max_position_embeddings": 64,
            **changes,
        }
    )


def built(settings: ModelSettings, dtype: torch.dtype = torch.float64, **how: Any) -> Any:
    model = build_model(settings, **how)
    model.init_weights(seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.to(dtype)


def gradients(model: RecurrentEncoderDecoder, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def cell(layer: RecurrentLayer, x: Tensor, state: list[Tensor]) -> list[Tensor]:
    """One step of PyTorch's cell, with the weights of a layer."""
    weights = (layer.input_gates.weight, layer.state_gates.weight, layer.input_gates.bias, layer.state_gates.bias)
    if layer.state_gates.kind == "gru":
        return [torch.gru_cell(x[None], state[0][None], *weights)[0]]
    new = torch.lstm_cell(x[None], [each[None] for each in state], *weights)
    return [each[0] for each in new]


def plain_logits(model: RecurrentEncoderDecoder, ids: Tensor, read: Tensor) -> Tensor:
    """Logits [T, V] of one pair of documents, step by step."""
    settings = model.settings
    zero = torch.zeros(settings.hidden_size // 2, dtype=torch.float64)
    table = model.embed_tokens.weight * settings.hidden_size**0.5
    x = [table[token] for token in read]
    ends = zero
    for layer in model.encoder.layers:
        sides = []
        for half, order in ((layer.ahead, x), (layer.back, x[::-1])):
            state, found = [zero, zero], []
            for each in order:
                state = cell(half, each, state)
                found.append(state[0])
            sides.append(found)
        ends = torch.cat((sides[0][-1], sides[1][-1]))
        x = [torch.cat(pair) for pair in zip(sides[0], sides[1][::-1], strict=True)]
    keys = torch.stack(x)
    starts = torch.tanh(model.start(ends)).chunk(settings.decoder_layers)
    states = [[start, torch.zeros_like(start)] for start in starts]
    logits = []
    for token in ids:
        y = table[token]
        for number, layer in enumerate(model.layers):
            states[number] = cell(layer, y, states[number])
            y = states[number][0]
        attention = model.attention
        if settings.attention_score == "additive":
            scores = torch.stack(
                [attention.weight[0] @ torch.tanh(attention.query(y) + attention.key(h)) for h in keys]
            )
        else:
            scores = torch.stack([y @ h for h in keys])
        context = sum(weight * h for weight, h in zip(scores.softmax(0), keys, strict=True))
        assert isinstance(context, Tensor)
        logits.append(model.lm_head(torch.tanh(model.readout(torch.cat((y, context))))))
    return torch.stack(logits)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("score", SCORES)
def test_loss_and_all_gradients_equal_those_of_a_plain_loop(score: str, kind: str) -> None:
    """In float64; the loop has each pair of documents alone, and PyTorch's cells."""
    model, batch = built(shape(attention_score=score, cell=kind)), pairs_batch(seed=5, rows=2, length=10, read=14)
    assert len(batch["cu_seqlens"]) > 3
    loss = model(**batch)
    ours = gradients(model, loss)
    sides = zip(pairwise(batch["cu_seqlens"].tolist()), pairwise(batch["encoder_cu_seqlens"].tolist()), strict=True)
    wanted = torch.zeros((), dtype=torch.float64)
    for (start, end), (first, last) in sides:
        ids, labels = (batch[key].flatten()[start:end] for key in ("input_ids", "labels"))
        logits = plain_logits(model, ids, batch["encoder_input_ids"].flatten()[first:last])
        wanted = wanted + F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-11)
    theirs = gradients(model, wanted)
    assert ours.keys() == theirs.keys() == dict(model.named_parameters()).keys()
    for name, gradient in theirs.items():
        assert relative_error(ours[name], gradient) < 1e-9, name


@pytest.mark.parametrize("family", ["bahdanau", "luong"])
def test_a_document_is_written_from_its_own_source_alone(family: str) -> None:
    """By gradient: the losses of the n-th document of the decoder reach the n-th of the encoder and no other."""
    model, batch = built(shape(family)), pairs_batch(seed=3, rows=2)
    seen: list[Tensor] = []

    def watch(_: nn.Module, __: Any, vectors: Tensor) -> Tensor:
        seen.append(vectors.detach().requires_grad_())
        return seen[-1]

    model.embed_tokens.register_forward_hook(watch)
    own, read = (list(pairwise(batch[f"{side}cu_seqlens"].tolist())) for side in ("", "encoder_"))
    assert len(own) == len(read) > 2
    inputs = {key: value for key, value in batch.items() if key not in ("labels",)}
    for (start, end), (first, last) in zip(own, read, strict=True):
        model.logits(**inputs).flatten(0, 1)[start:end].square().sum().backward()
        encoder, decoder = (each.grad.abs().sum(-1).flatten() > 0 for each in seen[-2:])
        assert encoder[first:last].all() and not encoder[:first].any() and not encoder[last:].any()
        assert decoder[start:end].all() and not decoder[:start].any() and not decoder[end:].any()


@pytest.mark.parametrize("recompute", ["selective", "full", "offloaded"])
@pytest.mark.parametrize("family", ["bahdanau", "luong"])
def test_recomputation_changes_no_bit(family: str, recompute: str) -> None:
    batch = pairs_batch(seed=3)
    plain, again = (built(shape(family), torch.float32, activation_checkpointing=how) for how in ("none", recompute))
    losses = plain(**batch), again(**batch)
    assert torch.equal(*losses)
    found, wanted = gradients(again, losses[1]), gradients(plain, losses[0])
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_losses_of_tokens_add_up_and_additive_scores_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that are computed for some states at a time are the scores."""
    model, batch = built(shape("bahdanau")), pairs_batch(seed=3)
    whole = model(**batch)
    monkeypatch.setattr("bigtrain.model.recurrence.document_attention._CHUNK_NUMBERS", 1000)
    assert model(**batch).item() == pytest.approx(whole.item(), rel=1e-12)
    each = model(**batch, each_token=True)
    assert each.sum().item() == pytest.approx(whole.item(), rel=1e-6)


def test_operations_are_those_of_the_formula() -> None:
    """The encoder's weights count once for each of its tokens, and attention for each pair of tokens."""
    width, rows, decoder, encoder = 12, 96, 10, 30
    of_cell = 4 * 2 * width * width
    of_half = 2 * 4 * (width // 2) * (width + width // 2)
    written = 3 * of_cell + 2 * width * width + rows * width
    found = flops_per_token(shape(), decoder, encoder_length=encoder)
    assert found == pytest.approx(6 * (written + 3 * 2 * of_half) + 12 * width * encoder)
    keys = flops_per_token(shape(attention_score="additive"), decoder, encoder_length=encoder) - found
    assert keys == pytest.approx(6 * (width * width + 3 * width * width))


def test_it_continues_no_text() -> None:
    with pytest.raises(BigtrainError, match="a recurrent encoder-decoder continues no text"):
        generate(built(shape()), [[1]], max_new_tokens=1)

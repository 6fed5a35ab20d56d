"""Promises of dropout in recurrent models: where it is, that it follows from a row's key, and that states have none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.model.layers.dropout import Dropout, DropoutKeys
from tests.model.helpers import packed_batch
from tests.model.test_encoder_decoder import pairs_batch
from tests.model.test_recurrent import built, documents, torch_layers
from tests.model.test_recurrent_encoder_decoder import built as built_pair
from tests.model.test_recurrent_encoder_decoder import shape

RATES = {"embedding_dropout": 0.3, "hidden_dropout": 0.4, "final_dropout": 0.2}
KEYS = torch.tensor([5, -7, 11])


def mask(rate: float, place: str, width: int, keys: DropoutKeys) -> Tensor:
    """[B, T, C]: what dropout at a place multiplies with."""
    return Dropout(rate, place)(torch.ones(*keys.own.shape, width, dtype=torch.float64), keys)


@pytest.mark.parametrize("family", ["lstm", "gru"])
def test_pytorch_layers_with_these_masks_between_them_have_the_loss(family: str) -> None:
    """The masks are on what enters each layer and leaves the last one, by the place of a token in its row."""
    model, batch = built(family, **RATES), packed_batch(3, 24, 96, seed=4)
    model.train()
    found = model(**batch, row_keys=KEYS)
    keys, chosen = DropoutKeys.of(KEYS, 24), model.settings
    width = chosen.hidden_size
    masks = [
        mask(rate, place, width, keys).flatten(0, 1)
        for rate, place in ((0.3, "embedding"), (0.4, "input of layer 1"), (0.2, "final"))
    ]
    layers = torch_layers(model)
    kind: Any = type(layers)
    wanted, at = torch.zeros((), dtype=torch.float64), 0
    for ids, labels in documents(batch):
        own = slice(at, at + ids.shape[1])
        x = model.embed_tokens(ids) * masks[0][own]
        for number in range(2):
            one = kind(x.shape[-1], width, batch_first=True).double()
            for name, parameter in one.named_parameters():
                parameter.data.copy_(layers.get_parameter(name.replace("l0", f"l{number}")))
            x = one(x)[0] * masks[number + 1][own]
        logits = model.lm_head(x)
        wanted += F.cross_entropy(logits[0], labels[0], ignore_index=-100, reduction="sum")
        at += ids.shape[1]
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert found.item() != pytest.approx(model.eval()(**batch).item(), rel=1e-3)


@pytest.mark.parametrize("family", ["lstm", "char_lstm"])
def test_a_row_drops_the_same_in_any_batch(family: str) -> None:
    model = built(family, **RATES).train()
    batch = packed_batch(3, 24, 96, seed=4)
    together = model(**batch, row_keys=KEYS).item()
    bounds, alone = batch["cu_seqlens"], 0.0
    for row in range(3):
        inside = (bounds >= row * 24) & (bounds <= (row + 1) * 24)
        part = {name: batch[name][row : row + 1] for name in ("input_ids", "labels", "position_ids")}
        part |= {"cu_seqlens": bounds[inside] - row * 24, "max_seqlen": batch["max_seqlen"]}
        alone += model(**part, row_keys=KEYS[row : row + 1]).item()
    assert together == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("family", ["bahdanau", "luong"])
@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
def test_an_encoder_decoder_drops_on_both_sides_and_again_when_recomputed(family: str, recompute: str) -> None:
    losses, gradients, pairs = [], [], pairs_batch(seed=3, rows=2)
    for mode in ("none", recompute):
        model: nn.Module = built_pair(shape(family, **RATES), torch.float32, activation_checkpointing=mode).train()
        loss = model(**pairs, row_keys=torch.tensor([3, 4]))
        loss.backward()
        losses.append(loss.item())
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert losses[0] == losses[1]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert losses[0] != pytest.approx(model.eval()(**pairs).item(), rel=1e-3)

"""Multi-token prediction is its definition, position by position, and never looks across documents."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.config import Settings
from bigtrain.model import Decoder, build_model
from bigtrain.model.context import Context
from bigtrain.model.layers.rotary import rotary_at
from bigtrain.model.multi_token import losses_ahead
from tests.model.helpers import packed_batch, relative_error, small_settings

DEPTH, COEFFICIENT = 2, 0.3


def model(dtype: torch.dtype = torch.float64, **changes: Any) -> Decoder:
    shape = {"num_nextn_predict_layers": DEPTH, "mtp_loss_coef": COEFFICIENT} | changes
    built = build_model(small_settings(**shape), attn_implementation="reference").to(dtype)
    built.init_weights(seed=2)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to(dtype))
    return built


def gradients(loss: Tensor, module: torch.nn.Module) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def by_definition(decoder: Decoder, batch: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """The loss, and that of each module, document by document: only tokens with a (k+1)-th successor go into module k.

    A document's tokens are its inputs and, behind them, the label of the last one where it has one.
    """
    bounds = batch["cu_seqlens"].tolist()
    ids, labels = batch["input_ids"].flatten(), batch["labels"].flatten()
    main, ahead = torch.zeros((), dtype=torch.float64), [torch.zeros((), dtype=torch.float64) for _ in range(DEPTH)]
    for a, b in pairwise(bounds):
        inputs, targets = ids[a:b], labels[a:b]
        length = b - a
        context = Context(
            torch.tensor([0, length], dtype=torch.int32),
            length,
            rotary=rotary_at(torch.arange(length)[None], decoder.settings, torch.float64),
        )
        x = decoder.embed_tokens(inputs[None])
        for layer in decoder.layers:
            x, _ = layer(x, context)
        main = main + _loss(decoder, decoder.norm(x), targets)
        for k, module in enumerate(decoder.next_token_layers, 1):
            used = length - k  # token i sees token i + k, which is in the document
            if used <= 0:
                break
            embedded = decoder.embed_tokens(inputs[None, k:])
            joined = torch.cat((module.hidden_norm(x[:, :used]), module.embedding_norm(embedded)), dim=-1)
            short = Context(
                torch.tensor([0, used], dtype=torch.int32),
                used,
                rotary=rotary_at(torch.arange(used)[None], decoder.settings, torch.float64),
            )
            x, _ = module.block(joined @ module.projection.weight.T, short)
            ahead[k - 1] = ahead[k - 1] + _loss(decoder, module.norm(x), targets[k:])
    return main, ahead


def _loss(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(hidden[0] @ decoder.lm_head.weight.T, targets, ignore_index=IGNORE_INDEX, reduction="sum")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tied", [False, True])
def test_losses_and_gradients_are_those_of_the_definition(seed: int, tied: bool) -> None:
    decoder, batch = model(tie_word_embeddings=tied), packed_batch(2, 24, 96, seed)
    batch["labels"] = targets_of(batch)
    loss = decoder(**batch)
    ours = gradients(loss, decoder)
    told = decoder.auxiliary.take().losses["mtp_loss"]
    main, ahead = by_definition(decoder, batch)
    assert loss.item() == pytest.approx(main.item(), rel=1e-12)
    assert told == pytest.approx(sum(each.item() for each in ahead) / DEPTH, rel=1e-12)
    assert all(each.item() > 0 for each in ahead)
    wanted = gradients(main + COEFFICIENT / DEPTH * torch.stack(ahead).sum(), decoder)
    assert wanted.keys() == ours.keys() == dict(decoder.named_parameters()).keys()
    for name, grad in ours.items():
        assert relative_error(grad, wanted[name]) < 1e-9, name


def targets_of(batch: dict[str, Any]) -> Tensor:
    """Labels of real text: the next input token of the same document, and for a row that is cut one more."""
    ids, length = batch["input_ids"], batch["input_ids"].shape[1]
    labels = torch.cat((ids[:, 1:], torch.full((len(ids), 1), 7)), dim=1)
    labels.view(-1)[batch["cu_seqlens"][1:].long() - 1] = IGNORE_INDEX
    labels[0, length - 1] = 7  # the document goes on in another row
    return labels


def test_nothing_is_predicted_behind_the_end_of_a_document() -> None:
    end, seen = IGNORE_INDEX, []
    labels = torch.tensor([[1, 2, end, 4, 5, 6, end, end, 9, 10]])

    class Module(torch.nn.Module):
        def forward(self, x: Tensor, embedded: Tensor, context: Context) -> tuple[Tensor, Tensor, None]:
            seen.append((embedded[0, :, 0].tolist(), context.labelled))
            return x, x, None

    def head(hidden: Tensor, further: Tensor) -> Tensor:
        seen.append(further[0].tolist())
        return torch.zeros(())

    embedded = torch.arange(10.0).view(1, 10, 1)
    context = Context(torch.tensor([0, 3, 7, 8, 10]), 4)
    losses_ahead([Module(), Module()], torch.zeros(1, 10, 1), embedded, labels, context, head)
    (tokens, labelled), first, (tokens_2, _), second = seen
    assert first == [2, end, end, 5, 6, end, end, end, 10, end]
    assert second == [end, end, end, 6, end, end, end, end, end, end]
    assert tokens == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] and tokens_2 == [2, 3, 4, 5, 6, 7, 8, 9, 0, 0]
    assert labelled[0].tolist() == [label != end for label in first]


def test_without_a_coefficient_the_decoder_learns_what_it_does_alone() -> None:
    batch = packed_batch(2, 24, 96, 5)
    silent, alone = model(mtp_loss_coef=0.0), model(num_nextn_predict_layers=0)
    wanted = gradients(alone(**batch), alone)
    found = gradients(silent(**batch), silent)
    assert all(torch.equal(found[name], grad) for name, grad in wanted.items())
    assert not any(found[name].any() for name in found.keys() - wanted.keys())
    assert torch.equal(silent.logits(batch["input_ids"]), alone.logits(batch["input_ids"]))


@pytest.mark.parametrize("kept", ["selective", "full"])
def test_recomputation_changes_no_bit(kept: str) -> None:
    found = []
    for how in ("none", kept):
        shape = small_settings(num_nextn_predict_layers=2, num_experts=4, router_aux_loss_coef=0.1)
        decoder = build_model(shape, activation_checkpointing=how)
        decoder.init_weights(0)
        found.append(gradients(decoder(**packed_batch(2, 24, 96, 5)), decoder))
    assert all(torch.equal(grad, found[1][name]) for name, grad in found[0].items())


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"sequence_parallel_size": 2}, "a rank does not have the tokens after its part of a sequence"),
        ({"tensor_parallel_size": 2}, "works with model.num_nextn_predict_layers 0, found 1"),
    ],
)
def test_ranks_that_share_sequences_or_matrices_are_refused(overrides: dict[str, int], reason: str) -> None:
    tree = {
        "run_dir": "x",
        "model": small_settings(num_nextn_predict_layers=1).model_dump(exclude_unset=True),
        "data": {"dir": "x", "sequence_length": 64, "sources": [{"name": "c", "kind": "python_stdlib"}]},
        "train": {"steps": 100, "global_batch_size": 8},
        "engine": {"zero_stage": 1, **overrides},
    }
    tree["data"]["tokenizer"] = {"vocab_size": 96}
    with pytest.raises(ValueError, match=reason):
        Settings.model_validate(tree)

"""XLNet: parity with transformers in float64, packed documents, recomputation, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from bigtrain.base.errors import BigtrainError
from bigtrain.convert.config_json import config_of
from bigtrain.convert.weights import weight_maps
from bigtrain.model import Transformer, build_model, count_parameters, flops_per_token, generate
from tests.model.helpers import exact_xlnet, packed_batch, relative_error, small_settings


def built(dtype: torch.dtype = torch.float64, changes: dict[str, Any] | None = None, **how: Any) -> Any:
    """A model in which no two parameters are alike, biases and norms included."""
    model = build_model(small_settings("xlnet", **(changes or {})), **how)
    model.init_weights(seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype)


def permuted_batch(rows: int, length: int, seed: int, whole_rows: bool = False) -> dict[str, Any]:
    """A packed batch in which some tokens of each document are predicted in a random order."""
    generator = torch.Generator().manual_seed(seed)
    batch = packed_batch(rows, length, 96, seed)
    if whole_rows:
        batch["cu_seqlens"] = torch.arange(rows + 1, dtype=torch.int32) * length
        batch["position_ids"] = torch.arange(length).expand(rows, length)
        batch["max_seqlen"] = length
    chosen = (torch.rand((rows, length), generator=generator) < 0.3) & (batch["position_ids"] > 0)
    ranks = torch.stack([1 + torch.randperm(length, generator=generator) for _ in range(rows)]).where(chosen, 0)
    return batch | {"labels": batch["input_ids"].masked_fill(~chosen, -100), "order_ranks": ranks}


def gradients(model: Transformer, batch: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(**batch)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def transformers_model(ours: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Theirs with our weights, from config.json and weights as they are exported; and the maps between both."""
    from transformers import XLNetConfig, XLNetLMHeadModel

    exact_xlnet(monkeypatch)
    config = {key: value for key, value in config_of(ours.settings).items() if key != "model_type"}
    theirs = XLNetLMHeadModel(XLNetConfig(**config)).double().eval()
    maps = weight_maps(ours.settings)
    named = {name: p.detach() for name, p in ours.named_parameters()}
    result = theirs.load_state_dict({k: v for m in maps for k, v in m.to_theirs(named).items()}, strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) <= {"lm_loss.weight"}
    theirs.tie_weights()
    return theirs, maps


@pytest.mark.parametrize("segments", [False, True])
def test_logits_and_all_gradients_equal_those_of_transformers(segments: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: of both streams, with `perm_mask` and `target_mapping` for the places that are predicted, and with
    segments and without; and the content stream alone, as a fine-tuned model uses it."""
    ours = built()
    theirs, maps = transformers_model(ours, monkeypatch)
    length = 30
    batch = permuted_batch(2, length, seed=3, whole_rows=True)
    keep = batch["labels"] != -100  # as many in each row, as target_mapping needs
    fewest = int(keep.sum(1).min())
    keep &= keep.cumsum(1) <= fewest
    batch["labels"] = batch["labels"].masked_fill(~keep, -100)
    batch["order_ranks"] = ranks = batch["order_ranks"].where(keep, 0)
    read = {"token_type_ids": (torch.arange(length) > 11).long().expand(2, length)} if segments else {}

    content = theirs(batch["input_ids"], **read).logits
    torch.testing.assert_close(ours.logits(batch["input_ids"], **read), content, rtol=1e-9, atol=1e-9)

    hidden = (ranks[:, None, :] >= ranks[:, :, None]) & keep[:, None, :]
    targets = torch.nn.functional.one_hot(keep.nonzero()[:, 1].view(2, fewest), length).double()
    their_logits = theirs(batch["input_ids"], perm_mask=hidden.double(), target_mapping=targets, **read).logits
    logits = ours.logits(batch["input_ids"], order_ranks=ranks, **read)
    torch.testing.assert_close(logits[keep].view_as(their_logits), their_logits, rtol=1e-9, atol=1e-9)

    found = gradients(ours, batch | read)
    labels = batch["labels"][keep]
    theirs.zero_grad()
    loss = torch.nn.functional.cross_entropy(their_logits.flatten(0, 1), labels, reduction="sum")
    loss.backward()
    assert found.pop("loss").item() == pytest.approx(loss.item(), rel=1e-9)
    assert found.keys() == {name for name, _ in ours.named_parameters()}
    expected = {k: v for m in maps for k, v in m.to_theirs(found).items()}
    wanted = dict(theirs.named_parameters())
    assert expected.keys() == wanted.keys()
    for name, gradient in expected.items():
        other = wanted[name].grad
        if other is None:  # what segments would need
            assert not segments and gradient.abs().max() == 0
            continue
        assert relative_error(gradient, other, floor=1e-6) < 1e-8, name


def test_a_packed_batch_is_the_sum_of_its_documents() -> None:
    model, batch = built(), permuted_batch(2, 40, seed=5)
    together = gradients(model, batch)
    alone = torch.zeros((), dtype=torch.float64)
    for start, end in pairwise(batch["cu_seqlens"].tolist()):
        ids, labels, ranks = (batch[key].flatten()[start:end][None] for key in ("input_ids", "labels", "order_ranks"))
        logits = model.logits(ids, order_ranks=ranks)[0]
        alone = alone + torch.nn.functional.cross_entropy(logits, labels[0], ignore_index=-100, reduction="sum")
    model.zero_grad()
    alone.backward()
    assert together["loss"].item() == pytest.approx(alone.item(), rel=1e-12)
    for name, parameter in model.named_parameters():
        assert relative_error(together[name], parameter.grad, floor=1e-6) < 1e-10, name
    each = model(**batch, each_token=True)
    assert each.sum().item() == pytest.approx(alone.item(), rel=1e-6)
    assert (each[batch["labels"] == -100] == 0).all()


def test_a_place_sees_its_document_before_it_in_the_order_alone() -> None:
    """By gradient: not its own token, none of higher rank, and none of another document; all others."""
    model, batch = built(), permuted_batch(1, 40, seed=7)
    batch["cu_seqlens"] = torch.tensor([0, 13, 40], dtype=torch.int32)
    batch["max_seqlen"] = 27
    embedded: list[Tensor] = []

    def as_leaf(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    model.embed_tokens.register_forward_hook(as_leaf)
    losses = model.logits(
        batch["input_ids"], cu_seqlens=batch["cu_seqlens"], max_seqlen=27, order_ranks=batch["order_ranks"]
    )
    ranks, places = batch["order_ranks"][0], torch.arange(40)
    labelled = (batch["labels"][0] != -100).nonzero().flatten().tolist()
    assert len(labelled) > 5
    for place in labelled:
        (grad,) = torch.autograd.grad(losses[0, place].square().sum(), embedded, retain_graph=True)
        seen = ((places < 13) == (place < 13)) & (ranks < ranks[place])
        assert torch.equal(grad[0].abs().sum(-1) > 0, seen)


def test_the_query_stream_is_computed_at_labelled_places_only() -> None:
    """The work follows the number of labels: feed-forward layers see a row for each token and one for each label."""
    model, batch, seen = built(), permuted_batch(2, 40, seed=5), []
    model.layers[0].mlp.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    model(**batch)
    assert seen == [80 + int((batch["labels"] != -100).sum())]


@pytest.mark.parametrize("kept", ["selective", "full", "offloaded"])
def test_activation_checkpointing_changes_no_bit_of_a_gradient(kept: str) -> None:
    batch = permuted_batch(2, 40, seed=1)
    wanted = gradients(built(torch.float32), batch)
    actual = gradients(built(torch.float32, activation_checkpointing=kept), batch)
    assert actual.keys() == wanted.keys()
    assert all(torch.equal(actual[name], gradient) for name, gradient in wanted.items())


@pytest.mark.parametrize("segments", [False, True])
def test_training_precision_is_close_to_the_reference(segments: bool) -> None:
    batch = permuted_batch(2, 40, seed=2)
    if segments:
        batch["token_type_ids"] = (batch["position_ids"] > 5).long()
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.08)):
        model, oracle = built(dtype), built(attn_implementation="reference")
        with torch.no_grad():
            for mine, reference in zip(model.parameters(), oracle.parameters(), strict=True):
                reference.copy_(mine)
        wanted = gradients(oracle, batch)
        largest = max(float(gradient.norm()) for gradient in wanted.values())
        for name, gradient in gradients(model, batch).items():
            assert relative_error(gradient, wanted[name], floor=1e-3 * largest) < tolerance, name


def test_a_batch_without_labels_has_a_loss_and_gradients_of_zero() -> None:
    batch, model = permuted_batch(1, 20, seed=0), built()
    found = gradients(model, batch | {"labels": torch.full((1, 20), -100)})
    assert len(found) == 1 + len(list(model.parameters()))
    assert all(gradient.abs().max() == 0 for gradient in found.values())


@pytest.mark.long
def test_compiled_blocks_compute_the_same_for_any_number_of_labels() -> None:
    """Numbers of labels, documents and distances differ from batch to batch."""
    model, compiled = built(torch.float32), built(torch.float32)
    compiled.compile_blocks()
    for seed in range(3):
        batch = permuted_batch(2, 20, seed)
        wanted, found = gradients(model, batch), gradients(compiled, batch)
        for name, gradient in wanted.items():
            assert relative_error(found[name], gradient, floor=1e-3) < 1e-4, name


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_a_row_is_dropped_alike_in_any_micro_batch(backend: str) -> None:
    """Both streams, by the address of the row: two rows at once, each alone, and recomputed, in float64; a token and
    the place at which it is predicted are dropped in different ways."""
    rates = {f"{place}_dropout": 0.2 for place in ("embedding", "attention", "hidden", "activation", "final")}
    model = built(changes=rates, attn_implementation=backend).train()
    again = built(changes=rates, attn_implementation=backend, activation_checkpointing="full").train()
    batch, keys = permuted_batch(2, 20, seed=4, whole_rows=True), torch.tensor([5, -(2**60)])
    both = gradients(model, batch | {"row_keys": keys})
    recomputed = gradients(again, batch | {"row_keys": keys})
    parts = []
    for row in range(2):
        one = {name: batch[name][row : row + 1] for name in ("input_ids", "labels", "position_ids", "order_ranks")}
        bounds = {"cu_seqlens": torch.tensor([0, 20], dtype=torch.int32), "max_seqlen": 20}
        parts.append(gradients(model, one | bounds | {"row_keys": keys[row : row + 1]}))
        parts[-1] = {name: gradient.clone() for name, gradient in parts[-1].items()}
    for name in both:
        assert torch.equal(both[name], recomputed[name]) or relative_error(both[name], recomputed[name]) < 1e-14
        assert relative_error(parts[0][name] + parts[1][name], both[name], floor=1e-6) < 1e-10, name
    assert both["loss"] != gradients(model, batch | {"row_keys": keys + 1})["loss"]
    with pytest.raises(ValueError, match="row_keys"):
        model(**batch)


def test_an_xlnet_generates_no_text() -> None:
    with pytest.raises(BigtrainError, match="continues no text"):
        generate(built(), [[1, 2]], max_new_tokens=1)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "positions of another kind": ({"position_embedding": "rope"}, "transformer_xl and architecture two_stream"),
    "one stream": ({"architecture": "encoder"}, "transformer_xl and architecture two_stream"),
    "a window": ({"sliding_window": 8}, "sliding_window None"),
    "experts": ({"num_experts": 4, "gated_mlp": True, "mlp_bias": False}, "num_experts 0"),
    "tokens further ahead": ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers 0"),
    "segments of embeddings": ({"type_vocab_size": 2}, "type_vocab_size 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_choices_that_do_not_go_together_are_refused(name: str) -> None:
    changes, named = REFUSED[name]
    with pytest.raises(ValidationError, match=named):
        small_settings("xlnet", **changes)


def test_flops_are_those_that_pytorch_counts() -> None:
    """But for the keys of distances, whose number is not that of the tokens, and scores where a distance has no key."""
    from torch.utils.flop_counter import FlopCounterMode

    model = built(attn_implementation="reference")
    batch = permuted_batch(1, 40, 0, whole_rows=True)
    with FlopCounterMode(display=False) as counter:
        model(**batch).backward()
    labels = int((batch["labels"] != -100).sum())
    wanted = 40 * flops_per_token(model.settings, 40, labelled=labels / 40)
    keys = 6 * 79 * 32 * 32 * 2 - 2 * 79 * 32 * 32 * 2  # the vectors of distances take no gradient
    unseen = 6 * (40 + labels) * 39 * 32 * 2
    assert counter.get_total_flops() == pytest.approx(wanted + keys + unseen, rel=1e-12)


def test_the_base_size_has_the_published_number_of_parameters() -> None:
    """xlnet-base-cased: 116,718,336 of XLNetModel, and the bias of the language model's head."""
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    assert count_parameters(small_settings("xlnet", vocab_size=32000, **base)) == 116_718_336 + 32_000

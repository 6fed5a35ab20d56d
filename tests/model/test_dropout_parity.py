"""Dropout stands where transformers has it: with our masks in the place of its random ones, all gradients are equal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bigtrain.config.model_settings import ModelSettings
from bigtrain.convert.config_json import config_of
from bigtrain.convert.weights import weight_maps
from bigtrain.model import build_model
from bigtrain.model.layers.dropout import AttentionDropout, DropoutKeys, kept_at, scale_of, site_number
from tests.model.helpers import exact_t5, exact_xlnet, relative_error, small_settings

ROWS, LENGTH, READ = 2, 20, 28
ROW_KEYS = torch.tensor([17, -4])
RATES = {"embedding_dropout": 0.1, "attention_dropout": 0.3, "hidden_dropout": 0.1}
INSIDE = {"activation_dropout": 0.1}
CASES: dict[str, tuple[dict[str, float], dict[str, Any]]] = {
    # Our rates, and transformers' names for them.
    "gpt2": (RATES, {"embd_pdrop": 0.1, "attn_pdrop": 0.3, "resid_pdrop": 0.1}),
    "gpt_neox": (RATES, {"hidden_dropout": 0.1, "attention_dropout": 0.3}),
    "llama": ({"attention_dropout": 0.3}, {"attention_dropout": 0.3}),
    "bert": (RATES, {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.3}),
    "roberta": (RATES, {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.3}),
    "bart": (RATES | INSIDE, {"dropout": 0.1, "attention_dropout": 0.3, "activation_dropout": 0.1}),
    "t5": (dict.fromkeys([*RATES, *INSIDE, "final_dropout"], 0.1), {"dropout_rate": 0.1}),
}


class Masks:
    """The masks of a model's dropout by hand, times what keeps the mean, in the order of their use."""

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings

    def channels(self, keys: DropoutKeys, place: str, rate: float, width: int) -> Iterator[Tensor]:
        if rate:
            kept = kept_at(keys.at(site_number(place)).own[..., None], torch.arange(width), rate)
            yield kept * scale_of(rate)

    def weights(self, keys: DropoutKeys, place: str, seen: int) -> Iterator[Tensor]:
        rate, heads = self.settings.attention_dropout, self.settings.num_attention_heads
        by_head = AttentionDropout.of(keys.at(site_number(place)), rate, heads).keys.view(*keys.own.shape, heads)
        yield kept_at(by_head.transpose(1, 2)[..., None], torch.arange(seen), rate) * scale_of(rate)

    def of_stack(self, keys: DropoutKeys, read: int | None = None) -> Iterator[Tensor]:
        shape = self.settings
        length, width, hidden = keys.own.shape[1], shape.hidden_size, shape.hidden_dropout
        yield from self.channels(keys, "embeddings", shape.embedding_dropout, width)
        for number in range(shape.num_hidden_layers):
            layer = keys.at(site_number(f"layer {number}"))
            yield from self.weights(layer, "attention", length)
            yield from self.channels(layer, "attention_output", hidden, width)
            if read is not None:
                yield from self.weights(layer, "cross_attention", read)
                yield from self.channels(layer, "cross_attention_output", hidden, width)
            yield from self.channels(layer, "activation", shape.activation_dropout, shape.intermediate_size)
            yield from self.channels(layer, "feed_forward_output", hidden, width)
        yield from self.channels(keys, "final", shape.final_dropout, width)

    def __iter__(self) -> Iterator[Tensor]:
        own = DropoutKeys.of(ROW_KEYS, LENGTH)
        if self.settings.architecture == "encoder_decoder":
            yield from self.of_stack(DropoutKeys.of(ROW_KEYS, READ).at(site_number("encoder")))
            yield from self.of_stack(own, READ)
        else:
            yield from self.of_stack(own)


def given_masks(masks: Iterator[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers drop by these."""

    def drop(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not p:
            return x
        mask = next(masks)
        assert mask.shape == x.shape
        return x * mask

    monkeypatch.setattr(torch.nn.functional, "dropout", drop)


@pytest.mark.parametrize("family", CASES)
def test_all_gradients_equal_those_of_transformers_with_our_masks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 but for their softmax in float32; a wrong mask is off by a tenth. As many masks are asked for as there
    are, each of the right shape."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    exact_t5(monkeypatch)
    ours_rates, theirs_rates = CASES[family]
    model = build_model(small_settings(family, **ours_rates)).double().train()
    model.init_weights(seed=1)
    config = config_of(model.settings) | theirs_rates
    kind = {"decoder": AutoModelForCausalLM, "encoder": AutoModelForMaskedLM, "encoder_decoder": AutoModelForSeq2SeqLM}
    theirs = (
        kind[model.settings.architecture]
        .from_config(
            CONFIG_MAPPING[config.pop("model_type")](**{"pad_token_id": 0} | config),
            attn_implementation="eager",
            dtype=torch.float64,
        )
        .train()
    )
    maps = weight_maps(model.settings)

    def as_theirs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        named = {key: value for m in maps for key, value in m.to_theirs(tensors).items()}
        return {key.replace("embed_out", "lm_head"): value for key, value in named.items()}  # of a loaded gpt_neox

    weights = as_theirs({name: p.detach() for name, p in model.named_parameters()})
    assert not theirs.load_state_dict(weights, strict=False).unexpected_keys
    theirs.tie_weights()

    generator = torch.Generator().manual_seed(3)
    ids, labels, read = (torch.randint(2, 96, (ROWS, n), generator=generator) for n in (LENGTH, LENGTH, READ))
    batch: dict[str, Any] = {"input_ids": ids, "labels": labels, "row_keys": ROW_KEYS, **documents("", LENGTH)}
    positions = {"position_ids": batch["position_ids"] + model.settings.position_offset}
    if model.settings.architecture == "encoder_decoder":
        batch |= {"encoder_input_ids": read, **documents("encoder_", READ)}
        inputs = {"input_ids": read, "decoder_input_ids": ids}
    else:
        inputs = {"input_ids": ids, **positions}
    loss = model(**batch)
    loss.backward()

    masks = iter(Masks(model.settings))
    given_masks(masks, monkeypatch)
    logits = theirs(**inputs).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    assert next(masks, None) is None
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    expected = as_theirs({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert wanted.keys() <= expected.keys() and len(wanted) > 10
    for name, gradient in wanted.items():
        assert relative_error(expected[name], gradient, floor=1e-3) < 1e-6, name


def documents(prefix: str, length: int) -> dict[str, Any]:
    """A document a row."""
    return {
        f"{prefix}position_ids": torch.arange(length).expand(ROWS, length),
        f"{prefix}cu_seqlens": torch.arange(ROWS + 1, dtype=torch.int32) * length,
        f"{prefix}max_seqlen": length,
    }


HEADS = {
    # Family, task, and transformers' name for the rate.
    ("bert", "sequence_classification"): "classifier_dropout",
    ("roberta", "sequence_classification"): "classifier_dropout",
    ("albert", "sequence_classification"): "classifier_dropout_prob",
    ("modernbert", "sequence_classification"): "classifier_dropout",
    ("t5", "sequence_classification"): "classifier_dropout",
    ("bart", "sequence_classification"): "classifier_dropout",
    ("xlnet", "sequence_classification"): "summary_last_dropout",
    ("llama", "token_classification"): "classifier_dropout",
    ("gpt2", "token_classification"): "classifier_dropout",
    ("roberta", "token_classification"): "classifier_dropout",
}


@pytest.mark.parametrize(("family", "task"), HEADS)
def test_classifier_dropout_stands_where_transformers_has_it(
    family: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With our masks all gradients are theirs; as many are asked for as there are, each of the right shape."""
    import transformers

    exact_t5(monkeypatch)
    exact_xlnet(monkeypatch)
    rate = 0.3
    chosen = {"task_head": task, "num_labels": 3, "classifier_dropout": rate}
    model = build_model(small_settings(family, **chosen)).double().train()
    model.init_weights(seed=1)
    whole_texts = task == "sequence_classification"
    config = config_of(model.settings) | {HEADS[family, task]: rate, "eos_token_id": 0}
    kind = "SequenceClassification" if whole_texts else "TokenClassification"
    theirs = getattr(transformers, f"AutoModelFor{kind}").from_config(
        transformers.CONFIG_MAPPING[config.pop("model_type")](**{"pad_token_id": 1} | config),
        attn_implementation="eager",
        dtype=torch.float64,
    )
    theirs = theirs.double().train()

    def as_theirs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for m in weight_maps(model.settings) for key, value in m.to_theirs(tensors).items()}

    weights = as_theirs({name: p.detach() for name, p in model.named_parameters()})
    assert not theirs.load_state_dict(weights, strict=False).unexpected_keys
    theirs.tie_weights()

    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 96, (ROWS, LENGTH), generator=generator)
    ids[:, -1] = 0
    place = 0 if model.settings.architecture == "encoder" else LENGTH - 1
    asked = slice(place, place + 1) if whole_texts else slice(LENGTH)
    labels = torch.full((ROWS, LENGTH), -100)
    labels[:, asked] = torch.randint(3, labels[:, asked].shape, generator=generator)
    batch: dict[str, Any] = {"input_ids": ids, "labels": labels, "row_keys": ROW_KEYS, **documents("", LENGTH)}
    inputs = {"input_ids": ids}
    if model.settings.reads_pairs:
        batch |= {"encoder_input_ids": ids, **documents("encoder_", LENGTH)}
        inputs["decoder_input_ids"] = ids
    model(**batch).backward()

    keys = DropoutKeys.of(ROW_KEYS, LENGTH).own[:, asked]
    places = ("task head", "classifier") if whole_texts and family in ("roberta", "t5", "bart") else ("classifier",)
    sites = (DropoutKeys(keys, keys).at(site_number(name)).own for name in places)
    masks = (kept_at(own[..., None], torch.arange(32), rate) * scale_of(rate) for own in sites)
    given_masks((mask[:, 0] if whole_texts else mask for mask in masks), monkeypatch)
    logits = theirs(**inputs).logits.view(-1, 3)
    torch.nn.functional.cross_entropy(logits, labels[:, asked].flatten(), reduction="sum").backward()
    assert next(masks, None) is None
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    expected = as_theirs({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert wanted.keys() <= expected.keys() and len(wanted) > 10
    for name, gradient in wanted.items():
        assert relative_error(expected[name], gradient, floor=1e-3) < 1e-6, name

"""The encoder-decoder: parity with transformers in float64, packed documents, recomputation, and what it refuses."""

from __future__ import annotations

import random
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from bigtrain.config import KEPT_CLASSES, KEPT_LOG_PROBS, DistillationSettings, ObjectiveSettings
from bigtrain.config.families import FAMILIES
from bigtrain.convert.config_json import config_of
from bigtrain.convert.weights import weight_maps
from bigtrain.model import Distillation, EncoderDecoder, build_model, count_parameters, flops_per_token
from bigtrain.train.dry_run import worst_case
from tests.matrix import thinned
from tests.model.helpers import exact_t5, relative_error, small_settings

FAMILIES_OF_BOTH = [name for name, choices in FAMILIES.items() if choices.get("architecture") == "encoder_decoder"]
SHAPE = {"num_decoder_layers": 3, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
VOCABULARY = 96


def settings_of(family: str, **changes: Any) -> Any:
    of_family = {"head_dim": 12} if family.startswith("t5") else {}
    return small_settings(family, **{**SHAPE, **of_family, **changes})


def built(family: str, dtype: torch.dtype = torch.float64, changes: dict[str, Any] | None = None, **how: Any) -> Any:
    """A model in which no two parameters are alike, biases and norms included."""
    model = build_model(settings_of(family, **(changes or {})), **how)
    model.init_weights(seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype)


def _side(rows: list[list[int]], generator: torch.Generator) -> dict[str, Any]:
    lengths = torch.tensor([length for row in rows for length in row])
    shape = (len(rows), sum(rows[0]))
    return {
        "input_ids": torch.randint(2, VOCABULARY, shape, generator=generator),
        "position_ids": torch.cat([torch.arange(n) for n in lengths.tolist()]).view(shape),
        "cu_seqlens": torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0))).int(),
        "max_seqlen": int(lengths.max()),
    }


def pairs_batch(seed: int, rows: int = 2, length: int = 24, read: int = 40) -> dict[str, Any]:
    """A packed batch of pairs of documents: `read` tokens a row for the encoder, `length` for the decoder."""
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    cuts = [chance.randrange(3) for _ in range(rows)]

    def parts(total: int, number: int) -> list[int]:
        bounds = [0, *sorted(chance.sample(range(1, total), number)), total]
        return [end - start for start, end in pairwise(bounds)]

    own = _side([parts(length, number) for number in cuts], generator)
    encoder = _side([parts(read, number) for number in cuts], generator)
    labels = torch.randint(VOCABULARY, (rows, length), generator=generator)
    labels[:, -2:] = -100
    return own | {"labels": labels} | {f"encoder_{name}": value for name, value in encoder.items()}


def whole_rows(batch: dict[str, Any]) -> dict[str, Any]:
    """The tokens of a batch with a document a row."""
    whole = dict(batch)
    for side in ("", "encoder_"):
        rows, length = batch[f"{side}input_ids"].shape
        whole[f"{side}position_ids"] = torch.arange(length).expand(rows, length)
        whole[f"{side}cu_seqlens"] = torch.arange(rows + 1, dtype=torch.int32) * length
        whole[f"{side}max_seqlen"] = length
    return whole


def gradients(model: EncoderDecoder, batch: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(**batch)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def in_transformers(ours: EncoderDecoder) -> Any:
    """The same model in transformers, in float64, from config.json and weights as they are exported."""
    from transformers import CONFIG_MAPPING, AutoModelForSeq2SeqLM

    config = dict(config_of(ours.settings))
    theirs: Any = AutoModelForSeq2SeqLM.from_config(
        CONFIG_MAPPING[config.pop("model_type")](**{"pad_token_id": 0} | config),
        attn_implementation="sdpa",
        dtype=torch.float64,
    ).eval()
    named = {name: p.detach() for name, p in ours.named_parameters()}
    if not ours.settings.tie_word_embeddings:  # transformers unties a T5 only when it loads a file
        theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.detach().clone())
    exported = {k: v for m in weight_maps(ours.settings) for k, v in m.to_theirs(named).items()}
    result = theirs.load_state_dict(exported, strict=False)
    assert not result.unexpected_keys
    return theirs


@pytest.mark.parametrize("family", FAMILIES_OF_BOTH)
def test_logits_and_all_gradients_equal_those_of_transformers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, from config.json and weights as they are exported, with other numbers of layers in both halves."""
    exact_t5(monkeypatch)
    ours = built(family)
    theirs, maps = in_transformers(ours), weight_maps(ours.settings)

    batch = whole_rows(pairs_batch(seed=3))
    ids, read = batch["input_ids"], batch["encoder_input_ids"]
    their_logits = theirs(read, decoder_input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(ours.logits(ids, encoder_input_ids=read), their_logits, rtol=1e-9, atol=1e-9)

    found = gradients(ours, batch)
    loss = torch.nn.functional.cross_entropy(
        their_logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100, reduction="sum"
    )
    loss.backward()
    assert found.pop("loss").item() == pytest.approx(loss.item(), rel=1e-9)
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    expected = {k: v for m in maps for k, v in m.to_theirs(found).items() if k != "final_logits_bias"}
    assert expected.keys() == wanted.keys()
    for name, gradient in expected.items():
        if not name.endswith("k_proj.bias"):  # adds the same to all of a query's scores: its gradient is rounding
            assert relative_error(gradient, wanted[name]) < 1e-8, name


@pytest.mark.parametrize("family", FAMILIES_OF_BOTH)
def test_a_packed_batch_is_the_sum_of_its_documents(family: str) -> None:
    model, batch = built(family), pairs_batch(seed=5, rows=3)
    assert len(batch["cu_seqlens"]) > 5
    together = gradients(model, batch)
    alone = torch.zeros((), dtype=torch.float64)
    sides = zip(pairwise(batch["cu_seqlens"].tolist()), pairwise(batch["encoder_cu_seqlens"].tolist()), strict=True)
    for (start, end), (first, last) in sides:
        ids, labels = (batch[key].flatten()[start:end][None] for key in ("input_ids", "labels"))
        read = batch["encoder_input_ids"].flatten()[first:last][None]
        alone = alone + torch.nn.functional.cross_entropy(
            model.logits(ids, encoder_input_ids=read)[0], labels[0], ignore_index=-100, reduction="sum"
        )
    model.zero_grad()
    alone.backward()
    assert together["loss"].item() == pytest.approx(alone.item(), rel=1e-12)
    for name, parameter in model.named_parameters():
        if not name.endswith("k_proj.bias"):
            assert relative_error(together[name], parameter.grad) < 1e-10, name
    each = model(**batch, each_token=True)
    assert each.sum().item() == pytest.approx(alone.item(), rel=1e-6)
    assert (each[batch["labels"] == -100] == 0).all()


@pytest.mark.parametrize("family", FAMILIES_OF_BOTH)
def test_cross_attention_sees_the_states_of_its_own_document_only(family: str) -> None:
    """The gradient of the n-th document's loss is exactly zero in the encoder's states of all others."""
    model, batch = built(family), pairs_batch(seed=5, rows=3)
    states: list[Tensor] = []

    def keep(module: Any, args: Any, output: Tensor) -> None:
        output.retain_grad()
        states.append(output)

    model.encoder.norm.register_forward_hook(keep)
    bounds = zip(pairwise(batch["cu_seqlens"].tolist()), pairwise(batch["encoder_cu_seqlens"].tolist()), strict=True)
    tested = 0
    for (start, end), (first, last) in bounds:
        labels = torch.full_like(batch["labels"], -100)
        labels.view(-1)[start:end] = batch["labels"].view(-1)[start:end]
        if (labels == -100).all():
            continue
        model(**batch | {"labels": labels}).backward()
        gradient = states.pop().grad.flatten(0, 1)
        assert gradient[:first].abs().sum() == gradient[last:].abs().sum() == 0
        assert gradient[first:last].abs().amax(1).min() > 0
        tested += 1
    assert tested > 3


@pytest.mark.parametrize("family", FAMILIES_OF_BOTH)
@pytest.mark.parametrize("kept", ["selective", "full", "offloaded"])
def test_activation_checkpointing_changes_no_bit_of_a_gradient(family: str, kept: str) -> None:
    batch = pairs_batch(seed=1)
    wanted = gradients(built(family, torch.float32), batch)
    actual = gradients(built(family, torch.float32, activation_checkpointing=kept), batch)
    assert actual.keys() == wanted.keys()
    assert all(torch.equal(actual[name], gradient) for name, gradient in wanted.items())


@pytest.mark.parametrize("family", FAMILIES_OF_BOTH)
@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_training_precision_is_close_to_the_reference(family: str, backend: str) -> None:
    batch = pairs_batch(seed=2)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.15)):
        model = built(family, dtype, attn_implementation=backend)
        oracle = built(family, attn_implementation="reference")
        with torch.no_grad():
            for mine, reference in zip(model.parameters(), oracle.parameters(), strict=True):
                reference.copy_(mine)
        wanted = gradients(oracle, batch)
        for name, gradient in gradients(model, batch).items():
            if not name.endswith("k_proj.bias"):
                assert relative_error(gradient, wanted[name]) < tolerance, name


@pytest.mark.parametrize("family", FAMILIES_OF_BOTH)
def test_every_parameter_is_initialised_and_learns(family: str) -> None:
    model = build_model(settings_of(family))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights(seed=3)
    assert isinstance(model, EncoderDecoder)
    found = gradients(model, pairs_batch(seed=0, length=24, read=40))
    assert found.keys() - {"loss"} == {name for name, _ in model.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("family", thinned(FAMILIES_OF_BOTH, keep=["bart"]))
def test_compiled_blocks_compute_the_same(family: str) -> None:
    batch = pairs_batch(seed=4)
    wanted = gradients(built(family, torch.float32), batch)
    compiled = built(family, torch.float32)
    compiled.compile_blocks()
    assert compiled.compiled and compiled.encoder.compiled
    for name, gradient in gradients(compiled, batch).items():
        if not name.endswith("k_proj.bias"):
            assert relative_error(gradient, wanted[name]) < 1e-4, name


@pytest.mark.parametrize("family", FAMILIES_OF_BOTH)
def test_flops_are_those_that_pytorch_counts(family: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = built(family, attn_implementation="reference")
    batch = whole_rows(pairs_batch(seed=0, rows=1, length=24, read=40))
    with FlopCounterMode(display=False) as counter:
        model(**batch).backward()
    wanted = 24 * flops_per_token(model.settings, 24, encoder_length=40)
    assert counter.get_total_flops() == pytest.approx(wanted, rel=1e-12)
    saved = flops_per_token(model.settings, 24) - flops_per_token(model.settings, 24, causal=True)
    width = model.settings.num_attention_heads * model.settings.head_width
    assert saved == pytest.approx(12 * width * model.settings.decoder_layers * 23 / 2, rel=1e-9)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "alibi": ({"position_embedding": "alibi"}, "position_embedding alibi is for architecture decoder"),
    "odd buckets": ({"relative_attention_num_buckets": 5}, "two sides"),
    "a window": ({"sliding_window": 8}, "sliding_window"),
    "experts": ({"num_experts": 4, "gated_mlp": True}, "num_experts"),
    "normed heads": ({"qk_norm": "head"}, "qk_norm"),
    "tokens further ahead": ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers"),
    "shared layers": ({"num_hidden_groups": 1}, "num_hidden_groups"),
    "both halves at once": ({"parallel_residual": True}, "parallel_residual"),
    "layers of no decoder": ({"architecture": "encoder"}, "num_decoder_layers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_choices_that_do_not_go_together_are_refused(name: str) -> None:
    changes, named = REFUSED[name]
    with pytest.raises(ValidationError, match=named):
        settings_of("t5", **changes)


T5 = {"head_dim": 64, "max_position_embeddings": 512, "vocab_size": 32128, "relative_attention_num_buckets": 32}
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "t5": ({**T5, "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048},
           60_506_624),
    "bart": ({"hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 3072,
              "vocab_size": 50265, "max_position_embeddings": 1024}, 139_420_416),
    "marian": ({"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048,
                "vocab_size": 58101, "max_position_embeddings": 512}, 73_886_208 + 58_101),
    "t5_v1_1": ({**T5, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 6, "intermediate_size": 1024},
                76_961_152),
}  # fmt: skip
"""t5-small, bart-base, opus-mt-en-de with its bias of the logits, and t5-v1_1-small."""


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_sizes_have_the_published_number_of_parameters(family: str) -> None:
    shape, parameters = PUBLISHED[family]
    assert count_parameters(small_settings(family, **shape)) == parameters


@pytest.mark.parametrize(("objective", "lengths"), [("span_corruption", (4, 15)), ("denoising", (16, 16))])
def test_the_worst_case_of_a_dry_run_has_tokens_for_both_sides(objective: Any, lengths: tuple[int, int]) -> None:
    """What `worst_case` makes is what a model that learns takes: rows as long as the objective makes them."""
    model, kept = built("t5", torch.float32), DistillationSettings(kept_outputs="unused", kept_classes=5)
    model.learn_from(Distillation(kept, model.settings))
    sizes = SimpleNamespace(micro_batch_size=2), SimpleNamespace(sequence_length=16)
    own = ObjectiveSettings(name=objective)
    sections = {"model": model.settings, "train": sizes[0], "data": sizes[1], "objective": own, "distillation": kept}
    settings: Any = SimpleNamespace(**sections, drops=False)
    inputs = worst_case(settings, torch.device("cpu"))
    assert (inputs["input_ids"].shape[1], inputs["encoder_input_ids"].shape[1]) == lengths
    assert inputs[KEPT_CLASSES].shape == inputs[KEPT_LOG_PROBS].shape == (2, lengths[0], 5)
    assert model.train()(**inputs).isfinite()
    assert model.auxiliary.take().losses["distillation_loss"] > 0

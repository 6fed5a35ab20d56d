"""The encoder: parity with transformers in float64, packed documents, recomputation, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from bigtrain.base.errors import BigtrainError
from bigtrain.config.families import FAMILIES
from bigtrain.convert.config_json import config_of
from bigtrain.convert.weights import weight_maps
from bigtrain.model import Encoder, Transformer, build_model, count_parameters, flops_per_token, generate
from bigtrain.model.loss.loss import linear_cross_entropy
from tests.model.helpers import packed_batch, relative_error, small_settings

ENCODERS = [name for name, choices in FAMILIES.items() if choices.get("architecture") == "encoder"]
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"type_vocab_size": 2},
    "albert": {"embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 2},
    "modernbert": {"num_hidden_layers": 4, "sliding_window": 10},
}


def built(family: str, dtype: torch.dtype = torch.float64, changes: dict[str, Any] | None = None, **how: Any) -> Any:
    """A model in which no two parameters are alike, biases and norms included."""
    model = build_model(small_settings(family, **SHAPES[family], **(changes or {})), **how)
    model.init_weights(seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype)


def masked_batch(rows: int, length: int, seed: int) -> dict[str, Any]:
    """A packed batch in which a label stands at the position of its token, at a few of them."""
    generator = torch.Generator().manual_seed(seed)
    batch = packed_batch(rows, length, 96, seed)
    hidden = torch.rand((rows, length), generator=generator) < 0.2
    labels = batch["input_ids"].masked_fill(~hidden, -100)
    return batch | {"labels": labels, "input_ids": batch["input_ids"].masked_fill(hidden, 95)}


def gradients(model: Transformer, batch: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(**batch)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def exact_modernbert(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers rotates in float32; the comparison is of what is computed, and not of how it is rounded."""
    from transformers.models.modernbert import modeling_modernbert as theirs

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return q * cos + theirs.rotate_half(q) * sin, k * cos + theirs.rotate_half(k) * sin

    monkeypatch.setattr(theirs, "apply_rotary_pos_emb", rotate)


@pytest.mark.parametrize("family", ENCODERS)
def test_logits_and_all_gradients_equal_those_of_transformers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, from config.json and weights as they are exported, with two kinds of segments where there are any."""
    from transformers import CONFIG_MAPPING, AutoModelForMaskedLM

    exact_modernbert(monkeypatch)
    ours = built(family)
    config = {key: value for key, value in config_of(ours.settings).items() if key != "model_type"}
    theirs = AutoModelForMaskedLM.from_config(
        CONFIG_MAPPING[family](**{"pad_token_id": None} | config), attn_implementation="sdpa", dtype=torch.float64
    ).eval()
    maps = weight_maps(ours.settings)
    named = {name: p.detach() for name, p in ours.named_parameters()}
    result = theirs.load_state_dict({k: v for m in maps for k, v in m.to_theirs(named).items()}, strict=False)
    assert not result.unexpected_keys
    theirs.tie_weights()

    length = 40
    batch = masked_batch(2, length, seed=3) | {
        "cu_seqlens": torch.tensor([0, length, 2 * length], dtype=torch.int32),
        "position_ids": torch.arange(length).expand(2, length),
        "max_seqlen": length,
    }
    batch["input_ids"] = batch["input_ids"].clamp(min=2)  # transformers takes no gradient of a padding token
    segments = {"token_type_ids": (torch.arange(length) > 17).long().expand(2, length)}
    if not ours.settings.type_vocab_size:
        segments = {}
    positions = batch["position_ids"] + ours.settings.position_offset
    their_logits = theirs(batch["input_ids"], position_ids=positions, **segments).logits
    logits = ours.logits(batch["input_ids"], **segments)
    torch.testing.assert_close(logits, their_logits, rtol=1e-9, atol=1e-9)

    labelled = int((batch["labels"] != -100).sum())
    found = gradients(ours, batch | segments)
    # Not the loss that they return, which modernbert computes in float32.
    loss = torch.nn.functional.cross_entropy(their_logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
    loss.backward()
    assert found.pop("loss").item() / labelled == pytest.approx(loss.item(), rel=1e-9)
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    expected = {k: v / labelled for m in maps for k, v in m.to_theirs(found).items()}
    assert expected.keys() == wanted.keys()
    for name, gradient in expected.items():
        if name.endswith(("key.bias",)):  # adds the same to all of a query's scores: its gradient is rounding
            continue
        assert relative_error(gradient, wanted[name]) < 1e-8, name


@pytest.mark.parametrize("family", ENCODERS)
def test_a_packed_batch_is_the_sum_of_its_documents(family: str) -> None:
    model, batch = built(family), masked_batch(2, 40, seed=5)
    together = gradients(model, batch)
    alone = torch.zeros((), dtype=torch.float64)
    for start, end in pairwise(batch["cu_seqlens"].tolist()):
        ids, labels = (batch[key].flatten()[start:end][None] for key in ("input_ids", "labels"))
        alone = alone + torch.nn.functional.cross_entropy(
            model.logits(ids)[0], labels[0], ignore_index=-100, reduction="sum"
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


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("kept", ["selective", "full", "offloaded"])
def test_activation_checkpointing_changes_no_bit_of_a_gradient(family: str, kept: str) -> None:
    batch = masked_batch(2, 40, seed=1)
    wanted = gradients(built(family, torch.float32), batch)
    actual = gradients(built(family, torch.float32, activation_checkpointing=kept), batch)
    assert actual.keys() == wanted.keys()
    assert all(torch.equal(actual[name], gradient) for name, gradient in wanted.items())


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_training_precision_is_close_to_the_reference(family: str, backend: str) -> None:
    batch = masked_batch(2, 40, seed=2)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.08)):
        model = built(family, dtype, attn_implementation=backend)
        oracle = built(family, attn_implementation="reference")
        with torch.no_grad():
            for mine, reference in zip(model.parameters(), oracle.parameters(), strict=True):
                reference.copy_(mine)
        wanted = gradients(oracle, batch)
        for name, gradient in gradients(model, batch).items():
            if not name.endswith("k_proj.bias"):
                assert relative_error(gradient, wanted[name]) < tolerance, name


def test_a_batch_without_labels_has_a_loss_and_gradients_of_zero() -> None:
    batch = masked_batch(1, 20, seed=0)
    found = gradients(built("bert"), batch | {"labels": torch.full((1, 20), -100)})
    assert len(found) == 1 + len(list(built("bert").parameters()))
    assert all(gradient.abs().max() == 0 for gradient in found.values())


def test_an_encoder_sees_what_comes_after_and_a_decoder_does_not() -> None:
    ids = torch.arange(12)[None]
    changed = ids.clone()
    changed[0, -1] = 50
    for architecture, sees in (("encoder", True), ("decoder", False)):
        model = build_model(small_settings("llama", architecture=architecture))
        model.init_weights(0)
        assert isinstance(model, Encoder) == sees
        with torch.no_grad():
            assert torch.equal(model.logits(ids)[0, 0], model.logits(changed)[0, 0]) != sees


def test_a_window_of_an_encoder_reaches_half_of_it_to_either_side() -> None:
    settings = small_settings("modernbert", sliding_window=10, num_hidden_layers=4)
    assert [settings.window_of(layer) for layer in range(4)] == [None, 6, 6, None]
    assert small_settings("mistral", sliding_window=10).window_of(0) == 10


def test_an_encoder_generates_no_text() -> None:
    with pytest.raises(BigtrainError, match="continues no text"):
        generate(built("bert"), [[1, 2]], max_new_tokens=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_with_a_bias_equals_all_logits_at_once(dtype: torch.dtype) -> None:
    """Value and gradients of hidden states, weight and bias, over several chunks."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((700, 16), (4000, 16), (4000,))
    leaves = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    labels = torch.randint(-1, 4000, (700,), generator=generator).where(torch.arange(700) % 3 > 0, -100)
    labels = labels.where(labels >= 0, -100)
    hidden, weight, bias = leaves
    loss = linear_cross_entropy(hidden, weight, labels, bias=bias, logits_scaling=2.0)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logits = torch.nn.functional.linear(*wide) / 2.0
    wanted = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert loss.item() == pytest.approx(wanted.item(), rel=tolerance)
    for found, exact in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(wanted, wide), strict=True):
        assert relative_error(found, exact) < tolerance


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a distance bias": ({"position_embedding": "alibi"}, "position_embedding alibi is for architecture decoder"),
    "tokens further ahead": ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers"),
    "an offset of no table": ({"position_embedding": "none", "position_offset": 2}, "position_offset"),
    "a sum of both halves": ({"parallel_residual": True}, "post_residual"),
    "no first norm": ({"first_attention_norm": False}, "first_attention_norm"),
    "a second base of nothing": ({"local_rope_theta": 1e4}, "local_rope_theta"),
    "narrow embeddings alone": ({"embedding_size": 8, "head_transform": False}, "head_transform"),
    "uneven groups": ({"num_hidden_layers": 3, "num_hidden_groups": 2}, "num_hidden_groups"),
    "groups in a decoder": ({"architecture": "decoder", "num_hidden_groups": 1}, "num_hidden_groups is for"),
    "groups of several kinds": ({"num_hidden_groups": 1, "mlp_only_layers": [0]}, "mlp_only_layers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_choices_that_do_not_go_together_are_refused(name: str) -> None:
    changes, named = REFUSED[name]
    with pytest.raises(ValidationError, match=named):
        small_settings("bert", **changes)


@pytest.mark.parametrize("family", ENCODERS)
def test_flops_are_those_that_pytorch_counts(family: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = built(family, attn_implementation="reference")
    batch = masked_batch(1, 40, 0) | {"cu_seqlens": torch.tensor([0, 40]), "max_seqlen": 40}
    with FlopCounterMode(display=False) as counter:
        model(**batch).backward()
    labelled = float((batch["labels"] != -100).double().mean())
    wanted = 40 * flops_per_token(model.settings, 40, labelled=labelled)
    assert counter.get_total_flops() == pytest.approx(wanted, rel=1e-12)
    windows = [model.settings.window_of(layer) for layer in range(model.settings.num_hidden_layers)]
    pairs = sum(abs(q - k) < (window or 40) for window in windows for q in range(40) for k in range(40))
    saved = flops_per_token(model.settings, 40) - flops_per_token(model.settings, 40, causal=True)
    assert 40 * saved == pytest.approx(12 * 32 * (1600 * len(windows) - pairs), rel=1e-12, abs=1e-6)


@pytest.mark.parametrize(
    ("family", "shape", "parameters"),
    [
        ("bert", {"max_position_embeddings": 512, "vocab_size": 30522}, 109_514_298),
        ("roberta", {"max_position_embeddings": 512, "vocab_size": 50265}, 124_697_433),
        ("albert", {"max_position_embeddings": 512, "vocab_size": 30000}, 11_221_680),
        (
            "modernbert",
            {
                "max_position_embeddings": 8192,
                "vocab_size": 50368,
                "num_hidden_layers": 22,
                "intermediate_size": 1152,
            },
            149_655_232,
        ),
    ],
)
def test_base_sizes_have_the_published_number_of_parameters(
    family: str, shape: dict[str, int], parameters: int
) -> None:
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    assert count_parameters(small_settings(family, **base | shape)) == parameters

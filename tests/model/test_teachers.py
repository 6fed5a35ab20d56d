"""Promises of teachers of every architecture: a teacher reads what the model reads, and so does what was kept of it.

The oracle is the divergence between the logits of both models, each asked alone, in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bigtrain.config import KEPT_CLASSES, KEPT_LOG_PROBS, DistillationSettings, ModelSettings
from bigtrain.model import Distillation, build_model, likeliest
from tests.model import test_encoder_decoder, test_prefix, test_recurrent, test_recurrent_encoder_decoder
from tests.model.helpers import packed_batch, small_settings
from tests.model.test_two_stream import permuted_batch

TEMPERATURE = 1.5
TASK = {"task_head": "sequence_classification", "num_labels": 5}


def batch_of_classes(rows: int, length: int) -> dict[str, Any]:
    batch = packed_batch(rows, length, 96, 3)
    return batch | {"labels": batch["labels"].where(batch["position_ids"] == 0, -100) % 5}


CASES: dict[str, tuple[ModelSettings, dict[str, Any]]] = {
    "decoder": (small_settings("llama"), packed_batch(2, 24, 96, 3)),
    "prefixes": (small_settings("llama"), test_prefix.prefix_batch(2, 24, 3)),
    "experts": (
        small_settings("mixtral", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
        packed_batch(2, 24, 96, 3),
    ),
    "encoder": (small_settings("bert"), packed_batch(2, 24, 96, 3) | {"token_type_ids": torch.ones(2, 24).long()}),
    "encoder_decoder": (test_encoder_decoder.settings_of("t5"), test_encoder_decoder.pairs_batch(3)),
    "two_stream": (small_settings("xlnet"), permuted_batch(2, 24, 3)),
    "two_stream of classes": (small_settings("xlnet", **TASK), batch_of_classes(2, 24)),
    "recurrent": (test_recurrent.shape("lstm"), packed_batch(2, 24, 96, 3)),
    "recurrent of bytes": (test_recurrent.shape("char_lstm"), packed_batch(2, 24, 96, 3)),
    "recurrent_encoder_decoder": (test_recurrent_encoder_decoder.shape(), test_encoder_decoder.pairs_batch(3)),
}


def built(settings: ModelSettings, seed: int) -> Any:
    model = build_model(settings, attn_implementation="reference")
    model.init_weights(seed)
    if settings.character_filters:
        table = test_recurrent.token_bytes(settings.vocab_size, settings.max_token_bytes)
        model.set_token_bytes(table.roll(seed, 0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.2)
    return model.double()


def learning(case: str, **section: Any) -> tuple[Any, Any, dict[str, Any], torch.Tensor]:
    """A model that learns, its teacher, a batch, and where that has labels."""
    settings, batch = CASES[case]
    student, teacher = built(settings, 1), built(settings.model_copy(update={"num_hidden_layers": 3}), 2)
    beside = teacher if "teacher" in section else None
    section = {"temperature": TEMPERATURE, "weight": 0.7, "label_weight": 0.4} | section
    student.learn_from(Distillation(DistillationSettings(**section), settings, beside))
    return student.double().train(), teacher, batch, batch["labels"].flatten() != -100


def logits(model: Any, batch: dict[str, Any], asked: torch.Tensor) -> torch.Tensor:
    read = {name: value for name, value in batch.items() if name != "labels"}
    return model.logits(**read).flatten(0, 1)[asked]


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES)
def test_a_teacher_of_any_architecture_reads_what_the_model_reads(case: str) -> None:
    """Loss and all gradients are those of cross-entropy and divergence of logits that were asked for alone."""
    student, teacher, batch, asked = learning(case, teacher="unused")
    loss = student(**batch)
    ours = gradients(student, loss)
    own, theirs = logits(student, batch, asked), logits(teacher, batch, asked).detach()
    crossed = F.cross_entropy(own, batch["labels"].flatten()[asked], reduction="sum")
    target, found = ((each / TEMPERATURE).log_softmax(-1) for each in (theirs, own))
    divergence = TEMPERATURE**2 * F.kl_div(found, target, reduction="sum", log_target=True)
    routed = {"router_aux_loss", "router_z_loss"} & student.auxiliary._losses.keys()
    torch.testing.assert_close(loss.double(), crossed, rtol=1e-6, atol=1e-6)
    assert student.auxiliary.take().losses["distillation_loss"] == pytest.approx(divergence.item(), rel=1e-6)
    assert not any(name.startswith("distillation.") for name in ours)
    if routed:  # a router's own losses are learned, too
        return
    for name, wanted in gradients(student, 0.4 * crossed + 0.7 * divergence).items():
        torch.testing.assert_close(ours[name], wanted, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("prefixes", "encoder", "two_stream")])
def test_all_kept_classes_teach_what_the_teacher_does(case: str) -> None:
    """The loss and all gradients with k = all classes are those beside the teacher, in float64."""
    student, _, batch, _ = learning(case, teacher="unused")
    loss = student(**batch)
    wanted, divergence = gradients(student, loss), student.auxiliary.take().losses["distillation_loss"]
    again, teacher, _, _ = learning(case, kept_outputs="unused")
    given = kept(teacher, batch, teacher.settings.classes)
    found = again(**batch, **given)
    ours = gradients(again, found)
    assert found.item() == loss.item()
    assert again.auxiliary.take().losses["distillation_loss"] == pytest.approx(divergence, rel=1e-12)
    assert ours.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def kept(teacher: Any, batch: dict[str, Any], count: int) -> dict[str, torch.Tensor]:
    labels, rows = torch.zeros_like(batch["labels"]), batch["labels"].shape
    read = {name: value for name, value in batch.items() if name != "labels"}
    states = teacher.eval().label_states(labels, **read)
    found = likeliest(teacher.head, states, count, (1.0, TEMPERATURE), teacher.settings.classes)
    log_probs = found.log_probs / TEMPERATURE - found.scales[:, 1:]
    return {KEPT_CLASSES: found.classes.view(*rows, -1), KEPT_LOG_PROBS: log_probs.detach().view(*rows, -1)}


def test_what_was_kept_is_no_input_of_an_evaluation() -> None:
    student, teacher, batch, _ = learning("decoder", kept_outputs="unused")
    given = batch | kept(teacher, batch, 7)
    student.eval()
    with torch.no_grad():
        assert student(**given).item() == student(**batch).item()
        assert student(**given, each_token=True).shape == batch["labels"].shape
    assert not student.auxiliary.take().losses


def test_the_routers_and_bytes_of_a_teacher_are_its_own() -> None:
    """A checkpoint of the student counts and moves its own routers alone, and its bytes leave the teacher's alone."""
    student, teacher, _, _ = learning("experts", teacher="unused")
    assert student.routers().keys() == built(CASES["experts"][0], 1).routers().keys()
    student, teacher, _, _ = learning("recurrent of bytes", teacher="unused")
    before = teacher.embed_tokens.token_bytes.clone()
    student.set_token_bytes(torch.zeros_like(test_recurrent.token_bytes(96, 6)))
    assert torch.equal(teacher.embed_tokens.token_bytes, before)

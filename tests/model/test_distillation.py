"""Promises of learning from a teacher: what is learned is the sum that the settings say, and the teacher stays.

The oracle computes all logits and states at once, in float64.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bigtrain.config import DistillationSettings, ModelSettings
from bigtrain.model import build_model
from bigtrain.model.distillation import Distillation

LENGTH, VOCABULARY = 24, 60


def shape(layers: int, width: int, **others) -> ModelSettings:
    return ModelSettings.model_validate(
        {
            "family": "llama",
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "intermediate_size": 2 * width,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": LENGTH,
        }
        | others
    )


def models(settings: DistillationSettings, width: int = 32, **others):
    teacher = build_model(shape(4, 32, **others), attn_implementation="reference")
    student = build_model(shape(2, width, **others), attn_implementation="reference")
    teacher.init_weights(1)
    student.init_weights(2)
    for parameter in teacher.parameters():
        parameter.data.mul_(3)
    student.learn_from(Distillation(settings, student.settings, teacher))
    student.double().train()
    for projection in student.distillation.projections:
        torch.nn.init.normal_(projection.weight, std=0.3)
        torch.nn.init.zeros_(projection.bias)
    return student, student.distillation.teacher


def batch() -> dict:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (2, LENGTH), generator=generator)
    labels = torch.where(torch.rand((2, LENGTH), generator=generator) < 0.6, ids.roll(-1, 1), -100)
    positions = torch.cat((torch.arange(10), torch.arange(LENGTH - 10))).expand(2, LENGTH)
    bounds = torch.tensor([0, 10, LENGTH, LENGTH + 10, 2 * LENGTH], dtype=torch.int32)
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "cu_seqlens": bounds, "max_seqlen": LENGTH}


def states_of(model, inputs) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda *call: found.append(call[2][0])) for layer in model.layers]
    model.hidden(*inputs)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("width", [32, 16], ids=["same width", "projected"])
def test_the_gradient_is_that_of_the_sum_that_the_settings_say(width: int) -> None:
    settings = DistillationSettings(
        teacher="unused", temperature=2.0, weight=0.7, label_weight=0.4, hidden_weight=0.3, layer_map=((0, 1), (1, 3))
    )
    student, teacher = models(settings, width)
    given = batch()
    loss = student(**given)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in student.named_parameters() if p.requires_grad}
    student.zero_grad()

    reads = [given[name] for name in ("input_ids", "position_ids", "cu_seqlens", "max_seqlen")]
    asked = given["labels"] != -100
    own, theirs = (model.logits(*reads)[asked] for model in (student, teacher))
    crossed = F.cross_entropy(own, given["labels"][asked], reduction="sum")
    target, found = (logits.div(2).log_softmax(-1) for logits in (theirs.detach(), own))
    divergence = 4 * F.kl_div(found, target, reduction="sum", log_target=True)
    own_states, their_states = states_of(student, reads), states_of(teacher, reads)
    project = list(student.distillation.projections) or [torch.nn.Identity()] * 2
    squares = sum(
        (project[n](own_states[layer])[asked] - their_states[other].detach()[asked]).square().mean(-1).sum()
        for n, (layer, other) in enumerate(settings.layer_map)
    )
    (0.4 * crossed + 0.7 * divergence + 0.3 * squares).backward()
    torch.testing.assert_close(loss.double(), crossed.double(), rtol=1e-6, atol=1e-6)
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-6, atol=1e-8, msg=name)
    counted = student.auxiliary.take().losses
    assert counted["distillation_loss"] == pytest.approx(divergence.item(), rel=1e-6)
    assert counted["hidden_loss"] == pytest.approx(squares.item(), rel=1e-5)


def test_the_teacher_neither_learns_nor_trains() -> None:
    student, teacher = models(DistillationSettings(teacher="unused"))
    student.train()
    student(**batch()).backward()
    assert not teacher.training and all(not p.requires_grad and p.grad is None for p in teacher.parameters())


def test_in_evaluation_nothing_is_asked_of_the_teacher() -> None:
    student, teacher = models(DistillationSettings(teacher="unused"))
    teacher.hidden = None  # type: ignore[assignment]
    student.eval()
    with torch.no_grad():
        student(**batch())
    assert not student.auxiliary.take().losses


def test_layers_are_compared_at_equal_distances_by_default() -> None:
    settings = DistillationSettings(teacher="unused", hidden_weight=1.0)
    assert settings.layer_pairs(3, 12) == ((0, 3), (1, 7), (2, 11))
    assert settings.layer_pairs(2, 2) == ((0, 0), (1, 1))


def test_a_layer_that_there_is_not_is_named() -> None:
    settings = DistillationSettings(teacher="unused", hidden_weight=1.0, layer_map=((0, 12),))
    with pytest.raises(ValueError, match="0, 12; the model has layers 0 to 1, the teacher 0 to 11"):
        settings.layer_pairs(2, 12)


def test_a_head_of_a_task_learns_from_the_teachers_head() -> None:
    others = {"task_head": "token_classification", "num_labels": 5}
    student, teacher = models(DistillationSettings(teacher="unused", temperature=1.0, label_weight=0.0), **others)
    given = batch()
    given["labels"] = torch.where(given["labels"] == -100, -100, given["labels"] % 5)
    student(**given).backward()
    ours = student.task_head.classifier.weight.grad.clone()
    student.zero_grad()
    reads = [given[name] for name in ("input_ids", "position_ids", "cu_seqlens", "max_seqlen")]
    asked = given["labels"] != -100
    own, theirs = (model.logits(*reads)[asked].log_softmax(-1) for model in (student, teacher))
    F.kl_div(own, theirs.detach(), reduction="sum", log_target=True).backward()
    torch.testing.assert_close(ours, student.task_head.classifier.weight.grad, rtol=1e-6, atol=1e-9)

"""Heads of tasks: their losses and gradients are those of plain PyTorch on each document by itself."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bigtrain.base import IGNORE_INDEX, BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.model import LanguageModel, build_model, count_parameters, flops_per_token
from bigtrain.model.generation import require_decoder
from bigtrain.model.layers.task_head import END, START, START_AND_END, answer_losses
from tests.model.helpers import packed_batch, small_settings
from tests.refusals import assert_refused

FAMILIES = (
    "llama", "gpt2", "mixtral", "bert", "roberta", "albert", "modernbert", "t5", "bart", "xlnet", "lstm", "luong",
)  # fmt: skip
TASKS = ("sequence_classification", "token_classification", "question_answering")
ROWS, LENGTH, CLASSES = 2, 24, 3


def settings_with(task: str, family: str = "llama", **changes: Any) -> ModelSettings:
    if family in ("lstm", "luong"):
        changes |= {"num_attention_heads": 0, "intermediate_size": 0, "num_key_value_heads": None}
    if family == "mixtral":
        changes |= {"num_experts": 4, "router_aux_loss_coef": 0.0}
    if task != "question_answering":
        changes |= {"num_labels": CLASSES}
    return small_settings(family, task_head=task, initializer_range=0.2, **changes)


def model_of(settings: ModelSettings) -> LanguageModel:
    model = build_model(settings, attn_implementation="reference")
    model.init_weights(0)
    return model.double()


def batch_for(settings: ModelSettings, seed: int) -> dict[str, Any]:
    """A random packing: some documents have no label, others one class, several tags, or an answer."""
    batch = packed_batch(ROWS, LENGTH, settings.vocab_size, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    labels = torch.full((ROWS * LENGTH,), IGNORE_INDEX)
    boundaries = batch["cu_seqlens"].tolist()
    for number, (begin, end) in enumerate(pairwise(boundaries)):
        if number % 3 == 2:
            continue
        if settings.task_head == "sequence_classification":
            place = begin if settings.architecture == "encoder" else end - 1
            labels[place] = int(torch.randint(CLASSES, (), generator=generator))
        elif settings.task_head == "token_classification":
            labels[begin:end:2] = torch.randint(CLASSES, (len(range(begin, end, 2)),), generator=generator)
        else:
            first, last = sorted(torch.randint(begin, end, (2,), generator=generator).tolist())
            labels[first], labels[last] = START, END
            if first == last:
                labels[first] = START_AND_END
    batch["labels"] = labels.view(ROWS, LENGTH)
    if settings.reads_pairs:
        batch |= {f"encoder_{name}": batch[name] for name in ("input_ids", "position_ids", "cu_seqlens", "max_seqlen")}
    return batch


def documents_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Each document as a batch of its own."""
    boundaries = batch["cu_seqlens"].tolist()
    alone = []
    for begin, end in pairwise(boundaries):
        one = {
            name: value.flatten()[begin:end][None] if value.dim() == 2 else torch.tensor([0, end - begin]).int()
            for name, value in batch.items()
            if isinstance(value, Tensor)
        }
        alone.append(one | {name: end - begin for name in batch if name.endswith("max_seqlen")})
    return alone


def loss_by_definition(model: LanguageModel, batch: dict[str, Any]) -> Tensor:
    """The loss of documents one by one, from their logits."""
    total = torch.zeros((), dtype=torch.float64)
    for document in documents_of(batch):
        labels = document.pop("labels")[0]
        logits = model.task_logits(**document)[0]
        if model.settings.task_head != "question_answering":
            total = total + F.cross_entropy(logits, labels, reduction="sum")
        elif (labels != IGNORE_INDEX).any():
            first = ((labels == START) | (labels == START_AND_END)).nonzero()[0]
            last = ((labels == END) | (labels == START_AND_END)).nonzero()[0]
            starts, ends = logits.T[:, None]
            total = total + (F.cross_entropy(starts, first) + F.cross_entropy(ends, last)) / 2
    return total


def gradients(model: LanguageModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_have_the_loss_and_gradients_of_single_ones(family: str, task: str) -> None:
    """Everything that is learned has a gradient, so that all ranks have one of all parameters."""
    model = model_of(settings_with(task, family))
    for seed in range(2):
        batch = batch_for(model.settings, seed)
        wanted = loss_by_definition(model, batch)
        found = model(**batch)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
        ours, theirs = gradients(model, found), gradients(model, wanted)
        assert ours.keys() == {name for name, _ in model.named_parameters()}
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
        each = model(**batch, each_token=True)
        torch.testing.assert_close(each.sum(), wanted, rtol=1e-12, atol=0)
        assert not each[batch["labels"] == IGNORE_INDEX].any() and not each.requires_grad


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_without_labels_has_a_loss_and_gradients_of_zero(task: str) -> None:
    model = model_of(settings_with(task, "bert"))
    batch = batch_for(model.settings, 3)
    batch["labels"] = torch.full_like(batch["labels"], IGNORE_INDEX)
    loss = model(**batch)
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in gradients(model, loss).values())


@given(
    weights=st.one_of(st.none(), st.lists(st.floats(0.1, 5.0), min_size=CLASSES, max_size=CLASSES)),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    task=st.sampled_from(TASKS[:2]),
)
def test_weights_and_smoothing_change_the_gradient_and_not_the_value(
    weights: list[float] | None, smoothing: float, task: str
) -> None:
    """The gradient is that of torch.nn.functional.cross_entropy with both; the value that of the labels alone."""
    model = model_of(settings_with(task, "bert", label_smoothing=smoothing))
    model.set_class_weights(weights)
    batch = batch_for(model.settings, 5)
    labels = batch["labels"].flatten()
    logits = model.task_logits(**{name: value for name, value in batch.items() if name != "labels"}).flatten(0, 1)
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    learned = F.cross_entropy(logits, labels, tensor, reduction="sum", label_smoothing=smoothing)
    loss = model(**batch)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, reduction="sum"), rtol=1e-12, atol=0)
    ours, theirs = gradients(model, loss), gradients(model, learned)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch), loss.detach(), rtol=1e-12, atol=0)


@given(st.data())
def test_answers_are_chosen_among_the_tokens_of_their_document(data: st.DataObject) -> None:
    """For any documents, empty ones too, and any bound on their length."""
    lengths = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randn(sum(lengths), 2, generator=generator, dtype=torch.float64, requires_grad=True)
    labels, wanted, begin = torch.full((sum(lengths),), IGNORE_INDEX), torch.zeros(sum(lengths)).double(), 0
    for length in lengths:
        if length and data.draw(st.booleans()):
            first = data.draw(st.integers(0, length - 1))
            last = data.draw(st.integers(first, length - 1))
            labels[begin + first], labels[begin + last] = START, END
            if first == last:
                labels[begin + first] = START_AND_END
            for kind, place in enumerate((first, last)):
                chosen = logits[begin : begin + length, kind].log_softmax(0)[place]
                wanted = wanted.index_add(0, torch.tensor([begin + place]), -chosen[None] / 2)
        begin += length
    boundaries = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    found = answer_losses(logits, labels, boundaries, max(lengths) + data.draw(st.integers(0, 3)))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    if wanted.requires_grad:
        ours, theirs = (torch.autograd.grad(loss.sum(), logits)[0] for loss in (found, wanted))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "llama"])
@pytest.mark.parametrize("task", TASKS)
def test_classifier_dropout_follows_from_the_keys_of_rows(family: str, task: str) -> None:
    """The same rows in two micro-batches drop what they drop in one; other keys drop something else."""
    model = model_of(settings_with(task, family, classifier_dropout=0.3))
    batch = batch_for(model.settings, 7)
    keys = torch.tensor([11, 12])
    whole = model(**batch, row_keys=keys)
    cut = int((batch["cu_seqlens"] == LENGTH).nonzero())
    parts = []
    for row, boundaries in enumerate((batch["cu_seqlens"][: cut + 1], batch["cu_seqlens"][cut:] - LENGTH)):
        part = {name: batch[name][row : row + 1] for name in ("input_ids", "labels", "position_ids")}
        part |= {"cu_seqlens": boundaries, "max_seqlen": batch["max_seqlen"]}
        parts.append(model(**part, row_keys=keys[row : row + 1]))
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)
    assert model(**batch, row_keys=keys + 1) != whole
    kept = model.eval()(**batch)
    assert kept == model(**batch) != whole


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_model_with_a_task_has_no_head_for_tokens(family: str) -> None:
    settings = settings_with("sequence_classification", family, tie_word_embeddings=True)
    names = [name for name, _ in model_of(settings).named_parameters()]
    assert any(name.startswith("task_head.") for name in names)
    assert not any(name.startswith("lm_head.") for name in names)
    plain = small_settings(family, tie_word_embeddings=True)
    head = {"llama": 32 * CLASSES, "bert": 32 * 32 + 32 + 32 * CLASSES + CLASSES - (32 * 32 + 32 + 64 + 96)}[family]
    assert count_parameters(settings) == count_parameters(plain) + head


def test_the_head_of_a_task_counts_for_positions_that_it_is_computed_at() -> None:
    classes, answers = (settings_with(task) for task in ("token_classification", "question_answering"))
    blocks = flops_per_token(classes, 16, labelled=0.0)
    assert flops_per_token(classes, 16, labelled=0.25) == blocks + 6 * 32 * CLASSES / 4
    assert flops_per_token(answers, 16, labelled=0.25) == blocks + 6 * 32 * 2


def test_a_model_with_a_task_generates_nothing() -> None:
    with pytest.raises(BigtrainError) as caught:
        require_decoder(settings_with("sequence_classification"))
    assert_refused(caught, found="model.task_head sequence_classification")


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"task_head": "sequence_classification"}, "num_labels"),
        ({"task_head": "token_classification", "num_labels": 1}, "num_labels"),
        ({"task_head": "question_answering", "num_labels": 2}, "num_labels"),
        ({"num_labels": 2}, "num_labels"),
        ({"classifier_dropout": 0.1}, "classifier_dropout"),
        ({"task_head": "question_answering", "label_smoothing": 0.1}, "label_smoothing"),
        ({"task_head": "question_answering", "z_loss_coef": 0.1}, "z_loss_coef"),
        ({"task_head": "question_answering", "num_nextn_predict_layers": 1}, "num_nextn_predict_layers"),
        ({"task_head": "question_answering", "family": "bert", "sentence_head": True}, "sentence_head"),
    ],
)
def test_keys_that_do_not_go_with_a_task_are_refused_by_name(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        small_settings(**{"family": "llama"} | changes)


def test_class_weights_of_another_number_of_classes_are_refused() -> None:
    model = model_of(settings_with("sequence_classification"))
    with pytest.raises(ValueError, match="2 class weights for 3 classes"):
        model.set_class_weights([1.0, 2.0])

"""Accuracy counts the labels that are the likeliest token, whatever the batches are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bigtrain.model import build_model
from bigtrain.trained.ngram import LabelBaselines
from bigtrain.trained.right_labels import RightLabels
from tests.model.helpers import packed_batch, small_settings
from tests.model.test_encoder_decoder import built, pairs_batch


def counted(model: Any, batches: list[dict[str, Any]]) -> int:
    with torch.no_grad(), RightLabels(model.lm_head) as right:
        for batch in batches:
            model(**batch)
    return right.number


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_accuracy_is_that_of_the_argmax_of_the_logits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in pieces, and batch by batch; where half of the labels were made right, and others are left out."""
    if family == "bert":
        model: Any = build_model(small_settings("bert", initializer_range=0.5)).double()
        model.init_weights(1)
        batches = [packed_batch(3, 20, 96, seed) for seed in (1, 2)]
    else:
        model, batches = built("t5"), [pairs_batch(seed=seed, rows=3) for seed in (1, 2)]
    wanted = labelled = 0
    for batch in batches:
        with torch.no_grad():
            likeliest = model.logits(**{name: value for name, value in batch.items() if name != "labels"}).argmax(-1)
        right = (torch.arange(likeliest.numel()).view_as(likeliest) % 2 == 0) & (batch["labels"] != -100)
        batch["labels"] = torch.where(right, likeliest, batch["labels"])
        wanted += int((likeliest == batch["labels"]).sum())
        labelled += int((batch["labels"] != -100).sum())
    assert labelled // 3 < wanted < labelled
    assert counted(model, batches) == wanted == sum(counted(model, [batch]) for batch in batches)
    monkeypatch.setattr("bigtrain.trained.right_labels._ROWS", 7)
    assert counted(model, batches) == wanted
    with torch.no_grad():
        model(**batches[0])  # the hook is gone
    assert not model.lm_head._forward_pre_hooks


def test_the_accuracy_of_a_unigram_model_is_that_of_one_label() -> None:
    batches: Any = [SimpleNamespace(labels=torch.tensor([[3, 3, -100, 5], [3, 1, 3, 5]]))]
    held_out: Any = [SimpleNamespace(labels=torch.tensor([[3, 5, -100, -100], [5, 3, 3, -100]]))]
    assert LabelBaselines(batches, 8).accuracy(held_out) == pytest.approx(3 / 5)

"""The card of an exported model names the class of transformers that loads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigtrain.trained.model_card import model_card
from tests.convert.helpers import settings_of
from tests.trained.test_starting_weights import HEADS, run_settings

LOADERS = {
    ("llama", "none"): ("text-generation", "AutoModelForCausalLM"),
    ("bert", "none"): ("fill-mask", "AutoModelForMaskedLM"),
    ("llama", "sequence_classification"): ("text-classification", "AutoModelForSequenceClassification"),
    ("bert", "token_classification"): ("token-classification", "AutoModelForTokenClassification"),
    ("modernbert", "question_answering"): ("question-answering", "AutoModelForQuestionAnswering"),
}


@pytest.mark.parametrize(("family", "head"), LOADERS)
def test_a_card_names_the_task_and_the_class_that_loads_the_model(family: str, head: str, tmp_path: Path) -> None:
    task, loader = LOADERS[family, head]
    card = model_card(run_settings(tmp_path, settings_of(family, **HEADS[head])), 1, [], None)
    assert f"pipeline_tag: {task}\n" in card
    assert f"from transformers import {loader}, AutoTokenizer" in card
    assert ("base model" in card) is (head == "none")

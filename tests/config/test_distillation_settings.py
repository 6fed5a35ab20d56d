"""Promises of the section distillation: what cannot be learned from a teacher is refused before anything is opened."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bigtrain.config import Settings
from bigtrain.config.families import FAMILIES


def settings_of(distillation: dict[str, Any], family: str = "llama", **sections: Any) -> Settings:
    attention = {"num_attention_heads": 4, "intermediate_size": 64} if family not in ("lstm", "luong") else {}
    return Settings.model_validate(
        {
            "run_dir": "runs/one",
            "model": {
                "family": family,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "vocab_size": 8192,
                "max_position_embeddings": 64,
                **attention,
                **sections.pop("model", {}),
            },
            "data": {"dir": "data", "sequence_length": 64, "sources": [{"name": "any", "kind": "python_stdlib"}]},
            "train": {"steps": 3, "global_batch_size": 2, "micro_batch_size": 1},
            "distillation": distillation,
            **sections,
        }
    )


KEPT = {"kept_outputs": "kept"}
ANSWERS = {
    "model": {"task_head": "question_answering"},
    "objective": {"name": "extractive_qa"},
    "data": {
        "dir": "data",
        "sequence_length": 64,
        "packing": "best_fit",
        "tokenizer": {"separator": "[SEP]", "additional_special_tokens": ["[SEP]"]},
        "sources": [{"name": "any", "kind": "squad", "path": "a.json", "max_query_length": 16}],
    },
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to learn from": ({"distillation": {"temperature": 3.0}}, "set teacher or kept_outputs"),
    "two teachers": ({"distillation": {"teacher": "one", **KEPT}}, "remove one of them"),
    "kept classes beside a teacher": ({"distillation": {"teacher": "one", "kept_classes": 5}}, "kept_classes is for"),
    "states that are not kept": ({"distillation": {**KEPT, "hidden_weight": 0.1}}, "hidden states, which are not kept"),
    "other inputs in every epoch": (
        {"distillation": KEPT, "family": "bert", "objective": {"name": "masked"}},
        "objective.name masked makes other inputs of a sample in every epoch",
    ),
    "random prefixes": ({"distillation": KEPT, "objective": {"name": "prefix"}}, "objective.name prefix makes other"),
    "places of answers": ({"distillation": KEPT, **ANSWERS}, "found question_answering, which chooses among tokens"),
    "states in steps": (
        {"distillation": {"teacher": "one", "hidden_weight": 0.1}, "family": "lstm"},
        "hidden_weight works with model.architecture decoder, encoder, encoder_decoder, found recurrent",
    ),
    "shared sequences": (
        {"distillation": KEPT, "engine": {"sequence_parallel_size": 2}},
        "distillation works with engine.sequence_parallel_size 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_learned_from_a_teacher_is_refused(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ValidationError, match=message):
        settings_of(**changes)


@pytest.mark.parametrize("family", ["llama", "bert", "t5", "xlnet", "lstm", "luong"])
def test_every_architecture_may_have_a_teacher(family: str) -> None:
    objective = {
        "encoder": {"name": "masked"},
        "encoder_decoder": {"name": "span_corruption"},
        "two_stream": {"name": "permutation"},
        "recurrent_encoder_decoder": {"name": "span_corruption"},
    }.get(str(FAMILIES[family].get("architecture")), {"name": "causal"})
    settings = settings_of({"teacher": "one"}, family, objective=objective)
    assert settings.distillation.is_on


def test_no_more_classes_are_kept_than_there_are() -> None:
    settings = settings_of(KEPT).distillation
    assert (settings.classes_kept(5), settings.classes_kept(50_000)) == (5, 64)

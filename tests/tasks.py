"""The sections objective and data of runs that train the head of a task."""

from __future__ import annotations

from typing import Any

from bigtrain.config.objective_settings import HEAD_OF

_SOURCES: dict[str, dict[str, Any]] = {
    "classification": {"kind": "jsonl", "label_field": "label"},
    "token_classification": {"kind": "conll"},
    "extractive_qa": {"kind": "squad", "max_query_length": 8},
}


def sections_of_task(task: str) -> dict[str, dict[str, Any]]:
    """Of settings of a run with this `model.task_head`: what is unlike a run that predicts tokens."""
    (objective,) = (name for name, head in HEAD_OF.items() if head == task)
    tokenizer = {"separator": "<|separator|>"} if objective == "extractive_qa" else {}
    return {
        "objective": {"name": objective},
        "data": {"packing": "best_fit", "sources": [{"name": "x", "path": "unused", **_SOURCES[objective]}]},
        "tokenizer": tokenizer,
    }

"""Corpus kind `super_glue`: the JSON lines of SuperGLUE tasks of one class for one text or two (Wang et al., 2019).

The names of the labels and their numbers are those of the `datasets` library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.corpus import Corpus
from bigtrain.data.build.corpus.jsonl import corpus_of_lines
from bigtrain.data.build.corpus.records import Origin, classified, text_of
from bigtrain.data.format.documents import Document


class SuperGlueTask(NamedTuple):
    """The fields of a task's records."""

    texts: tuple[str, str]
    names: tuple[str, ...]
    """The labels in the order of their numbers; true and false are written in capitals."""
    word: str | None = None
    """The field of a word that the two texts are about: it stands before the first one."""


SUPER_GLUE: Mapping[str, SuperGlueTask] = {
    "boolq": SuperGlueTask(("question", "passage"), ("False", "True")),
    "cb": SuperGlueTask(("premise", "hypothesis"), ("entailment", "contradiction", "neutral")),
    "rte": SuperGlueTask(("premise", "hypothesis"), ("entailment", "not_entailment")),
    "wic": SuperGlueTask(("sentence1", "sentence2"), ("False", "True"), word="word"),
}


@dataclass(frozen=True)
class _SuperGlueRecords:
    task: str

    def __call__(self, record: Any, origin: Origin) -> Document:
        about = SUPER_GLUE[self.task]
        texts = [text_of(record, field, origin.where) for field in about.texts]
        if about.word is not None:
            texts[0] = f"{text_of(record, about.word, origin.where)}: {texts[0]}"
        label = str(record.get("label"))
        if label not in about.names:
            raise BigtrainError(
                f"{origin.where} has no label of the SuperGLUE task {self.task}",
                found=label[:100] if "label" in record else "no field 'label'",
                wanted=" or ".join(about.names),
                fix="correct the record; train.jsonl and val.jsonl have labels, test.jsonl has none",
            )
        return classified(texts, label, origin)


def super_glue(source: SourceSettings) -> Corpus:
    """Each line is one document of two texts, its position the line's index. Raises BigtrainError, with its line."""
    assert source.task is not None
    return corpus_of_lines(source, _SuperGlueRecords(source.task), SUPER_GLUE[source.task].texts)

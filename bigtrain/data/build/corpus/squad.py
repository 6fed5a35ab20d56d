"""Corpus kind `squad`: questions with answers in a context, in the JSON of SQuAD 1.1 and 2.0 (Rajpurkar et al., 2018).

{"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [
    {"id": ..., "question": ..., "answers": [{"text": ..., "answer_start": ...}], "is_impossible": false}]}]}]}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.compressed import SUFFIXES as COMPRESSED
from bigtrain.data.build.corpus.compressed import opened
from bigtrain.data.build.corpus.corpus import Corpus, corpus_of_files, find_files
from bigtrain.data.build.corpus.encodings import without_mark
from bigtrain.data.build.corpus.files import CorpusFile, reading
from bigtrain.data.build.corpus.records import Origin, pieces_of_records, valid_unicode
from bigtrain.data.format.documents import Document, LabelledSpan, Piece, Segment
from bigtrain.data.format.labels import ANSWER, CONTEXT, QUESTION

SUFFIXES = tuple(f".json{compressed}" for compressed in ("", *COMPRESSED))
FORM = "the JSON of SQuAD: data, paragraphs with a context, qas with a question and answers"


class _Question(NamedTuple):
    """A question as the file has it, and its context."""

    context: str
    about: Any


@dataclass(frozen=True)
class _Questions:
    def __call__(self, record: Any, origin: Origin) -> Document:
        context, about = record
        where = f"{origin.place}: question {about.get('id', origin.position)!r}"
        question = about.get("question")
        answers = about.get("answers", [])
        if not isinstance(question, str) or not isinstance(answers, list):
            raise BigtrainError(f"{where} is not as SQuAD has them", found=str(about)[:200], wanted=FORM)
        if about.get("is_impossible"):
            answers = []
        spans = [_span(answer, context, where) for answer in answers]
        segments = Segment(question, QUESTION), Segment(context, CONTEXT, tuple(spans[:1]))
        references = tuple(dict.fromkeys(context[span.start : span.end] for span in spans))
        return Document.of_segments(segments, origin.name, origin.position, references=references)


def _span(answer: Any, context: str, where: str) -> LabelledSpan:
    text, start = (answer.get(key) for key in ("text", "answer_start")) if isinstance(answer, dict) else (None, None)
    if not isinstance(text, str) or type(start) is not int or not text:
        raise BigtrainError(
            f"{where} has an answer without a text or its start",
            found=str(answer)[:200],
            wanted="text, and answer_start in characters of the context",
            fix="correct the file; a question without an answer has an empty list of answers",
        )
    if start < 0 or context[start : start + len(text)] != text:
        raise BigtrainError(
            f"{where} has an answer outside its context",
            found=f"{context[max(start, 0) : max(start, 0) + len(text)]!r} at character {start:,}"[:300],
            wanted=f"{text!r}, somewhere in {len(context):,} characters"[:300],
            fix="correct answer_start, which counts characters of the context from 0",
        )
    return LabelledSpan(start, start + len(text), ANSWER)


def _pieces(file: CorpusFile) -> Iterator[Piece]:
    records = [(position, question, len(question.context)) for position, question in enumerate(_read(file))]
    characters = sum(size for *_, size in records)  # many questions have the same context
    yield from pieces_of_records(file, iter(records), _Questions(), file.size / max(characters, 1))


def _read(file: CorpusFile) -> list[_Question]:
    """The questions of a file, which is one JSON document and is read as a whole."""
    with reading(file.place), file.open() as raw, opened(raw, file.name) as stream:
        content = without_mark(stream.read(), file.place)
        file.require_whole(raw.tell())
    try:
        articles = valid_unicode(json.loads(content))["data"]
        questions = [
            _Question(paragraph["context"], about)
            for article in articles
            for paragraph in article["paragraphs"]
            for about in paragraph["qas"]
        ]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise BigtrainError(
            f"{file.place} is not a file of SQuAD",
            found=f"{type(error).__name__}: {error}"[:200],
            wanted=FORM,
            fix="check the path; other questions with answers can be written in this form",
        ) from None
    for position, question in enumerate(questions):
        if not isinstance(question.context, str) or not isinstance(question.about, dict):
            raise BigtrainError(
                f"{file.place} is not a file of SQuAD", found=f"question {position} without text", wanted=FORM
            )
    return questions


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question as text."""

    name: str
    """Its `id`; where the file has none, its number."""
    question: str
    context: str
    answers: tuple[str, ...]
    """All right answers; none where the context has no answer."""


def read_questions(path: str) -> list[AnsweredQuestion]:
    """The questions of a file, a folder or a glob, in order.

    Raises:
        BigtrainError: a file has another form, or an answer that is not where it says.
    """
    found: list[AnsweredQuestion] = []
    for file in find_files("the questions", path, SUFFIXES).files:
        for position, question in enumerate(_read(file)):
            document = _Questions()(question, Origin(file.place, file.name, position))
            asked, context = (segment.text for segment in document.segments)
            name = str(question.about.get("id", len(found)))
            found.append(AnsweredQuestion(name, asked, context, document.references))
    return found


def squad(source: SourceSettings) -> Corpus:
    """Each question with its context is one document, its position the index of the question in the file.

    The label of the context's tokens says which of them are the first of the answers; `references` has all of them.

    Raises:
        BigtrainError: a file has another form, or an answer that is not where it says.
    """
    assert source.path is not None
    found = find_files(f"data.sources: {source.name!r}", source.path, SUFFIXES)
    return corpus_of_files(
        found.files,
        lambda: (piece for file in found.files for piece in _pieces(file)),
        found.skipped,
    )

"""Documents from JSON objects: a text, a pair, a text with its class, words with tags, a text with labelled spans."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.corpus import not_text
from bigtrain.data.build.corpus.records import (
    Origin,
    RecordReader,
    classified,
    field_of,
    label_of,
    pair_of,
    tagged,
    text_of,
    without_surrogates,
)
from bigtrain.data.format.documents import Document, LabelledSpan, Segment

OUTSIDE = "O"
"""The tag of a word that is in no span."""


@dataclass(frozen=True)
class PlainRecords:
    """Reads a text, or a text and its target."""

    fields: tuple[str, ...]
    skip_null: bool

    def __call__(self, record: Any, origin: Origin) -> Document:
        """See `RecordReader`. A null that the source skips gives a document without text."""
        values = [field_of(record, field, origin.where) for field in self.fields]
        if self.skip_null and None in values and all(isinstance(value, str | None) for value in values):
            return Document("", origin.name, origin.position, null=True)
        texts = [text_of(record, field, origin.where) for field in self.fields]
        if len(texts) == 2:
            return pair_of(texts[0], texts[1], origin.name, origin.position)
        return Document(texts[0], origin.name, origin.position)


@dataclass(frozen=True)
class _ClassifiedRecords:
    """Reads one text or two, with a class."""

    fields: tuple[str, ...]
    label_field: str
    names: tuple[str, ...]
    skip_null: bool

    def __call__(self, record: Any, origin: Origin) -> Document:
        document = PlainRecords(self.fields[:1], self.skip_null)(record, origin)
        if document.null:
            return document
        texts = [text_of(record, field, origin.where) for field in self.fields]
        label = label_of(field_of(record, self.label_field, origin.where), self.names, origin.where)
        return classified(texts, label, origin)


@dataclass(frozen=True)
class _TaggedRecords:
    """Reads a list of words and a list of their tags."""

    tokens_field: str
    tags_field: str
    names: tuple[str, ...]

    def __call__(self, record: Any, origin: Origin) -> Document:
        words, tags = (self._list(record, field, origin.where) for field in (self.tokens_field, self.tags_field))
        if len(words) != len(tags):
            raise BigtrainError(
                f"{origin.where} has not one tag for each word",
                found=f"{len(words)} words in {self.tokens_field!r}, {len(tags)} tags in {self.tags_field!r}",
                wanted="two lists of one length",
                fix="correct the record",
            )
        for word in words:
            if not isinstance(word, str):
                raise not_text(origin.where, self.tokens_field, word)
        return tagged(
            [without_surrogates(word) for word in words],
            [label_of(tag, self.names, origin.where) for tag in tags],
            origin,
        )

    def _list(self, record: Any, field: str, where: str) -> list[Any]:
        value = field_of(record, field, where)
        if not isinstance(value, list):
            raise BigtrainError(
                f"{where}: the field {field!r} does not hold a list",
                found=type(value).__name__,
                wanted="a list with an item for each word",
                fix="set tokens_field and tags_field to the fields that hold the words and their tags",
            )
        return value


@dataclass(frozen=True)
class _SpanRecords:
    """Reads a text and spans of it that have a label: the words in them begin or continue an entity."""

    text_field: str
    spans_field: str
    names: tuple[str, ...]

    def __call__(self, record: Any, origin: Origin) -> Document:
        text = text_of(record, self.text_field, origin.where)
        spans = field_of(record, self.spans_field, origin.where)
        entities: list[LabelledSpan] = []
        for span in sorted(spans, key=_start_of) if isinstance(spans, list) else [spans]:
            start, end, label = _bounds_of(span)
            after = entities[-1].end if entities else 0
            if not after <= start < end <= len(text):
                raise BigtrainError(
                    f"{origin.where} has a span outside its text, or inside another one",
                    found=f"{span!r}"[:200],
                    wanted=f"start and end of characters between {after:,} and {len(text):,}, and a label",
                    fix=f"correct {self.spans_field!r} of the record; ends are not part of a span",
                )
            entities.append(LabelledSpan(start, end, label))
        words = [
            LabelledSpan(match.start(), match.end(), label_of(tag, self.names, origin.where))
            for match, tag in _tags_of_words(text, entities)
        ]
        return Document.of_segments((Segment(text, None, tuple(words)),), origin.name, origin.position)


_WORDS = re.compile(r"\w+|[^\w\s]")


def _tags_of_words(text: str, entities: list[LabelledSpan]) -> Iterator[tuple[re.Match[str], str]]:
    """The words of a text, each with its tag: that of the first entity that it shares a character with."""
    number, begun = 0, False
    for match in _WORDS.finditer(text):
        while number < len(entities) and entities[number].end <= match.start():
            number, begun = number + 1, False
        if number < len(entities) and entities[number].start < match.end():
            yield match, f"{'I' if begun else 'B'}-{entities[number].label}"
            begun = True
        else:
            yield match, OUTSIDE


def _start_of(span: Any) -> int:
    start = span.get("start") if isinstance(span, dict) else None
    return start if isinstance(start, int) else -1


def _bounds_of(span: Any) -> tuple[int, int, str]:
    """Start, end and label of a span; (-1, -1, "") where it has none of these."""
    start, end, label = (span.get(key) for key in ("start", "end", "label")) if isinstance(span, dict) else (0, 0, 0)
    if type(start) is int and type(end) is int and isinstance(label, str) and label:
        return start, end, label
    return -1, -1, ""


def reader_of(source: SourceSettings) -> RecordReader:
    """What reads the records of a source of kind jsonl."""
    skip_null, names = source.on_null == "skip", source.label_names
    if source.label_field is not None:
        pair = () if source.text_pair_field is None else (source.text_pair_field,)
        return _ClassifiedRecords((source.text_field, *pair), source.label_field, names, skip_null)
    if source.tokens_field is not None and source.tags_field is not None:
        return _TaggedRecords(source.tokens_field, source.tags_field, names)
    if source.spans_field is not None:
        return _SpanRecords(source.text_field, source.spans_field, names)
    target = () if source.target_field is None else (source.target_field,)
    return PlainRecords((source.text_field, *target), skip_null)

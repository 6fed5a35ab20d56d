"""Documents from records of a file, and the errors of records without what their source says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from bigtrain.base import BigtrainError
from bigtrain.data.build.corpus.corpus import PIECE_BYTES, missing_field, not_text
from bigtrain.data.build.corpus.files import CorpusFile
from bigtrain.data.format.document_metadata import metadata_text
from bigtrain.data.format.documents import Document, LabelledSpan, Segment

LONGEST_LABEL = 200
"""Characters of a label, at most: what is longer is a text of another field."""


class Origin(NamedTuple):
    """Where a record is from."""

    place: str
    """The path of its file, for messages."""
    name: str
    """The name of the file in the corpus."""
    position: int
    """Of its document: the index of its line, from 0."""

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.place}:{self.position + 1}"


class RecordReader(Protocol):
    """Makes documents of records; it is pickled for the worker processes."""

    def __call__(self, record: Any, origin: Origin) -> Document:
        """The document of a record. Raises BigtrainError, which names file and line."""
        ...


@dataclass(frozen=True)
class RecordPiece:
    """Consecutive records of one file."""

    place: str
    name: str
    records: list[tuple[int, Any]]
    """The position of each, and what it is."""
    read: RecordReader
    extent: int
    """Bytes of the file."""
    continued: bool = False

    def documents(self) -> Iterator[Document]:
        """A document for each record."""
        for position, record in self.records:
            yield self.read(record, Origin(self.place, self.name, position))


def pieces_of_records(
    file: CorpusFile, records: Iterator[tuple[int, Any, int]], read: RecordReader, share: float = 1.0
) -> Iterator[RecordPiece]:
    """Records in pieces of about PIECE_BYTES.

    Args:
        file: the file that they are from.
        records: the position of each, what it is, and its size in bytes.
        read: makes documents of them.
        share: bytes of the file for each byte of a record.
    """
    kept: list[tuple[int, Any]] = []
    size = 0
    for position, record, record_size in records:
        kept.append((position, record))
        size += record_size
        if size >= PIECE_BYTES:
            yield RecordPiece(file.place, file.name, kept, read, round(size * share))
            kept, size = [], 0
    if kept:
        yield RecordPiece(file.place, file.name, kept, read, round(size * share))


@dataclass(frozen=True)
class WithMetadata:
    """Reads records by another reader, and keeps some of their fields beside the document."""

    read: RecordReader
    fields: tuple[str, ...]

    def __call__(self, record: Any, origin: Origin) -> Document:
        """See `RecordReader`."""
        document = self.read(record, origin)
        kept = {field: field_of(record, field, origin.where, "metadata") for field in self.fields}
        return replace(document, metadata=metadata_text(valid_unicode(kept)))


def pair_of(source: str, target: str, name: str, position: int, *, group: str | None = None) -> Document:
    """A text and its translation."""
    return Document.of_segments((Segment(source, "source"), Segment(target, "target")), name, position, group=group)


def classified(texts: Sequence[str], label: str, origin: Origin) -> Document:
    """A document of one text or two, with its class."""
    return Document.of_segments(tuple(Segment(text, label) for text in texts), origin.name, origin.position)


def tagged(words: Sequence[str], tags: Sequence[str], origin: Origin) -> Document:
    """A document of words with a blank between them, and a tag for each."""
    spans, start = [], 0
    for word, tag in zip(words, tags, strict=True):
        spans.append(LabelledSpan(start, start + len(word), tag))
        start += len(word) + 1
    return Document.of_segments((Segment(" ".join(words), None, tuple(spans)),), origin.name, origin.position)


def field_of(record: Any, field: str, where: str, key: str = "text_field") -> Any:
    """The value of a field: of that name, or by its dotted path. What is below a null is null.

    Raises:
        BigtrainError: a record is no object, or lacks the field.
    """
    found = value_at(record, field)
    if found is NOTHING:
        raise missing_field(where, field, _paths(record) if isinstance(record, dict) else (), key)
    return found


NOTHING = object()
"""In place of a field that is not there: null is a value."""


def value_at(record: Any, field: str) -> Any:
    """The value of a field, by its name or its dotted path; NOTHING where it is not there."""
    if isinstance(record, dict) and field in record:
        return record[field]
    value = record
    for part in field.split("."):
        if value is None and value is not record:
            return None
        if not isinstance(value, dict) or part not in value:
            return NOTHING
        value = value[part]
    return value


def _paths(record: dict[str, Any]) -> Iterator[str]:
    """The names of fields, and of those in them."""
    for name, value in record.items():
        yield name
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in value)


def text_of(record: Any, field: str, where: str) -> str:
    """The text of a field. Raises BigtrainError where it holds something else."""
    value = field_of(record, field, where)
    if not isinstance(value, str):
        raise not_text(where, field, value)
    return without_surrogates(value)


def label_of(value: Any, names: Sequence[str], where: str) -> str:
    """The name of a label: a text as it is, a whole number or a boolean in JSON's form.

    Args:
        value: what a record has.
        names: those that the source allows; none: any.
        where: file and line, for messages.

    Raises:
        BigtrainError: it is no label, or none of the names.
    """
    text = str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, str | int) else ""
    text = without_surrogates(text)
    if not text.strip() or len(text) > LONGEST_LABEL:
        raise BigtrainError(
            f"{where} has no label",
            found=repr(value)[:100],
            wanted=f"a text of at most {LONGEST_LABEL} characters, a whole number or a boolean",
            fix="name the field with the label, leave out files without labels, or correct the record",
        )
    if names and text not in names:
        raise BigtrainError(
            f"{where} has a label that the source does not name",
            found=text[:100],
            wanted=f"one of {', '.join(names)}"[:500],
            fix="correct the record, or add the label to label_names of the source",
        )
    return text


def without_surrogates(text: str) -> str:
    r"""Replace half of a surrogate pair (`"\ud800"`), which JSON allows but is not a character, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def valid_unicode(value: Any) -> Any:
    """A JSON value in which no text has half of a surrogate pair."""
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [valid_unicode(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(key): valid_unicode(item) for key, item in value.items()}
    return value

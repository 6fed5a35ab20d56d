"""A document, its identity, and whether it is held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np

from bigtrain.data.format.hashing import canonical_json, digest

ID_BYTES = 16


class LabelledSpan(NamedTuple):
    """Characters [start, end) of a text that have a label."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Segment:
    """A text of a document, and the labels of its tokens."""

    text: str
    label: str | None = None
    """Of tokens that no span has. None: they have no label."""
    spans: tuple[LabelledSpan, ...] = ()
    """In order, and without overlap. A token that has a character of a span has its label."""


@dataclass(frozen=True)
class Conversation:
    """Messages with their roles, and the tools that an assistant has."""

    messages: tuple[dict[str, Any], ...]
    """Each has a `role`, as chat templates read them."""
    tools: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For JSON."""
        return {"messages": list(self.messages), "tools": list(self.tools)}


@dataclass(frozen=True)
class Document:
    """A text, or the token ids of a text, and its origin."""

    text: str
    """Empty if the corpus holds token ids."""
    file: str
    """Path relative to the corpus, with forward slashes. It does not depend on where the corpus is."""
    position: int
    """Index of the row or line in that file, from 0. It is 0 if a file is one document."""
    ids: bytes | None = None
    """Token ids as little-endian u32, if the corpus holds these instead of text."""
    null: bool = False
    """Whether the corpus has a null in place of the text, which its source says to skip."""
    metadata: str = ""
    """What its source keeps beside it, as JSON: see document_metadata.py."""
    unread: str | None = None
    """Why the corpus has something here that is no text, such as a web page without one; the funnel counts it."""
    segments: tuple[Segment, ...] = ()
    """The texts that it is made of, with their labels: a source and its translation, a question and its context. None
    where it is plain text."""
    conversation: Conversation | None = None
    """What its text is rendered from, by the chat template of the tokenizer."""
    group: str | None = None
    """What decides whether it is held out. None: its file and position."""
    held_out: bool | None = None
    """Whether it is held out, where its corpus says so."""
    references: tuple[str, ...] = ()
    """The right answers to its question, of which its labels have the first. They are not in the shards."""

    @classmethod
    def of_segments(
        cls,
        segments: tuple[Segment, ...],
        file: str,
        position: int,
        *,
        group: str | None = None,
        references: tuple[str, ...] = (),
    ) -> Document:
        """A document of labelled texts."""
        text = "\n".join(segment.text for segment in segments)
        return cls(text, file, position, segments=segments, group=group, references=references)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of its segments, or the one that it is."""
        return tuple(segment.text for segment in self.segments) or (self.text,)

    @property
    def content(self) -> bytes:
        """Its text as UTF-8, its conversation as JSON, or its token ids."""
        if self.conversation is not None:
            return canonical_json(self.conversation.to_json())
        return self.text.encode() if self.ids is None else self.ids

    @property
    def content_hash(self) -> bytes:
        """16 bytes that identify the content: equal for equal texts, and for equal token ids."""
        return digest(self.content, person=b"content" if self.ids is None else b"token ids")

    def excerpt(self, characters: int) -> str:
        """The first characters, for people."""
        if self.ids is None:
            return self.text[:characters]
        first = np.frombuffer(self.ids, "<u4", count=min(characters, len(self.ids) // 4))
        return f"token ids {' '.join(map(str, first))}"[:characters]


class Piece(Protocol):
    """About a megabyte of a corpus, which a worker process reads and tokenizes at once. It is pickled."""

    @property
    def extent(self) -> int:
        """Its size, in the unit of `Corpus.extent`."""
        ...

    @property
    def continued(self) -> bool:
        """Whether the next piece belongs to the same group. Shards end with a group, so that how a long group is
        divided changes no shard."""
        ...

    def documents(self) -> Iterator[Document]:
        """The documents of this piece, in order."""
        ...


def document_id(source: str, document: Document, window: int = 0) -> bytes:
    """16 bytes that identify a document: BLAKE2b of source, file, position and content.

    Args:
        source: the name of its source.
        document: the document.
        window: the number, from 0, of what is stored of it, where that is several documents.
    """
    of_window = [window] if window else []
    origin = canonical_json([source, document.file, document.position, *of_window])
    return digest(origin + document.content_hash, person=b"document")


def is_held_out(file: str, position: int, fraction: float, group: str | None = None) -> bool:
    """Whether the document with this origin, or of this group, belongs to validation.

    Only that decides, with a fixed key. So all documents that are made from one file (its source text, its
    documentation) are on the same side, in every build of every corpus; and so are those of one group.
    """
    threshold = int(Fraction(repr(fraction)) * 2**64)
    decides = [file, position] if group is None else ["group", group]
    origin = digest(canonical_json(decides), person=b"held-out split 1", size=8)
    return int.from_bytes(origin, "big") < threshold

"""The funnel: how many documents of a source were read, how many each rule removed, and how many were written.

    read = removed by each rule + train + validation        in documents, and in bytes as they were read

It is counted piece by piece, stored with the progress of the build, and written beside the shards as funnel.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NotRequired, cast

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from bigtrain.base import STRICT, BigtrainError, as_record, read_json, write_atomically
from bigtrain.data.build.clean import NO_ROOM, NO_TEXT, NULL, POISON, UNREAD, Rejection
from bigtrain.data.build.decontaminate import RULE as DECONTAMINATE
from bigtrain.data.format.documents import Document

FUNNEL = "funnel.json"
EXAMPLES = 3
EXAMPLE_CHARACTERS = 200

DUPLICATE = Rejection("dedup", "the same text as an earlier document")
NEAR_DUPLICATE = Rejection("dedup", "nearly the same text as an earlier document")


Natural = Annotated[int, Field(ge=0, lt=2**63)]


class Example(TypedDict):
    """A document that was removed."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    file: str
    position: int
    text: str
    evidence: NotRequired[str]


@dataclass
class Count:
    """A number of documents and their bytes: UTF-8, or 4 for a token id in a corpus of these."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    documents: Natural = 0
    bytes: Natural = 0

    def add(self, documents: int, size: int) -> None:
        """Count more of them."""
        self.documents += documents
        self.bytes += size


@dataclass
class Removal(Count):
    """The documents that were removed for one reason."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    rule: str = ""
    reason: str = ""
    examples: list[Example] = field(default_factory=list)
    """The first EXAMPLES in the order of the corpus: file, position, start of the text or of the ids, and the evidence
    of the rejection if it has some."""


@dataclass
class Funnel:
    """The numbers of documents of a source that were read, removed and kept."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    read: Count = field(default_factory=Count)
    removed: list[Removal] = field(default_factory=list)
    train: Count = field(default_factory=Count)
    validation: Count = field(default_factory=Count)
    """Its bytes, as those of all counts, are the sizes of the documents as read."""
    written_bytes: Natural = 0
    """Bytes of all kept documents, after rules that rewrite."""
    tokens: Natural = 0
    """Tokens of all kept documents, in both splits."""
    cut: Natural = 0
    """Kept documents with labels that were longer than a row, whose ends are left out."""
    skipped_files: dict[str, Natural] = field(default_factory=dict)
    """How many files of the source's folder were skipped, by their suffix."""

    def keep(self, document: Document, size: int, *, held_out: bool) -> None:
        """Count a document that is kept; `size` is its size as read, in bytes."""
        self.read.add(1, size)
        (self.validation if held_out else self.train).add(1, size)
        self.written_bytes += len(document.content)

    def remove(self, document: Document, size: int, rejection: Rejection) -> None:
        """Count a document that is removed; `size` is its size as read, in bytes."""
        self.read.add(1, size)
        self._count_removed(document, size, rejection)

    def drop(self, document: Document, size: int, rejection: Rejection, *, held_out: bool) -> None:
        """Count a document as removed that was counted as kept."""
        (self.validation if held_out else self.train).add(-1, -size)
        self.written_bytes -= len(document.content)
        self._count_removed(document, size, rejection)

    def _count_removed(self, document: Document, size: int, rejection: Rejection) -> None:
        removal = self._removal(rejection.rule, rejection.reason)
        removal.add(1, size)
        if len(removal.examples) < EXAMPLES:
            excerpt = document.excerpt(EXAMPLE_CHARACTERS)
            example = {"file": document.file, "position": document.position, "text": excerpt}
            example |= {"evidence": rejection.evidence} if rejection.evidence else {}
            removal.examples.append(cast("Example", example))

    def add(self, later: Funnel) -> None:
        """Add the funnel of the documents that come after these."""
        for name in ("read", "train", "validation"):
            count: Count = getattr(later, name)
            getattr(self, name).add(count.documents, count.bytes)
        self.written_bytes += later.written_bytes
        self.tokens += later.tokens
        self.cut += later.cut
        for other in later.removed:
            removal = self._removal(other.rule, other.reason)
            removal.add(other.documents, other.bytes)
            removal.examples = (removal.examples + other.examples)[:EXAMPLES]

    def _removal(self, rule: str, reason: str) -> Removal:
        for removal in self.removed:
            if (removal.rule, removal.reason) == (rule, reason):
                return removal
        self.removed.append(Removal(rule=rule, reason=reason))
        return self.removed[-1]

    def rows(self) -> list[tuple[str, Count, float]]:
        """Rows of a table: what happened, to how many, and to which share of the documents that were read."""
        removed: list[tuple[str, Count]] = [(f"{each.rule}: {each.reason}", each) for each in self.removed]
        parts = [("read", self.read), *removed, ("train", self.train), ("validation", self.validation)]
        return [(what, count, count.documents / max(self.read.documents, 1)) for what, count in parts]

    def to_json(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object, where: object = FUNNEL) -> Funnel:
        """The inverse of `to_json`. Raises BigtrainError, which names `where`, for anything else."""
        return as_record(cls, value, where)

    def write(self, folder: Path, rules: Sequence[str]) -> None:
        """Write funnel.json of a source, removals in the order in which its rules apply."""
        order = [POISON.rule, NULL.rule, UNREAD, NO_TEXT.rule, *rules, DECONTAMINATE, DUPLICATE.rule, NO_ROOM.rule]
        self.removed.sort(key=lambda removal: (order.index(removal.rule), -removal.documents, removal.reason))
        content = json.dumps(self.to_json(), indent=1, ensure_ascii=False).encode()
        write_atomically(folder / FUNNEL, content)


def read_funnels(directory: Path) -> dict[str, Funnel]:
    """The funnels of all sources of a data folder, or of one source's folder, by the source's name.

    Raises:
        BigtrainError: there is none.
    """
    files = sorted([*directory.glob(FUNNEL), *directory.glob(f"*/{FUNNEL}")])
    if not files:
        raise BigtrainError(
            f"there is no funnel in {directory}",
            wanted=f"a data folder (data.dir of a configuration) whose sources have a {FUNNEL}",
            fix="build the data first: bigtrain data build CONFIG; data of earlier versions have none",
        )
    return {file.parent.name: _read(file) for file in files}


def _read(file: Path) -> Funnel:
    try:
        return Funnel.from_json(read_json(file), file)
    except BigtrainError as error:
        raise BigtrainError(
            f"{file} cannot be read",
            found=error.found,
            wanted="the funnel that `bigtrain data build` wrote",
            fix="put the file back, or remove the folder of its source and build it again",
        ) from error

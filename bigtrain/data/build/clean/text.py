"""A text as the rules look at it: its words, lines and sentences, each found once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

# A word with the dots and apostrophes inside it, a number with its separators, a run of dots or dashes, or one sign.
_WORD = re.compile(r"\w+(?:['\u2019.]\w+|(?<=\d)[,:]\d+)*|\.{2,}|-{2,}|[^\w\s]")
_SENTENCE_END = re.compile(r"""[.!?]+["'\u201d\u2019)\]]*(?:\s|$)""")

TERMINAL_PUNCTUATION = tuple(".!?。！？｡؟۔।॥։።။។")  # noqa: RUF001


@dataclass(frozen=True)
class Text:
    """The text of a document."""

    text: str

    @cached_property
    def words(self) -> list[str]:
        """Words, numbers and signs of punctuation, in order."""
        return _WORD.findall(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """What stands between line ends; empty ones too."""
        return self.text.splitlines()


@dataclass(frozen=True)
class Rejection:
    """Why a document is removed."""

    rule: str
    """The rule's name, as in the settings."""
    reason: str
    """What it found, in a few words: the same for all documents that it removes on this ground."""
    evidence: str = ""
    """What shows it in this document: the words that an evaluation text has too, or the document kept instead."""


def sentences(text: str) -> int:
    """Number of sentences in a text; what stands behind the last full stop counts as one."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return len(ends) + bool(text[ends[-1] if ends else 0 :].strip())


def repeated(items: Iterable[str]) -> tuple[int, int]:
    """How many items stood before, and how many characters they have together."""
    seen: set[str] = set()
    count = characters = 0
    for item in items:
        if item in seen:
            count += 1
            characters += len(item)
        else:
            seen.add(item)
    return count, characters


def ratio(part: int, whole: int) -> float:
    """`part / whole`, 0 of nothing. A quotient meets a decimal threshold exactly, a product may miss it by an ulp."""
    return part / whole if whole else 0.0

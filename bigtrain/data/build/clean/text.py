"""A text with its words, lines and sentences, each computed once for all rules."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

# A word with the dots and apostrophes inside it, a number with its separators, a run of dots or dashes, or one
# punctuation mark.
_WORD = re.compile(r"\w+(?:['\u2019.]\w+|(?<=\d)[,:]\d+)*|\.{2,}|-{2,}|[^\w\s]")
_SENTENCE_END = re.compile(r"""[.!?]+["'\u201d\u2019)\]]*(?:\s|$)""")

TERMINAL_PUNCTUATION = tuple(".!?。！？｡؟۔।॥։።။។")  # noqa: RUF001


@dataclass(frozen=True)
class Text:
    """The text of a document."""

    text: str

    @cached_property
    def words(self) -> list[str]:
        """Words, numbers and punctuation marks, in order."""
        return _WORD.findall(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """The lines, empty ones too."""
        return self.text.splitlines()


@dataclass(frozen=True)
class Rejection:
    """Why a document is removed."""

    rule: str
    """The rule's name, as in the settings."""
    reason: str
    """The reason in a few words, the same for all documents that are removed for it."""
    evidence: str = ""
    """The evidence in this document: the words that an evaluation text has too, or the document kept instead."""


def sentences(text: str) -> int:
    """Number of sentences in a text. Text after the last full stop counts as one."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return len(ends) + bool(text[ends[-1] if ends else 0 :].strip())


def repeated(items: Iterable[str]) -> tuple[int, int]:
    """The number of items that occurred before, and their total number of characters."""
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
    """`part / whole`, or 0 if `whole` is 0. A quotient meets a decimal threshold exactly; a product may miss it."""
    return part / whole if whole else 0.0

"""The sentences that an n-gram model counts: the lines of a text, each with the tokens that mark its start and end.

CCNet scores paragraphs in the same way (Wenzek et al. 2019, section 3.4); its tokens are SentencePiece's.
"""

from __future__ import annotations

import re
from typing import Literal

TokenForm = Literal["words", "spaces"]

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
"""The tokens of ARPA files: before a sentence, after it, and in place of a word that a model does not know."""

_SPACED = re.compile(r"[^ \t\r\v\f\0]+")
_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_+")
_DIGIT = re.compile(r"\d")


def sentences_of(text: str, form: TokenForm) -> list[list[str]]:
    """The tokens of each line that has some, with START and END.

    Args:
        text: a document.
        form: `words`: words, numbers and punctuation marks in lower case, digits as 0. `spaces`: what stands between
            blanks.
    """
    found = []
    for line in text.split("\n"):
        tokens = _SPACED.findall(line) if form == "spaces" else _WORD.findall(_DIGIT.sub("0", line.lower()))
        if tokens:
            found.append([START, *(token if token not in (START, END) else UNKNOWN for token in tokens), END])
    return found

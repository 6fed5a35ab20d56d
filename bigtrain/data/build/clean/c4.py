"""The rules of C4: Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer,
JMLR 21 (2020), section 2.2, and its published code (tensorflow_datasets/text/c4_utils.py).

Two rules of the paper are not implemented: the list of bad words, which removes much that is harmless, and the removal
of duplicate three-sentence spans.
"""

from __future__ import annotations

import re

from bigtrain.config import C4Settings
from bigtrain.data.build.clean.text import Rejection, Text, sentences

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_SENTENCE_ENDS = (".", "?", "!", '"', "'")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def c4(text: Text, limits: C4Settings) -> Text | Rejection:
    """Keep the lines that are sentences. Remove documents with too few of them, with filler text, or with code.

    Filler text and brackets are searched for in lines that would be kept, as in the published code.
    """
    kept: list[str] = []
    count = 0
    for raw in text.lines:
        line = raw.strip()
        words = line.split()
        if len(words) < limits.min_words_per_line or max(map(len, words), default=0) > limits.max_word_length:
            continue
        if limits.citations:
            line = _CITATION.sub("", line)
        if limits.terminal_punctuation and (not line.endswith(_SENTENCE_ENDS) or line.endswith("...")):
            continue
        lower = line.lower()
        if limits.lorem_ipsum and "lorem ipsum" in lower:
            return Rejection("c4", "lorem ipsum")
        if limits.javascript and "javascript" in lower:
            continue
        if limits.curly_brackets and "{" in line:
            return Rejection("c4", "curly bracket")
        if limits.policies and any(phrase in lower for phrase in _POLICIES):
            continue
        count += sentences(line)
        kept.append(line)
    if count < limits.min_sentences:
        return Rejection("c4", "too few sentences")
    return Text("\n".join(kept).strip())

"""The rules of Gopher: Rae et al., Scaling Language Models: Methods, Analysis & Insights from Training Gopher, 2021
(arXiv:2112.11446), appendix A.1.1. Details that the paper leaves open are as in datatrove, which made FineWeb.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice

from bigtrain.config import GopherQualitySettings, GopherRepetitionSettings
from bigtrain.data.build.clean.text import Rejection, Text, ratio, repeated

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_ALPHABETIC = re.compile(r"[^\W\d_]")
_ELLIPSES = ("...", "…")
_BULLETS = ("•", "-")
_PARAGRAPH_END = re.compile(r"\n{2,}")
_LINE_END = re.compile(r"\n+")


def gopher_quality(text: Text, limits: GopherQualitySettings) -> Text | Rejection:
    """Remove documents that do not look like English prose (section A.1.1, Quality Filtering).

    The number of words and their mean length do not count punctuation; the other shares are of all words, with
    punctuation.
    """
    words = text.words
    proper = [len(word) for word in words if word.strip("_")[:1].isalnum()]
    if len(proper) < limits.min_words:
        return _refused("too few words")
    if len(proper) > limits.max_words:
        return _refused("too many words")
    if not proper:
        return text
    mean_length = sum(proper) / len(proper)
    if mean_length < limits.min_mean_word_length:
        return _refused("words too short")
    if mean_length > limits.max_mean_word_length:
        return _refused("words too long")
    if ratio(text.text.count("#"), len(words)) > limits.max_symbols_per_word:
        return _refused("too many hash signs")
    if ratio(sum(map(text.text.count, _ELLIPSES)), len(words)) > limits.max_symbols_per_word:
        return _refused("too many ellipses")
    lines = text.lines
    if ratio(sum(line.lstrip().startswith(_BULLETS) for line in lines), len(lines)) > limits.max_bullet_lines:
        return _refused("too many bullet points")
    if ratio(sum(line.rstrip().endswith(_ELLIPSES) for line in lines), len(lines)) > limits.max_ellipsis_lines:
        return _refused("too many lines end with an ellipsis")
    if ratio(sum(_ALPHABETIC.search(word) is not None for word in words), len(words)) < limits.min_alphabetic_words:
        return _refused("too few words with letters")
    if len(STOP_WORDS.intersection(words)) < limits.min_stop_words:
        return _refused("too few stop words")
    return text


def _refused(reason: str) -> Rejection:
    return Rejection("gopher_quality", reason)


def gopher_repetition(text: Text, limits: GopherRepetitionSettings) -> Text | Rejection:
    """Remove documents that repeat themselves (section A.1.1, Repetition Removal; thresholds of table A1).

    Shares of characters are of all characters of the text. The first of two equal lines, paragraphs or n-grams is not
    counted; the most frequent n-gram is counted with all its occurrences.
    """
    size = len(text.text)
    for what, items, share, character_share in (
        (
            "paragraphs",
            _PARAGRAPH_END.split(text.text.strip()),
            limits.max_duplicate_paragraphs,
            limits.max_duplicate_paragraph_characters,
        ),
        ("lines", _LINE_END.split(text.text), limits.max_duplicate_lines, limits.max_duplicate_line_characters),
    ):
        count, characters = repeated(items)
        if ratio(count, len(items)) > share:
            return Rejection("gopher_repetition", f"repeated {what}")
        if ratio(characters, size) > character_share:
            return Rejection("gopher_repetition", f"characters in repeated {what}")
    words = text.words
    for n, share in enumerate(limits.max_top_ngram_characters, start=2):
        if ratio(_characters_of_the_most_frequent(words, n), size) > share:
            return Rejection("gopher_repetition", f"most frequent {n}-gram")
    for n, share in enumerate(limits.max_duplicate_ngram_characters, start=5):
        ngrams = list(_ngrams(words, n))
        if len(set(ngrams)) == len(ngrams):
            break  # no n-gram occurs twice, so no longer one does
        if ratio(_characters_in_repeated(words, ngrams, n), size) > share:
            return Rejection("gopher_repetition", f"repeated {n}-grams")
    return text


def _ngrams(words: Sequence[str], n: int) -> zip[tuple[str, ...]]:
    return zip(*(islice(words, start, None) for start in range(n)), strict=False)


def _characters_of_the_most_frequent(words: Sequence[str], n: int) -> int:
    """Length of the most frequent n-gram, with spaces, times its frequency; the first of several."""
    ngrams = Counter(_ngrams(words, n))
    if not ngrams:
        return 0
    ngram = max(ngrams, key=ngrams.__getitem__)
    return len(" ".join(ngram)) * ngrams[ngram]


def _characters_in_repeated(words: Sequence[str], ngrams: Sequence[tuple[str, ...]], n: int) -> int:
    """Characters in n-grams that occurred before, none counted twice: after a repeated one, the next n-gram starts."""
    seen: set[tuple[str, ...]] = set()
    characters = index = 0
    while index < len(ngrams):
        if ngrams[index] in seen:
            characters += sum(map(len, ngrams[index]))
            index += n
        else:
            seen.add(ngrams[index])
            index += 1
    return characters

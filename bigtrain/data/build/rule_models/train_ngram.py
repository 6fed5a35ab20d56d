"""`bigtrain data ngram train`: an n-gram model of the words of documents, with modified Kneser-Ney smoothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigtrain.data.build.rule_models.backoff_model import backoff_of
from bigtrain.data.build.rule_models.kneser_ney import ORDER, NGramModel
from bigtrain.data.build.rule_models.ngram_file import write_ngrams
from bigtrain.data.build.rule_models.sample_documents import require_documents, sample_documents
from bigtrain.data.build.rule_models.sentences import END, START, UNKNOWN, TokenForm, sentences_of
from bigtrain.data.build.rule_models.word_table import WordTable
from bigtrain.data.format.documents import is_held_out
from bigtrain.data.format.hashing import file_digest

HELD_OUT = 0.1
"""The share of the documents whose perplexities are reported."""
FEWEST = 10
PERCENTS = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99)


@dataclass(frozen=True)
class NGramOptions:
    """How an n-gram model is trained."""

    order: int = ORDER
    """The n of its n-grams."""
    tokens: TokenForm = "words"
    """What it counts: see the rule perplexity."""
    max_words: int = 100_000
    """The most frequent words that it knows."""
    min_count: int = 2
    """It does not know a rarer word."""
    max_tokens: int = 20_000_000
    """It stops reading after so many: training takes about 150 bytes of memory for each."""


@dataclass(frozen=True)
class Percentile:
    """A value that a share of the documents does not exceed."""

    percent: float
    value: float


@dataclass(frozen=True)
class TrainedNGrams:
    """An n-gram model that was written, and the perplexities of documents that it did not count."""

    model: str
    hash: str
    """Of the file, for `hash` of the rule."""
    order: int
    words: int
    """That it knows, with those that start and end a sentence and stand for unknown ones."""
    ngrams: list[int]
    """How many it has of each order, from unigrams up."""
    documents: int
    """That it counted."""
    tokens: int
    held_out: int
    """Documents whose perplexities follow."""
    perplexities: list[Percentile]


def train_ngrams(
    paths: Sequence[str], out: Path, *, text_field: str, options: NGramOptions, report: Callable[[str], None]
) -> TrainedNGrams:
    """Count the n-grams of documents, and write the model.

    Args:
        paths: files, folders or globs of documents.
        out: the file to write: an ARPA file where it ends in `.arpa`.
        text_field: the field or column of the text, in JSON lines and Parquet.
        options: how it is trained.
        report: called with lines of progress.

    Raises:
        BigtrainError: a file cannot be read, there are fewer than ten documents, or `out` cannot be written.
    """
    table = WordTable()
    counted, lengths, held_out = [], [], []
    documents = tokens = 0
    for document in sample_documents(paths, text_field, "PATH"):
        if tokens >= options.max_tokens:
            report(f"stopped reading at {tokens:,} tokens, --max-tokens")
            break
        if is_held_out(document.file, document.position, HELD_OUT):
            held_out.append(document.text)
            continue
        sentences = sentences_of(document.text, options.tokens)
        counted += [table.numbers_of(sentence) for sentence in sentences]
        lengths += [len(sentence) for sentence in sentences]
        documents += 1
        tokens += sum(map(len, sentences))
    require_documents(documents, FEWEST, "PATH")
    report(f"{documents:,} documents, {tokens:,} tokens")
    known = [word for word, _ in table.most_frequent(options.max_words, options.min_count)]
    words = [*dict.fromkeys((START, END, UNKNOWN, *known))]
    numbers = table.renumbered(words)
    numbers[numbers < 0] = words.index(UNKNOWN)
    depth = np.concatenate([np.arange(length) for length in lengths])
    counts = NGramModel(numbers[np.concatenate(counted)], depth, vocab_size=len(words), order=options.order)
    model = backoff_of(counts, words, options.tokens)
    write_ngrams(model, out)
    found = (model.perplexity(text, options.tokens) for text in held_out)
    return TrainedNGrams(
        model=str(out),
        hash=file_digest(out),
        order=options.order,
        words=len(words),
        ngrams=[len(level.keys) for level in model.levels],
        documents=documents,
        tokens=tokens,
        held_out=len(held_out),
        perplexities=percentiles([value for value in found if value is not None]),
    )


def percentiles(values: Sequence[float]) -> list[Percentile]:
    """The values at PERCENTS of some numbers, each one of them; none for no numbers."""
    if not values:
        return []
    return [
        Percentile(percent, float(value))
        for percent, value in zip(PERCENTS, np.percentile(values, PERCENTS, method="inverted_cdf"), strict=True)
    ]

"""Corpora: the origins of documents.

A corpus kind is a function in `CORPORA` from a source's settings to a `Corpus`: a stamp of its state (files with size
and time, or a dataset's fingerprint), and an iterator of pieces in a fixed order. Pieces are cheap to list; worker
processes read their documents. To add a kind, write such a function and name it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.chat import chat
from bigtrain.data.build.corpus.conll import conll
from bigtrain.data.build.corpus.corpus import Corpus
from bigtrain.data.build.corpus.csv_rows import csv_rows
from bigtrain.data.build.corpus.files import describe_skipped
from bigtrain.data.build.corpus.gettext import gettext
from bigtrain.data.build.corpus.glue import glue
from bigtrain.data.build.corpus.held_out import with_held_out
from bigtrain.data.build.corpus.huggingface import huggingface
from bigtrain.data.build.corpus.imdb import imdb
from bigtrain.data.build.corpus.jsonl import jsonl
from bigtrain.data.build.corpus.megatron import megatron
from bigtrain.data.build.corpus.parquet import parquet
from bigtrain.data.build.corpus.python_stdlib import python_stdlib
from bigtrain.data.build.corpus.squad import AnsweredQuestion, read_questions, squad
from bigtrain.data.build.corpus.super_glue import super_glue
from bigtrain.data.build.corpus.text import text
from bigtrain.data.build.corpus.text_lines import text_lines
from bigtrain.data.build.corpus.warc import warc
from bigtrain.data.format.documents import Document

CORPORA: dict[str, Callable[[SourceSettings], Corpus]] = {
    "python_stdlib": python_stdlib,
    "text": text,
    "jsonl": jsonl,
    "parquet": parquet,
    "huggingface": huggingface,
    "megatron": megatron,
    "gettext": gettext,
    "csv": csv_rows,
    "text_lines": text_lines,
    "imdb": imdb,
    "glue": glue,
    "super_glue": super_glue,
    "conll": conll,
    "squad": squad,
    "chat": chat,
    "warc": warc,
}


def open_corpus(source: SourceSettings) -> Corpus:
    """List a source's corpus, with what its settings hold out. Raises BigtrainError if it is missing or empty."""
    corpus = CORPORA[source.kind](source)
    if source.held_out_path is None:
        return corpus
    held_out = CORPORA[source.kind](source.model_copy(update={"path": source.held_out_path}))
    return with_held_out(corpus, held_out)


def read_documents(source: SourceSettings) -> Iterator[Document]:
    """All documents of a source, in order, read in this process."""
    for piece in open_corpus(source).pieces():
        yield from piece.documents()


__all__ = [
    "CORPORA",
    "AnsweredQuestion",
    "Corpus",
    "describe_skipped",
    "open_corpus",
    "read_documents",
    "read_questions",
]

"""The names of a source's labels: those that its format has, that its settings give, or that its documents have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bigtrain.base import BigtrainError
from bigtrain.config import DataSettings, SourceSettings
from bigtrain.data.build.corpus import Corpus
from bigtrain.data.build.corpus.glue import GLUE
from bigtrain.data.build.corpus.imdb import NAMES as IMDB
from bigtrain.data.build.corpus.super_glue import SUPER_GLUE
from bigtrain.data.build.examples import ExampleRules
from bigtrain.data.build.execute import BuildExecutor
from bigtrain.data.format.documents import Piece
from bigtrain.data.format.labels import FIXED_NAMES, MOST_NAMES, LabelScheme


def example_rules(
    source: SourceSettings,
    settings: DataSettings,
    corpus: Corpus,
    executor: BuildExecutor,
    report: Callable[[str], None],
) -> ExampleRules | None:
    """How the labelled documents of a source are made; None where it has no labels.

    Names that neither the format nor the settings have are looked for in all documents.

    Raises:
        BigtrainError: the documents have fewer than two labels, or too many.
    """
    if source.labels is None:
        return None
    names = known_names(source)
    if names is None:
        names = _names_in(source, corpus, executor)
        report(f"{source.name}: {len(names):,} labels, {', '.join(names)}"[:300])
    return ExampleRules(
        scheme=LabelScheme(source.labels, names),
        row=settings.sequence_length if source.fits_rows else None,
        separator=settings.tokenizer.separator if source.separated else None,
        doc_stride=source.doc_stride,
        max_query_length=source.max_query_length,
    )


def known_names(source: SourceSettings) -> tuple[str, ...] | None:
    """The names that the format of a source has, or its settings; None where its documents say them."""
    if source.labels is not None and source.labels in FIXED_NAMES:
        return FIXED_NAMES[source.labels]
    if source.kind == "glue" and source.task is not None:
        return tuple(GLUE[source.task].names.values())
    if source.kind == "super_glue" and source.task is not None:
        return SUPER_GLUE[source.task].names
    if source.kind == "imdb":
        return IMDB
    return source.label_names or None


@dataclass(frozen=True)
class _NamesOfPiece:
    def __call__(self, piece: Piece) -> set[str]:
        """The labels in the documents of a piece."""
        return {
            label
            for document in piece.documents()
            for segment in document.segments
            for label in (segment.label, *(span.label for span in segment.spans))
            if label is not None
        }


def _names_in(source: SourceSettings, corpus: Corpus, executor: BuildExecutor) -> tuple[str, ...]:
    found: set[str] = set()
    for names in executor.map_in_order(_NamesOfPiece(), corpus.pieces()):
        found |= names
        if len(found) > MOST_NAMES:
            break
    if not 2 <= len(found) <= MOST_NAMES:
        raise BigtrainError(
            f"data.sources: {source.name!r} has no labels that could be learned",
            found=f"{len(found):,} labels: {', '.join(sorted(found)[:5])}"[:300],
            wanted=f"from 2 to {MOST_NAMES:,} different ones",
            fix="check the field of the label, and that the files have labels",
        )
    numbers = all(name.lstrip("-").isdecimal() for name in found)
    return tuple(sorted(found, key=lambda name: (int(name) if numbers else 0, name)))

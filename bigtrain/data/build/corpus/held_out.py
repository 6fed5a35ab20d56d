"""A corpus with files of its own that are held out, such as `dev.tsv` beside `train.tsv`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bigtrain.data.build.corpus.corpus import Corpus
from bigtrain.data.format.documents import Document, Piece
from bigtrain.data.format.hashing import identity

FOLDER = "held_out/"
"""Stands before the names of files that are held out, since one may have the name of another."""


@dataclass(frozen=True)
class _OfOneSide:
    """A piece whose documents are all held out, or none of them."""

    piece: Piece
    held_out: bool

    @property
    def extent(self) -> int:
        return self.piece.extent

    @property
    def continued(self) -> bool:
        return self.piece.continued

    def documents(self) -> Iterator[Document]:
        for document in self.piece.documents():
            name = FOLDER + document.file if self.held_out else document.file
            yield replace(document, file=name, held_out=self.held_out)


def with_held_out(corpus: Corpus, held_out: Corpus) -> Corpus:
    """The documents of two corpora, of which those of the second are held out."""

    def pieces() -> Iterator[Piece]:
        yield from (_OfOneSide(piece, held_out=False) for piece in corpus.pieces())
        yield from (_OfOneSide(piece, held_out=True) for piece in held_out.pieces())

    known = corpus.extent is not None and held_out.extent is not None
    return Corpus(
        identity([corpus.stamp, held_out.stamp]),
        f"{corpus.summary}; held out {held_out.summary}",
        pieces,
        extent=(corpus.extent or 0) + (held_out.extent or 0) if known else None,
        skipped=Counter(corpus.skipped) + Counter(held_out.skipped),
    )

"""The file of a supervised fastText model (Joulin et al. 2017), as `fasttext supervised` writes it in version 12.

    magic, version    2 x i32
    arguments         12 x i32, 1 x f64      dimensions, n-grams of words and characters, buckets, loss, ...
    dictionary        3 x i32, 2 x i64       entries, words, labels; tokens read; pruned buckets, -1 for none
      each entry      bytes, NUL, i64, i8    a word or a label, how often it occurred, which of the two it is
      pruned buckets  2 x i32 each           alone in a model that was made smaller
    quantised?        u8, matrix             the vectors of words, then of buckets
    quantised?        u8, matrix             the vectors of labels
      matrix          2 x i64, f32[m * n]    or codes and centroids of a product quantiser

Everything is little-endian. The library that asks such a model trusts its file, so `check_fasttext` walks through all
of it first: a file that is cut off or of another kind gets a message.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bigtrain.base import BigtrainError, write_asked_for

MAGIC, VERSION = 793712314, 12
SUPERVISED, SOFTMAX = 3, 3
"""fastText's numbers of this kind of model, and of its loss."""
WORD, LABEL = 0, 1
LABEL_PREFIX = "__label__"
END_OF_LINE = "</s>"
"""The word that fastText puts at the end of each text."""
CENTROIDS = 256
LONGEST_ENTRY = 1 << 16
"""Bytes of a word. fastText itself has no limit; a longer one is the sign of another format."""


@dataclass(frozen=True)
class FastTextModel:
    """A supervised model of one dimension: a weight for each word and each bucket, and one for each label."""

    words: Sequence[tuple[str, int]]
    """The words, and how often they occurred in training."""
    labels: Sequence[tuple[str, int]]
    """The labels without their prefix, and how many documents had them."""
    word_ngrams: int
    """The longest n-gram of words that has a bucket."""
    buckets: int
    weights: npt.NDArray[np.float32]
    """[words + buckets]"""
    label_weights: npt.NDArray[np.float32]
    """[labels]"""

    def write(self, path: Path) -> None:
        """Write the file, which is seen whole or not at all."""
        arguments = struct.pack(
            "<12id", 1, 5, 1, 1, 5, self.word_ngrams, SOFTMAX, SUPERVISED, self.buckets, 0, 0, 100, 1e-4
        )
        entries = [(word, count, WORD) for word, count in self.words]
        entries += [(LABEL_PREFIX + label, count, LABEL) for label, count in self.labels]
        tokens = sum(count for _, count in self.words)
        head = struct.pack("<3i2q", len(entries), len(self.words), len(self.labels), tokens, -1)
        dictionary = b"".join(name.encode() + b"\0" + struct.pack("<qb", count, kind) for name, count, kind in entries)
        matrices = b"".join(
            struct.pack("<b2q", 0, len(matrix), 1) + matrix.astype("<f4").tobytes()
            for matrix in (self.weights, self.label_weights)
        )
        write_asked_for(path, struct.pack("<2i", MAGIC, VERSION) + arguments + head + dictionary + matrices)


@dataclass(frozen=True)
class FastTextSummary:
    """What the head of a fastText model says."""

    labels: tuple[str, ...]
    """Without their prefix, in the order of the file."""
    words: int
    word_ngrams: int
    buckets: int


def check_fasttext(path: Path, where: str) -> FastTextSummary:
    """Walk through a model's file and return what it holds.

    Args:
        path: the file.
        where: the setting or command that names it, for messages.

    Raises:
        BigtrainError: it cannot be read, is of another format or version, or does not have the bytes that it should.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Walk(content).summary()
    except OSError as error:
        raise BigtrainError(
            f"{where}: {path} cannot be read", found=error.strerror or str(error), fix="correct the path of the model"
        ) from None
    except (ValueError, struct.error) as error:
        raise BigtrainError(
            f"{where}: {path} is not a whole classifier in fastText's format",
            found=str(error),
            wanted=f"a supervised model of version {VERSION}, as fastText and `data classifier train` write it",
            fix="copy the file again, or name another model",
        ) from None


class _Walk:
    """Reads the parts of a file one after the other. Raises ValueError where one is not as it should be."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at = content, 0

    def summary(self) -> FastTextSummary:
        magic, version = self._numbers("<2i", "its first bytes")
        if magic != MAGIC:
            raise ValueError("other first bytes than those of a fastText model")
        if version not in (11, VERSION):
            raise ValueError(f"version {version}")
        arguments = self._numbers("<12id", "its arguments")
        dimensions, word_ngrams, kind, buckets = arguments[0], arguments[5], arguments[7], arguments[8]
        if kind != SUPERVISED:
            raise ValueError("vectors of words without a classifier")
        entries, words, labels, _, pruned = self._numbers("<3i2q", "the head of its dictionary")
        if min(words, labels) < 0 or words + labels != entries or labels < 1 or buckets < 0 or word_ngrams < 1:
            raise ValueError(f"a dictionary of {entries:,} entries, {words:,} words and {labels:,} labels")
        names = [name for _ in range(entries) if (name := self._label()) is not None]
        if len(names) != labels:
            raise ValueError(f"{len(names):,} labels of {labels:,}")
        self._skip(8 * max(pruned, 0), "its pruned buckets")
        rows = words + (pruned if pruned >= 0 else buckets)
        quantised = self._matrix(rows, dimensions, quantised=self._flag())
        of_labels = self._flag()
        self._matrix(labels, dimensions, quantised=quantised and of_labels)
        if (rest := len(self._content) - self._at) != 0:
            raise ValueError(f"{rest:,} bytes after its end")
        return FastTextSummary(tuple(names), words, word_ngrams, buckets)

    def _label(self) -> str | None:
        """The next entry's name if it is a label."""
        end = self._content.find(b"\0", self._at, self._at + LONGEST_ENTRY)
        if end < 0:
            raise ValueError("a dictionary that is cut off")
        name, self._at = self._content[self._at : end], end + 1
        (_, kind) = self._numbers("<qb", "an entry of its dictionary")
        return name.decode(errors="replace").removeprefix(LABEL_PREFIX) if kind == LABEL else None

    def _flag(self) -> bool:
        (flag,) = self._numbers("<B", "the head of a matrix")
        if flag > 1:
            raise ValueError(f"a flag of value {flag}")
        return bool(flag)

    def _matrix(self, rows: int, columns: int, *, quantised: bool) -> bool:
        """Skip a matrix, and return whether it is quantised."""
        if not quantised:
            shape = self._numbers("<2q", "the head of a matrix")
            if shape != (rows, columns):
                raise ValueError(f"a matrix of {shape[0]:,} x {shape[1]:,} for {rows:,} x {columns:,}")
            self._skip(4 * rows * columns, "a matrix")
            return False
        with_norms = self._flag()
        *shape_, codes = self._numbers("<2qi", "the head of a matrix")
        if tuple(shape_) != (rows, columns) or codes < 0:
            raise ValueError(f"a quantised matrix of {shape_[0]:,} x {shape_[1]:,} for {rows:,} x {columns:,}")
        self._skip(codes, "the codes of a matrix")
        self._quantiser(columns)
        if with_norms:
            self._skip(rows, "the norms of a matrix")
            self._quantiser(1)
        return True

    def _quantiser(self, columns: int) -> None:
        dimensions, parts, of_part, of_last = self._numbers("<4i", "a product quantiser")
        if dimensions != columns or parts < 1 or of_part < 1 or of_last < 1:
            raise ValueError(f"a quantiser of {dimensions:,} dimensions for {columns:,}")
        self._skip(4 * dimensions * CENTROIDS, "the centroids of a quantiser")

    def _numbers(self, form: str, what: str) -> tuple[int, ...]:
        start = self._at
        self._skip(struct.calcsize(form), what)
        return struct.unpack_from(form, self._content, start)

    def _skip(self, size: int, what: str) -> None:
        if self._at + size > len(self._content):
            raise ValueError(f"a file that ends inside {what}")
        self._at += size

"""The documents of all sources, numbered in the order of the sources, of their groups, and of documents in these."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from bigtrain.base import parse_json
from bigtrain.data.format.hashing import canonical_json
from bigtrain.data.format.work_folder import WorkFolder

Documents = npt.NDArray[np.uint64]
"""Documents by their numbers over all sources."""


@dataclass(frozen=True)
class DocumentNumbering:
    """Where the documents of each file of keys start."""

    files: tuple[str, ...]
    """The names of the files, in order."""
    starts: tuple[int, ...]
    """[files+1]: the number of the first document of each file, and of all documents."""

    @classmethod
    def of(cls, files: Iterable[str], documents: Iterable[int]) -> DocumentNumbering:
        """The numbering of files with so many documents each."""
        return cls(tuple(files), tuple(accumulate(documents, initial=0)))

    @property
    def documents(self) -> int:
        """All documents."""
        return self.starts[-1]

    def address(self, document: int) -> tuple[int, int]:
        """The index of the file of a document, and its number in there."""
        file = bisect_right(self.starts, document) - 1
        return file, document - self.starts[file]

    def write(self, folder: WorkFolder, name: str) -> None:
        """Write it where tasks read it: it is too long to be sent with each of them."""
        folder.write(name, canonical_json([self.files, self.starts]))


@lru_cache(maxsize=2)
def read_numbering(folder: WorkFolder, name: str) -> DocumentNumbering:
    """The inverse of `DocumentNumbering.write`, which a worker reads once."""
    files, starts = parse_json(folder.read(name), name)
    return DocumentNumbering(tuple(files), tuple(starts))

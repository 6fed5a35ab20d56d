"""The tokens and documents of a piece, as a file in the work folder: what a shard is made of.

    piece --tokenize, anywhere--> NAME.npz in the work folder, and a small PieceCounts to the process that counts
                                    |
    shard <--any worker copies----- the pieces between two borders, which follow from the counts

The file has numpy's arrays and their CRC-32, which is checked when they are read. So a build that was killed, or a
machine that lost power, costs at most the pieces that were not finished.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigtrain.base import BigtrainError
from bigtrain.data.build.funnel import Funnel
from bigtrain.data.build.tokenization import TokenizedPiece, TokenizePiece
from bigtrain.data.format.documents import ID_BYTES, Piece
from bigtrain.data.format.layout import SPLITS, Split
from bigtrain.data.format.shards import TokenizedDocuments
from bigtrain.data.format.work_folder import WorkFolder

RECORD = "record"
NOT_WHOLE = (FileNotFoundError, EOFError, zipfile.BadZipFile, KeyError, ValueError)
"""What reading a file raises that is missing or damaged."""


@dataclass(frozen=True)
class PieceCounts:
    """What a piece adds to the counts."""

    number: int
    """Of the piece in its corpus, from 0."""
    extent: int
    """Size of the piece, in the unit of `Corpus.extent`."""
    continued: bool
    """Whether the next piece belongs to the same group."""
    funnel: Funnel
    ids: Mapping[Split, bytes]
    """Of its documents, 16 bytes each."""


@dataclass(frozen=True)
class KeepTokenized:
    """Tokenizes a piece into the work folder, unless an earlier build did; it is pickled for the workers."""

    tokenize: TokenizePiece
    folder: WorkFolder

    def __call__(self, numbered: tuple[int, Piece]) -> PieceCounts:
        """Make the result of a piece, given with its number."""
        number, piece = numbered
        name = piece_name(number)
        try:
            arrays = _Arrays(self.folder.read(name))
            arrays.check()
            return _kept(number, arrays)
        except (*NOT_WHOLE, BigtrainError):
            pass  # it is made for the first time, or was damaged when a machine lost power
        content = encoded(self.tokenize(piece))
        self.folder.write(name, content, durable=False)  # its CRC shows what was not
        return _kept(number, _Arrays(content))


def piece_name(number: int) -> str:
    """The file of a piece. A thousand share a folder."""
    return f"{number // 1000:05d}/{number % 1000:03d}.npz"


def read_piece(folder: WorkFolder, number: int) -> dict[Split, TokenizedDocuments]:
    """The documents of a piece, by split. Raises BigtrainError if its file is damaged."""
    try:
        arrays = _Arrays(folder.read(piece_name(number)))
        return {split: arrays.documents(split) for split in SPLITS}
    except NOT_WHOLE as error:
        raise BigtrainError(
            f"a finished piece of the build is missing or damaged: {piece_name(number)} in {folder}",
            found=f"{type(error).__name__}: {error}",
            wanted="what a worker of this build wrote",
            fix="start the build again: it makes the piece again",
        ) from None


def encoded(piece: TokenizedPiece) -> bytes:
    """The file of a piece."""
    arrays: dict[str, Any] = {}
    for split, documents in zip(SPLITS, (piece.train, piece.validation), strict=True):
        names: dict[str, int] = {}
        arrays |= {
            f"{split}.tokens": documents.tokens,
            f"{split}.labels": documents.labels,
            f"{split}.lengths": np.array(documents.lengths, np.int64),
            f"{split}.ids": np.frombuffer(b"".join(documents.ids), np.uint8),
            f"{split}.positions": np.array(documents.positions, np.int64),
            f"{split}.file": np.array([names.setdefault(name, len(names)) for name in documents.files], np.int64),
            f"{split}.names": _json_array(list(names)),
            f"{split}.metadata": _json_array(documents.metadata),
        }
    record = {"extent": piece.extent, "continued": piece.continued, "funnel": piece.funnel.to_json()}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays, **{RECORD: _json_array(record)})
    return content.getvalue()


class _Arrays:
    """The arrays of a file. Raises BadZipFile, KeyError or ValueError for anything else, now or when one is read."""

    def __init__(self, content: bytes) -> None:
        self._arrays = np.load(io.BytesIO(content), allow_pickle=False)

    def __getitem__(self, name: str) -> Any:
        return self._arrays[name]

    def check(self) -> None:
        """Read all of them. Raises BadZipFile where one has another CRC."""
        if (damaged := self._arrays.zip.testzip()) is not None:
            raise zipfile.BadZipFile(damaged)

    def json(self, name: str) -> Any:
        return json.loads(self[name].tobytes())

    def ids(self, split: Split) -> bytes:
        ids: bytes = self[f"{split}.ids"].tobytes()
        return ids

    def documents(self, split: Split) -> TokenizedDocuments:
        ids, names = self.ids(split), self.json(f"{split}.names")
        return TokenizedDocuments(
            tokens=self[f"{split}.tokens"],
            lengths=self[f"{split}.lengths"].tolist(),
            ids=[ids[start : start + ID_BYTES] for start in range(0, len(ids), ID_BYTES)],
            files=[names[index] for index in self[f"{split}.file"].tolist()],
            positions=self[f"{split}.positions"].tolist(),
            labels=self[f"{split}.labels"],
            metadata=self.json(f"{split}.metadata"),
        )


def _kept(number: int, arrays: _Arrays) -> PieceCounts:
    record = arrays.json(RECORD)
    funnel = Funnel.from_json(record["funnel"])
    return PieceCounts(
        number, record["extent"], record["continued"], funnel, {split: arrays.ids(split) for split in SPLITS}
    )


def _json_array(value: Any) -> Any:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)

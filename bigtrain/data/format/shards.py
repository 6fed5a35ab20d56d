r"""Shards: token ids and documents on disk, and labels of the tokens where a source has them.

A dataset is a folder:

    00000.tok      little-endian u16 or u32 token ids, without a header; the largest possible id decides the width
    00000.doc      its documents, in columns (below)
    00000.meta     where its source keeps metadata; not in the manifest (document_metadata.py)
    00000.lab      format 2 alone: a label for each token, i8 (or i16 for more than 128 names), without a header
    manifest.json  written last: format, counts, tokenizer hash, special ids, parents, and for each file its size
                   and an xxh3-128 for every block of BLOCK_BYTES
    00000.json     format 3 alone, of many shards: the hashes of a shard's blocks, of which the manifest has the hash

A `.doc` file with n documents from f files, everything little-endian, each column 8-byte aligned:

    magic      8 bytes   b"btdoc\0\0\1"
    n, f       2 x u64
    offset     u64[n+1]  first token of each document in the `.tok` file; the last entry is the number of tokens
    id         16 bytes[n]
    position   u64[n]    index of the document in its source file
    file       u32[n]    index of its source file in the table that follows; padded to 8 bytes
    name_end   u64[f]    end of each file's name in `names`
    names      UTF-8     the names, concatenated

What the numbers of labels mean, the manifest says: `labels` is their kind, `label_names` has the names of classes and
tags. A token without a label has -100. labels.py has the names of the other kinds.

The dataset id is a Merkle root: the hash of the manifest, which has the hashes of the blocks. It depends only on the
content of the dataset, not on paths, times, or the number of processes that wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from bigtrain.data.format.columns import ColumnReader
from bigtrain.data.format.document_metadata import SUFFIX as METADATA
from bigtrain.data.format.document_metadata import encoded_metadata
from bigtrain.data.format.documents import ID_BYTES
from bigtrain.data.format.file_record import BLOCK_BYTES, FileRecord, changed_error
from bigtrain.data.format.manifest import ShardRecord
from bigtrain.data.format.work_folder import LocalFolder, WorkFolder


@dataclass(frozen=True)
class TokenizedDocuments:
    """Consecutive documents of one split. Each ends with the end-of-text token."""

    tokens: npt.NDArray[np.unsignedinteger]
    """Token ids of all documents, concatenated: u16 if the vocabulary allows it, else u32."""
    lengths: list[int]
    ids: list[bytes]
    files: list[str]
    positions: list[int]
    labels: npt.NDArray[np.signedinteger] = field(default_factory=lambda: np.empty(0, np.int8))
    """A label for each token; empty where the source has none."""
    metadata: list[str] = field(default_factory=list)
    """JSON of each document; empty where the source keeps none."""


DOC_MAGIC = b"btdoc\0\0\1"


class BlockHasher:
    """Hashes a stream of bytes block by block."""

    def __init__(self, block_bytes: int | None = None) -> None:
        """Start with blocks of this size, by default `BLOCK_BYTES`."""
        self.size = 0
        self._block_bytes = BLOCK_BYTES if block_bytes is None else block_bytes
        self._blocks: list[str] = []
        self._current = xxhash.xxh3_128()

    def update(self, data: memoryview) -> None:
        """Add the next bytes."""
        while len(data):
            free = self._block_bytes - self.size % self._block_bytes
            head, data = data[:free], data[free:]
            self._current.update(head)
            self.size += len(head)
            if self.size % self._block_bytes == 0:
                self._blocks.append(self._current.hexdigest())
                self._current.reset()

    def record(self, name: str) -> FileRecord:
        """The record of a file with these bytes."""
        tail = [self._current.hexdigest()] if self.size % self._block_bytes else []
        return FileRecord(name, self.size, self._blocks + tail)


class _Column:
    """A file with a value for each token. It has its name when it is committed."""

    def __init__(self, folder: WorkFolder, name: str) -> None:
        self._name = name
        self._opened = folder.create(name)
        self._stream = self._opened.__enter__()
        self._hasher = BlockHasher()

    def append(self, values: npt.NDArray[np.integer]) -> None:
        """Add values at the end."""
        data = values.view(np.uint8).data
        self._stream.write(data)
        self._hasher.update(data)

    def commit(self) -> FileRecord:
        """Make the file durable under its own name."""
        self._opened.__exit__(None, None, None)
        return self._hasher.record(self._name)

    def discard(self) -> None:
        """Remove what was written."""
        self._opened.__exit__(_Discarded, _Discarded(), None)


class _Discarded(Exception):
    """A file is not wanted."""


class ShardWriter:
    """Writes one shard into a folder. `finish` commits it.

    Args:
        directory: where its documents are written.
        index: its number.
        labelled: whether its tokens have labels.
        target: where its tokens and labels are written. Default: beside the documents.
    """

    def __init__(
        self, directory: Path, index: int, *, labelled: bool = False, target: WorkFolder | None = None
    ) -> None:
        self._folder = LocalFolder(directory)
        target = target or self._folder
        self._doc = f"{index:05d}.doc"
        self._meta = f"{index:05d}{METADATA}"
        self._tok = _Column(target, f"{index:05d}.tok")
        self._lab = _Column(target, f"{index:05d}.lab") if labelled else None
        self.tokens = 0
        self._lengths: list[int] = []
        self._ids: list[bytes] = []
        self._positions: list[int] = []
        self._metadata: list[str] = []
        self._file_of_document: list[int] = []
        self._file_index: dict[str, int] = {}

    def append(self, documents: TokenizedDocuments) -> None:
        """Add documents at the end."""
        self._tok.append(documents.tokens)
        if self._lab is not None:
            assert len(documents.labels) == len(documents.tokens)
            self._lab.append(documents.labels)
        self.tokens += len(documents.tokens)
        self._lengths += documents.lengths
        self._ids += documents.ids
        self._positions += documents.positions
        self._metadata += documents.metadata
        self._file_of_document += [self._file_index.setdefault(file, len(self._file_index)) for file in documents.files]

    def finish(self) -> ShardRecord | None:
        """Commit the shard and return its record. For a shard without documents: None, and no files."""
        if not self._ids:
            self.discard()
            return None
        columns = self._columns()
        doc_hasher = BlockHasher()
        doc_hasher.update(memoryview(columns))
        self._folder.write(self._doc, columns)
        if self._metadata:
            self._folder.write(self._meta, encoded_metadata(self._metadata))
        tokens, *labels = [column.commit() for column in self._of_tokens]
        return ShardRecord(self.tokens, len(self._ids), [tokens, doc_hasher.record(self._doc), *labels])

    def discard(self) -> None:
        """Remove what was written."""
        for column in self._of_tokens:
            column.discard()

    @property
    def _of_tokens(self) -> list[_Column]:
        return [self._tok] if self._lab is None else [self._tok, self._lab]

    def _columns(self) -> bytes:
        count = len(self._ids)
        offset = np.zeros(count + 1, "<u8")
        np.cumsum(self._lengths, out=offset[1:])
        names = [name.encode() for name in self._file_index]
        return b"".join(
            (
                DOC_MAGIC,
                np.array([count, len(names)], "<u8").tobytes(),
                offset.tobytes(),
                b"".join(self._ids),
                np.array(self._positions, "<u8").tobytes(),
                np.array(self._file_of_document + [0] * (count % 2), "<u4").tobytes(),
                np.cumsum([len(name) for name in names]).astype("<u8").tobytes(),
                *names,
            )
        )


@dataclass(frozen=True)
class DocumentColumns:
    """The columns of a `.doc` file, as views of its bytes."""

    offset: npt.NDArray[np.int64]
    """[n+1], token offsets, viewed as signed because numpy converts a mix of unsigned and signed to floats."""
    id: npt.NDArray[np.void]
    """[n], 16 bytes each."""
    position: npt.NDArray[np.uint64]
    file: npt.NDArray[np.uint32]
    name_end: npt.NDArray[np.uint64]
    names: memoryview

    @classmethod
    def parse(cls, data: memoryview, path: Path) -> DocumentColumns:
        """Views of the columns.

        Raises:
            BigtrainError: the bytes are not such a file, or its columns do not fit each other. It names the file.
        """
        header = len(DOC_MAGIC) + 16
        if bytes(data[:8]) != DOC_MAGIC or len(data) < header:
            raise changed_error(path, f"{bytes(data[:8])!r}, {len(data):,} bytes", repr(DOC_MAGIC))
        count, files = (int(n) for n in np.frombuffer(data, "<u8", 2, len(DOC_MAGIC)))
        names = header + 8 * (count + 1) + (ID_BYTES + 8) * count + 4 * (count + count % 2) + 8 * files
        if names > len(data):
            raise changed_error(path, f"{len(data):,} bytes", f"{names:,} for {count:,} documents of {files:,} files")
        column = ColumnReader(data, header)
        columns = cls(
            offset=column("<i8", count + 1),
            id=column(f"V{ID_BYTES}", count),
            position=column("<u8", count),
            file=column("<u4", count + count % 2)[:count],
            name_end=column("<u8", files),
            names=data[column.position :],
        )
        if (fault := columns._fault()) is not None:
            raise changed_error(path, fault, "columns as bigtrain wrote them")
        return columns

    def require(self, *, documents: int, tokens: int, path: Path) -> None:
        """Raise BigtrainError where there are not so many documents and tokens as a manifest says."""
        if (len(self.id), self.offset[-1]) != (documents, tokens):
            found = f"{len(self.id):,} documents of {self.offset[-1]:,} tokens"
            raise changed_error(path, found, f"{documents:,} documents of {tokens:,} tokens")

    def _fault(self) -> str | None:
        """The first fault of the columns; None without a fault."""
        if self.offset[0] != 0 or (np.diff(self.offset) <= 0).any():
            return "documents that do not follow each other"
        if len(self.file) and self.file.max() >= len(self.name_end):
            return f"a document of file {self.file.max():,} of {len(self.name_end):,}"
        ends = np.concatenate((np.zeros(1, np.uint64), self.name_end))
        if ends[-1] != len(self.names) or (ends[1:] < ends[:-1]).any():
            return "names of files that do not follow each other"
        try:
            bytes(self.names).decode()
        except UnicodeDecodeError:
            return "names of files that are not UTF-8"
        return None

    def file_name(self, document: int) -> str:
        """Name of the source file of a document."""
        return self.name_of_file(int(self.file[document]))

    def name_of_file(self, index: int) -> str:
        """Name of a source file, by its index in the table."""
        start = int(self.name_end[index - 1]) if index else 0
        return bytes(self.names[start : int(self.name_end[index])]).decode(errors="replace")

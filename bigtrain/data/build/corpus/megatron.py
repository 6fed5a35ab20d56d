"""Corpus kind `megatron`: token ids that Megatron-LM's preprocess_data.py wrote, in pairs of a `.bin` and an `.idx`.

The format is that of megatron/core/datasets/indexed_dataset.py. `.bin` holds the ids of all sequences, concatenated.
`.idx` has their positions, everything little-endian and without padding:

    magic      9 bytes   b"MMIDIDX\\0\\0"
    version    u64       1
    dtype      u8        1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16; 6 and 7 are floats
    s, d       2 x u64   number of sequences, and number of documents plus one
    lengths    i32[s]    ids in each sequence
    pointers   i64[s]    offset of each sequence in `.bin`, in bytes
    documents  i64[d]    the first sequence of each document; the last entry is s
    modes      i8[s]     only in multimodal datasets; not read
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from shutil import copyfileobj
from tempfile import TemporaryFile

import numpy as np
import numpy.typing as npt

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.corpus import PIECE_BYTES, Corpus, corpus_of_files, find_files, found_files, total_size
from bigtrain.data.build.corpus.files import CorpusFile, reading
from bigtrain.data.format.documents import Document

SUFFIXES = (".bin", ".idx")
MAGIC = b"MMIDIDX\0\0"
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
DOCUMENTS_AT_ONCE = 1 << 20

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Sequences:
    """Consecutive documents of a pair of files."""

    file: CorpusFile
    """The `.bin`."""
    dtype: str
    first_document: int
    starts: I64
    """[documents + 1], offset of each document in the file, in bytes. The last entry is the end."""
    continued: bool = False

    @property
    def extent(self) -> int:
        return int(self.starts[-1] - self.starts[0])

    def documents(self) -> Iterator[Document]:
        start, end = int(self.starts[0]), int(self.starts[-1])
        with reading(self.file.place), self.file.open() as file:
            file.seek(start)
            content = file.read(end - start)
            if len(content) != end - start:
                raise EOFError(f"it ends at byte {start + len(content):,}")
        given = np.frombuffer(content, self.dtype)
        ids = given.astype("<u4")
        if (wrong := np.flatnonzero(ids != given)).size:
            document = int(np.searchsorted(self.starts - start, wrong[0] * given.itemsize, "right")) - 1
            raise BigtrainError(
                f"document {self.first_document + document} of {self.file.place} has a number that is not a token id",
                found=str(given[wrong[0]]),
                wanted="ids from 0 to 4,294,967,295",
                fix="check that this is text that preprocess_data.py tokenized",
            )
        bounds = ((self.starts - start) // given.itemsize).tolist()
        for number, (first, last) in enumerate(pairwise(bounds), start=self.first_document):
            yield Document("", self.file.name, number, ids[first:last].tobytes())


@dataclass(frozen=True)
class _Index:
    """The columns of an `.idx` file, memory-mapped."""

    dtype: str
    lengths: npt.NDArray[np.int32]
    pointers: I64
    documents: I64

    @classmethod
    def read(cls, file: CorpusFile) -> _Index:
        """Read an index. Raises BigtrainError if the file is not an index, or is incomplete."""
        with reading(file.place):
            content = _mapped(file)
        header = content[: HEADER.size].tobytes().ljust(HEADER.size, b"\0")
        magic, version, code, sequences, documents = HEADER.unpack(header)
        if magic != MAGIC or version != 1:
            raise _not_an_index(file, f"{magic!r}, version {version}", f"{MAGIC!r}, version 1")
        if code not in DTYPES:
            raise _not_an_index(file, f"dtype code {code}", f"a type of integers: {', '.join(map(str, DTYPES))}")
        size = HEADER.size + 12 * sequences + 8 * documents
        if len(content) not in (size, size + sequences) or not documents:
            raise _not_an_index(file, f"{len(content):,} bytes", f"{size:,}, for {sequences:,} sequences")
        at, columns = HEADER.size, []
        for dtype, count in (("<i4", sequences), ("<i8", sequences), ("<i8", documents)):
            columns.append(np.ndarray(count, dtype, content.data, at))
            at += columns[-1].nbytes
        index = cls(DTYPES[code], *columns)
        if index.documents[0] != 0 or index.documents[-1] != sequences or any(index.pointers[:1]):
            raise _not_an_index(
                file,
                f"sequences {index.documents[0]} to {index.documents[-1]} in documents",
                f"0 to {sequences}, the first at the beginning of the file",
            )
        return index

    @property
    def itemsize(self) -> int:
        """Bytes of an id."""
        return np.dtype(self.dtype).itemsize

    @property
    def end(self) -> int:
        """Bytes that `.bin` should have."""
        return int(self.pointers[-1]) + int(self.lengths[-1]) * self.itemsize if len(self.lengths) else 0

    def starts(self, first: int, last: int) -> I64:
        """The offsets of documents [first, last) in `.bin`, and the end of the last one, in bytes.

        Raises:
            ValueError: sequences or documents do not follow each other.
        """
        bounds = self.documents[first : last + 1]
        if (np.diff(bounds) < 0).any() or bounds[0] < 0 or bounds[-1] > len(self.lengths):
            raise ValueError("the sequences of its documents do not follow each other")
        begin, end = int(bounds[0]), int(bounds[-1])
        sizes = self.lengths[begin:end].astype(np.int64) * self.itemsize
        pointers = self.pointers[begin : end + 1]
        if end == len(self.lengths):
            pointers = np.append(pointers, self.end)
        if (sizes < 0).any() or (np.diff(pointers) != sizes).any():
            raise ValueError("its pointers do not follow from its lengths")
        return np.asarray(pointers[bounds - begin])


def _mapped(file: CorpusFile) -> npt.NDArray[np.uint8]:
    """The bytes of a file, memory-mapped. A file at a URL is first copied to a temporary file."""
    if not file.size:
        return np.empty(0, np.uint8)
    if "://" not in file.path:
        return np.memmap(file.path, np.uint8, "r")
    with TemporaryFile() as copy, file.open() as stream:
        copyfileobj(stream, copy)
        file.require_whole(copy.tell())
        copy.flush()
        return np.memmap(copy, np.uint8, "r")


def _not_an_index(file: CorpusFile, found: str, wanted: str) -> BigtrainError:
    return BigtrainError(
        f"{file.place} is not an index of a Megatron-LM dataset, or is cut off or damaged",
        found=found,
        wanted=wanted,
        fix="copy the file again; a file of Megatron before 2020 or of fairseq (TNTIDX) must be converted to mmap",
    )


def _pairs(source: SourceSettings) -> tuple[list[tuple[CorpusFile, CorpusFile]], Mapping[str, int]]:
    """The `.bin` and `.idx` files of a path, in the order of their names, and the files that were skipped."""
    assert source.path is not None
    stem = source.path[:-4] if source.path.endswith(SUFFIXES) else source.path
    files: list[CorpusFile] = []
    skipped: Mapping[str, int] = {}
    for suffix in SUFFIXES:  # a prefix, one of the two files, or a glob of either
        files += found_files(f"data.sources: {source.name!r}", stem + suffix).files
    if not files:
        found = find_files(f"data.sources: {source.name!r}", source.path, SUFFIXES)
        files, skipped = found.files, found.skipped
    named = {file.name: file for file in files if file.name.endswith(SUFFIXES)}
    stems = sorted({name[:-4] for name in named})
    for name in stems:
        for has, lacks in (SUFFIXES, SUFFIXES[::-1]):
            if name + lacks not in named:
                raise BigtrainError(
                    f"data.sources: {source.name!r} lacks a file of a pair",
                    found=named[name + has].place,
                    wanted=f"{name}{lacks} beside it",
                    fix=f"copy the {lacks} file there too, or narrow the path to whole pairs",
                )
    return [(named[name + ".bin"], named[name + ".idx"]) for name in stems], skipped


def _pieces(data: CorpusFile, index_file: CorpusFile) -> Iterator[_Sequences]:
    index = _Index.read(index_file)
    if index.end != data.size:
        raise BigtrainError(
            f"{data.place} is not the file that its index describes, or is cut off",
            found=f"{data.size:,} bytes",
            wanted=f"{index.end:,}, as in {index_file.place}",
            fix="copy both files again",
        )
    documents = len(index.documents) - 1
    for first in range(0, documents, DOCUMENTS_AT_ONCE):
        with reading(index_file.place):
            starts = index.starts(first, min(first + DOCUMENTS_AT_ONCE, documents))
        begin = 0
        while begin < len(starts) - 1:
            end = int(np.searchsorted(starts, starts[begin] + PIECE_BYTES))
            end = min(max(end, begin + 1), len(starts) - 1)
            yield _Sequences(data, index.dtype, first + begin, starts[begin : end + 1])
            begin = end


def megatron(source: SourceSettings) -> Corpus:
    """Each document of each pair, with its index as position. Sequences of one document are concatenated.

    Raises BigtrainError for an incomplete file, or one whose other half is missing.
    """
    pairs, skipped = _pairs(source)
    corpus = corpus_of_files(
        [file for pair in pairs for file in pair],
        lambda: (piece for data, index in pairs for piece in _pieces(data, index)),
        skipped,
    )
    return replace(corpus, extent=total_size(data for data, _ in pairs))

"""What a rank needs of datasets and packs that another rank has opened: some ten bytes a file, without the hashes.

A manifest of 10^13 tokens has ten million hashes. One rank reads and checks it, and sends the others a summary. A rank
that needs a hash reads the manifest itself, and only that of the dataset in question.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bigtrain.config import LabelKind
from bigtrain.data.format.file_record import FileSize
from bigtrain.data.format.labels import LabelScheme
from bigtrain.data.format.manifest import DatasetManifest, ShardSize
from bigtrain.data.format.pack_file import PackManifest
from bigtrain.data.format.shard_table import ShardTable

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FileTable:
    """Names and sizes of files of one folder."""

    compressed_names: bytes
    """The names, separated by `/`, which no bare name has; zlib."""
    sizes: I64
    """[n], bytes."""

    @classmethod
    def of(cls, table: ShardTable[Any]) -> FileTable:
        """The table of the files of all shards, shard by shard."""
        names = "/".join(table.file_names())
        return cls(zlib.compress(names.encode()), np.array(list(table.file_sizes()), np.int64))

    @cached_property
    def _names(self) -> list[str]:
        return zlib.decompress(self.compressed_names).decode().split("/")

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> FileSize:
        """The file with this index, from 0."""
        return FileSize(self._names[index], int(self.sizes[index]))


@dataclass(frozen=True)
class DatasetSummary:
    """A dataset's manifest without the hashes of its blocks."""

    source: str
    split: str
    dtype: str
    vocab_size: int
    end_of_text: int
    tokenizer: str
    parents: dict[str, str]
    block_bytes: int
    begin_of_text: dict[str, Any] | None
    dataset_id: str
    starts: I64
    """[n+1]: the first token of each shard in the stream, and the number of all tokens."""
    documents_of: I64
    """[n], documents of each shard."""
    files: FileTable
    """[2n], or [3n] with labels: the files of each shard, see `ShardSize`."""
    labels: LabelKind | None = None
    """What the labels of the tokens mean; None where there are none."""
    label_names: tuple[str, ...] | None = None
    """See `DatasetManifest.label_names`."""

    @property
    def label_scheme(self) -> LabelScheme | None:
        """Names and numbers of the labels; None where there are none."""
        return LabelScheme.of(self.labels, self.label_names)

    @classmethod
    def of(cls, manifest: DatasetManifest) -> DatasetSummary:
        """The summary of a manifest."""
        shared = ("source", "split", "dtype", "vocab_size", "end_of_text", "tokenizer", "parents", "block_bytes")
        return cls(
            **{name: getattr(manifest, name) for name in shared},
            begin_of_text=manifest.begin_of_text,
            dataset_id=manifest.dataset_id,
            starts=_starts(manifest.table.counts["tokens"]),
            documents_of=np.array(manifest.table.counts["documents"], np.int64),
            files=FileTable.of(manifest.table),
            labels=manifest.labels,
            label_names=manifest.label_names,
        )

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return int(self.starts[-1])

    @property
    def documents(self) -> int:
        """Documents in all shards."""
        return int(self.documents_of.sum())

    @property
    def shards(self) -> int:
        """The number of shards."""
        return len(self.documents_of)

    @property
    def files_each(self) -> int:
        """Files of a shard."""
        return 2 if self.labels is None else 3

    def shard(self, index: int) -> ShardSize:
        """Counts and files of a shard."""
        tokens = int(self.starts[index + 1] - self.starts[index])
        first = self.files_each * index
        files = [self.files[number] for number in range(first, first + self.files_each)]
        return ShardSize(tokens, int(self.documents_of[index]), files)


@dataclass(frozen=True)
class PackSummary:
    """The manifest of a dataset's packs without the hashes of their blocks."""

    pack_id: str
    starts: I64
    """[n+1]: the first row of each shard, and the number of all rows."""
    files: FileTable
    """[n]"""

    @classmethod
    def of(cls, manifest: PackManifest) -> PackSummary:
        """The summary of a manifest."""
        return cls(manifest.pack_id, np.array(manifest.starts, np.int64), FileTable.of(manifest.table))


@dataclass(frozen=True)
class SourceSummary:
    """The datasets of a source, and how they are packed."""

    train: DatasetSummary
    packs: dict[int, PackSummary]
    """By the length of the sequences; empty where the packing needs no index."""
    held_out: DatasetSummary
    held_out_pack: PackSummary | None


def _starts(counts: Sequence[int]) -> I64:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(np.array(counts, np.int64))))

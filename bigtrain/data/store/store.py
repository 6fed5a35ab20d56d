"""The store: datasets on local disk, memory-mapped, or at a URL; and opening those of a run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bigtrain.base import BigtrainError, read_regular
from bigtrain.config import DataSettings
from bigtrain.data.format.layout import Split, part_of, read_record, require_same, source_request, tokenizer_request
from bigtrain.data.format.manifest import MANIFEST, DatasetManifest, FileRecord, ShardRecord
from bigtrain.data.format.mapping import map_file
from bigtrain.data.format.shards import DocumentColumns
from bigtrain.data.format.tokenizer import (
    TOKENIZER_FILE,
    begin_in_record,
    check_vocabulary,
    require_begin_of_text,
    require_same_begin,
    tokenizer_hash,
)
from bigtrain.data.store.mirror import Mirror, open_mirror

Tokens = npt.NDArray[np.unsignedinteger]


class TokenShard:
    """One shard. Its files are mapped at the first read."""

    def __init__(self, directory: Path, record: ShardRecord, dtype: str) -> None:
        self.record = record
        self._directory = directory
        self._dtype = dtype
        self._windows: Tokens | None = None

    @cached_property
    def tokens(self) -> Tokens:
        """[tokens], a view of the `.tok` file."""
        return np.frombuffer(self._map(self.record.files[0]), self._dtype)

    @cached_property
    def documents(self) -> DocumentColumns:
        """Views of the `.doc` file. Raises BigtrainError where they are not those of the manifest."""
        path = self._directory / self.record.files[1].name
        columns = DocumentColumns.parse(self._map(self.record.files[1]), path)
        columns.require(documents=self.record.documents, tokens=self.record.tokens, path=path)
        return columns

    def read(self, start: int, end: int, vocab_size: int) -> Tokens:
        """Tokens [start, end), or fewer at the end of the shard. They must not be written to.

        Raises:
            BigtrainError: an id is not in the vocabulary, so the file is corrupted.
        """
        tokens = self.slice(start, end)
        if (largest := int(tokens.max())) >= vocab_size:
            raise BigtrainError(
                f"{self._directory / self.record.files[0].name} is corrupt at token {start + int(tokens.argmax()):,}",
                found=f"token id {largest}",
                wanted=f"an id below {vocab_size}",
                fix=f"run: bigtrain data verify {self._directory}; then restore the file, or remove its source's "
                "folder and build the data again",
            )
        return tokens

    def missing(self, start: int, end: int) -> dict[str, Callable[[], object]]:
        """The reads, by name, that are needed before tokens [start, end) are available: none."""
        return {}

    def check_sizes(self) -> None:
        """Raise BigtrainError if a file is missing or has another size than in the manifest."""
        for file in self.record.files:
            check_size(
                self._directory, file, "restore the file, or remove its source's folder and build the data again"
            )

    def slice(self, start: int, end: int) -> Tokens:
        """Tokens [start, end) as in the file, or fewer at its end. They must not be written to."""
        return self.tokens[start:end]

    def windows(self, length: int) -> Tokens | None:
        """[tokens - length + 1, length], a view: every window of this many tokens. None if not all tokens are local."""
        if self._windows is None or self._windows.shape[1] != length:
            if self.record.tokens < length:
                return None
            self._windows = np.lib.stride_tricks.sliding_window_view(self.tokens, length)
        return self._windows

    def _map(self, file: FileRecord) -> memoryview:
        return map_file(self._directory / file.name, at_random=True)


class RemoteShard(TokenShard):
    """One shard at a URL. Its tokens are fetched in verified blocks, its documents as a whole, at the first read."""

    def __init__(self, directory: Path, record: ShardRecord, manifest: DatasetManifest, mirror: Mirror) -> None:
        super().__init__(directory, record, manifest.dtype)
        self._mirror = mirror
        self._blocks = record.files[0].blocks
        self._block_bytes = manifest.block_bytes
        self._block_tokens = manifest.block_bytes // np.dtype(manifest.dtype).itemsize

    @property
    def tokens(self) -> Tokens:
        """[tokens], all of them, in memory."""
        return self.slice(0, self.record.tokens)

    @cached_property
    def documents(self) -> DocumentColumns:
        """Views of the `.doc` file, fetched if it is not here yet."""
        self._mirror.fetch(self._directory, self.record.files[1], self._block_bytes)
        return super().documents

    def missing(self, start: int, end: int) -> dict[str, Callable[[], object]]:
        """The reads, by name, that bring here what tokens [start, end) still need."""
        reads: dict[str, Callable[[], object]] = {}
        for index in self._blocks_of(start, min(end, self.record.tokens)):
            if not self._mirror.cache.holds(self._blocks[index]):
                reads[self._blocks[index]] = partial(self._block, index)
        if "documents" not in vars(self):
            reads[self.record.files[1].blocks[0]] = lambda: self.documents
        return reads

    def check_sizes(self) -> None:
        """Nothing: a block is checked when it is read, and asking for every file would take minutes."""

    def windows(self, length: int) -> None:
        """None: not all tokens are local."""

    def slice(self, start: int, end: int) -> Tokens:
        """Tokens [start, end), or fewer at the end of the shard, fetched if they are not local."""
        end = min(end, self.record.tokens)
        indices = self._blocks_of(start, end)
        parts = [self._block(index) for index in indices]
        tokens = parts[0] if len(parts) == 1 else np.concatenate(parts)
        base = indices[0] * self._block_tokens
        return tokens[start - base : end - base]

    def _blocks_of(self, start: int, end: int) -> range:
        return range(start // self._block_tokens, (end - 1) // self._block_tokens + 1)

    def _block(self, index: int) -> Tokens:
        data = self._mirror.cache.opened(self._blocks[index])
        if data is None:
            data = self._mirror.block(self._directory, self.record.files[0], index, self._block_bytes)
        return np.frombuffer(data, self._dtype)


class Dataset:
    """One split of one source: a stream of tokens over its shards, and the documents in it.

    Args:
        directory: the folder of its manifest.
        mirror: the mirror that has the folder, if its shards are at a URL.
    """

    def __init__(self, directory: Path, mirror: Mirror | None = None) -> None:
        self.directory = directory
        self.mirror = mirror
        self.manifest = DatasetManifest.read(directory)
        self.name = self.manifest.source
        self.dataset_id = self.manifest.dataset_id
        self.tokens = self.manifest.tokens
        self.end_of_text = self.manifest.end_of_text
        self.shards = [
            RemoteShard(directory, record, self.manifest, mirror)
            if mirror
            else TokenShard(directory, record, self.manifest.dtype)
            for record in self.manifest.shards
        ]
        self.starts = [0, *accumulate(shard.record.tokens for shard in self.shards)]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in a shard."""
        return np.dtype(self.manifest.dtype).itemsize

    def shard_at(self, token: int) -> int:
        """Index of the shard that holds token number `token` of the stream."""
        return bisect_right(self.starts, token) - 1

    def fetched(self, file: FileRecord) -> Path:
        """The path of a file in the dataset's folder. If the dataset is remote, the file is fetched and verified."""
        if self.mirror is None:
            return self.directory / file.name
        return self.mirror.fetch(self.directory, file, self.manifest.block_bytes)


def open_datasets(settings: DataSettings, *, model_vocab_size: int, split: Split = "train") -> list[Dataset]:
    """The datasets of `settings.sources`, in that order, checked against the settings.

    Reads manifests and file sizes, not the data, which `bigtrain data verify` reads. With `settings.remote`, manifests
    are fetched now, and data when they are read. Raises BigtrainError if data are missing, were built with other
    settings or another tokenizer, or do not fit the model's vocabulary.
    """
    mirror = open_mirror(settings)
    tokenizer_file = settings.dir / TOKENIZER_FILE
    record = read_record(settings.dir)
    if record is None or not tokenizer_file.is_file():
        raise _not_built(settings.dir)
    require_same(settings.dir, part_of(record, "tokenizer", dict, settings.dir), tokenizer_request(settings))
    begin = begin_in_record(record, settings.dir)
    require_begin_of_text(settings.tokenizer, settings.dir, begin)
    tokenizer = tokenizer_hash(read_regular(tokenizer_file))
    datasets = []
    for source in settings.sources:
        folder = settings.dir / source.name
        record = read_record(folder)
        if record is None or not (folder / "train" / MANIFEST).is_file():
            raise _not_built(folder)
        require_same(folder, record, source_request(source, settings, tokenizer))
        dataset = Dataset(folder / split, mirror)
        require_same(dataset.directory, {"tokenizer": dataset.manifest.tokenizer}, {"tokenizer": tokenizer})
        require_same_begin(dataset.directory, dataset.manifest, begin)
        check_vocabulary(dataset.manifest.vocab_size, model_vocab_size)
        if split == "train" and not dataset.tokens:
            raise _not_built(dataset.directory)
        for shard in dataset.shards:
            shard.check_sizes()
        datasets.append(dataset)
    return datasets


def check_size(directory: Path, file: FileRecord, fix: str) -> None:
    """Raise BigtrainError if a file is missing or has another size than in the manifest."""
    size = file.size_in(directory)
    if size != file.size:
        raise BigtrainError(
            f"{directory / file.name} is not what its manifest says",
            found="no file" if size is None else f"{size:,} bytes",
            wanted=f"{file.size:,} bytes",
            fix=fix,
        )


def _not_built(folder: Path) -> BigtrainError:
    return BigtrainError(
        f"the data in {folder} are not built",
        found="no finished dataset",
        wanted="tokenizer and shards",
        fix="bigtrain data build CONFIG",
    )

"""The store: datasets on local disk, memory-mapped, or at a URL; and opening those of a run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bigtrain.base import BigtrainError, read_regular
from bigtrain.config import DataSettings, SourceSettings
from bigtrain.data.format.document_metadata import SUFFIX as METADATA
from bigtrain.data.format.document_metadata import metadata_of
from bigtrain.data.format.file_record import FileRecord, FileSize, changed_error
from bigtrain.data.format.labels import LabelScheme
from bigtrain.data.format.layout import Split, part_of, read_record, require_same, source_request, tokenizer_request
from bigtrain.data.format.manifest import MANIFEST, DatasetManifest, ShardRecord, ShardSize
from bigtrain.data.format.mapping import keep_mapped, map_file
from bigtrain.data.format.shard_table import FetchPart
from bigtrain.data.format.shards import DocumentColumns
from bigtrain.data.format.summary import DatasetSummary
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
Labels = npt.NDArray[np.signedinteger]


RESTORE = "restore the file, or remove its source's folder and build the data again"


class TokenShard:
    """One shard. Its files are checked and mapped at the first read, and again if many others were read since."""

    _tokens: Tokens | None = None
    _documents: DocumentColumns | None = None
    _labels: Labels | None = None
    _windows: Tokens | None = None

    def __init__(self, directory: Path, record: ShardSize, dtype: str, scheme: LabelScheme | None) -> None:
        self.record = record
        self._directory = directory
        self._dtype = dtype
        self._scheme = scheme

    @property
    def tokens(self) -> Tokens:
        """[tokens], a view of the `.tok` file."""
        keep_mapped(self)
        if (tokens := self._tokens) is None:
            tokens = self._tokens = np.frombuffer(self._map(self.record.files[0]), self._dtype)
        return tokens

    @property
    def documents(self) -> DocumentColumns:
        """Views of the `.doc` file. Raises BigtrainError where they are not those of the manifest."""
        keep_mapped(self)
        if (columns := self._documents) is None:
            path = self._directory / self.record.files[1].name
            columns = DocumentColumns.parse(self._map(self.record.files[1]), path)
            columns.require(documents=self.record.documents, tokens=self.record.tokens, path=path)
            self._documents = columns
        return columns

    @property
    def labels(self) -> Labels:
        """[tokens], a view of the `.lab` file, which shards of a labelled dataset have."""
        assert self._scheme is not None
        keep_mapped(self)
        if (labels := self._labels) is None:
            labels = self._labels = np.frombuffer(self._map(self.record.files[2]), self._scheme.dtype)
        return labels

    def metadata(self, document: int) -> dict[str, Any] | None:
        """What the source keeps beside a document, by its number; None where it keeps nothing.

        Raises:
            BigtrainError: the file is damaged.
        """
        path = (self._directory / self.record.files[1].name).with_suffix(METADATA)
        return metadata_of(map_file(path, at_random=True), document, path) if path.exists() else None

    def unmap(self) -> None:
        """Forget the files; they are mapped again when they are needed."""
        self._tokens = self._documents = self._windows = self._labels = None

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
            file.check_size(self._directory, RESTORE)

    def slice(self, start: int, end: int) -> Tokens:
        """Tokens [start, end) as in the file, or fewer at its end. They must not be written to."""
        return self.tokens[start:end]

    def windows(self, length: int) -> Tokens | None:
        """[tokens - length + 1, length], a view: every window of this many tokens. None if not all tokens are local."""
        keep_mapped(self)
        windows = self._windows
        if windows is None or windows.shape[1] != length:
            if self.record.tokens < length:
                return None
            windows = self._windows = np.lib.stride_tricks.sliding_window_view(self.tokens, length)
        return windows

    def _map(self, file: FileSize) -> memoryview:
        file.check_size(self._directory, RESTORE)
        return map_file(self._directory / file.name, at_random=True)


class RemoteShard(TokenShard):
    """One shard at a URL. Its tokens are fetched in verified blocks, its documents as a whole, at the first read."""

    record: ShardRecord

    def __init__(
        self,
        directory: Path,
        record: ShardRecord,
        dtype: str,
        scheme: LabelScheme | None,
        block_bytes: int,
        mirror: Mirror,
    ) -> None:
        super().__init__(directory, record, dtype, scheme)
        self._mirror = mirror
        self._blocks = record.files[0].blocks
        self._block_bytes = block_bytes
        self._block_tokens = block_bytes // np.dtype(dtype).itemsize

    @property
    def tokens(self) -> Tokens:
        """[tokens], all of them, in memory."""
        return self.slice(0, self.record.tokens)

    @property
    def documents(self) -> DocumentColumns:
        """Views of the `.doc` file, fetched if it is not here yet."""
        if self._documents is None:
            self._mirror.fetch(self._directory, self.record.files[1], self._block_bytes)
        return super().documents

    @property
    def labels(self) -> Labels:
        """[tokens], a view of the `.lab` file, fetched if it is not here yet."""
        if self._labels is None:
            self._mirror.fetch(self._directory, self.record.files[2], self._block_bytes)
        return super().labels

    def metadata(self, document: int) -> dict[str, Any] | None:
        """What the source keeps beside a document; the file is fetched if it is not here yet."""
        self._mirror.fetch_beside(self._directory, Path(self.record.files[1].name).with_suffix(METADATA).name)
        return super().metadata(document)

    def missing(self, start: int, end: int) -> dict[str, Callable[[], object]]:
        """The reads, by name, that bring here what tokens [start, end) still need."""
        reads: dict[str, Callable[[], object]] = {}
        for index in self._blocks_of(start, min(end, self.record.tokens)):
            if not self._mirror.cache.holds(self._blocks[index]):
                reads[self._blocks[index]] = partial(self._block, index)
        if self._documents is None:
            reads[self.record.files[1].blocks[0]] = lambda: self.documents
        if len(self.record.files) > 2 and self._labels is None:
            reads[self.record.files[2].blocks[0]] = lambda: self.labels
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


class _Shards(Sequence[TokenShard]):
    """The shards of a dataset, each made when it is asked for: a rank needs few of thousands."""

    def __init__(self, number: int, make: Callable[[int], TokenShard]) -> None:
        self._number, self._make = number, make
        self._made: dict[int, TokenShard] = {}

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> TokenShard:  # type: ignore[override]  # no slices
        index = range(self._number)[index]
        shard = self._made.get(index)
        return shard if shard is not None else self._made.setdefault(index, self._make(index))


class Dataset:
    """One split of one source: a stream of tokens over its shards, and the documents in it.

    Args:
        directory: the folder of its manifest.
        mirror: the mirror that has the folder, if its shards are at a URL.
        summary: what another rank has read from the manifest. Default: the manifest is read now.

    Raises:
        BigtrainError: the manifest is missing, changed, or of another format.
    """

    def __init__(self, directory: Path, mirror: Mirror | None = None, summary: DatasetSummary | None = None) -> None:
        self.directory = directory
        self.mirror = mirror
        if summary is None:
            vars(self)["manifest"] = DatasetManifest.read(directory, self.fetch_part)  # as cached_property keeps it
            summary = DatasetSummary.of(self.manifest)
        self.summary = summary
        self.name = summary.source
        self.dataset_id = summary.dataset_id
        self.tokens = summary.tokens
        self.end_of_text = summary.end_of_text
        self.shards = _Shards(summary.shards, self._local_shard if mirror is None else self._remote_shard)
        self.starts: list[int] = summary.starts.tolist()

    @cached_property
    def manifest(self) -> DatasetManifest:
        """The manifest, with the hashes of all blocks.

        Raises:
            BigtrainError: it is not there, or no longer the one that the summary was made from.
        """
        if self.mirror is not None:
            self.mirror.fetch_manifest(self.directory / MANIFEST, self.dataset_id)
        manifest = DatasetManifest.read(self.directory, self.fetch_part)
        if manifest.dataset_id != self.dataset_id:
            raise changed_error(self.directory / MANIFEST, manifest.dataset_id, f"dataset id {self.dataset_id}")
        return manifest

    @property
    def fetch_part(self) -> FetchPart | None:
        """Fetches parts of manifests; None where all are here."""
        return None if self.mirror is None else self.mirror.fetch_part

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in a shard."""
        return np.dtype(self.summary.dtype).itemsize

    def shard_at(self, token: int) -> int:
        """Index of the shard that holds token number `token` of the stream."""
        return bisect_right(self.starts, token) - 1

    def fetched(self, file: FileRecord, block_bytes: int | None = None) -> Path:
        """The path of a file in the dataset's folder. If the dataset is remote, the file is fetched and verified.

        Args:
            file: a file of its shards or packs.
            block_bytes: of the manifest that has the file. Default: that of the dataset.
        """
        if self.mirror is None:
            return self.directory / file.name
        return self.mirror.fetch(self.directory, file, block_bytes or self.summary.block_bytes)

    def check_sizes(self, part: int = 0, of: int = 1) -> None:
        """Look at the files of every `of`-th shard from number `part` on.

        Raises:
            BigtrainError: a file is missing or has another size than in the manifest.
        """
        if self.mirror is None:
            files, each = self.summary.files, self.summary.files_each
            for shard in range(part, len(self.shards), of):
                for number in range(each * shard, each * shard + each):
                    files[number].check_size(self.directory, RESTORE)

    def _local_shard(self, index: int) -> TokenShard:
        return TokenShard(self.directory, self.summary.shard(index), self.summary.dtype, self.summary.label_scheme)

    def _remote_shard(self, index: int) -> TokenShard:
        assert self.mirror is not None
        record = self.manifest.shards[index]
        summary = self.summary
        return RemoteShard(
            self.directory, record, summary.dtype, summary.label_scheme, summary.block_bytes, self.mirror
        )


def open_datasets(settings: DataSettings, *, model_vocab_size: int, split: Split = "train") -> list[Dataset]:
    """The datasets of `settings.sources`, in that order, checked against the settings.

    Reads manifests and file sizes, not the data, which `bigtrain data verify` reads. With `settings.remote`, manifests
    are fetched now, and data when they are read. Raises BigtrainError if data are missing, were built with other
    settings or another tokenizer, or do not fit the model's vocabulary.
    """
    mirror = open_mirror(settings)
    datasets = []
    for dataset in opened_datasets(settings, settings.sources, mirror, model_vocab_size=model_vocab_size, split=split):
        dataset.check_sizes()
        datasets.append(dataset)
    return datasets


def opened_datasets(
    settings: DataSettings,
    sources: Sequence[SourceSettings],
    mirror: Mirror | None,
    *,
    model_vocab_size: int,
    split: Split,
) -> Iterator[Dataset]:
    """The datasets of some of `settings.sources`, one after the other. The sizes of their files are not checked.

    Raises:
        BigtrainError: see `open_datasets`.
    """
    tokenizer_file = settings.dir / TOKENIZER_FILE
    record = read_record(settings.dir)
    if record is None or not tokenizer_file.is_file():
        raise _not_built(settings.dir)
    require_same(settings.dir, part_of(record, "tokenizer", dict, settings.dir), tokenizer_request(settings))
    begin = begin_in_record(record, settings.dir)
    require_begin_of_text(settings.tokenizer, settings.dir, begin)
    tokenizer = tokenizer_hash(read_regular(tokenizer_file))
    for source in sources:
        folder = settings.dir / source.name
        record = read_record(folder)
        if record is None or not (folder / "train" / MANIFEST).is_file():
            raise _not_built(folder)
        require_same(folder, record, source_request(source, settings, tokenizer))
        dataset = Dataset(folder / split, mirror)
        require_same(dataset.directory, {"tokenizer": dataset.summary.tokenizer}, {"tokenizer": tokenizer})
        require_same_begin(dataset.directory, dataset.summary, begin)
        check_vocabulary(dataset.summary.vocab_size, model_vocab_size)
        if split == "train" and not dataset.tokens:
            raise _not_built(dataset.directory)
        yield dataset


def _not_built(folder: Path) -> BigtrainError:
    return BigtrainError(
        f"the data in {folder} are not built",
        found="no finished dataset",
        wanted="tokenizer and shards",
        fix="bigtrain data build CONFIG",
    )

"""The local mirror of remote data: `data.dir` has what was fetched from the folder at `data.remote`.

DIR/remote.json          the URL: this folder is a mirror, and no data were built in it
DIR/tokenizer.json, build.json, <source>/build.json, <source>/<split>/manifest.json
                         whole files, updated whenever data are opened
DIR/<source>/<split>/00000.json
                         the parts of a manifest in parts, fetched when a hash in them is needed
DIR/<source>/<split>/*.doc
                         whole files, fetched and verified at the first access to a shard's documents
DIR/cache/               blocks of the *.tok files: `block_cache.py`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from typing_extensions import TypedDict

from bigtrain.base import STRICT, TEMPORARY_SUFFIX, BigtrainError, as_record, read_json, read_regular
from bigtrain.config import HIDDEN, DataSettings, SourceSettings, is_masked, refuse_masked
from bigtrain.data.format.file_record import LARGEST, FileRecord
from bigtrain.data.format.hashing import digest
from bigtrain.data.format.layout import BUILD_RECORD, SPLITS
from bigtrain.data.format.manifest import MANIFEST
from bigtrain.data.format.pack_file import manifest_path
from bigtrain.data.format.remote_files import Remote, RetryPolicy
from bigtrain.data.format.tokenizer import TOKENIZER_FILE
from bigtrain.data.format.urls import recorded_path
from bigtrain.data.store.block_cache import BlockCache

MARKER = "remote.json"
START_BYTES = 1 << 10
"""Of a manifest that are read to see which one it is."""
FETCHES = 16
"""Number of requests of one process at the same time."""


class Mirror:
    """A local folder through which the data at a URL are read.

    Raises:
        BigtrainError: the folder holds something else.
    """

    def __init__(self, directory: Path, url: str, cache_bytes: int, policy: RetryPolicy | None = None) -> None:
        self.directory = directory
        self.remote = Remote(url, policy)
        is_ours = _is_mirror(directory, self.remote.url)
        self.is_offline = is_masked(url)
        """Whether the key of the URL is not known, so that only what was fetched before can be read."""
        if self.is_offline and not is_ours:
            refuse_masked("data.remote", url)
        self.cache = BlockCache(directory / "cache", cache_bytes)
        if not is_ours:
            self.cache.place(directory / MARKER, [json.dumps({"url": self.remote.url}).encode()])
        self._verified: set[Path] = set()
        self._asked_for: set[Path] = set()
        """Files that no manifest has, and that the URL may lack."""

    def fetch_records(self, settings: DataSettings, sources: Sequence[SourceSettings]) -> None:
        """Fetch tokenizer, and build records and manifests of some sources, again. Raises BigtrainError."""
        names = [TOKENIZER_FILE, BUILD_RECORD]
        for source in sources:
            names += [f"{source.name}/{BUILD_RECORD}", *(f"{source.name}/{split}/{MANIFEST}" for split in SPLITS)]
            for split, packing, length in settings.packs:
                names.append(manifest_path(Path(source.name) / split, packing, length).as_posix())
        for name in names:
            self._fetch_record(name)

    def fetch_manifest(self, path: Path, content_id: str) -> None:
        """Fetch a manifest, a file of this mirror, unless the one with this id is here. Raises BigtrainError."""
        with self.cache.only_one(content_id):
            if not self.is_offline and content_id.encode() not in _start_of(path):
                self._fetch_record(path.relative_to(self.directory).as_posix())

    def fetch_part(self, path: Path, content_id: str) -> None:
        """Fetch the part of a manifest with this hash, unless it is here. Raises BigtrainError."""
        with self.cache.only_one(content_id):
            if not self.is_offline and not _has_hash(path, content_id):
                name = path.relative_to(self.directory).as_posix()
                self.cache.place(path, [self.remote.read(name, partial(_with_hash, content_id))])

    def _fetch_record(self, name: str) -> None:
        self.cache.place(self.directory / name, [self.remote.read(name, _whole_json)])

    def _read_block(self, name: str, record: FileRecord, index: int, block_bytes: int) -> bytes:
        if self.is_offline:
            refuse_masked("data.remote", f"{self.remote.url}?{HIDDEN}")
        return self.remote.read_block(name, record, index, block_bytes)

    def block(self, directory: Path, record: FileRecord, index: int, block_bytes: int) -> memoryview:
        """A verified block of a file in `directory`, a folder of this mirror, through the cache."""
        size = min(block_bytes, record.size - index * block_bytes)
        name = self._name(directory, record)
        return self.cache.get(record.blocks[index], size, lambda: self._read_block(name, record, index, block_bytes))

    def fetch(self, directory: Path, record: FileRecord, block_bytes: int) -> Path:
        """The path of a file in `directory`, a folder of this mirror. It is fetched, and verified once per process."""
        path = directory / record.name
        if path not in self._verified:
            with self.cache.only_one(record.blocks[0]):
                if not _is_whole(path, record, block_bytes):
                    name = self._name(directory, record)
                    indices = range(len(record.blocks))
                    self.cache.place(path, (self._read_block(name, record, i, block_bytes) for i in indices))
            self._verified.add(path)
        return path

    def fetch_beside(self, directory: Path, name: str) -> None:
        """Fetch a file that no manifest has into `directory`, a folder of this mirror, if the URL has it."""
        path = directory / name
        if self.is_offline or path in self._asked_for or path.exists():
            return
        self._asked_for.add(path)
        with self.cache.only_one("meta"):
            temporary = path.with_name(f"{name}{TEMPORARY_SUFFIX}")
            self.remote.copy(path.relative_to(self.directory).as_posix(), temporary)
            if temporary.exists():
                temporary.replace(path)

    def side_by_side(self, reads: Iterable[Callable[[], object]]) -> None:
        """Run reads from the server, FETCHES at a time. Raises the error of the first that fails."""
        with ThreadPoolExecutor(FETCHES, thread_name_prefix="bigtrain-fetch") as pool:
            for _ in pool.map(lambda read: read(), reads):
                pass

    def _name(self, directory: Path, record: FileRecord) -> str:
        return (directory.relative_to(self.directory) / record.name).as_posix()


def open_mirror(settings: DataSettings, sources: Sequence[SourceSettings] | None = None) -> Mirror | None:
    """The mirror of `data.remote`, with current tokenizer and manifests; None if the data are local.

    Args:
        settings: the section `data`.
        sources: those whose manifests are fetched now; without any, the tokenizer is not fetched either. Default: all.

    Raises:
        BigtrainError: a file cannot be fetched, or the folder holds something else.
    """
    if settings.remote is None:
        return None
    mirror = Mirror(settings.dir, settings.remote, settings.cache_bytes)
    wanted = settings.sources if sources is None else sources
    if wanted and not mirror.is_offline:
        mirror.fetch_records(settings, wanted)
    return mirror


class _Marker(TypedDict):
    """DIR/remote.json."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    url: str


def is_mirror(directory: Path) -> bool:
    """Whether data were fetched into this folder before."""
    return (directory / MARKER).is_file()


def _is_mirror(directory: Path, url: str) -> bool:
    """Whether the folder is already a mirror of the URL. Raises BigtrainError if it is something else."""
    marker = directory / MARKER
    try:
        record = as_record(_Marker, read_json(marker, 1 << 16), marker)
    except FileNotFoundError:
        if (directory / BUILD_RECORD).exists():
            raise BigtrainError(
                f"{directory} holds data that were built there, but data.remote is set",
                found=f"{directory / BUILD_RECORD}",
                wanted="another folder for what is fetched",
                fix="set data.dir to another folder, or remove data.remote to train on the data that are there",
            ) from None
        there = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
        if foreign := sorted(there - {"cache"}):  # which a start that was killed here leaves
            raise BigtrainError(
                f"{directory} holds other files, and what is fetched from data.remote would be mixed with them",
                found=", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else ""),
                wanted="a new or empty folder, or one that was filled from this URL",
                fix="set data.dir to another folder",
            ) from None
        return False
    if recorded_path(record["url"]).rstrip("/") != url:
        raise BigtrainError(
            f"{directory} holds what was fetched from another URL",
            found=recorded_path(record["url"]),
            wanted=url,
            fix=f"set data.dir to another folder, or remove {directory}",
        )
    return True


def _start_of(path: Path) -> bytes:
    """The first bytes of a manifest, which have its id, as its keys are in order; nothing without the file."""
    try:
        with path.open("rb") as file:
            return file.read(START_BYTES)
    except FileNotFoundError:
        return b""


def _whole_json(data: bytes) -> bytes:
    try:
        json.loads(data)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    return data


def _has_hash(path: Path, content_id: str) -> bool:
    try:
        return digest(read_regular(path, LARGEST)).hex() == content_id
    except (FileNotFoundError, BigtrainError):
        return False


def _with_hash(content_id: str, data: bytes) -> bytes:
    """The data. Raises ValueError where they have another hash."""
    if (found := digest(data).hex()) != content_id:
        raise ValueError(f"hash {found}, and not {content_id}")
    return data


def _is_whole(path: Path, record: FileRecord, block_bytes: int) -> bool:
    try:
        return record.bad_block(memoryview(read_regular(path, record.size)), block_bytes) is None
    except (FileNotFoundError, BigtrainError):
        return False

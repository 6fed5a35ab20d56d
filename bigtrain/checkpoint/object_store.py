"""Checkpoints at a URL, where nothing can be renamed: writing the manifest is the commit.

Files are written under their final prefix, and the manifest last, in one request, which object stores make atomic. A
step is committed when its manifest exists. The files of every attempt have names of their own, and the manifest lists
them. So a step that is saved again replaces the old one by that one request, and the old one is whole until then.
Files that no manifest lists are removed by the next save of the run.

A request that fails is repeated, with growing pauses, as long as that can help; then there is one clear error.
"""

from __future__ import annotations

import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from bigtrain.base import BigtrainError, reached
from bigtrain.checkpoint.manifest import COMMITTED, MANIFEST, parse_manifest, step_name
from bigtrain.checkpoint.storage import Reader, blocks

ATTEMPTS = 8
TOTAL_SECONDS = 120.0
"""No attempt starts later than this after the first, in seconds."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
_REQUEST_SECONDS = 60.0
_PART = 1 << 25
_REQUESTS = 16
"""Number of requests at the same time."""
_KEYS = 1000
"""Objects in one request to remove them: the most that S3 takes."""
_PATTERN = re.compile(r"[*?\[]")
_NO_BUCKET = ("bucket does not exist", "NoSuchBucket", "container does not exist", "ContainerNotFound")
"""How object stores say that the bucket itself is missing, and not only an object in it."""
_NEVER = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError")
"""Errors of botocore that no repetition helps against."""
_jitter = random.SystemRandom()  # ranks that seed `random` alike must not repeat at the same time
T = TypeVar("T")


@dataclass(frozen=True)
class ObjectStore:
    """A prefix of an object store, through fsspec: a `Storage`.

    Raises:
        BigtrainError: the protocol is unknown, or its package is not installed.
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))
        _ = self._files

    def __str__(self) -> str:
        return self.url

    def location(self, step: int) -> str:
        """See Storage."""
        return f"{self.url}/{step_name(step)}"

    def check_writable(self) -> None:
        """See Storage."""
        path = f"{self._root}/.bigtrain-probe-{socket.gethostname()}-{os.getpid()}"
        try:
            self._persist("write", path, lambda: self._files.pipe_file(path, b"bigtrain"))
        except FileNotFoundError as error:
            raise self._missing(error) from error
        with suppress(FileNotFoundError):
            self._persist("remove", path, lambda: self._files.rm_file(path))

    def read_record(self, name: str) -> bytes | None:
        """See Storage."""
        path = f"{self._root}/{name}"
        try:
            return self._persist("read", path, lambda: bytes(self._files.cat_file(path)))
        except FileNotFoundError:
            return None

    def write_record(self, name: str, content: bytes) -> None:
        """See Storage."""
        path = f"{self._root}/{name}"
        self._persist("write", path, lambda: self._files.pipe_file(path, content))

    def steps(self) -> list[int]:
        """See Storage. A prefix without a manifest was never committed."""
        there = self._prefixes()
        with ThreadPoolExecutor(_REQUESTS) as threads:
            committed = threads.map(lambda step: self._exists(self._path(step, MANIFEST)), there)
            return [step for step, yes in zip(there, committed, strict=True) if yes]

    @contextmanager
    def open(self, step: int, name: str) -> Iterator[Reader]:
        """See Storage."""
        path = self._path(step, name)
        size = self._persist("read", path, lambda: int(self._files.info(path)["size"]))
        yield _Object(self, path, size)

    def prepare(self, step: int) -> None:
        """See Storage."""
        committed = self.steps()
        for there in self._prefixes():
            if there == step or there not in committed:
                self._clear(there)

    def file_name(self, stem: str, attempt: str) -> str:
        """See Storage."""
        return f"{stem}.{attempt}.safetensors"

    def write(self, step: int, name: str, data: memoryview) -> None:
        """See Storage."""
        path = self._path(step, name)

        def attempt() -> None:
            with self._files.open(path, "wb", block_size=_PART) as file:
                for index, block in enumerate(blocks(data, _PART)):
                    if index == len(data) // _PART // 2:
                        reached("save.writing")
                    file.write(block)
            if (found := self._files.info(path)["size"]) != len(data):
                raise OSError(f"{found:,} bytes arrived of {len(data):,}")

        self._persist("write", path, attempt)

    def commit(self, step: int, manifest: bytes) -> None:
        """See Storage."""
        path = self._path(step, MANIFEST)
        reached("save.staged")
        self._persist("write", path, lambda: self._files.pipe_file(path, manifest))
        reached("save.renamed")
        with suppress(BigtrainError):  # the step is committed; leftovers of an earlier attempt can wait
            self._clear(step)

    def abandon(self, step: int) -> None:
        """See Storage."""
        with suppress(Exception):
            self._clear(step)

    def remove(self, step: int) -> None:
        """See Storage."""
        manifest = self._path(step, MANIFEST)
        self._persist("remove", manifest, lambda: self._files.rm_file(manifest))
        reached("save.pruning")
        self._clear(step)

    def read(self, path: str, start: int, end: int) -> bytes:
        """The bytes [start, end) of an object."""

        def attempt() -> bytes:
            data: bytes = self._files.cat_file(path, start=start, end=end, **self._timeout)
            if len(data) != end - start:
                raise OSError(f"{len(data):,} bytes came of {end - start:,}")
            return data

        return self._persist("read", path, attempt)

    def _clear(self, step: int) -> None:
        """Remove the files of a step that its manifest does not name; all files if there is no manifest."""
        root = self._path(step, "")
        there = [str(path) for path in self._persist("list", root, lambda: self._files.find(root))]
        named: set[str] = set()
        manifest = self._path(step, MANIFEST)
        if manifest in there:
            try:
                text = self._persist("read", manifest, lambda: self._files.cat_file(manifest))
                named = {MANIFEST, *parse_manifest(manifest, text).files}
            except BigtrainError:  # a damaged manifest protects nothing; it is removed before the files
                self._persist("remove", manifest, lambda: self._files.rm_file(manifest))
                there.remove(manifest)
        expired = [path for path in there if path.rpartition("/")[2] not in named]
        if expired:
            self._persist("remove", root, lambda: self._remove(root, set(expired)))

    def _remove(self, root: str, expired: set[str]) -> None:
        """Remove objects, many with one request where the store can do that."""
        if _PATTERN.search(root):  # fsspec would take the names for patterns, which may fit other objects too
            with ThreadPoolExecutor(_REQUESTS) as threads:
                list(threads.map(self._files.rm_file, self._there(root, expired)))
        else:
            there = self._there(root, expired)
            for start in range(0, len(there), _KEYS):
                self._files.rm(there[start : start + _KEYS])
        # One answer for many objects may be a success for some of them only, and fsspec does not look.
        if left := self._there(root, expired):
            raise OSError(f"{len(left):,} of {len(expired):,} objects are still there")

    def _there(self, root: str, paths: set[str]) -> list[str]:
        return sorted(paths & {str(path) for path in self._files.find(root)})

    def _prefixes(self) -> list[int]:
        def attempt() -> list[str]:
            try:
                return list(self._files.ls(self._root, detail=False))
            except FileNotFoundError as error:
                if any(text in f"{error} {error.__cause__}" for text in _NO_BUCKET):
                    raise self._missing(error) from error
                return []

        names = [str(path).rstrip("/").rpartition("/")[2] for path in self._persist("list", self._root, attempt)]
        return sorted(int(match[1]) for name in names if (match := COMMITTED.fullmatch(name)))

    def _missing(self, error: FileNotFoundError) -> BigtrainError:
        bucket = f"{self.url.partition('://')[0]}://{self._root.partition('/')[0]}"
        return BigtrainError(
            f"checkpoints cannot be kept at {self.url}: the store has no bucket {bucket}",
            found=" ".join(f"{error}".split())[:300] or type(error).__name__,
            wanted="a bucket that is there, and may be written",
            fix="create the bucket, or correct checkpoint.dir and the address of the store (AWS_ENDPOINT_URL)",
        )

    def _exists(self, path: str) -> bool:
        try:
            self._persist("read", path, lambda: self._files.info(path))
        except FileNotFoundError:
            return False
        return True

    def _path(self, step: int, name: str) -> str:
        return f"{self._root}/{step_name(step)}/{name}"

    @property
    def _files(self) -> Any:
        return self._opened[0]

    @property
    def _root(self) -> str:
        root: str = self._opened[1].rstrip("/")
        return root

    @property
    def _opened(self) -> tuple[Any, str]:
        import fsspec

        try:  # fsspec keeps one object for each URL and thread
            return fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise BigtrainError(
                f"checkpoint.dir: {self.url} cannot be opened: {error}",
                fix="install the package of the protocol (s3: pip install 'bigtrain[s3]'), or correct the URL",
            ) from None

    @property
    def _timeout(self) -> dict[str, float]:
        from fsspec.asyn import AsyncFileSystem

        # All networked file systems of fsspec are asynchronous: they cancel a call after `timeout` seconds.
        return {"timeout": _REQUEST_SECONDS} if isinstance(self._files, AsyncFileSystem) else {}

    def _persist(self, verb: str, path: str, attempt: Callable[[], T]) -> T:
        """Repeat a request until it succeeds or cannot succeed. The pauses are exponential with full jitter.

        Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

        Raises:
            FileNotFoundError: the store says that there is no such object.
            BigtrainError: the store denies the request, or all attempts failed.
        """
        started, failures = time.monotonic(), 0
        what = f"{self.url.partition('://')[0]}://{path}"
        while True:
            try:
                return attempt()
            except (FileNotFoundError, BigtrainError):
                raise
            except Exception as error:  # each protocol's library raises its own
                failures += 1
                pause = _jitter.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1)))
                seconds = time.monotonic() - started
                line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                if isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
                    fix = "give this machine credentials that may read, write and delete there"
                    raise BigtrainError(f"permission to {verb} {what} is denied", found=line, fix=fix) from error
                never = type(error).__name__ in _NEVER
                if never or failures == ATTEMPTS or seconds + pause > TOTAL_SECONDS:
                    effort = f"{failures} attempts in {seconds:.0f} s"
                    fix = "check that the store can be reached from this machine, then start again"
                    if never:
                        fix = "correct the URL, or give this machine credentials for it (for example AWS_PROFILE)"
                    raise BigtrainError(f"cannot {verb} {what} ({effort})", found=line, fix=fix) from error
                time.sleep(pause)


class _Object:
    def __init__(self, store: ObjectStore, path: str, size: int) -> None:
        self._store, self._path, self.size = store, path, size

    def __str__(self) -> str:
        return self._path

    def read_into(self, start: int, target: memoryview) -> None:
        target = target.cast("B")
        for at in range(0, len(target), _PART):
            block = target[at : at + _PART]
            block[:] = self._store.read(self._path, start + at, start + at + len(block))

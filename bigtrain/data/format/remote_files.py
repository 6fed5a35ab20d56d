"""Reads from an object store or web server: returns the right bytes, or raises one clear error in bounded time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import xxhash

from bigtrain.base import BigtrainError, bare_name
from bigtrain.config import with_bare_urls
from bigtrain.data.format.file_record import BLOCK_BYTES, LARGEST, FileRecord
from bigtrain.data.format.urls import without_query

_jitter = random.SystemRandom()  # ranks that seed `random` alike must not repeat at the same time
HTTP_DENIED = (401, 403)
Result = TypeVar("Result")


@dataclass(frozen=True)
class RetryPolicy:
    """How often and for how long to try. The pauses are exponential with full jitter: uniform in [0, first * 2^n].

    Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    attempts: int = 8
    total_seconds: float = 120.0
    """No attempt starts later than this. All ranks of a host that need a block share this time: see `BlockCache`."""
    attempt_seconds: float = 30.0
    first_pause: float = 0.5
    longest_pause: float = 15.0

    def pause(self, failures: int) -> float:
        """Seconds to wait after this many failures."""
        return _jitter.uniform(0, min(self.longest_pause, self.first_pause * 2 ** (failures - 1)))


class _WrongBytes(Exception):
    """The server returned other bytes than those that were written."""

    def __init__(self, found: str, wanted: str) -> None:
        super().__init__(found, wanted)
        self.found, self.wanted = found, wanted


def file_system(url: str, setting: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Raises BigtrainError for an unknown protocol."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise BigtrainError(
            f"{setting}: {with_bare_urls(url)} cannot be opened: {error}",
            fix="install the package of the protocol (s3: pip install 'bigtrain[s3]'), or correct the URL",
        ) from None


class Remote:
    """A folder at a URL, read through fsspec.

    Raises:
        BigtrainError: the URL's protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str, policy: RetryPolicy | None = None) -> None:
        from fsspec.asyn import AsyncFileSystem

        folder = without_query(url)
        self._query = url[len(folder) :]
        """`?` and the key of all files in the folder, as a shared access signature is; often empty."""
        self.url = with_bare_urls(folder).rstrip("/")
        """Without secrets, for messages."""
        self._policy = policy or RetryPolicy()
        self._files, self._root = file_system(folder.rstrip("/"), "data.remote")
        self._takes_timeout = isinstance(self._files, AsyncFileSystem)

    def read(self, name: str, parse: Callable[[bytes], Result], most: int = LARGEST) -> Result:
        """A small file, parsed by `parse`. If that raises ValueError, the file is fetched again.

        Raises:
            BigtrainError: there is no such file, it has more than `most` bytes, or all attempts failed.
        """

        def attempt() -> Result:
            data = self._get(name, 0, None, most)
            try:
                return parse(data)
            except ValueError as error:
                raise _WrongBytes(f"{len(data):,} bytes: {error}", "what bigtrain wrote") from error

        return self._persist(f"{self.url}/{name}", attempt)

    def read_block(self, name: str, record: FileRecord, index: int, block_bytes: int) -> bytes:
        """One block of a file, verified against the manifest's record of it.

        Raises:
            BigtrainError: there is no such file, or all attempts failed. It names file, block and hashes.
        """
        start, end = index * block_bytes, min((index + 1) * block_bytes, record.size)

        def attempt() -> bytes:
            data = self._get(name, start, end, end - start)
            found = xxhash.xxh3_128_hexdigest(data)
            if found != record.blocks[index]:
                wanted = f"{end - start:,} bytes with xxh3-128 {record.blocks[index]}"
                raise _WrongBytes(f"{len(data):,} bytes with xxh3-128 {found}", wanted)
            return data

        return self._persist(f"block {index} (bytes {start:,} to {end - 1:,}) of {self.url}/{name}", attempt)

    def copy(self, name: str, path: Path, most: int = LARGEST) -> None:
        """Copy a file without verifying it. Does nothing if there is no such file.

        Raises:
            BigtrainError: it has more than `most` bytes, or cannot be read.
        """
        what = f"{self.url}/{name}"
        source = f"{self._root}/{name}{self._query}"
        size: int | None = self._persist(what, lambda: self._files.size(source) if self._files.exists(source) else None)
        if size is None:
            return
        if size > most:
            raise _too_long(what, f"{size:,} bytes", most)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for start in range(0, size, BLOCK_BYTES):
                file.write(self._persist(what, partial(self._get_exactly, name, start, min(start + BLOCK_BYTES, size))))

    def find(self, patterns: set[str]) -> list[str]:
        """The files in the folder or below it whose names match one of `patterns`: their paths relative to it.

        Raises:
            BigtrainError: the folder cannot be listed, or the listing leads out of it.
        """
        self._files.invalidate_cache()  # of listings
        found: list[str] = self._persist(self.url, lambda: self._files.find(self._root))
        paths = [PurePosixPath(path) for path in found]
        wanted = [path for path in paths if any(path.match(pattern) for pattern in patterns)]
        below = [path.relative_to(self._root).parts for path in wanted]
        return sorted("/".join(bare_name(part, f"the listing of {self.url}") for part in parts) for parts in below)

    def _get_exactly(self, name: str, start: int, end: int) -> bytes:
        data = self._get(name, start, end, end - start)
        if len(data) != end - start:
            raise _WrongBytes(f"{len(data):,} bytes", f"{end - start:,} bytes")
        return data

    def _get(self, name: str, start: int, end: int | None, most: int) -> bytes:
        """The bytes of a file from `start` to `end`, or to its end. Raises BigtrainError for more than `most`."""
        what, path = f"{self.url}/{name}", f"{self._root}/{name}{self._query}"
        # All networked file systems of fsspec are asynchronous: they cancel a call after `timeout` seconds.
        limit = {"timeout": self._policy.attempt_seconds} if self._takes_timeout else {}
        if hasattr(self._files, "encode_url"):  # a web server, which may ignore the range and answer without end
            from fsspec.asyn import sync

            data: bytes = sync(self._files.loop, _bounded, self._files, path, start, end, most, **limit)
        else:
            if end is None:
                end = most + 1 if self._takes_timeout else min(most, self._files.size(path)) + 1
            data = self._files.cat_file(path, start=start, end=end, **limit)
        if len(data) > most:
            raise _too_long(what, f"more than {most:,} bytes", most)
        return data

    def _persist(self, what: str, attempt: Callable[[], Result]) -> Result:
        started = time.monotonic()
        failures = 0
        while True:
            try:
                return attempt()
            except BigtrainError:
                raise
            except FileNotFoundError as error:
                raise _missing(what, error) from error
            except Exception as error:  # each protocol's library raises its own
                if isinstance(error, PermissionError) or getattr(error, "status", None) in HTTP_DENIED:
                    raise _denied(what, error) from error
                failures += 1
                pause = self._policy.pause(failures)
                seconds = time.monotonic() - started
                if failures == self._policy.attempts or seconds + pause > self._policy.total_seconds:
                    raise _given_up(what, error, f"{failures} attempts in {seconds:.0f} s") from error
                time.sleep(pause)


async def _bounded(files: Any, url: str, start: int, end: int | None, most: int) -> bytes:
    """At most a little more than `most` bytes of the answer of a web server."""
    session = await files.set_session()
    options = dict(files.kwargs)
    if start or end is not None:
        last = "" if end is None else end - 1
        options["headers"] = {**options.get("headers", {}), "Range": f"bytes={start}-{last}"}
    async with session.get(files.encode_url(url), **options) as answer:
        files._raise_not_found_for_status(answer, url)
        parts, size = [], 0
        async for part in answer.content.iter_chunked(1 << 20):
            parts.append(part)
            size += len(part)
            if size > most:
                break
        return b"".join(parts)


class TooLongError(BigtrainError):
    """A file at a URL has more bytes than it may have."""


def _too_long(what: str, found: str, most: int) -> TooLongError:
    fix = "copy the file there again; `bigtrain data verify URL` finds all that is bad"
    return TooLongError(f"{what} is too long", found=found, wanted=f"at most {most:,} bytes", fix=fix)


def _missing(what: str, error: Exception) -> BigtrainError:
    fix = "copy the whole data folder there, or correct data.remote"
    return BigtrainError(f"{what} is not there", found=_line(error), wanted="a file", fix=fix)


def _denied(what: str, error: Exception) -> BigtrainError:
    fix = "give this machine credentials that may read it"
    return BigtrainError(f"{what} may not be read", found=_line(error), wanted="permission to read it", fix=fix)


def _given_up(what: str, error: Exception, effort: str) -> BigtrainError:
    if isinstance(error, _WrongBytes):
        fix = "copy the file there again; `bigtrain data verify URL` finds all that is bad"
        return BigtrainError(f"{what} is corrupt ({effort})", found=error.found, wanted=error.wanted, fix=fix)
    fix = "check that the server can be reached from this machine, then start again"
    return BigtrainError(f"{what} cannot be read ({effort})", found=_line(error), wanted="an answer", fix=fix)


def _line(error: Exception) -> str:
    return with_bare_urls(" ".join(f"{type(error).__name__}: {error}".split()))[:300]

"""A folder of files that are whole or absent, which any worker reads and writes: on a disk, or at a URL.

    WorkFolder.at("/shared/data/.build")  --> LocalFolder    a temporary name, then a rename
    WorkFolder.at("s3://bucket/data")     --> RemoteFolder   one object, which appears when it is complete

Names are paths below the folder, with forward slashes. Two workers may write the same name at once: the content is that
of one of them. A folder is pickled with a task, and opens nothing before it is used.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from bigtrain.base import TEMPORARY_SUFFIX, commit_file, naming
from bigtrain.config import with_bare_urls
from bigtrain.data.format.remote_files import RetryPolicy, file_system

Result = TypeVar("Result")
Content = bytes | memoryview


class WorkFolder(ABC):
    """A folder of whole files."""

    @staticmethod
    def at(where: str | Path) -> WorkFolder:
        """The folder at a path or URL. It need not exist."""
        return RemoteFolder(str(where).rstrip("/")) if "://" in str(where) else LocalFolder(Path(where).absolute())

    @abstractmethod
    def below(self, name: str) -> WorkFolder:
        """The folder with this name in it."""

    @abstractmethod
    def write(self, name: str, content: Content, *, durable: bool = True) -> None:
        """Write a file whole or not at all.

        Args:
            name: the file. Folders on the way are made.
            content: its bytes.
            durable: flush it to the disk. Without it, a machine that loses power may leave other bytes.

        Raises:
            OSError: it cannot be written.
        """

    @abstractmethod
    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A context manager with an open binary file, which gets its name when the context ends without an error."""

    @abstractmethod
    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """The bytes of a file, or those in [start, end). Raises FileNotFoundError, or OSError."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """The bytes of a file; None without such a file. Raises OSError."""

    def exists(self, name: str) -> bool:
        """Whether there is a file with this name. Raises OSError."""
        return self.size(name) is not None

    @abstractmethod
    def sizes(self, prefix: str = "") -> dict[str, int]:
        """The names of all files that begin with `prefix`, in order, and their sizes in bytes. Raises OSError."""

    def names(self, prefix: str = "") -> list[str]:
        """The names of all files that begin with `prefix`, in order. Raises OSError."""
        return list(self.sizes(prefix))

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there. Raises OSError."""

    @abstractmethod
    def clear(self) -> None:
        """Remove the folder and all that is in it, if it is there. Raises OSError."""


@dataclass(frozen=True)
class LocalFolder(WorkFolder):
    """A folder on a disk of this machine, or on one that all machines share."""

    path: Path

    def below(self, name: str) -> LocalFolder:
        """The folder with this name in it."""
        return LocalFolder(self.path / name)

    def write(self, name: str, content: Content, *, durable: bool = True) -> None:
        """See `WorkFolder.write`."""
        with self._created(name, durable) as file:
            file.write(content)

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """See `WorkFolder.create`."""
        return self._created(name, durable=True)

    @contextmanager
    def _created(self, name: str, durable: bool) -> Iterator[BinaryIO]:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(
            f"{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}"
        )  # another may write it, too
        with naming(path):
            try:
                with temporary.open("xb") as file:
                    yield file
                    commit_file(file, path, durable=durable)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """See `WorkFolder.read`."""
        with (self.path / name).open("rb") as file:
            file.seek(start)
            return file.read() if end is None else file.read(end - start)

    def size(self, name: str) -> int | None:
        """See `WorkFolder.size`."""
        path = self.path / name
        return path.stat().st_size if path.is_file() else None

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `WorkFolder.sizes`."""
        folder = self.path / prefix.rpartition("/")[0]
        files = (path for path in folder.rglob("*") if path.suffix != TEMPORARY_SUFFIX and path.is_file())
        sizes = {path.relative_to(self.path).as_posix(): path.stat().st_size for path in files}
        return {name: sizes[name] for name in sorted(sizes) if name.startswith(prefix)}

    def remove(self, name: str) -> None:
        """See `WorkFolder.remove`."""
        (self.path / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """See `WorkFolder.clear`."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path)


@dataclass(frozen=True)
class RemoteFolder(WorkFolder):
    """A folder in an object store. What fails is tried again, with pauses; what is not there fails at once."""

    url: str
    policy: RetryPolicy = field(default_factory=RetryPolicy)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "policy": self.policy}  # connections stay in their process

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        files, root = file_system(self.url, "data.remote")
        return files, root.rstrip("/")

    def below(self, name: str) -> RemoteFolder:
        """The folder with this name in it."""
        return RemoteFolder(f"{self.url}/{name}", self.policy)

    def write(self, name: str, content: Content, *, durable: bool = True) -> None:
        """See `WorkFolder.write`. An object store acknowledges only what is durable."""
        files, root = self._opened
        self._made(name)
        self._persist(name, lambda: files.pipe_file(f"{root}/{name}", bytes(content)))

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """See `WorkFolder.create`. A temporary file of this machine holds the content, so that all of it can be sent
        again."""
        files, root = self._opened
        with tempfile.NamedTemporaryFile(prefix="bigtrain-upload-") as file:
            yield file  # type: ignore[misc]  # its wrapper has all of BinaryIO
            file.flush()
            self._made(name)
            self._persist(name, lambda: files.put_file(file.name, f"{root}/{name}"))

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """See `WorkFolder.read`."""
        files, root = self._opened
        bounds = {"start": start, "end": end} if start or end is not None else {}
        content: bytes = self._persist(name, lambda: files.cat_file(f"{root}/{name}", **bounds))
        return content

    def size(self, name: str) -> int | None:
        """See `WorkFolder.size`."""
        files, root = self._opened
        files.invalidate_cache()
        try:
            entry = self._persist(name, lambda: files.info(f"{root}/{name}"))
        except FileNotFoundError:
            return None
        return int(entry["size"]) if entry["type"] == "file" else None

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `WorkFolder.sizes`."""
        files, root = self._opened
        files.invalidate_cache()
        folder = f"{root}/{prefix.rpartition('/')[0]}".rstrip("/")
        found: dict[str, dict[str, Any]] = self._persist(prefix, lambda: files.find(folder, detail=True))
        sizes = {path[len(root) + 1 :]: int(entry["size"]) for path, entry in found.items()}
        return {name: sizes[name] for name in sorted(sizes) if name.startswith(prefix)}

    def remove(self, name: str) -> None:
        """See `WorkFolder.remove`."""
        files, root = self._opened
        with suppress(FileNotFoundError):
            self._persist(name, lambda: files.rm_file(f"{root}/{name}"))

    def clear(self) -> None:
        """See `WorkFolder.clear`."""
        files, root = self._opened
        files.invalidate_cache()
        with suppress(FileNotFoundError):
            self._persist("", lambda: files.rm(root, recursive=True))

    def _made(self, name: str) -> None:
        """Make the folder of a file where the protocol has folders."""
        files, root = self._opened
        if "file" in (files.protocol if isinstance(files.protocol, tuple) else (files.protocol,)):
            files.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)

    def _persist(self, name: str, attempt: Callable[[], Result]) -> Result:
        started, failures = time.monotonic(), 0
        while True:
            try:
                return attempt()
            except (FileNotFoundError, PermissionError):
                raise
            except Exception as error:  # each protocol's library raises its own
                failures += 1
                pause = self.policy.pause(failures)
                late = time.monotonic() - started + pause > self.policy.total_seconds
                if failures == self.policy.attempts or late:
                    raise self._failed(name, error) from error
                time.sleep(pause)

    def _failed(self, name: str, error: Exception) -> OSError:
        detail = with_bare_urls(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
        return OSError(f"{with_bare_urls(self.url)}/{name}: {detail}")

"""One checkpoint: a step in a storage, and the check that every byte of it is right."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bigtrain.base import ALONE, BigtrainError, Ranks, collectively
from bigtrain.checkpoint.manifest import (
    COMMITTED,
    LARGEST,
    MANIFEST,
    CheckpointManifest,
    FileChecksum,
    parse_manifest,
    step_name,
)
from bigtrain.checkpoint.open_storage import storage_at
from bigtrain.checkpoint.storage import Reader, Storage
from bigtrain.checkpoint.tensor_file import checksum_of

_HASHING_THREADS = 2
_PROBLEMS_SHOWN = 16


@dataclass(frozen=True)
class Checkpoint:
    """A step with a committed name in a storage. It may be damaged."""

    step: int
    storage: Storage

    @classmethod
    def at(cls, location: str | Path) -> Checkpoint:
        """The checkpoint at a folder or URL, whose last part is its name.

        Raises:
            BigtrainError: the name is not that of a checkpoint.
        """
        parent, _, name = str(location).rstrip("/").rpartition("/")
        if not (match := COMMITTED.fullmatch(name)):
            raise BigtrainError(f"{location} is not a checkpoint", found=name, wanted="a name such as step-00000100")
        return cls(int(match[1]), storage_at(parent or "."))

    @property
    def name(self) -> str:
        """Its name in its storage."""
        return step_name(self.step)

    @property
    def location(self) -> str:
        """Its folder or URL."""
        return self.storage.location(self.step)

    @property
    def path(self) -> Path:
        """Its folder; meaningless for a checkpoint at a URL."""
        return Path(self.location)

    @property
    def manifest(self) -> CheckpointManifest:
        """Its manifest, read again at each access.

        Raises:
            BigtrainError: the manifest is missing or damaged.
        """
        path = f"{self.location}/{MANIFEST}"
        try:
            with self.open(MANIFEST) as reader:
                if reader.size > LARGEST:
                    raise BigtrainError(
                        f"{path} is damaged", found=f"{reader.size:,} bytes", wanted=f"at most {LARGEST:,}"
                    )
                text = bytearray(reader.size)
                reader.read_into(0, memoryview(text))
        except (FileNotFoundError, NotADirectoryError):
            raise BigtrainError(f"{self.location} is not a committed checkpoint: it has no {MANIFEST}") from None
        except OSError as error:
            raise BigtrainError(f"{path} cannot be read", found=str(error)) from error
        return parse_manifest(path, bytes(text))

    def open(self, name: str) -> AbstractContextManager[Reader]:
        """One of its files."""
        return self.storage.open(self.step, name)


def steps_for_all(storage: Storage, ranks: Ranks, failed: str) -> list[int]:
    """The steps with a committed name, as rank 0 lists them, on every rank. Raises BigtrainError with this message."""
    steps: list[int] = ranks.broadcast(collectively(ranks, failed, lambda: storage.steps() if ranks.rank == 0 else []))
    return steps


def list_checkpoints(storage: Storage) -> list[Checkpoint]:
    """All checkpoints with a committed name, oldest first. Some may be damaged."""
    return [Checkpoint(step, storage) for step in storage.steps()]


def verify(
    checkpoint: Checkpoint, *, contents: bool = True, others_elsewhere: bool = False, ranks: Ranks = ALONE
) -> list[str]:
    """The problems of a checkpoint. An empty list means that every byte is right.

    Args:
        contents: hash every file. False: only the manifest and the files' sizes.
        others_elsewhere: a missing file is not a problem: in a local tier each node has only its own files.
        ranks: these share the reading; the result is the same on all.
    """
    manifest, problems = read_manifest(checkpoint, ranks)
    if problems:
        return problems
    return verify_files(checkpoint, manifest, contents=contents, others_elsewhere=others_elsewhere, ranks=ranks)


def read_manifest(checkpoint: Checkpoint, ranks: Ranks) -> tuple[CheckpointManifest | None, list[str]]:
    """Its manifest, on rank 0 alone: it names every file. And on every rank why it cannot be read."""
    manifest, problems = None, []
    if ranks.rank == 0:
        try:
            manifest = checkpoint.manifest
        except (BigtrainError, OSError) as error:
            problems = [str(error)]
    return manifest, ranks.broadcast(problems)


def verify_files(
    checkpoint: Checkpoint,
    manifest: CheckpointManifest | None,
    *,
    contents: bool = True,
    others_elsewhere: bool = False,
    ranks: Ranks,
) -> list[str]:
    """The problems of the files of a checkpoint. Rank 0 gives each rank its part of the names.

    Args:
        manifest: on rank 0, as `read_manifest` returns it.
        contents, others_elsewhere, ranks: see `verify`.
    """
    files = list(manifest.files.items()) if manifest is not None else []
    own = ranks.scatter([files[rank :: ranks.world_size] for rank in range(ranks.world_size)] if manifest else None)
    try:
        if others_elsewhere:
            own = [(name, checksum) for name, checksum in own if (checkpoint.path / name).exists()]
        found = problems_of(checkpoint, own, contents)
    except OSError as error:
        found = [str(error)]
    return all_problems(ranks, found)


def problems_of(checkpoint: Checkpoint, files: Collection[tuple[str, FileChecksum]], contents: bool) -> list[str]:
    """The problems of some files of a checkpoint, as this process sees them."""
    with ThreadPoolExecutor(_HASHING_THREADS) as threads:  # hashing and reading overlap
        found = threads.map(lambda file: _problem(checkpoint, file[0], file[1], contents), files)
        return [problem for problem in found if problem]


def all_problems(ranks: Ranks, problems: list[str]) -> list[str]:
    """The problems that the ranks have found, each once, on every rank; of very many the first, and a count."""

    def merged(lower: tuple[list[str], int], higher: tuple[list[str], int]) -> tuple[list[str], int]:
        each = list(dict.fromkeys(lower[0] + higher[0]))
        return each[:_PROBLEMS_SHOWN], lower[1] + higher[1] + len(each[_PROBLEMS_SHOWN:])

    shown, others = ranks.broadcast(ranks.reduce((problems, 0), merged))
    return [*shown, f"and {others:,} more problems"] if others else list(shown)


def _problem(checkpoint: Checkpoint, name: str, checksum: FileChecksum, contents: bool) -> str | None:
    try:
        with checkpoint.open(name) as reader:
            if reader.size != checksum.size:
                return f"{name}: {reader.size} bytes, wanted {checksum.size}"
            if contents and (found := checksum_of(reader)) != checksum:
                return f"{name}: contents changed (xxh3-128 {found.xxh3_128}, wanted {checksum.xxh3_128})"
    except FileNotFoundError:
        return f"{name}: missing"
    except (OSError, BigtrainError) as error:
        return f"{name}: cannot be read ({error})"
    return None

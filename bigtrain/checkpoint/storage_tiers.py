"""The one or two storage tiers of a run's checkpoints, and the search for the newest good checkpoint in them.

The durable tier is RUN/checkpoints, or `checkpoint.dir`. With `checkpoint.local_dir` there is also a local tier, a
folder on a disk of each node:

- Every save goes to the local tier first. Each rank writes its file on its own node, with a manifest of all files. One
  rename per node commits, once the files of all ranks are durable. The first save after a start, each
  `durable_every`-th after it, and the last one of a run also go to the durable tier. So the durable tier never lags by
  more than `durable_every` saves, however often the run starts again.
- Nodes do not see each other's disks. A step can be read from the local tier when every rank finds a manifest of the
  same digest there, and all files that it may need, by the manifest that rank 0 has read. With the same world size,
  engine and optimizer these are its own file and those of ranks with which it shares pieces; otherwise they are all.
- The newest checkpoint follows from the step numbers and the hashes in both tiers, at every search. At the same step
  the local tier comes first. No pointer and no clock is used.
- The local tier keeps the newest two checkpoints. It is a cache: its loss costs time, never a run.
"""

from __future__ import annotations

import os
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash

from bigtrain.base import ALONE, Ranks, check_writable, collectively
from bigtrain.checkpoint.checkpoint import (
    Checkpoint,
    all_problems,
    list_checkpoints,
    problems_of,
    read_manifest,
    steps_for_all,
    verify_files,
)
from bigtrain.checkpoint.folder import Folder
from bigtrain.checkpoint.manifest import MANIFEST, CheckpointManifest, CheckpointSummary, FileChecksum
from bigtrain.checkpoint.open_storage import storage_at
from bigtrain.checkpoint.storage import Storage
from bigtrain.config import CheckpointSettings, refuse_masked

_MANIFEST_HEAD = 1 << 14
"""Bytes of a manifest in which its digest is: only `created` and `cursor` are before it."""
_DIGEST = re.compile(rb'"digest": "([0-9a-f]{32})"')


@dataclass(frozen=True)
class StorageTiers:
    """The storages of a run's checkpoints."""

    durable: Storage
    local: Folder | None = None

    @classmethod
    def of(cls, run_dir: Path, settings: CheckpointSettings | None = None) -> StorageTiers:
        """The tiers that the settings name. Several runs may share a local_dir: each has a folder of its own in it.

        Raises:
            BigtrainError: the protocol of `checkpoint.dir` is unknown, or its package is not installed.
        """
        settings = settings or CheckpointSettings()
        if settings.dir is not None:
            refuse_masked("checkpoint.dir", settings.dir)
        local = None
        if settings.local_dir is not None:
            root = run_dir.resolve()
            local = Folder(settings.local_dir / f"{root.name}-{xxhash.xxh3_64_hexdigest(str(root).encode())[:8]}")
        return cls(storage_at(settings.dir or run_dir / "checkpoints"), local)

    def all(self) -> list[Checkpoint]:
        """The checkpoints that this process sees in both tiers, oldest first, durable before local."""
        storages = [self.durable] if self.local is None else [self.durable, self.local]
        found = [checkpoint for storage in storages for checkpoint in list_checkpoints(storage)]
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def is_local(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint is in the local tier."""
        return self.local is not None and checkpoint.storage == self.local


@dataclass(frozen=True)
class Rejected:
    """A checkpoint that cannot be used, and the reasons."""

    checkpoint: Checkpoint
    problems: list[str]


@dataclass(frozen=True)
class Search:
    """The result of the search for a checkpoint to resume from.

    `newest is None and not rejected`: no checkpoint was ever committed, or all were removed. `newest is None and
    rejected`: all checkpoints are damaged. Only the caller knows whether the run's records say that there must be one.
    """

    newest: Checkpoint | None
    rejected: list[Rejected]
    elsewhere: list[Rejected]
    """Newer local copies that these ranks cannot read: a node has lost or never committed them, or they have another
    layout. This is not an error of the run."""
    summary: CheckpointSummary | None = None
    """What the manifest of `newest` says, without its files."""


def newest_verified(
    tiers: StorageTiers, *, ranks: Ranks = ALONE, layout: str = "", before: int | None = None
) -> Search:
    """The newest checkpoint with every byte right, and the newer ones that were skipped.

    Every rank calls it and gets the same result. The ranks share the reading.

    Args:
        layout: of these ranks, as in the manifest. If it is equal, each rank needs only its own files of the local
            tier.
        before: search only checkpoints of earlier steps than this.
    """
    local, failed = tiers.local, f"{tiers.durable} cannot be read"
    durable = steps_for_all(tiers.durable, ranks, failed)
    copies = _local_copies(local, ranks) if local is not None else {}
    rejected: list[Rejected] = []
    elsewhere: list[Rejected] = []
    for step in sorted({*durable, *copies}, reverse=True):
        if before is not None and step >= before:
            continue
        if local is not None and step in copies:
            copy = Checkpoint(step, local)
            manifest, missing = read_manifest(copy, ranks) if not copies[step] else (None, [copies[step]])
            if missing or (missing := _why_not_here(copy, manifest, layout, ranks)):
                elsewhere.append(Rejected(copy, missing))
            elif problems := verify_files(copy, manifest, ranks=ranks):
                rejected.append(Rejected(copy, problems))
            else:
                return Search(copy, rejected, elsewhere, ranks.broadcast(manifest and manifest.summary))
        if step in durable:
            checkpoint = Checkpoint(step, tiers.durable)
            manifest, problems = read_manifest(checkpoint, ranks)
            if not problems and not (problems := verify_files(checkpoint, manifest, ranks=ranks)):
                return Search(checkpoint, rejected, elsewhere, ranks.broadcast(manifest and manifest.summary))
            rejected.append(Rejected(checkpoint, problems))
    return Search(None, rejected, elsewhere)


@dataclass
class _Copies:
    """The local copies of a step that some ranks, which follow each other, see."""

    attempts: set[str]
    """Digests of their manifests, of which two are enough to show that there is not one."""
    lacking: int
    """How many of the ranks see none."""
    lowest: int | None
    """The lowest of these."""

    @classmethod
    def none(cls, first: int, ranks: int) -> _Copies:
        """Of ranks that see no copy."""
        return cls(set(), ranks, first)

    def merged(self, higher: _Copies) -> _Copies:
        """Together with those of the ranks that follow."""
        lowest = self.lowest if self.lowest is not None else higher.lowest
        return _Copies(set(sorted(self.attempts | higher.attempts)[:2]), self.lacking + higher.lacking, lowest)

    def problem(self) -> str:
        """Why not all ranks have the same copy; empty if they do."""
        if self.lowest is not None:
            return f"{_nodes(self.lowest, self.lacking)} no copy of it"
        return "the nodes hold copies of different attempts" if len(self.attempts) > 1 else ""


def _nodes(lowest: int, count: int) -> str:
    """The nodes of some ranks, as the subject of a sentence."""
    others = f" and {count - 1:,} more rank{'s' * (count > 2)}" if count > 1 else ""
    return f"the node of rank {lowest}{others} {'have' if others else 'has'}"


def _local_copies(local: Folder, ranks: Ranks) -> dict[int, str]:
    """The steps in the local tier of any node, each with why not all ranks have the same copy; empty if they do."""
    seen = collectively(ranks, f"{local} cannot be read", lambda: _attempts(local))
    own = (ranks.rank, 1, {step: _Copies({attempt}, 0, None) for step, attempt in seen.items()})
    of_all = ranks.reduce(own, _merged_copies)
    copies: dict[int, str] = ranks.broadcast(of_all and {step: found.problem() for step, found in of_all[2].items()})
    return copies


def _merged_copies(
    lower: tuple[int, int, dict[int, _Copies]], higher: tuple[int, int, dict[int, _Copies]]
) -> tuple[int, int, dict[int, _Copies]]:
    """The copies of ranks that follow each other: the first of them, their number, and the copies by step."""

    def of(step: int, some: tuple[int, int, dict[int, _Copies]]) -> _Copies:
        return some[2].get(step) or _Copies.none(some[0], some[1])

    steps = lower[2].keys() | higher[2].keys()
    return lower[0], lower[1] + higher[1], {step: of(step, lower).merged(of(step, higher)) for step in steps}


def _attempts(local: Folder) -> dict[int, str]:
    """The steps in the local tier of this node, and the digest that each one's manifest states.

    Only the manifest of rank 0 is read whole, and the files are checked against it.
    """
    found = {}
    for checkpoint in list_checkpoints(local):
        with suppress(OSError):  # it is as good as none; the durable one has to be whole
            with checkpoint.open(MANIFEST) as reader:
                head = bytearray(min(reader.size, _MANIFEST_HEAD))
                reader.read_into(0, memoryview(head))
            if stated := _DIGEST.search(head):
                found[checkpoint.step] = stated[1].decode()
    return found


def _why_not_here(copy: Checkpoint, manifest: CheckpointManifest | None, layout: str, ranks: Ranks) -> list[str]:
    """Why not all ranks can read a local copy, the same list on every rank; empty if they can.

    Args:
        manifest: of the copy, on rank 0.
    """
    needed = ranks.scatter(_needed(manifest, layout, ranks.world_size) if manifest is not None else None)
    if isinstance(needed, list):
        return all_problems(ranks, problems_of(copy, needed, contents=False))
    lacks = (ranks.rank, 1) if _listing(copy) != needed else None
    found = ranks.broadcast(ranks.reduce(lacks, lambda a, b: (a[0], a[1] + b[1]) if a and b else a or b))
    return [f"{_nodes(*found)} not all files of it, which ranks of another layout need"] if found else []


def _needed(manifest: CheckpointManifest, layout: str, ranks: int) -> list[list[tuple[str, FileChecksum]] | str]:
    """For each rank the files that hold everything that it may need; where these are all files, a hash of them."""
    files = list(manifest.files.items())
    if not layout or layout != manifest.layout or len(files) != ranks:
        return [_hash_of((name, checksum.size) for name, checksum in files)] * ranks
    partners: defaultdict[str, list[tuple[str, FileChecksum]]] = defaultdict(list)
    for name, checksum in files:
        partners[manifest.partners.get(name) or name].append((name, checksum))
    if len(partners) == 1 < ranks:
        return [_hash_of((name, checksum.size) for name, checksum in files)] * ranks
    return [partners[manifest.partners.get(name) or name] for name, _ in files]


def _listing(copy: Checkpoint) -> str:
    """The hash of the names and sizes of all files of a copy that this node has."""
    try:
        with os.scandir(copy.path) as entries:
            return _hash_of((entry.name, entry.stat().st_size) for entry in entries if entry.name != MANIFEST)
    except OSError as error:
        return str(error)


def _hash_of(files: Iterable[tuple[str, int]]) -> str:
    return xxhash.xxh3_128_hexdigest(repr(sorted(files)).encode())


def leads_here(folder: Folder, ranks: Ranks) -> bool:
    """Whether this rank is the lowest of those that see this folder, which is one per node. Every rank calls it.

    Each rank creates a file and looks for those of the others: host names and device numbers can mislead.
    """
    failed = f"checkpoint.local_dir: {folder} cannot be written"

    token = ranks.broadcast(uuid.uuid4().hex)

    def leave_mark() -> Path:
        check_writable(folder.directory, "checkpoint.local_dir")
        mark = folder.directory / f".rank-{token}-{ranks.rank}"
        mark.touch()
        return mark

    def lowest() -> int:
        return min(int(mark.name.rpartition("-")[2]) for mark in folder.directory.glob(f".rank-{token}-*"))

    mark = collectively(ranks, failed, leave_mark)
    leader = collectively(ranks, failed, lowest)
    mark.unlink()
    return leader == ranks.rank

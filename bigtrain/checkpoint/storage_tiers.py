"""The one or two storage tiers of a run's checkpoints, and the search for the newest good checkpoint in them.

The durable tier is RUN/checkpoints, or `checkpoint.dir`. With `checkpoint.local_dir` there is also a local tier, a
folder on a disk of each node:

- Every save goes to the local tier first. Each rank writes its file on its own node, with a manifest of all files. One
  rename per node commits, once the files of all ranks are durable. The first save after a start, each
  `durable_every`-th after it, and the last one of a run also go to the durable tier. So the durable tier never lags by
  more than `durable_every` saves, however often the run starts again.
- Nodes do not see each other's disks. A step can be read from the local tier when every rank finds the same manifest
  there, and all files that it may need. With the same world size, engine and optimizer these are its own file and those
  of ranks with which it shares pieces; otherwise they are all files.
- The newest checkpoint follows from the step numbers and the hashes in both tiers, at every search. At the same step
  the local tier comes first. No pointer and no clock is used.
- The local tier keeps the newest two checkpoints. It is a cache: its loss costs time, never a run.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import xxhash

from bigtrain.base import ALONE, BigtrainError, Ranks, check_writable, collected, collectively, gather
from bigtrain.checkpoint.checkpoint import Checkpoint, list_checkpoints, merged, problems_of, verify
from bigtrain.checkpoint.folder import Folder
from bigtrain.checkpoint.manifest import CheckpointManifest
from bigtrain.checkpoint.open_storage import storage_at
from bigtrain.checkpoint.storage import Storage
from bigtrain.config import CheckpointSettings, refuse_masked


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
    durable = ranks.broadcast(collectively(ranks, failed, lambda: tiers.durable.steps() if ranks.rank == 0 else []))
    here = ranks.broadcast(collected(ranks, f"{local} cannot be read", lambda: _local_manifests(local)))
    rejected: list[Rejected] = []
    elsewhere: list[Rejected] = []
    for step in sorted({*durable, *(step for of_rank in here for step in of_rank)}, reverse=True):
        if before is not None and step >= before:
            continue
        if local is not None and any(step in of_rank for of_rank in here):
            copy = Checkpoint(step, local)
            missing = _why_not_here(copy, [of_rank.get(step) for of_rank in here], layout, ranks)
            if missing:
                elsewhere.append(Rejected(copy, missing))
            elif problems := verify(copy, ranks=ranks):
                rejected.append(Rejected(copy, problems))
            else:
                return Search(copy, rejected, elsewhere)
        if step in durable:
            checkpoint = Checkpoint(step, tiers.durable)
            if not (problems := verify(checkpoint, ranks=ranks)):
                return Search(checkpoint, rejected, elsewhere)
            rejected.append(Rejected(checkpoint, problems))
    return Search(None, rejected, elsewhere)


def _local_manifests(local: Folder | None) -> dict[int, str]:
    """The steps in the local tier of this node, and a hash of each one's manifest."""
    found = {}
    for checkpoint in list_checkpoints(local) if local is not None else []:
        try:
            found[checkpoint.step] = xxhash.xxh3_128_hexdigest(checkpoint.manifest.to_json().encode())
        except BigtrainError:
            continue  # a damaged local copy is not used; the durable one has to be whole
    return found


def _why_not_here(copy: Checkpoint, digests: list[str | None], layout: str, ranks: Ranks) -> list[str]:
    """Why not all ranks can read a local copy, the same list on every rank; empty if they can."""
    if None in digests:
        lacking = [str(rank) for rank, digest in enumerate(digests) if digest is None]
        return [f"the node of rank {', '.join(lacking)} has no copy of it"]
    if len(set(digests)) > 1:
        return ["the nodes hold copies of different attempts"]
    manifest = copy.manifest
    problems = problems_of(copy, manifest.files, _needed(manifest, layout, ranks), contents=False)
    return merged(ranks.broadcast(gather(ranks, problems)))


def _needed(manifest: CheckpointManifest, layout: str, ranks: Ranks) -> list[str]:
    """The files that hold everything that this rank may need."""
    names = list(manifest.files)
    if not layout or layout != manifest.layout:
        return names
    own = names[ranks.rank]
    partner = manifest.partners.get(own)
    return [name for name in names if name == own or (partner and manifest.partners.get(name) == partner)]


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

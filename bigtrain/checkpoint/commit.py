"""The protocol by which the ranks commit one checkpoint to one storage: whole, or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bigtrain.base import Ranks, __version__, collectively, gather, reached
from bigtrain.checkpoint.checkpoint import Checkpoint
from bigtrain.checkpoint.contents import Contents
from bigtrain.checkpoint.manifest import CheckpointManifest, Cursor, FileChecksum
from bigtrain.checkpoint.storage import Storage


@dataclass(frozen=True)
class About:
    """The fields of the manifest that do not follow from the files."""

    cursor: Cursor
    mathematics: Mapping[str, Any]
    zero_stage: int
    state: Mapping[str, Any]
    layout: str


def commit(
    storage: Storage,
    about: About,
    contents: Contents,
    data: memoryview,
    checksum: FileChecksum,
    *,
    leads: bool,
    of_nodes: bool,
    ranks: Ranks,
) -> Checkpoint:
    """Write this rank's file and commit the checkpoint. Every rank calls it.

    Args:
        data: the bytes of the file.
        checksum: their size and hash.
        leads: whether this rank prepares and commits. The lowest of the ranks that see the storage does.
        of_nodes: whether each node has a storage of its own, so that other ranks than 0 lead too.

    Raises:
        BigtrainError: on every rank, when any rank could not write. Earlier checkpoints are untouched.
    """
    step = about.cursor.step
    failed = f"the checkpoint of step {step} could not be written to {storage.location(step)}"

    def prepare() -> None:
        if leads:
            storage.prepare(step)

    def write() -> Contents:
        name = storage.file_name(f"state-{ranks.rank:05d}-of-{ranks.world_size:05d}", attempt)
        storage.write(step, name, data)
        reached("save.written")
        return contents.in_file(name, checksum)

    def publish() -> None:
        if leads:
            reached("save.manifest")
            storage.commit(step, manifest)

    try:
        attempt = ranks.broadcast(uuid.uuid4().hex[:8])
        collectively(ranks, failed, prepare)
        written = ranks.reduce(collectively(ranks, failed, write), Contents.merged)
        manifest = _manifest(about, written).to_json().encode() if written else b""
        if of_nodes:
            leaders = gather(ranks, leads)
            manifest = ranks.scatter([manifest if leader else b"" for leader in leaders] if leaders else None)
        collectively(ranks, failed, publish)
    except Exception:
        if leads:
            storage.abandon(step)
        raise
    return Checkpoint(step, storage)


def _manifest(about: About, written: Contents) -> CheckpointManifest:
    return CheckpointManifest(
        cursor=about.cursor,
        world_size=len(written.files),
        zero_stage=about.zero_stage,
        mathematics=dict(about.mathematics),
        versions=_versions(),
        kinds=sorted(written.kinds),
        tensors=dict(sorted(written.shapes.items())),
        files={name: checksum for name, checksum, _ in written.files},
        pieces=written.division.records(),
        layout=about.layout,
        partners={name: partner for name, _, partner in written.files if partner},
        state=dict(about.state),
    )


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    return {
        "bigtrain": __version__,
        "torch": torch.__version__,
        "deepspeed": version("deepspeed"),
        "python": platform.python_version(),
    }

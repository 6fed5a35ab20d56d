"""The protocol by which the ranks commit one checkpoint to one storage: whole, or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xxhash

from bigtrain.base import __version__, reached
from bigtrain.checkpoint.checkpoint import Checkpoint
from bigtrain.checkpoint.fragment import Fragment
from bigtrain.checkpoint.manifest import CheckpointManifest, Cursor, FileChecksum
from bigtrain.checkpoint.ranks import Ranks, collectively
from bigtrain.checkpoint.storage import Storage


@dataclass(frozen=True)
class Contents:
    """What a rank reports about its part of the state."""

    shapes: dict[str, list[int]]
    """Shapes of the whole parameters of which the rank has a part."""
    kinds: list[str]
    partner: str
    """A hash that is equal on ranks which hold the same pieces and each save a part of them. Empty for a rank that
    shares no piece."""

    @classmethod
    def of(cls, fragments: Sequence[Fragment]) -> Contents:
        """The report for all fragments that a rank holds, before they are divided among its partners."""
        held = [(f.name, f.kind, f.offset, f.shard, f.data.numel()) for f in fragments if f.holders > 1]
        return cls(
            {fragment.name: list(fragment.shape) for fragment in fragments},
            sorted({fragment.kind for fragment in fragments}),
            xxhash.xxh3_64_hexdigest(repr(sorted(held, key=repr)).encode()) if held else "",
        )


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
    ranks: Ranks,
) -> Checkpoint:
    """Write this rank's file and commit the checkpoint. Every rank calls it.

    Args:
        data: the bytes of the file.
        checksum: their size and hash.
        leads: whether this rank prepares and commits. One of the ranks that see the storage does.

    Raises:
        BigtrainError: on every rank, when any rank could not write. Earlier checkpoints are untouched.
    """
    step = about.cursor.step
    failed = f"the checkpoint of step {step} could not be written to {storage.location(step)}"

    def prepare() -> str:
        if leads:
            storage.prepare(step)
        return uuid.uuid4().hex[:8]

    def write() -> tuple[str, FileChecksum, Contents]:
        name = storage.file_name(f"state-{ranks.rank:05d}-of-{ranks.world_size:05d}", attempt)
        storage.write(step, name, data)
        reached("save.written")
        return name, checksum, contents

    def publish() -> None:
        if leads:
            reached("save.manifest")
            storage.commit(step, _manifest(about, written).to_json().encode())

    try:
        attempt, *_ = collectively(ranks, failed, prepare)
        written = collectively(ranks, failed, write)
        collectively(ranks, failed, publish)
    except Exception:
        if leads:
            storage.abandon(step)
        raise
    return Checkpoint(step, storage)


def _manifest(about: About, written: Sequence[tuple[str, FileChecksum, Contents]]) -> CheckpointManifest:
    shapes = {name: shape for _, _, contents in written for name, shape in contents.shapes.items()}
    return CheckpointManifest(
        cursor=about.cursor,
        world_size=len(written),
        zero_stage=about.zero_stage,
        mathematics=dict(about.mathematics),
        versions=_versions(),
        kinds=sorted({kind for _, _, contents in written for kind in contents.kinds}),
        tensors=dict(sorted(shapes.items())),
        files={name: checksum for name, checksum, _ in written},
        layout=about.layout,
        partners={name: contents.partner for name, _, contents in written if contents.partner},
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

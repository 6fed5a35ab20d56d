"""Writing a checkpoint so that a crash at any instant leaves either all of it or nothing that counts.

The argument. A directory under its final name `step-N` comes into being by one rename, which POSIX makes atomic.
Before the rename every file in it, the manifest last, was written and fsynced, and so was the staging directory
itself; after it the parent is fsynced. So whoever sees `step-N/manifest.json` sees a manifest that was complete, of
files that were complete. Killed earlier, only a name beginning with a dot is left, which nothing reads and the next
save removes. Where the disk breaks its promise, the hashes in the manifest show it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bigtrain.checkpoint.fragment import Fragment
from bigtrain.checkpoint.manifest import MANIFEST, Cursor, Manifest
from bigtrain.checkpoint.ranks import Ranks, together
from bigtrain.checkpoint.store import Checkpoint, checkpoint_path, remove_leftovers, staging_path
from bigtrain.checkpoint.tensor_file import FileSeal, write_tensor_file
from bigtrain.version import __version__


def save(
    run_dir: Path,
    cursor: Cursor,
    fragments: Sequence[Fragment],
    rng: Mapping[str, torch.Tensor],
    *,
    mathematics: Mapping[str, Any],
    zero_stage: int,
    state: Mapping[str, Any],
    ranks: Ranks,
) -> Checkpoint:
    """Commit a checkpoint of this step. Every rank calls it with its own fragments and random state.

    A checkpoint of the same step that is already there (a bad one, which was fallen back from) is replaced.

    Raises:
        BigtrainError: on every rank, when any rank could not write. Earlier checkpoints are untouched.
    """
    staging = staging_path(run_dir, cursor.step)
    final = checkpoint_path(run_dir, cursor.step)
    failed = f"the checkpoint of step {cursor.step} could not be written to {final}"
    file_name = f"state-{ranks.rank:05d}-of-{ranks.world_size:05d}.safetensors"
    shares = [fragment.share() for fragment in fragments]
    own = [share for share in shares if share.data.numel()]

    def prepare() -> None:
        if ranks.rank == 0:
            staging.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(run_dir)
            staging.mkdir()

    def write() -> tuple[str, FileSeal, dict[str, list[int]], list[str]]:
        seal = write_tensor_file(staging / file_name, own, rng)
        shapes = {fragment.name: list(fragment.shape) for fragment in own}
        return file_name, seal, shapes, sorted({fragment.kind for fragment in own})

    try:
        together(ranks, failed, prepare)
        written = together(ranks, failed, write)

        def commit() -> None:
            if ranks.rank == 0:
                manifest = Manifest(
                    cursor=cursor,
                    world_size=ranks.world_size,
                    zero_stage=zero_stage,
                    mathematics=dict(mathematics),
                    versions=_versions(),
                    kinds=sorted({kind for _, _, _, kinds in written for kind in kinds}),
                    tensors={name: shape for _, _, shapes, _ in written for name, shape in sorted(shapes.items())},
                    files={name: seal for name, seal, _, _ in written},
                    state=dict(state),
                )
                _write_durably(staging / MANIFEST, manifest.to_json())
                _fsync_directory(staging)
                _publish(staging, final)

        together(ranks, failed, commit)
    except Exception:
        if ranks.rank == 0:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    return Checkpoint(cursor.step, final)


def _publish(staging: Path, final: Path) -> None:
    """Give the staged directory its name; a bad checkpoint of that name steps aside first."""
    replaced = final.with_name(f".{final.name}.replaced-{time.time_ns()}")
    if final.exists():
        final.rename(replaced)
    staging.rename(final)
    _fsync_directory(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _write_durably(path: Path, text: str) -> None:
    with path.open("x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _fsync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    return {
        "bigtrain": __version__,
        "torch": torch.__version__,
        "deepspeed": version("deepspeed"),
        "python": platform.python_version(),
    }

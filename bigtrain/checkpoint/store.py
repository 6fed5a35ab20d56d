"""The checkpoints of a run: which are there, which of them can be trusted, which may go.

What is the newest follows from the names and the hashes, every time anew. There is no pointer file that could lie.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bigtrain.checkpoint.manifest import Manifest, read_manifest
from bigtrain.checkpoint.ranks import ALONE, Ranks, together
from bigtrain.checkpoint.tensor_file import FileSeal, seal_of
from bigtrain.config.errors import BigtrainError

_COMMITTED = re.compile(r"step-(\d{8,})")
_LEFTOVER = re.compile(r"\.step-\d{8,}\.(staging|pruned|replaced-\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A directory under a committed name."""

    step: int
    path: Path

    @property
    def manifest(self) -> Manifest:
        """Read anew each time.

        Raises:
            BigtrainError: the manifest is missing or damaged.
        """
        return read_manifest(self.path)


@dataclass(frozen=True)
class Rejected:
    """A checkpoint that cannot be trusted, and why."""

    checkpoint: Checkpoint
    problems: list[str]


@dataclass(frozen=True)
class Search:
    """The outcome of looking for something to resume from.

    `newest is None and not rejected`: none was ever committed (or all were taken away). `newest is None and rejected`:
    there were some and all are bad. Only the caller knows whether the run's own records say that there must be one.
    """

    newest: Checkpoint | None
    rejected: list[Rejected]


def checkpoints_directory(run_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run_dir / "checkpoints"


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """The final name of a step's checkpoint."""
    return checkpoints_directory(run_dir) / f"step-{step:08d}"


def staging_path(run_dir: Path, step: int) -> Path:
    """Where a step's checkpoint is put together. No reader looks at names that begin with a dot."""
    return checkpoints_directory(run_dir) / f".step-{step:08d}.staging"


def list_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """All directories under a committed name, oldest first, whether whole or not."""
    directory = checkpoints_directory(run_dir)
    entries = directory.iterdir() if directory.is_dir() else iter(())
    found = [Checkpoint(int(match[1]), path) for path in entries if (match := _COMMITTED.fullmatch(path.name))]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def verify(path: Path, *, contents: bool = True, ranks: Ranks = ALONE) -> list[str]:
    """What is wrong with a checkpoint; an empty list means that every byte is right.

    Args:
        contents: hash every file. False: only the manifest and the files' sizes.
        ranks: share the reading among these; the answer is the same on all.
    """
    try:
        mine = list(read_manifest(path).files.items())[ranks.rank :: ranks.world_size]
        found = [problem for name, seal in mine if (problem := _problem(path / name, seal, contents))]
    except BigtrainError as error:
        found = [str(error)]
    return list(dict.fromkeys(problem for problems in ranks.all_gather(found) for problem in problems))


def _problem(path: Path, seal: FileSeal, contents: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != seal.size:
            return f"{path.name}: {size} bytes, wanted {seal.size}"
        if contents and (found := seal_of(path)) != seal:
            return f"{path.name}: contents changed (xxh3-128 {found.xxh3_128}, wanted {seal.xxh3_128})"
    except FileNotFoundError:
        return f"{path.name}: missing"
    except OSError as error:
        return f"{path.name}: cannot be read ({error})"
    return None


def newest_verified(run_dir: Path, *, ranks: Ranks = ALONE) -> Search:
    """The newest checkpoint whose every byte is right, and the newer ones that were passed over.

    Every rank calls it and gets the same answer: what is there is decided by rank 0, reading is shared.
    """
    (found, *_) = together(ranks, f"{run_dir} cannot be read", lambda: list_checkpoints(run_dir))
    rejected: list[Rejected] = []
    for checkpoint in reversed(found):
        problems = verify(checkpoint.path, ranks=ranks)
        if not problems:
            return Search(checkpoint, rejected)
        rejected.append(Rejected(checkpoint, problems))
    return Search(None, rejected)


def prune(run_dir: Path, keep: int) -> list[Checkpoint]:
    """Remove all but the `keep` newest good checkpoints, and say which. One rank calls it.

    Nothing goes unless the newest good one was read through and found right; the others kept need their manifest and
    sizes to be right. Bad ones newer than those kept stay for whoever wants to look into them.

    Raises:
        OSError: a directory cannot be removed.
    """
    good = _good(list_checkpoints(run_dir))
    kept = [checkpoint for checkpoint, _ in zip(good, range(keep), strict=False)]
    if not kept:
        return []
    doomed = [checkpoint for checkpoint in list_checkpoints(run_dir) if checkpoint.step < kept[-1].step]
    if len(kept) < keep:
        doomed = []
    for checkpoint in doomed:
        # Out of sight first: a half-removed directory must not look like a checkpoint.
        aside = checkpoint.path.with_name(f".{checkpoint.path.name}.pruned")
        checkpoint.path.rename(aside)
        shutil.rmtree(aside)
    return doomed


def _good(checkpoints: list[Checkpoint]) -> Iterator[Checkpoint]:
    """Newest first; the first is verified to the last byte, the rest by manifest and sizes."""
    contents = True
    for checkpoint in reversed(checkpoints):
        if not verify(checkpoint.path, contents=contents):
            contents = False
            yield checkpoint


def remove_leftovers(run_dir: Path) -> None:
    """Remove what saves and prunings that were killed have left behind."""
    for path in checkpoints_directory(run_dir).iterdir():
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path)

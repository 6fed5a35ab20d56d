"""Which phase a save is in, as the directory of checkpoints shows it from outside, and waiting to strike in one."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from bigtrain.checkpoint import Checkpoint, StorageTiers, newest_verified
from bigtrain.checkpoint.folder import Folder
from bigtrain.checkpoint.manifest import COMMITTED

PHASES = (
    "staging just created",
    "files growing",
    "all files there",
    "manifest being written",
    "just renamed",
    "pruning",
    "between two saves",
)


class Saves:
    """The directory of checkpoints of a run, watched."""

    def __init__(self, directory: Path, ranks: int) -> None:
        self.directory, self._ranks = directory, ranks
        self._whole = 0  # bytes of all files of a checkpoint, manifest left out

    def committed(self) -> list[int]:
        """The steps that have a committed name, in order."""
        names = self._names() if self.directory.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := COMMITTED.fullmatch(name)))

    def half_done(self) -> set[tuple[str, int]]:
        """What saves and prunings have under way, or have left behind: names and inodes."""
        found = set()
        with suppress(FileNotFoundError):
            for path in self.directory.glob(".*"):
                with suppress(FileNotFoundError):
                    found.add((path.name, path.stat().st_ino))
        return found

    def phase(self, newest: int, *, old: Collection[str] = ()) -> str:
        """What is going on now.

        Args:
            newest: the newest committed step that was seen before; a newer one has just been renamed.
            old: names of what an earlier kill has left behind.
        """
        try:
            names = [name for name in self._names() if name not in old]
        except FileNotFoundError:
            return "between two saves"
        if any(name.endswith(".pruned") for name in names):
            return "pruning"
        staging = next((name for name in names if name.endswith(".staging")), None)
        if staging is None:
            renamed = any((match := COMMITTED.fullmatch(name)) and int(match[1]) > newest for name in names)
            return "just renamed" if renamed else "between two saves"
        try:
            with os.scandir(self.directory / staging) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries}
        except FileNotFoundError:  # renamed or removed while we looked
            return "just renamed"
        if not sizes:
            return "staging just created"
        if "manifest.json" in sizes:
            return "manifest being written"
        if len(sizes) == self._ranks and self._whole and sum(sizes.values()) == self._whole:
            return "all files there"
        return "files growing"

    def learn(self) -> None:
        """Learn from the newest checkpoint how large a whole one is."""
        if not self._whole and (steps := self.committed()):
            folder = self.directory / f"step-{steps[-1]:08d}"
            self._whole = sum(path.stat().st_size for path in folder.glob("state-*"))

    def wait_for(self, phase: str, patience: float) -> str:
        """Poll until a save is in this phase, or for so many seconds; the phase that it is in then."""
        self.learn()
        newest = max(self.committed(), default=0)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            now = self.phase(newest)
            if now == phase:
                return now
            if now == "just renamed":
                newest = max(self.committed(), default=0)
        return self.phase(newest)

    def traces(self, newest: int, before: Collection[tuple[str, int]]) -> str:
        """The phase that a kill interrupted, by what it left behind; all processes are gone.

        Args:
            newest: the newest committed step when the aim was taken.
            before: what was half done before the start that was killed.
        """
        return self.phase(newest, old={name for name, _ in self.half_done() & set(before)})

    def wrong(self, durable: int) -> list[str]:
        """What must not be after a kill, once all processes are gone; nothing, if all is well.

        Args:
            durable: the newest step that the run had told to be durable.
        """
        steps = self.committed()
        search = newest_verified(StorageTiers(Folder(self.directory)))
        found = search.newest.step if search.newest else 0
        problems = [f"{r.checkpoint.name} is torn: {'; '.join(r.problems)}" for r in search.rejected]
        if found != max(steps, default=0):
            problems.append(f"the newest good step is {found}, and {max(steps, default=0)} is committed")
        if found < durable:
            problems.append(f"step {durable} was durable, and the newest good step is {found}")
        return problems

    def _names(self) -> list[str]:
        with os.scandir(self.directory) as entries:
            return [entry.name for entry in entries]

    def newest(self) -> Checkpoint | None:
        """The newest good checkpoint."""
        return newest_verified(StorageTiers(Folder(self.directory))).newest

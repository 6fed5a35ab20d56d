"""A run directory: where every file of a run is, and which job may write there.

The layout is a promise to scripts::

    RUN/config.yaml          the effective settings, with the version of bigtrain that ran them
    RUN/metrics.jsonl        a line a step
    RUN/events.jsonl         start, resume, save, evaluate, skip, rewind, stop
    RUN/ledger.jsonl         sums over the starts that are over; see bigtrain/rundir/closed_starts.py
    RUN/decisions.jsonl      what was decided about anomalies; see bigtrain/rundir/decisions.py
    RUN/checkpoints/         see bigtrain.checkpoint
    RUN/data-card.md, .json  written by `bigtrain data card`
    RUN/logs/rank-00000.log  a file a rank that reports; those of rank 256 and later in RUN/logs/ranks-00256/, ...
    RUN/failing-hosts.jsonl  machines that were found failing; see bigtrain/rundir/failing_hosts.py
    RUN/doctor.json          what `bigtrain doctor` found and measured in its last runs
    RUN/wandb/               W&B's own files
    RUN/.run                 the id of the run, where checkpoint.dir is set; see bigtrain/train/ownership.py
    RUN/evaluation.json      what `bigtrain eval` last found
    RUN/answers.json         the answers to the questions that `bigtrain eval --answers` was last given
    RUN/report.html, loss.svg, samples.json    written by `bigtrain report`
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.base import (
    BigtrainError,
    FileLock,
    LockHeldError,
    broken_part,
    check_writable,
    explained,
    temporary_of,
    write_atomically,
)
from bigtrain.config import DataSettings, Settings, dump_settings, load_settings, with_bare_urls
from bigtrain.data import is_mirror
from bigtrain.rundir.decisions import is_current, read_decisions, with_decisions
from bigtrain.rundir.failing_hosts import FAILING_HOSTS
from bigtrain.rundir.json_lines import written_to
from bigtrain.rundir.records import metrics_of_step, newest_metrics

if TYPE_CHECKING:
    from bigtrain.checkpoint import StorageTiers

logger = logging.getLogger(__name__)

LOCK_PATIENCE_SECONDS = 20.0
MARK = ".bigtrain-doctor-"
"""The start of the names of temporary files that the doctor makes."""


RANKS_A_FOLDER = 256
"""So many ranks have their files in one folder: in one of 16,384, each new file takes the file system longer."""


class RunDirectory:
    """The paths of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.metrics = root / "metrics.jsonl"
        self.events = root / "events.jsonl"
        self.ledger = root / "ledger.jsonl"
        self.decisions = root / "decisions.jsonl"
        self.evaluation = root / "evaluation.json"
        self.answers = root / "answers.json"
        self.samples = root / "samples.json"
        self.checkpoints = root / "checkpoints"
        self.logs = root / "logs"
        self.identity = root / ".run"
        self._lock = FileLock(root / ".lock")

    @classmethod
    def of_existing_run(cls, root: Path) -> RunDirectory:
        """The directory of a run that has been started.

        Raises:
            BigtrainError: there is no run at `root`.
        """
        directory = cls(root)
        if not directory.config.is_file():
            raise BigtrainError(
                f"{root} is not a run directory",
                found="no config.yaml in it" if root.is_dir() else (broken_part(root) or ("no such directory",))[0],
                wanted="the run_dir of a run that `bigtrain train` has started",
                fix="give the run_dir of a configuration, for example runs/quickstart",
            )
        return directory

    def settings(self) -> Settings:
        """The settings that the run was last started with, with its decisions since then.

        Relative paths in them are those of the directory in which the run was started, as far as `run_dir` shows it.
        """
        return with_decisions(self._from_its_start(load_settings(self.config)), read_decisions(self.decisions))

    def settings_for_data(self) -> Settings:
        """The settings, for a command that reads the data of the run, which may be at a URL.

        Raises:
            BigtrainError: the data would be fetched into a new folder that is neither below the run directory nor below
                the current directory. Only config.yaml names it, and that may be a stranger's.
        """
        settings = self.settings()
        self.refuse_to_fetch_elsewhere(settings.data)
        return settings

    def refuse_to_fetch_elsewhere(self, data: DataSettings) -> None:
        """See `settings_for_data`."""
        folder = data.dir.resolve()
        trusted = (Path.cwd(), self.root.resolve())
        if data.remote is None or is_mirror(data.dir) or any(folder.is_relative_to(each) for each in trusted):
            return
        raise BigtrainError(
            f"{self.config} would have data fetched into {folder}; nothing was written",
            found=f"data.remote {with_bare_urls(data.remote)}, and a data.dir in which nothing of it is yet",
            wanted="a data.dir below the run directory or the current directory, or one that was filled before",
            fix=f"if you trust this run, start the command in {folder.parent}; or change data.dir in {self.config}",
        )

    def _from_its_start(self, settings: Settings) -> Settings:
        """The settings, with relative folders seen from here."""
        start = directory_of_start(self.root, settings.run_dir)
        if start is None or start == Path.cwd():
            return settings
        data, checkpoint = settings.data, settings.checkpoint
        if not data.dir.is_absolute():
            data = data.model_copy(update={"dir": start / data.dir})
        if checkpoint.dir is not None and "://" not in checkpoint.dir:
            checkpoint = checkpoint.model_copy(update={"dir": str(start / Path(checkpoint.dir).expanduser())})
        if checkpoint.local_dir is not None:
            checkpoint = checkpoint.model_copy(update={"local_dir": start / checkpoint.local_dir})
        return settings.model_copy(update={"data": data, "checkpoint": checkpoint})

    def recorded(self, step: int) -> dict[str, Any] | None:
        """The line of metrics.jsonl for a step; None where the run has not done it, or a decision has undone it."""
        record = metrics_of_step(self.metrics, step)
        return (
            record
            if record is not None and is_current(step, record.get("decisions", 0), read_decisions(self.decisions))
            else None
        )

    def newest(self) -> dict[str, Any] | None:
        """The line of the step that the run did last; where it is about to rewind, of the step that it rewinds to."""
        record, decisions = newest_metrics(self.metrics), read_decisions(self.decisions)
        if record is not None and not is_current(record["step"], record.get("decisions", 0), decisions):
            return self.recorded(decisions[-1].rewind_to)
        return record

    def tiers(self) -> StorageTiers:
        """Where the run keeps its checkpoints."""
        from bigtrain.checkpoint import StorageTiers

        return StorageTiers.of(self.root, self.settings().checkpoint)

    def refuse_foreign(self) -> None:
        """Refuse a directory that holds other files.

        Raises:
            BigtrainError: the directory has files, but no run was started in it.
        """
        if self.root.exists() and not self.root.is_dir():
            raise BigtrainError(f"run_dir {self.root} is not a directory", found="a file", fix="choose another run_dir")
        # Left by a start that was killed before config.yaml was written, by `doctor`, or by `verify-resume --keep`.
        doctor = self.root / "doctor.json"
        ours = {self.logs.name, ".lock", ".lock.owner", self.identity.name, doctor.name, FAILING_HOSTS, "verify-resume"}
        ours |= {temporary_of(path).name for path in (doctor, self.config, self.identity)}
        there = [path for path in self.root.iterdir() if path.name not in ours] if self.root.is_dir() else []
        # Empty folders are what a start leaves that was refused after its checkpoint folder had been tried.
        strangers = sorted(path.name for path in there if not path.name.startswith(MARK) and not _is_empty(path))
        if strangers and not self.config.is_file():
            raise BigtrainError(
                f"run_dir {self.root} holds files that bigtrain did not make; nothing was written",
                found=", ".join(strangers[:5]) + (", ..." if len(strangers) > 5 else ""),
                wanted="an empty or new directory, or one with the config.yaml of an earlier start of this run",
                fix="choose another run_dir",
            )

    def lock(self) -> None:
        """Make this process the only writer. The lock ends with the process, however it ends.

        It waits a little first: the workers of a launcher that was just killed may still be committing.

        Raises:
            BigtrainError: another process is training here, or the directory cannot be written.
        """
        check_writable(self.root, "run_dir")
        try:
            self._lock.acquire(LOCK_PATIENCE_SECONDS)
        except LockHeldError as held:
            raise BigtrainError(
                f"another job is training in run_dir {self.root}; nothing was written",
                found=held.holder,
                wanted="one job at a time in a run directory",
                fix=held.fix or "wait for it or stop it (kill -TERM commits a checkpoint), or choose another run_dir",
            ) from None
        except OSError as error:
            raise explained(error, f"run_dir {self.root} cannot be locked", self.root) from error
        if self._lock.without_flock:
            logger.warning(
                f"the file system of run_dir {self.root} has no flock: {self._lock.path.name}.owner keeps other jobs "
                "out. If a start is killed, and the next one is on another machine, it has to be removed by hand."
            )

    def unlock(self) -> None:
        """Let the next writer in."""
        self._lock.release()

    def is_locked(self) -> bool:
        """Whether another process is the writer, on any machine that shares the disk, as far as that can be seen."""
        return self._lock.is_held()

    def write_config(self, settings: Settings) -> None:
        """Write the effective settings, whole or not at all. Raises BigtrainError where the disk fails."""
        with written_to(self.config):
            write_atomically(self.config, with_bare_urls(dump_settings(settings)))

    def logs_of(self, rank: int) -> Path:
        """The folder for what a rank reports: 256 ranks in each, the first ones in `logs` itself."""
        first = rank - rank % RANKS_A_FOLDER
        return self.logs / f"ranks-{first:05d}" if first else self.logs

    def rank_log(self, rank: int) -> Path:
        """The log file of one rank."""
        return self.logs_of(rank) / f"rank-{rank:05d}.log"


def directory_of_start(root: Path, run_dir: Path) -> Path | None:
    """The directory from which a relative `run_dir` of a configuration is `root`; None where there is none.

    Args:
        root: the run directory, as it is reached from here.
        run_dir: the setting.
    """
    if run_dir.is_absolute() or ".." in run_dir.parts:
        return None
    full = root.resolve()
    length = len(run_dir.parts)
    return Path(*full.parts[:-length]) if length and full.parts[-length:] == run_dir.parts else None


def _is_empty(path: Path) -> bool:
    """Whether a path is a folder without any file in it."""
    return path.is_dir() and not path.is_symlink() and not any(files for _, _, files in os.walk(path))

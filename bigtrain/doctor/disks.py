"""Checks of the folders and URLs that a run writes to: free space, speed, and whether all hosts share them."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigtrain.base import BigtrainError, duration, gibibytes
from bigtrain.config import Settings
from bigtrain.doctor import disk_probe
from bigtrain.doctor.check import CheckContext, Measured
from bigtrain.doctor.finding import CheckFinding, Status
from bigtrain.rundir import MARK, RunDirectory

STATE_BYTES = {"adamw": 12, "muon": 12, "lion": 8}
"""Bytes of a checkpoint for each parameter: float32 weights and moments. It is an upper bound for muon, which keeps
only one moment of the matrices."""
LOCAL = "checkpoint.local_dir"
LOCAL_COPIES = 3
"""Checkpoints in checkpoint.local_dir while the third is written."""
PROBE_SECONDS = 3.0
"""Seconds for which the writing speed is measured, at most."""
PROBE_BYTES = (1 << 23, 1 << 28)
"""Bytes that are written for it, at least and at most."""
LOOK_SECONDS = 6.0
"""Seconds until a file that another host has written must be visible."""
SLOWER_THAN_BEFORE = 0.5
"""The share by which a disk may be slower than in earlier preflights."""


class WriteTarget:
    """A folder, or a URL, that a run writes to."""

    def __init__(self, key: str, where: str) -> None:
        self.key, self.where = key, where
        self.is_url = "://" in where and not where.startswith("file://")

    def __str__(self) -> str:
        return f"{self.key} {self.where}"

    def probe(self, what: str, *arguments: object, seconds: float) -> dict[str, Any]:
        """Run an action of disk_probe.py on the folder, in a process of its own.

        Raises:
            BigtrainError: it cannot be done, or not within `seconds`.
        """
        command = [sys.executable, "-I", "-S", disk_probe.__file__, what, self.where, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()  # without waiting for it: a process that waits for a dead disk does not end
            raise BigtrainError(
                f"{self} does not answer",
                found=f"nothing within {seconds:.0f} s",
                wanted="a file system that reads and writes",
                fix="check that it is mounted and that its server is up (mount, df, dmesg on this host)",
            ) from None
        answer: dict[str, Any] = json.loads(out) if process.returncode == 0 else {"error": err.strip()[-300:]}
        if "error" in answer:
            raise BigtrainError(
                f"{self} cannot be used",
                found=answer["error"],
                wanted="a folder that this user can write to",
                fix=f"mkdir -p {self.where}, or choose another {self.key}",
            )
        return answer


def shared_targets(settings: Settings) -> list[WriteTarget]:
    """Return the targets that all hosts must share: the run directory and `checkpoint.dir`."""
    targets = [WriteTarget("run_dir", str(settings.run_dir.absolute()))]
    if settings.checkpoint.dir is not None:
        where = settings.checkpoint.dir
        targets.append(
            WriteTarget("checkpoint.dir", where if "://" in where else str(Path(where).expanduser().absolute()))
        )
    return targets


def local_target(settings: Settings) -> WriteTarget | None:
    """Return `checkpoint.local_dir`, the storage tier on each node's own disk; None where it is not set."""
    local = settings.checkpoint.local_dir
    return None if local is None else WriteTarget(LOCAL, str(local.absolute()))


def checkpoint_bytes(settings: Settings) -> int:
    """Return the size of a checkpoint in bytes, at most."""
    from bigtrain.model import count_learning_parameters

    return STATE_BYTES[settings.optimizer.name] * count_learning_parameters(settings.model, settings.adapter)


def measure_disks(context: CheckContext) -> dict[str, Any]:
    """Measure free space and writing speed: of the shared targets on the leader, of local ones on each host."""
    settings = context.settings
    assert settings is not None
    targets = [target for target in shared_targets(settings) if not target.is_url] if context.meeting.leads else []
    local = local_target(settings)
    found: dict[str, Any] = {}
    for target in [*targets, *([local] if local else [])]:
        room = target.probe("room", seconds=3)
        size = 0 if context.fast else _probe_size(settings, target, room["free"])
        speed = target.probe("speed", size, PROBE_SECONDS, seconds=PROBE_SECONDS + 4) if size > 1 << 16 else {}
        found[target.key] = {"where": target.where, **room, **speed}
        if target.key == "run_dir":
            found[target.key] |= target.probe("lock", f"{MARK}{uuid.uuid4().hex}", seconds=LOOK_SECONDS)
    if context.meeting.leads:
        RunDirectory(settings.run_dir).refuse_foreign()
    if context.meeting.leads and not context.fast:
        from bigtrain.checkpoint import StorageTiers, storage_at

        for target in shared_targets(settings):
            if target.is_url:
                storage_at(target.where).check_writable()
        found["steps"] = len(StorageTiers.of(settings.run_dir, settings.checkpoint).durable.steps())
    return found


def _probe_size(settings: Settings, target: WriteTarget, free: int) -> int:
    """The bytes to write to a target."""
    size = min(max(checkpoint_bytes(settings), PROBE_BYTES[0]), PROBE_BYTES[1], free // 20)
    if target.key == "run_dir" and settings.checkpoint.dir is not None:
        return min(size, PROBE_BYTES[0])  # only one line for each step is written there
    return size


def assess_disks(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Check that the checkpoints of this run will fit, and that the disks are as fast as before."""
    settings = context.settings
    assert settings is not None
    size = 0 if context.fast else checkpoint_bytes(settings)  # these checks do not count the model's parameters
    kept: dict[str, Any] = {"checkpoint_bytes": size}
    yield from _local_space({r: each[LOCAL] for r, each in measured.items() if LOCAL in each}, size, context)
    for rank, found in measured.items():
        for key, each in found.items():
            if not isinstance(each, dict):
                continue
            holds = key == ("run_dir" if settings.checkpoint.dir is None else "checkpoint.dir") and not context.fast
            on = f" on {context.meeting.host_of(rank)}" if key == LOCAL else ""
            if not on:
                needs = _needs(settings, size, found.get("steps", 0)) if holds else [1 << 24, 1 << 26]
                yield _free_space(f"{key} {each['where']}", each, *needs)
            if not each.get("flock", True):
                yield _without_flock(key, each["where"])
            rate = each.get("bytes_per_second")
            if rate is None:
                continue
            quantity = f"write {key} {each['where']}{on}"
            before = context.history.expected(quantity)
            if before and rate < (1 - SLOWER_THAN_BEFORE) * before:
                yield CheckFinding(
                    "disks",
                    "warning",
                    f"{key} {each['where']}{on} writes {rate / 1e6:.3g} MB/s, {1 - rate / before:.0%} less than it did",
                    f"within {SLOWER_THAN_BEFORE:.0%} of the {before / 1e6:.3g} MB/s of earlier preflights",
                    "look what else uses this file system; if the change is intended, remove RUN/doctor.json",
                )
            if each["bytes"] >= PROBE_BYTES[0]:  # the speed of less is chance
                context.history.add(quantity, rate)
            kept[f"{key}{on}"] = {"free": each["free"], "bytes_per_second": round(rate)}
            yield from _save_time(settings, key, rate, size) if holds else ()
    context.measured["disks"] = kept


def _local_space(measured: Measured, size: int, context: CheckContext) -> Iterator[CheckFinding]:
    """Whether the share of each host fits on its own disk: a finding for all hosts with one outcome, of the worst."""
    alike: dict[tuple[Status, str], list[int]] = {}
    meeting = context.meeting
    share = {rank: LOCAL_COPIES * size * len(meeting.beside(rank)) // meeting.world_size for rank in measured}
    for rank in sorted(measured, key=lambda rank: measured[rank]["free"]):
        status = _free_space("", measured[rank], share[rank], share[rank]).status
        alike.setdefault((status, measured[rank]["where"]), []).append(rank)
    for (_, where), ranks in alike.items():
        least = "" if len(ranks) == 1 else ", the least of which has"
        what = f"{LOCAL} {where} on {meeting.label_hosts(ranks)}{least}"
        yield _free_space(what, measured[ranks[0]], share[ranks[0]], share[ranks[0]])


def _needs(settings: Settings, size: int, there: int) -> list[int]:
    """The bytes without which the run will certainly stop, and the bytes with which it will not."""
    checkpoint = settings.checkpoint
    if checkpoint.keep is not None and checkpoint.keep_every_steps is None:
        # An old checkpoint is removed once the new one is there.
        most = (checkpoint.keep + 1 - min(there, checkpoint.keep)) * size
        return [most, most]
    saves = 1 if checkpoint.every_steps is None else -(-settings.total_steps // checkpoint.every_steps)
    return [2 * size if saves > 1 else size, max(saves - there, 1) * size]


def _free_space(what: str, each: dict[str, Any], least: int, enough: int) -> CheckFinding:
    free = each["free"]
    status: Status = "failed" if free < least else "warning" if free < enough else "ok"
    speed = f", writes {each['bytes_per_second'] / 1e6:.3g} MB/s" if "bytes_per_second" in each else ""
    cached = "" if each.get("direct", True) or not speed else " (through the page cache)"
    found = f"{what}: {gibibytes(free)} free of {gibibytes(each['total'])}{speed}{cached}"
    if each["files"] != -1 and each["files"] < 1000:
        status, found = "failed", f"{found}, and space for only {each['files']} more files"
    if status == "ok":
        return CheckFinding("disks", "ok", found)
    return CheckFinding(
        "disks",
        status,
        found,
        f"{gibibytes(least if status == 'failed' else enough)} for the checkpoints that are kept",
        "free some space (bigtrain checkpoint prune RUN --keep N), set checkpoint.keep or another checkpoint.dir",
    )


def _without_flock(key: str, where: str) -> CheckFinding:
    return CheckFinding(
        "disks",
        "warning",
        f"{key} {where} is on a file system without flock",
        "locks that end with their process; without them, a file keeps other jobs out",
        "mount it with locks (NFS: without nolock, with a lock server; Lustre: -o flock), or choose another folder; "
        "if a start is killed, and the next one is on another machine, remove RUN/.lock.owner",
    )


def _save_time(settings: Settings, key: str, rate: float, size: int) -> Iterator[CheckFinding]:
    """Whether one process can write a save before the next one is due. Several may be faster."""
    minutes = settings.checkpoint.every_minutes
    if isinstance(minutes, float) and size / rate > 60 * minutes:
        yield CheckFinding(
            "disks",
            "warning",
            f"a checkpoint of {gibibytes(size)} takes one process {duration(size / rate)} to write to {key}, and is "
            f"due every {minutes:g} minutes",
            "a save that is done before the next one is due",
            "save less often, or give checkpoint.local_dir a disk of each node",
        )


def measure_sharing(context: CheckContext) -> dict[str, Any]:
    """Find out whether this host sees the marker file that the leader creates in each target."""
    settings, meeting = context.settings, context.meeting
    assert settings is not None
    targets = shared_targets(settings)
    if meeting.leads:
        name = f"{MARK}{uuid.uuid4().hex}"
        left: list[WriteTarget] = []
        try:
            for target in targets:
                _leave_mark(target, name)
                left.append(target)
        except Exception:
            for target in left:
                _remove_mark(target, name)
            raise
        finally:
            meeting.publish("mark", name)  # the others wait for it
        return {"mark": name}
    name = meeting.receive("mark", meeting.longer(LOOK_SECONDS))
    return {target.key: _sees_mark(target, name) for target in targets}


def _leave_mark(target: WriteTarget, name: str) -> None:
    if not target.is_url:
        target.probe("leave", name, seconds=LOOK_SECONDS)
        return
    files, root = _file_system(target)
    with files.open(f"{root}/{name}", "wb") as file:
        file.write(b"bigtrain doctor")


def _sees_mark(target: WriteTarget, name: str) -> bool:
    if not target.is_url:
        return bool(target.probe("look", name, LOOK_SECONDS, seconds=LOOK_SECONDS + 3)["seen"])
    files, root = _file_system(target)
    return bool(files.exists(f"{root}/{name}"))


def _file_system(target: WriteTarget) -> tuple[Any, str]:
    import fsspec

    files, root = fsspec.core.url_to_fs(target.where)
    return files, root.rstrip("/")


def assess_sharing(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Name the hosts that do not see the leader's marker files."""
    settings = context.settings
    assert settings is not None
    marks = [each["mark"] for each in measured.values() if "mark" in each]
    for target in shared_targets(settings):
        lost = [rank for rank, each in measured.items() if each.get(target.key) is False]
        if lost:
            why = "no checkpoint could be loaded: each host would have its own part of it"
            if target.key == "run_dir" and settings.checkpoint.dir is not None:
                why = "a restart with another first node would not find the records of the run"
            yield CheckFinding(
                "sharing",
                "failed",
                f"{context.meeting.label(lost)} does not see in {target} what "
                f"{context.meeting.label([context.meeting.rank])} writes there",
                f"one folder for all hosts; otherwise {why}",
                f"put {target.key} on a file system that all hosts mount (check that it is mounted there), or set "
                "checkpoint.dir to an object store",
                context.meeting.machines(lost, some=True),
            )
        for mark in marks:
            _remove_mark(target, mark)
    yield CheckFinding("sharing", "ok", f"{len(context.meeting.hosts)} host(s) write to the same folders")


def _remove_mark(target: WriteTarget, name: str) -> None:
    try:
        if target.is_url:
            files, root = _file_system(target)
            files.rm(f"{root}/{name}")
        else:
            target.probe("remove", name, seconds=LOOK_SECONDS)
    except Exception:  # harmless, and the check has already reported what is wrong with the target
        pass

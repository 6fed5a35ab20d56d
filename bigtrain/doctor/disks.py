"""The places where a run writes: room, speed, and whether all hosts mean the same by a path."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigtrain.base.errors import BigtrainError
from bigtrain.base.format import duration, gibibytes
from bigtrain.checkpoint import StorageTiers
from bigtrain.config import Settings
from bigtrain.doctor import disk_probe
from bigtrain.doctor.check import Measured, Patient
from bigtrain.doctor.finding import Finding, Status
from bigtrain.model import count_parameters
from bigtrain.rundir.directory import MARK, RunDirectory

STATE_BYTES = {"adamw": 12, "muon": 12, "lion": 8}
"""Of a checkpoint, a parameter: float32 weights and moments. muon keeps one moment of the matrices, so this is most."""
LOCAL_COPIES = 3
"""That checkpoint.local_dir holds while the third is written."""
PROBE_SECONDS = 3.0
PROBE_BYTES = (1 << 23, 1 << 28)
LOOK_SECONDS = 6.0
SLOWER_THAN_BEFORE = 0.5


class Place:
    """A folder, or a URL, that a run writes to."""

    def __init__(self, key: str, where: str) -> None:
        self.key, self.where = key, where
        self.is_url = "://" in where and not where.startswith("file://")

    def __str__(self) -> str:
        return f"{self.key} {self.where}"

    def probe(self, what: str, *arguments: object, seconds: float) -> dict[str, Any]:
        """Do something to the folder; see disk_probe.py.

        Raises:
            BigtrainError: it cannot be done, or not within so many seconds.
        """
        command = [sys.executable, "-I", "-S", disk_probe.__file__, what, self.where, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()  # and no waiting for it: a process that a disk holds fast does not hear
            raise BigtrainError(
                f"{self} does not answer",
                found=f"nothing within {seconds:.0f} s",
                wanted="a file system that reads and writes",
                fix="see whether it is mounted and its server alive (mount, df, dmesg on this host)",
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


def shared_places(settings: Settings) -> list[Place]:
    """Those that all hosts must see: the run directory, and what `checkpoint.dir` names."""
    places = [Place("run_dir", str(settings.run_dir.absolute()))]
    if settings.checkpoint.dir is not None:
        where = settings.checkpoint.dir
        places.append(Place("checkpoint.dir", where if "://" in where else str(Path(where).expanduser().absolute())))
    return places


def local_place(settings: Settings) -> Place | None:
    """The tier on each node's own disk."""
    local = settings.checkpoint.local_dir
    return None if local is None else Place("checkpoint.local_dir", str(local.absolute()))


def checkpoint_bytes(settings: Settings) -> int:
    """What a checkpoint takes, at most."""
    return STATE_BYTES[settings.optimizer.name] * count_parameters(settings.model)


def measure_disks(patient: Patient) -> dict[str, Any]:
    """Room and writing speed: on the leader of the shared places, on each host of its own."""
    settings = patient.settings
    assert settings is not None
    places = [place for place in shared_places(settings) if not place.is_url] if patient.meeting.leads else []
    local = local_place(settings)
    found: dict[str, Any] = {}
    for place in [*places, *([local] if local else [])]:
        room = place.probe("room", seconds=3)
        size = min(max(checkpoint_bytes(settings), PROBE_BYTES[0]), PROBE_BYTES[1], room["free"] // 20)
        if place.key == "run_dir" and settings.checkpoint.dir is not None:
            size = min(size, PROBE_BYTES[0])  # there is only a line a step to be written
        speed = place.probe("speed", size, PROBE_SECONDS, seconds=PROBE_SECONDS + 4) if size > 1 << 16 else {}
        found[place.key] = {"where": place.where, **room, **speed}
    if patient.meeting.leads:
        RunDirectory(settings.run_dir).refuse_foreign()
        found["steps"] = len(StorageTiers.of(settings.run_dir, settings.checkpoint).durable.steps())
    return found


def judge_disks(measured: Measured, patient: Patient) -> Iterator[Finding]:
    """Room for the checkpoints that this run will keep, and a speed that is what it was."""
    settings = patient.settings
    assert settings is not None
    size = checkpoint_bytes(settings)
    kept: dict[str, Any] = {"checkpoint_bytes": size}
    for rank, found in measured.items():
        for key, each in found.items():
            if not isinstance(each, dict):
                continue
            holds = key == ("run_dir" if settings.checkpoint.dir is None else "checkpoint.dir")
            on = f" on {patient.meeting.host_of(rank)}" if key == "checkpoint.local_dir" else ""
            if on:
                share = len(next(ranks for ranks in patient.meeting.hosts.values() if rank in ranks))
                needs = [LOCAL_COPIES * size * share // patient.meeting.world_size] * 2
            else:
                needs = _needs(settings, size, found.get("steps", 0)) if holds else [1 << 24, 1 << 26]
            yield _room(f"{key} {each['where']}{on}", each, *needs)
            rate = each.get("bytes_per_second")
            if rate is None:
                continue
            quantity = f"write {key} {each['where']}{on}"
            before = patient.history.expected(quantity)
            if before and rate < (1 - SLOWER_THAN_BEFORE) * before:
                yield Finding(
                    "disks",
                    "warning",
                    f"{key} {each['where']}{on} writes {rate / 1e6:.3g} MB/s, {1 - rate / before:.0%} less than it did",
                    f"within {SLOWER_THAN_BEFORE:.0%} of the {before / 1e6:.3g} MB/s of earlier examinations",
                    "see what else is at work on this file system, or remove doctor.json if it is meant to be so",
                )
            if each["bytes"] >= PROBE_BYTES[0]:  # of less the speed is chance
                patient.history.add(quantity, rate)
            kept[f"{key}{on}"] = {"free": each["free"], "bytes_per_second": round(rate)}
            yield from _save_time(settings, key, rate, size) if holds else ()
    patient.measured["disks"] = kept


def _needs(settings: Settings, size: int, there: int) -> list[int]:
    """Bytes without which the run will stop for certain, and with which it will not."""
    checkpoint = settings.checkpoint
    if checkpoint.keep is not None and checkpoint.keep_every_steps is None:
        most = (checkpoint.keep + 1 - min(there, checkpoint.keep)) * size  # an old one goes once the new one is there
        return [most, most]
    saves = 1 if checkpoint.every_steps is None else -(-settings.total_steps // checkpoint.every_steps)
    return [2 * size if saves > 1 else size, max(saves - there, 1) * size]


def _room(what: str, each: dict[str, Any], least: int, enough: int) -> Finding:
    free = each["free"]
    status: Status = "failed" if free < least else "warning" if free < enough else "ok"
    speed = f", writes {each['bytes_per_second'] / 1e6:.3g} MB/s" if "bytes_per_second" in each else ""
    cached = "" if each.get("direct", True) or not speed else " (through the page cache)"
    found = f"{what}: {gibibytes(free)} free of {gibibytes(each['total'])}{speed}{cached}"
    if each["files"] != -1 and each["files"] < 1000:
        status, found = "failed", f"{found}, and room for {each['files']} files more"
    if status == "ok":
        return Finding("disks", "ok", found)
    return Finding(
        "disks",
        status,
        found,
        f"{gibibytes(least if status == 'failed' else enough)} for the checkpoints that are kept",
        "free some room (bigtrain checkpoint prune RUN --keep N), set checkpoint.keep or another checkpoint.dir",
    )


def _save_time(settings: Settings, key: str, rate: float, size: int) -> Iterator[Finding]:
    """Whether a save is written before the next one is due, by one writer; many may be quicker together."""
    minutes = settings.checkpoint.every_minutes
    if isinstance(minutes, float) and size / rate > 60 * minutes:
        yield Finding(
            "disks",
            "warning",
            f"a checkpoint of {gibibytes(size)} takes {duration(size / rate)} to write to {key} from one process, and "
            f"is due every {minutes:g} minutes",
            "saves that are done before the next is due",
            "save less often, or give checkpoint.local_dir a disk of each node",
        )


def measure_sharing(patient: Patient) -> dict[str, Any]:
    """Whether this host sees, in each place, the mark that the leader leaves there."""
    settings, meeting = patient.settings, patient.meeting
    assert settings is not None
    places = shared_places(settings)
    if meeting.leads:
        name = f"{MARK}{uuid.uuid4().hex}"
        left: list[Place] = []
        try:
            for place in places:
                _leave(place, name)
                left.append(place)
        except Exception:
            for place in left:
                _take_away(place, name)
            raise
        finally:
            meeting.tell("mark", name)  # others wait for it
        return {"mark": name}
    name = meeting.hear("mark", LOOK_SECONDS)
    return {place.key: _sees(place, name) for place in places}


def _leave(place: Place, name: str) -> None:
    if not place.is_url:
        place.probe("leave", name, seconds=LOOK_SECONDS)
        return
    files, root = _file_system(place)
    with files.open(f"{root}/{name}", "wb") as file:
        file.write(b"bigtrain doctor")


def _sees(place: Place, name: str) -> bool:
    if not place.is_url:
        return bool(place.probe("look", name, LOOK_SECONDS, seconds=LOOK_SECONDS + 3)["seen"])
    files, root = _file_system(place)
    return bool(files.exists(f"{root}/{name}"))


def _file_system(place: Place) -> tuple[Any, str]:
    import fsspec

    files, root = fsspec.core.url_to_fs(place.where)
    return files, root.rstrip("/")


def judge_sharing(measured: Measured, patient: Patient) -> Iterator[Finding]:
    """Every host sees every mark."""
    settings = patient.settings
    assert settings is not None
    marks = [each["mark"] for each in measured.values() if "mark" in each]
    for place in shared_places(settings):
        lost = [rank for rank, each in measured.items() if each.get(place.key) is False]
        if lost:
            why = "no checkpoint could be loaded: each host would have its own part of it"
            if place.key == "run_dir" and settings.checkpoint.dir is not None:
                why = "a restart with another first node would not find the records of the run"
            yield Finding(
                "sharing",
                "failed",
                f"{patient.meeting.who(lost)} does not see in {place} what "
                f"{patient.meeting.who([patient.meeting.rank])} writes there",
                f"one folder for all hosts; as it is, {why}",
                f"put {place.key} on a file system that all hosts mount (and look whether it is mounted there), or "
                "set checkpoint.dir to an object store",
            )
        for mark in marks:
            _take_away(place, mark)
    yield Finding("sharing", "ok", f"{len(patient.meeting.hosts)} host(s) write to the same folders")


def _take_away(place: Place, name: str) -> None:
    try:
        if place.is_url:
            files, root = _file_system(place)
            files.rm(f"{root}/{name}")
        else:
            place.probe("remove", name, seconds=LOOK_SECONDS)
    except Exception:  # of no consequence, and whatever is wrong has been found out before
        pass

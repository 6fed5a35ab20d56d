"""The checks in their order, and how they run: all ranks go through them in step, and the lowest rank leads."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.base import BigtrainError, number_of
from bigtrain.config import Settings, load_settings
from bigtrain.doctor.check import Check, CheckContext, bounded
from bigtrain.doctor.fast_checks import FAST_CHECKS
from bigtrain.doctor.finding import CheckFinding
from bigtrain.doctor.history import MeasurementHistory
from bigtrain.doctor.meeting import NAMED, Meeting
from bigtrain.rundir import RunDirectory, record_failing_hosts

if TYPE_CHECKING:
    import torch

BUDGET = 58.0
"""Seconds for all checks of one host, once the ranks have met. Like those of the checks that all hosts make at once, it
grows with the hosts: see `bigtrain.doctor.meeting.longer`."""
AT_LEAST = 3.0
"""Seconds for a check when the budget is used up."""
DEVICE_SECONDS = 20.0
"""Seconds that the choice of a device may take."""
READING_SECONDS = 10.0
"""Seconds for the answer whether a rank could read its configuration."""


@dataclass(frozen=True)
class DoctorReport:
    """The findings of a preflight. Only the leader has them; the other ranks know whether any check failed."""

    ok: bool
    findings: Sequence[CheckFinding] = ()
    world_size: int = 1
    hosts: Sequence[str] = ()
    seconds: float = 0.0
    leads: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "ok": self.ok,
            "world_size": self.world_size,
            "hosts": list(self.hosts),
            "seconds": round(self.seconds, 2),
            "checks": [finding.as_dict() for finding in self.findings],
        }


def doctor(
    config: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    skip: Collection[str] = (),
    patience: float | None = None,
    datasheet: Path | None = None,
) -> DoctorReport:
    """Check this machine, or all ranks of a launcher, for a run of this configuration.

    Args:
        config: a YAML configuration; without one only the machine is checked.
        overrides: `key=value` for any leaf of it.
        skip: names of CHECKS to leave out.
        patience: seconds until a rank counts as missing. Default: 60, and longer the more hosts there are.
        datasheet: where the leader writes the datasheet of the devices, for `bigtrain plan`.

    Raises:
        BigtrainError: this rank could not meet the others, the leader is gone, `skip` names no check, or there is no
            datasheet to write.
    """
    from bigtrain.doctor.checks import CHECKS

    _check_names(skip, CHECKS)
    settings, unreadable = _read(config, overrides)
    device = _device()
    meeting = Meeting.join(patience)
    preflight = Preflight(CheckContext(meeting, settings, device, measures_memory=datasheet is not None))
    try:
        preflight.check_attendance()
        preflight.check_reading(unreadable)
        for name, check in CHECKS.items():
            if name not in skip and not (check.needs_settings and config is None):
                preflight.run(name, check)
        report = preflight.conclude()
        if datasheet is not None and report.leads:
            from bigtrain.doctor.datasheet import write_datasheet

            write_datasheet(datasheet, preflight.context.measured)
        return report
    except TimeoutError as error:  # the leader is gone
        raise BigtrainError(str(error), fix="look at its output: it leads the checks, and may have crashed") from None


def fast_doctor(
    config: Path | None = None, overrides: Sequence[str] = (), *, skip: Collection[str] = (), ranks: int | None = None
) -> DoctorReport:
    """Check this machine for a run in two seconds, without PyTorch and without other processes.

    Args:
        config: a YAML configuration; without one only the machine is checked.
        overrides: `key=value` for any leaf of it.
        skip: names of FAST_CHECKS to leave out.
        ranks: how many ranks the run will have. Default: not known, and the batch is not checked.

    Raises:
        BigtrainError: `skip` names no fast check.
    """
    _check_names(skip, FAST_CHECKS)
    settings, unreadable = _read(config, overrides)
    preflight = Preflight(CheckContext(Meeting.alone(), settings, None, planned_ranks=ranks))
    preflight.check_reading(unreadable)
    for name, check in FAST_CHECKS.items():
        known = (config is not None or not check.needs_settings) and (ranks is not None or name != "batch")
        if name not in skip and known:
            preflight.run(name, check)
    return preflight.report()


def _check_names(skip: Collection[str], checks: Collection[str]) -> None:
    if unknown := set(skip) - set(checks):
        raise BigtrainError(
            f"there is no check {', '.join(sorted(unknown))}",
            found=", ".join(sorted(unknown)),
            wanted=", ".join(checks),
        )


def _device() -> torch.device:
    """This rank's device. Where it cannot be used, the checks will find that out."""
    import torch

    from bigtrain.engine import choose_device

    local_rank, local_size = number_of("LOCAL_RANK", 0, 10**6) or 0, number_of("LOCAL_WORLD_SIZE", 1, 10**6) or 1
    try:
        return bounded(lambda: choose_device(local_rank, local_size), DEVICE_SECONDS)
    except (RuntimeError, TimeoutError):
        return torch.device("cuda", local_rank)


def _read(config: Path | None, overrides: Sequence[str]) -> tuple[Settings | None, BigtrainError | None]:
    if config is None:
        return None, None
    try:
        return load_settings(config, overrides), None
    except BigtrainError as error:
        return None, error


class Preflight:
    """Runs one check after another. Every rank makes the same calls."""

    def __init__(self, context: CheckContext) -> None:
        self.context, self.meeting, self.started = context, context.meeting, time.monotonic()
        self.findings: list[CheckFinding] = []
        settings = context.settings
        if self.meeting.leads and settings is not None and not context.fast:
            with suppress(TimeoutError):  # the checks report a disk that does not answer
                context.history = bounded(lambda: MeasurementHistory.read(settings.run_dir), AT_LEAST)

    def check_attendance(self) -> None:
        """Name the ranks that did not come."""
        meeting = self.meeting
        if not meeting.leads:
            return
        hosts = ", ".join(f"{name} ({len(ranks)})" for (name, _), ranks in list(meeting.hosts.items())[:8])
        if len(meeting.hosts) > 8:
            hosts = f"{len(meeting.hosts)} hosts"
        came = len(meeting.present)
        if meeting.missing:
            self.findings.append(
                CheckFinding(
                    "ranks",
                    "failed",
                    f"{meeting.label(meeting.missing)} did not come within {meeting.patience:.0f} s; {came} of "
                    f"{meeting.world_size} did: {hosts}",
                    "all ranks",
                    "look at these hosts: is the process there (ps), and what does it wait for (py-spy dump)? Does the "
                    "disk with the Python environment answer?",
                    meeting.machines(meeting.missing, some=True),
                )
            )
        else:
            self.findings.append(CheckFinding("ranks", "ok", f"{meeting.world_size} came: {hosts}"))

    def check_reading(self, error: BigtrainError | None) -> None:
        """Name the ranks that cannot read their configuration, given the error of this one."""
        self._ask("reading", self.meeting.present, lambda: _raise(error), READING_SECONDS)

    def run(self, name: str, check: Check) -> None:
        """Measure on the ranks that take part; gather and assess on the leader."""
        meeting = self.meeting
        if meeting.leads:
            left = self.started + meeting.longer(BUDGET) - time.monotonic()
            seconds = min(meeting.longer(check.seconds) if check.shared else check.seconds, max(AT_LEAST, left))
            if check.collective and len(meeting.present) < meeting.world_size:
                seconds = 0.0
                text = "not measured: it needs all ranks, and some are missing"
                self.findings.append(CheckFinding(name, "warning", text, "all ranks"))
            elif check.needs_settings and self.context.settings is None:
                seconds = 0.0
            meeting.publish(f"seconds/{name}", seconds)
        else:
            seconds = meeting.receive(f"seconds/{name}", meeting.longer(BUDGET))
        if seconds:
            answers = self._ask(name, self._participants(check), lambda: self._measured(check), seconds)
            if answers:
                self._assess(name, check, answers)

    def _participants(self, check: Check) -> Iterable[int]:
        """On the leader, the ranks that take part; on another rank, itself if it takes part."""
        meeting = self.meeting
        if not meeting.leads:
            mine = {"ranks": True, "hosts": meeting.me.local_rank == 0, "leader": False}[check.takes_part]
            return [meeting.rank] if mine else []
        if check.takes_part == "leader":
            return [meeting.rank]
        return [
            rank
            for rank in meeting.present
            if check.takes_part == "ranks" or rank == meeting.rank or meeting.attendees[rank].local_rank == 0
        ]

    def _measured(self, check: Check) -> Any:
        if check.needs_settings and self.context.settings is None:
            return None  # already reported
        return {"value": check.measure(self.context)}

    def _ask(self, name: str, ranks: Iterable[int], measure: Callable[[], Any], seconds: float) -> dict[int, Any]:
        """On the leader, the measurement of each of these ranks; errors and missing answers become findings."""
        meeting, ranks = self.meeting, list(ranks)
        if meeting.rank in ranks:
            meeting.post(name, _outcome(measure, seconds))
        if not meeting.leads:
            return {}
        seconds += meeting.longer(_SLACK)
        answers = meeting.gather(name, ranks, seconds)
        if silent := [rank for rank in ranks if rank not in answers]:
            meeting.mark_lost(silent)
            self.findings.append(
                CheckFinding(
                    name,
                    "failed",
                    f"{meeting.label(silent)} did not answer within {seconds:.0f} s",
                    "an answer from every rank",
                    "check whether the process is still there, and what it waits for (py-spy dump)",
                    meeting.machines(silent, some=True),
                )
            )
        errors: dict[str, tuple[dict[str, Any], list[int]]] = {}
        for rank, answer in answers.items():
            if answer is not None and "error" in answer:
                errors.setdefault(str(answer["error"]), (answer["error"], []))[1].append(rank)
        for error, whose in errors.values():
            where = "" if meeting.world_size == 1 else f"{meeting.label(whose)}: "
            label = "configuration" if name == "reading" else name
            hosts = meeting.machines(whose, some=True)
            found = where + error["found"]
            self.findings.append(CheckFinding(label, "failed", found, error["wanted"], error["fix"], hosts))
        return {rank: each["value"] for rank, each in answers.items() if each is not None and "value" in each}

    def _assess(self, name: str, check: Check, answers: dict[int, Any]) -> None:
        try:
            found = list(check.assess(answers, self.context))
        except Exception as error:
            found = [CheckFinding(name, "failed", _unexpected(error), fix=_BUG)]
        self.findings += condensed([finding for finding in found if finding.status != "ok"] or found)

    def conclude(self) -> DoctorReport:
        """Write RUN/doctor.json, publish the result, and return the report when all ranks have received it."""
        meeting, settings = self.meeting, self.context.settings
        if not meeting.leads:
            ok = bool(meeting.receive("ok", meeting.longer(BUDGET)))
            meeting.leave()
            return DoctorReport(ok, leads=False)
        if settings is not None:
            self._write(settings)
        report = self.report()
        meeting.publish("ok", report.ok)
        meeting.leave()
        return report

    def report(self) -> DoctorReport:
        """Return what has been found so far, on the leader."""
        meeting = self.meeting
        ok = all(finding.status != "failed" for finding in self.findings)
        hosts = [name for name, _ in meeting.hosts]
        return DoctorReport(ok, self.findings, meeting.world_size, hosts, time.monotonic() - self.started)

    def _write(self, settings: Settings) -> None:
        record = {**self.report().as_dict(), "time": round(time.time(), 3), "measured": self.context.measured}

        def write() -> None:
            RunDirectory(settings.run_dir).refuse_foreign()
            self.context.history.write(settings.run_dir, record)
            for finding in self.findings:
                if finding.status == "failed":
                    record_failing_hosts(settings.run_dir, finding.hosts, "doctor", f"{finding.check}: {finding.found}")

        try:
            bounded(write, AT_LEAST)
        except (OSError, TimeoutError) as error:
            text = f"{settings.run_dir}/doctor.json cannot be written: {error}"
            self.findings.append(CheckFinding("record", "warning", text, "a record for the next preflight to compare"))
        except BigtrainError:
            pass  # a folder with other files; the check of the disks has reported it


def condensed(findings: Sequence[CheckFinding]) -> list[CheckFinding]:
    """Findings of one check, with one line in place of those with the same remedy after the first `NAMED`."""
    kinds: dict[tuple[str, str | None], list[CheckFinding]] = {}
    for finding in findings:
        kinds.setdefault((finding.status, finding.fix), []).append(finding)
    shown: list[CheckFinding] = []
    for alike in kinds.values():
        shown += alike[:NAMED]
        if more := alike[NAMED:]:
            machines = tuple(dict.fromkeys(machine for finding in more for machine in finding.hosts))
            text = f"and {len(more):,} more like these"
            shown.append(replace(more[0], found=text, hosts=machines))
    return shown


_SLACK = 3.0
"""Seconds that an answer may take beyond the time limit of the measurement."""
_BUG = "this is a bug in bigtrain; please report it"


def _raise(error: BigtrainError | None) -> None:
    if error is not None:
        raise error


def _outcome(measure: Callable[[], Any], seconds: float) -> dict[str, Any] | None:
    """The measurement, or the error in its place, as it is sent to the leader."""
    try:
        outcome: dict[str, Any] | None = bounded(measure, seconds)
        return outcome
    except BigtrainError as error:
        finding = CheckFinding.of_error("", error)
        return {"error": {"found": finding.found, "wanted": finding.wanted, "fix": finding.fix}}
    except TimeoutError as error:
        return {
            "error": {
                "found": str(error),
                "wanted": f"a result within {seconds:.0f} s",
                "fix": "find out what does not answer on this host: a disk, a device or a network",
            }
        }
    except Exception as error:
        return {"error": {"found": _unexpected(error), "wanted": None, "fix": None}}


def _unexpected(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"

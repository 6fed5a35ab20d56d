"""The checks in their order, and how they are carried out: all ranks in step, the lowest one leading."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bigtrain.base.errors import BigtrainError
from bigtrain.config import Settings, load_settings
from bigtrain.doctor import agreement, clocks, devices, disks, host, network, services, shape
from bigtrain.doctor.check import Check, Patient, bounded
from bigtrain.doctor.finding import Finding
from bigtrain.doctor.history import History
from bigtrain.doctor.meeting import Meeting
from bigtrain.engine.topology import choose_device
from bigtrain.rundir.directory import RunDirectory

CHECKS: dict[str, Check] = {
    "versions": Check(
        "Python, PyTorch, DeepSpeed, bigtrain's own source, CUDA, NCCL and the driver are the same on all ranks",
        agreement.measure_versions,
        agreement.judge_versions,
    ),
    "environment": Check(
        "variables that steer libraries (NCCL_*, GLOO_*, OMP_*, ...) are the same on all ranks",
        agreement.measure_environment,
        agreement.judge_environment,
    ),
    "configuration": Check(
        "all ranks have the same effective settings",
        agreement.measure_configuration,
        agreement.judge_configuration,
        needs_settings=True,
    ),
    "batch": Check(
        "the global batch divides over the ranks",
        shape.measure_batch,
        shape.judge_batch,
        takes_part="leader",
        needs_settings=True,
    ),
    "devices": Check(
        "a device of the same kind for each rank, and nobody else on it",
        devices.measure_device,
        devices.judge_devices,
        seconds=20,
    ),
    "gpus": Check(
        "no memory errors, slowdown or XID messages of the GPUs, persistence mode on",
        host.measure_gpus,
        host.judge_gpus,
        takes_part="hosts",
        seconds=15,
    ),
    "limits": Check("open files, pinned memory, /dev/shm", host.measure_limits, host.judge_limits, takes_part="hosts"),
    "memory": Check(
        "room for weights, gradients, optimizer state and the image of a save",
        shape.measure_memory,
        shape.judge_memory,
        needs_settings=True,
    ),
    "names": Check(
        "hosts find each other by the names that they are called by",
        network.measure_names,
        network.judge_names,
        takes_part="hosts",
    ),
    "disks": Check(
        "room for the checkpoints that are kept, and the speed of writing past the page cache",
        disks.measure_disks,
        disks.judge_disks,
        takes_part="hosts",
        seconds=25,
        needs_settings=True,
    ),
    "sharing": Check(
        "all hosts see the same run directory and checkpoint.dir",
        disks.measure_sharing,
        disks.judge_sharing,
        takes_part="hosts",
        seconds=20,
        needs_settings=True,
    ),
    "data": Check(
        "tokenizer and datasets are there, are what they were built as, and some blocks of them are right",
        services.measure_data,
        services.judge_data,
        takes_part="hosts",
        seconds=20,
        needs_settings=True,
    ),
    "tracker": Check(
        "W&B's server answers",
        services.measure_tracker,
        services.judge_tracker,
        takes_part="leader",
        needs_settings=True,
    ),
    "clocks": Check(
        "the hosts' clocks agree",
        clocks.measure_clock,
        clocks.judge_clocks,
        takes_part="hosts",
        seconds=clocks.TOTAL_SECONDS + 2,
        together=True,
    ),
    "matmul": Check(
        "the speed of a matrix product: against the other ranks, the datasheet and earlier examinations",
        devices.measure_matmul,
        devices.judge_matmul,
        seconds=30,
    ),
    "network": Check(
        "bandwidth and latency of all-reduce and all-to-all, their results, and the links between neighbours",
        network.measure_network,
        network.judge_network,
        seconds=30,
        together=True,
    ),
}
PATIENCE = 60.0
"""Seconds until ranks that have not come count as missing."""
BUDGET = 58.0
"""Seconds for all checks together, once the ranks have met."""
AT_LEAST = 3.0
"""What a check gets when the budget is used up."""
DEVICE_SECONDS = 20.0
READING_SECONDS = 10.0


@dataclass(frozen=True)
class Report:
    """What was found. Ranks that do not lead have no findings, and know whether all is well."""

    ok: bool
    findings: Sequence[Finding] = ()
    world_size: int = 1
    hosts: Sequence[str] = ()
    seconds: float = 0.0
    leads: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
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
    patience: float = PATIENCE,
) -> Report:
    """Examine this machine, or under a launcher all ranks together, for a run of this configuration.

    Args:
        config: a YAML configuration; without one only the machine is looked at.
        overrides: `key=value` for any leaf of it.
        skip: names of CHECKS to leave out.
        patience: seconds until a rank counts as missing.

    Raises:
        BigtrainError: this rank has met nobody who could examine it, or `skip` names no check.
    """
    if unknown := set(skip) - set(CHECKS):
        raise BigtrainError(
            f"there is no check {', '.join(sorted(unknown))}",
            found=", ".join(sorted(unknown)),
            wanted=", ".join(CHECKS),
        )
    settings, misread = _read(config, overrides)
    device = _device()
    meeting = Meeting.call(patience)
    examination = Examination(Patient(meeting, settings, device))
    try:
        examination.attendance(patience)
        examination.configuration_is_read(misread)
        for name, check in CHECKS.items():
            if name not in skip and not (check.needs_settings and config is None):
                examination.carry_out(name, check)
        return examination.conclude()
    except TimeoutError as error:  # the leader has gone
        raise BigtrainError(str(error), fix="look at what it says, or at what has become of it") from None


def _device() -> torch.device:
    """This rank's; one that cannot be had is what the checks will find out."""
    local_rank, local_size = (int(os.environ.get(name, n)) for name, n in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)))
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


class Examination:
    """One check after the other. Every rank makes the same calls."""

    def __init__(self, patient: Patient) -> None:
        self.patient, self.meeting, self.began = patient, patient.meeting, time.monotonic()
        self.findings: list[Finding] = []
        settings = patient.settings
        if self.meeting.leads and settings is not None:
            with suppress(TimeoutError):  # a disk that does not answer is the checks' business
                patient.history = bounded(lambda: History.read(settings.run_dir), AT_LEAST)

    def attendance(self, patience: float) -> None:
        """Name those who did not come."""
        meeting = self.meeting
        if not meeting.leads:
            return
        hosts = ", ".join(f"{name} ({len(ranks)})" for (name, _), ranks in list(meeting.hosts.items())[:8])
        if len(meeting.hosts) > 8:
            hosts = f"{len(meeting.hosts)} hosts"
        if meeting.missing:
            self.findings.append(
                Finding(
                    "ranks",
                    "failed",
                    f"{meeting.who(meeting.missing)} did not come within {patience:g} s; {len(meeting.present)} of "
                    f"{meeting.world_size} did: {hosts}",
                    "all ranks",
                    "look at these hosts: is the process there (ps), what does it wait for (py-spy dump), does the "
                    "disk with the Python environment answer?",
                )
            )
        else:
            self.findings.append(Finding("ranks", "ok", f"{meeting.world_size} came: {hosts}"))

    def configuration_is_read(self, misread: BigtrainError | None) -> None:
        """Name the ranks that cannot read their configuration."""
        self._ask("reading", self.meeting.present, lambda: _raise(misread), READING_SECONDS)

    def carry_out(self, name: str, check: Check) -> None:
        """Measure where it has to be measured, gather, judge."""
        meeting = self.meeting
        if meeting.leads:
            seconds = min(check.seconds, max(AT_LEAST, self.began + BUDGET - time.monotonic()))
            if check.together and len(meeting.present) < meeting.world_size:
                seconds = 0.0
                text = "not measured: it takes all ranks, and some are missing"
                self.findings.append(Finding(name, "warning", text, "all ranks"))
            elif check.needs_settings and self.patient.settings is None:
                seconds = 0.0
            meeting.tell(f"order/{name}", seconds)
        else:
            seconds = meeting.hear(f"order/{name}", BUDGET)
        if seconds:
            answers = self._ask(name, self._who(check), lambda: self._measured(check), seconds)
            if answers:
                self._judge(name, check, answers)

    def _who(self, check: Check) -> Iterable[int]:
        """On the leader, who takes part; on others, whether they do."""
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
        if check.needs_settings and self.patient.settings is None:
            return None  # that has been said
        return {"value": check.measure(self.patient)}

    def _ask(self, name: str, ranks: Iterable[int], measure: Callable[[], Any], seconds: float) -> dict[int, Any]:
        """On the leader, what each of these ranks has measured; errors and silence become findings."""
        meeting, ranks = self.meeting, list(ranks)
        if meeting.rank in ranks:
            meeting.post(name, _outcome(measure, seconds))
        if not meeting.leads:
            return {}
        answers = meeting.gather(name, ranks, seconds + _SLACK)
        if silent := [rank for rank in ranks if rank not in answers]:
            meeting.lost(silent)
            self.findings.append(
                Finding(
                    name,
                    "failed",
                    f"{meeting.who(silent)} did not answer within {seconds + _SLACK:.0f} s",
                    "an answer from every rank",
                    "look whether the process is still there, and what it waits for (py-spy dump)",
                )
            )
        errors: dict[str, tuple[dict[str, Any], list[int]]] = {}
        for rank, answer in answers.items():
            if answer is not None and "error" in answer:
                errors.setdefault(str(answer["error"]), (answer["error"], []))[1].append(rank)
        for error, whose in errors.values():
            where = "" if meeting.world_size == 1 else f"{meeting.who(whose)}: "
            label = "configuration" if name == "reading" else name
            self.findings.append(Finding(label, "failed", where + error["found"], error["wanted"], error["fix"]))
        return {rank: each["value"] for rank, each in answers.items() if each is not None and "value" in each}

    def _judge(self, name: str, check: Check, answers: dict[int, Any]) -> None:
        try:
            found = list(check.judge(answers, self.patient))
        except Exception as error:
            found = [Finding(name, "failed", _unexpected(error), fix=_OURS)]
        self.findings += [finding for finding in found if finding.status != "ok"] or found

    def conclude(self) -> Report:
        """Write down what was measured, tell all ranks how it ended, and leave together."""
        meeting, settings = self.meeting, self.patient.settings
        if not meeting.leads:
            ok = bool(meeting.hear("ok", BUDGET))
            meeting.everybody_knows()
            return Report(ok, leads=False)
        if settings is not None:
            self._write(settings)
        report = self._report()
        meeting.tell("ok", report.ok)
        meeting.everybody_knows()
        return report

    def _report(self) -> Report:
        meeting = self.meeting
        ok = all(finding.status != "failed" for finding in self.findings)
        hosts = [name for name, _ in meeting.hosts]
        return Report(ok, self.findings, meeting.world_size, hosts, time.monotonic() - self.began)

    def _write(self, settings: Settings) -> None:
        record = {**self._report().as_dict(), "time": round(time.time(), 3), "measured": self.patient.measured}

        def write() -> None:
            RunDirectory(settings.run_dir).refuse_foreign()
            self.patient.history.write(settings.run_dir, record)

        try:
            bounded(write, AT_LEAST)
        except (OSError, TimeoutError) as error:
            text = f"{settings.run_dir}/doctor.json cannot be written: {error}"
            self.findings.append(Finding("record", "warning", text, "what was measured is compared with next time"))
        except BigtrainError:
            pass  # somebody else's folder; the check of the disks has said so


_SLACK = 3.0
"""Seconds that an answer may be under way beyond what the measurement may take."""
_OURS = "this is a fault of bigtrain's; please report it"


def _raise(error: BigtrainError | None) -> None:
    if error is not None:
        raise error


def _outcome(measure: Callable[[], Any], seconds: float) -> dict[str, Any] | None:
    """What was measured, or why not, as it goes to the leader."""
    try:
        outcome: dict[str, Any] | None = bounded(measure, seconds)
        return outcome
    except BigtrainError as error:
        finding = Finding.of_error("", error)
        return {"error": {"found": finding.found, "wanted": finding.wanted, "fix": finding.fix}}
    except TimeoutError as error:
        return {
            "error": {
                "found": str(error),
                "wanted": f"an end within {seconds:.0f} s",
                "fix": "something that it needs does not answer: a disk, a device or a network",
            }
        }
    except Exception as error:
        return {"error": {"found": _unexpected(error), "wanted": None, "fix": None}}


def _unexpected(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'without a word'}"

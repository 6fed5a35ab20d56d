"""The diagnosis of a hang: which rank the others wait for, from the report of every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtrain.health.heartbeat import Position


@dataclass(frozen=True)
class RankReport:
    """What is known of one rank when the run makes no progress."""

    rank: int
    host: str
    pid: int
    position: Position
    silent: bool = False
    """Whether nothing has come from its watchdog for some time. The watchdog shares no lock with the training."""
    answered: bool = True
    """Whether it has sent the summary of its thread dump. If not, nothing is known of the next three."""
    where: str = ""
    """Its innermost frame in bigtrain's code; empty where the rank could not report it."""
    waits_for_ranks: bool = False
    waits_for_disk: bool = False
    machine: str = ""
    """The name by which its scheduler knows the host; empty where nothing has come from the rank."""

    @property
    def name(self) -> str:
        """The rank, its host and its process, for people."""
        return f"rank {self.rank} on {self.host} (process {self.pid})"


@dataclass(frozen=True)
class HangDiagnosis:
    """Why a run makes no progress."""

    suspects: list[RankReport]
    """The ranks that the others wait for; empty where they all look alike."""
    reason: str
    """One line, with the names of the suspects."""

    def __str__(self) -> str:
        return self.reason


def diagnose(reports: Sequence[RankReport], saving: bool = False) -> HangDiagnosis:
    """Find the suspects.

    1. A silent rank is a suspect: its process is stopped, or its host is down.
    2. Otherwise a rank is one whose position is least: the others wait for it.
    3. Of ranks at the same position, those outside a collective are the suspects.
    4. Of these, those that wait for a disk; one disk may hold up several ranks.

    A rank that has not sent the summary of its dump is a suspect by its position only. The reason counts such ranks.

    Args:
        reports: one of each rank.
        saving: whether it is a background save that does not end. The positions of the training do not matter then.
    """
    if silent := [report for report in reports if report.silent]:
        answers = "does not answer" if len(silent) == 1 else "do not answer"
        reason = f"{_names(silent)} {answers}: stopped, or the host is down; last position: {silent[0].position}"
        return HangDiagnosis(silent, reason)
    last = list(reports)
    if not saving:
        least = min(report.position for report in reports)
        last = [report for report in reports if report.position == least]
    answered = [report for report in last if report.answered]
    busy = [report for report in answered if not report.waits_for_ranks]
    suspects = [report for report in busy if report.waits_for_disk] or busy or last
    activity = _activity(next(iter(answered), last[0]) if suspects is last else suspects[0], saving)
    if unknown := sum(not report.answered for report in reports):
        activity += f"; {unknown} {'rank has' if unknown == 1 else 'ranks have'} not answered yet"
    alike = len(last) == len(reports) > 1 and (suspects is last or len(suspects) == len(answered))
    if alike and not suspects[0].waits_for_disk:
        # On a GPU every rank may have queued its work and wait for the device. Then all look the same from here.
        return HangDiagnosis([], f"all {len(reports)} ranks are at the same point: {activity}")
    stalled = "has stalled" if len(suspects) == 1 else "have stalled"
    return HangDiagnosis(suspects, f"{_names(suspects)} {stalled}: {activity}")


def _activity(report: RankReport, saving: bool) -> str:
    parts = ["a background save" if saving else str(report.position)]
    if report.where:
        parts.append(f"at {report.where}")
    if report.waits_for_disk:
        parts.append("waiting for a disk or file server")
    elif report.waits_for_ranks:
        parts.append("waiting for other ranks")
    return ", ".join(parts)


def _names(reports: Sequence[RankReport]) -> str:
    names = [report.name for report in reports[:8]]
    more = len(reports) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")

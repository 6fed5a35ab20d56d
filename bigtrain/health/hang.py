"""Who holds a run up: from what every rank says of itself to the one that the others wait for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtrain.health.heartbeat import Position


@dataclass(frozen=True)
class Report:
    """What is known of one rank when no step comes to its end."""

    rank: int
    host: str
    pid: int
    position: Position
    silent: bool = False
    """Its watchdog, which shares no lock with the training, has not been heard of for some time."""
    where: str = ""
    """The innermost frame of ours; empty where the rank could not say it."""
    waits_for_ranks: bool = False
    waits_for_disk: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return f"rank {self.rank} on {self.host} (process {self.pid})"


@dataclass(frozen=True)
class Verdict:
    """Why a run stands still."""

    odd: list[Report]
    """The ranks that the others wait for; none where they cannot be told from the others."""
    why: str
    """In one line."""

    def __str__(self) -> str:
        return self.why


def judge(reports: Sequence[Report], saving: bool = False) -> Verdict:
    """Find the odd ones.

    A rank that is not heard of at all is stopped, or its host is gone. Of those that are, the one that has not come as
    far as the others holds them up; of those that have come equally far, the one that is not inside a collective. One
    disk may hold up several.

    Args:
        saving: whether it is a save behind the training that does not come to its end; then it is of no importance how
            far the training is.
    """
    if silent := [report for report in reports if report.silent]:
        said = "does not answer: it is stopped, or its host is gone"
        return Verdict(silent, f"{_names(silent)} {said}; last heard of in {silent[0].position}")
    behind = list(reports)
    if not saving:
        least = min(report.position for report in reports)
        behind = [report for report in reports if report.position == least]
    busy = [report for report in behind if not report.waits_for_ranks]
    odd = [report for report in busy if report.waits_for_disk] or busy or behind
    if len(odd) == len(reports) > 1 and not odd[0].waits_for_disk:
        # On a GPU every rank may have queued its work and wait for the device: then all look the same from here.
        return Verdict(
            [], f"all {len(reports)} ranks stand alike, {_standing(odd[0], saving)}; none is behind the others"
        )
    return Verdict(odd, f"{_names(odd)} {'is' if len(odd) == 1 else 'are'} in {_standing(odd[0], saving)}")


def _standing(report: Report, saving: bool) -> str:
    parts = ["a save behind the training" if saving else str(report.position)]
    if report.where:
        parts.append(f"at {report.where}")
    if report.waits_for_disk:
        parts.append("waiting for a disk or file server")
    elif report.waits_for_ranks:
        parts.append("waiting for other ranks")
    return ", ".join(parts)


def _names(reports: Sequence[Report]) -> str:
    names = [report.name for report in reports[:8]]
    more = len(reports) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")

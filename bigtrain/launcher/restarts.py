"""Whether a launcher starts its workers again: a decision from exit statuses, without processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bigtrain.base import CRASHED, FINAL, HUNG


class Death(NamedTuple):
    """A worker that ended before the run was done."""

    rank: int
    status: int
    """Its return code as `subprocess` has it: -n where signal n killed it."""

    @property
    def final(self) -> bool:
        """Whether the worker would end the same way again, or was asked to end."""
        return self.status in FINAL

    @property
    def may_follow_another(self) -> bool:
        """Whether a death on another node may be the cause: it closes connections, but it does not kill."""
        return self.status >= 0


def cause(ended: Mapping[int, int], crashed_at: Mapping[int, int]) -> Death | None:
    """Return the worker whose end caused the others' ends; None where none has failed.

    When a rank dies, others find their connections closed, and crash within a moment. So an end that no other rank can
    cause comes first. The order is: killed, found the run hung, a final status, crashed. Of several crashes the first
    is the cause; its process may still be about to end.

    Args:
        ended: the return codes of the workers that have ended, by rank.
        crashed_at: when a worker reported that it crashes, by rank, for those that could.
    """
    if not any(ended.values()):
        return None
    statuses = dict.fromkeys(crashed_at, CRASHED) | dict(ended)
    failed = [Death(rank, status) for rank, status in statuses.items() if status]
    return min(failed, key=lambda death: (_order(death), crashed_at.get(death.rank, 0), death.rank))


def _order(death: Death) -> int:
    if death.status < 0:
        return 0
    if death.status == HUNG:
        return 1
    return 2 if death.final else 3


@dataclass
class Restarts:
    """Counts how often a launcher has started its workers again, and limits restarts in a row without progress."""

    limit: int
    """Restarts without a commit in between, at most."""
    total: int = 0
    """Restarts so far."""
    since_progress: int = 0
    """Restarts since the newest commit."""
    _newest: int = -1

    def allow(self, newest_commit: int) -> bool:
        """Return whether one more restart is allowed, and count it if so.

        Args:
            newest_commit: the highest step that the workers have reported as committed, -1 where there is none.
        """
        if newest_commit > self._newest:
            self._newest, self.since_progress = newest_commit, 0
        if self.since_progress >= self.limit:
            return False
        self.since_progress += 1
        self.total += 1
        return True

    def __str__(self) -> str:
        return f"restart {self.total}" + (f", {self.since_progress} of {self.limit} without a commit in between")

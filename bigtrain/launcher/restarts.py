"""When a launcher starts its workers again, and when it does not: bookkeeping without processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bigtrain.base.exit_status import CRASHED, FINAL, HUNG


class Death(NamedTuple):
    """A worker that ended before its time."""

    rank: int
    status: int
    """As `subprocess` has it: -n where signal n killed it."""

    @property
    def final(self) -> bool:
        """Whether the worker would do the same again, or was asked to leave."""
        return self.status in FINAL

    @property
    def may_follow_another(self) -> bool:
        """Whether it may have come of a death on another node; who was killed did not die of a closed connection."""
        return self.status >= 0


def cause(ended: Mapping[int, int], crashed_at: Mapping[int, int]) -> Death | None:
    """Of the workers that have ended by themselves, the one that the others followed; None where none has failed.

    One dead rank takes others with it, who find their connections closed, all within a moment. So what no rank can do
    because of another counts first: to be killed, then to find the run hung, then to say that it is the user's turn,
    and a crash last: the first of them, which may still be about to end.

    Args:
        ended: rank -> status.
        crashed_at: rank -> when it said that it crashes, for those that could.
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
    """How often one launcher may start its workers again: so many times in a row without progress."""

    limit: int
    """Without a checkpoint between one and the next."""
    total: int = 0
    since_progress: int = 0
    _newest: int = -1

    def allow(self, newest_commit: int) -> bool:
        """Whether one more is allowed; if so, it is counted.

        Args:
            newest_commit: the highest step that the workers have told to be committed, -1 where none was.
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

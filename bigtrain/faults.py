"""Faults on order: a process that kills itself at a named point, for those who want to see what a run makes of it.

    BIGTRAIN_KILL="rank=1,at=save.written,count=2"      kill -9 of rank 1 where it reaches that point the second time
    BIGTRAIN_KILL="rank=*,at=step,count=7,delay=0.05"   of every rank, 50 ms after step 7 of this start has begun

The victim may be on another machine than whoever gives the order: so it is the victim that carries it out, with the
signal that nothing can catch. The points of a save, in their order on a rank:

    save.begun      the state is about to be copied
    save.copied     it is copied; training goes on while the rest happens behind it
    save.writing    in the middle of the rank's file
    save.written    the file is durable; others may still be writing theirs
    save.manifest   rank 0: all files are durable, and the manifest is about to be written
    save.staged     rank 0: the manifest is durable, and the rename is about to come
    save.renamed    rank 0: the directory has its final name; its parent has not been fsynced yet
    save.pruning    rank 0: an old checkpoint is out of sight, and not gone yet

Without the variable a point costs one comparison.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from dataclasses import dataclass, fields

KILL = "BIGTRAIN_KILL"

POINTS = (
    "step",
    "save.begun",
    "save.copied",
    "save.writing",
    "save.written",
    "save.manifest",
    "save.staged",
    "save.renamed",
    "save.pruning",
)


@dataclass(frozen=True)
class Kill:
    """An order to kill."""

    rank: str
    """Which rank, or * for every one."""
    at: str
    """One of POINTS."""
    count: int = 1
    """At which of the times that the process comes by."""
    delay: float = 0.0
    """Seconds after that."""

    def __str__(self) -> str:
        return ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))

    @classmethod
    def parse(cls, text: str) -> Kill:
        """Read an order as it stands in the environment.

        Raises:
            ValueError: it is not one; an order that is not understood must not pass for one that was carried out.
        """
        given = dict(item.split("=", 1) for item in text.split(","))
        count, delay = int(given.pop("count", 1)), float(given.pop("delay", 0))
        order = cls(given.pop("rank"), given.pop("at"), count, delay)
        if given or order.at not in POINTS:
            raise ValueError(f"{KILL}={text}: unknown {', '.join(given) or order.at}; points are {', '.join(POINTS)}")
        return order


_order = Kill.parse(os.environ[KILL]) if KILL in os.environ else None
_passed: Counter[str] = Counter()


def obey(order: Kill | None) -> None:
    """Take this order in place of that in the environment; for processes that were forked."""
    global _order
    _order = order
    _passed.clear()


def reached(point: str) -> None:
    """This process has come to a point; if it was ordered to die here, it does."""
    if _order is None or point != _order.at or _order.rank not in ("*", os.environ.get("RANK", "0")):
        return
    _passed[point] += 1
    if _passed[point] != _order.count:
        return
    if _order.delay:
        timer = threading.Timer(_order.delay, _die)
        timer.daemon = True
        timer.start()
    else:
        _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

"""How far a rank's training has come: the loop writes it down, and the watchdog reads it from another thread."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class LoopPhase(IntEnum):
    """What the training loop of a rank is doing.

    The phases of a step are in the order in which a rank goes through them. Ranks wait for each other on the way, so
    the rank with the least position is the one that the others wait for.
    """

    START = 0
    DATA = 1
    AGREE = 2
    FORWARD_BACKWARD = 3
    OPTIMIZER = 4
    SETTLE = 5
    RECORD = 6
    REWIND = 7
    EVALUATE = 8
    SAVE = 9
    FINISH = 10

    def __str__(self) -> str:
        return _NAMES[self]

    @property
    def slow(self) -> bool:
        """Whether the phase may take far longer than those of a step: it loads, compiles, or waits for a disk."""
        return self in (LoopPhase.START, LoopPhase.REWIND, LoopPhase.EVALUATE, LoopPhase.SAVE, LoopPhase.FINISH)


_NAMES = {
    LoopPhase.START: "start-up",
    LoopPhase.DATA: "waiting for data",
    LoopPhase.AGREE: "agreeing on the step",
    LoopPhase.FORWARD_BACKWARD: "forward and backward",
    LoopPhase.OPTIMIZER: "the optimizer's update",
    LoopPhase.SETTLE: "adding up the loss",
    LoopPhase.RECORD: "recording the step",
    LoopPhase.REWIND: "going back to before a spike",
    LoopPhase.EVALUATE: "the evaluation",
    LoopPhase.SAVE: "the save",
    LoopPhase.FINISH: "the end of the run",
}


class Position(NamedTuple):
    """How far a rank has come. An earlier position is less than a later one."""

    era: int
    """How often the run has gone back. What follows is later, although its step numbers are lower."""
    step: int
    """The step under way, or the last one that was done, counted from 1."""
    phase: int
    """A `LoopPhase`."""
    beats: int
    """Signs of life since the phase started: micro-batches, or batches of an evaluation."""

    def __str__(self) -> str:
        return f"{LoopPhase(self.phase)}, step {self.step}" if self.phase else str(LoopPhase.START)


class Heartbeat:
    """The position of one rank's training loop. Each call is an assignment: it takes no lock and cannot block."""

    def __init__(self) -> None:
        self.position = Position(0, 0, LoopPhase.START, 0)
        self.warm = False
        """Whether this start has done a step, so that nothing is left to compile."""

    def enter(self, phase: LoopPhase, step: int | None = None) -> None:
        """Record that a phase starts, of another step where its number is given."""
        era, now, *_ = self.position
        self.position = Position(era + (phase is LoopPhase.REWIND), now if step is None else step, int(phase), 0)

    def beat(self) -> None:
        """Record that the phase goes on."""
        era, step, phase, beats = self.position
        self.position = Position(era, step, phase, beats + 1)

    @property
    def slow(self) -> bool:
        """Whether the work under way may take longer than a step."""
        return not self.warm or LoopPhase(self.position.phase).slow

"""Where a rank's training stands: what the loop says in passing, and the watchdog reads from another thread."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Phase(IntEnum):
    """What a rank is doing. The phases of a step are in their order: ranks wait for each other in it, so whoever has
    come least far is the one that the others wait for.
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
        return _WORDS[self]

    @property
    def slow(self) -> bool:
        """Whether it may take far longer than a step's: it loads, compiles, or waits for a disk."""
        return self in (Phase.START, Phase.REWIND, Phase.EVALUATE, Phase.SAVE, Phase.FINISH)


_WORDS = {
    Phase.START: "the start",
    Phase.DATA: "waiting for data",
    Phase.AGREE: "agreeing on the step",
    Phase.FORWARD_BACKWARD: "forward and backward",
    Phase.OPTIMIZER: "the update",
    Phase.SETTLE: "adding up the loss",
    Phase.RECORD: "recording the step",
    Phase.REWIND: "going back before a spike",
    Phase.EVALUATE: "the evaluation",
    Phase.SAVE: "the save",
    Phase.FINISH: "the end",
}


class Position(NamedTuple):
    """How far a rank has come; earlier ones are less."""

    era: int
    """How often the run has gone back: what follows is later, though its steps are earlier ones."""
    step: int
    """That it is in, or did last, counted from 1."""
    phase: int
    beats: int
    """Signs of life since the phase began: micro-batches, batches of an evaluation."""

    def __str__(self) -> str:
        return f"{Phase(self.phase)}, step {self.step}" if self.phase else str(Phase.START)


class Heartbeat:
    """One rank's. Each call is an assignment; nothing is locked and nothing can block."""

    def __init__(self) -> None:
        self.position = Position(0, 0, Phase.START, 0)
        self.warm = False
        """Whether this start has done a step: what is compiled is compiled."""

    def enter(self, phase: Phase, step: int | None = None) -> None:
        """A phase begins; where the number is given, of another step."""
        era, now, *_ = self.position
        self.position = Position(era + (phase is Phase.REWIND), now if step is None else step, int(phase), 0)

    def beat(self) -> None:
        """The phase goes on."""
        era, step, phase, beats = self.position
        self.position = Position(era, step, phase, beats + 1)

    @property
    def slow(self) -> bool:
        """Whether what is being done may take longer than a step."""
        return not self.warm or Phase(self.position.phase).slow

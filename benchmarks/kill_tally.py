"""What kills came to, counted the same way whoever was killed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from save_phases import PHASES


@dataclass
class Tally:
    """What the kills were and what came of them."""

    kills: int = 0
    runs: int = 0
    resumes: int = 0
    steps_compared: int = 0
    tensors_compared: int = 0
    aimed: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    victims: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "kills": self.kills,
            "wrong": len(self.problems),
            "problems": self.problems[:20],
            "runs_finished_and_compared": self.runs,
            "resumes_compared": self.resumes,
            "steps_compared_bit_for_bit": self.steps_compared,
            "tensors_compared_at_the_end": self.tensors_compared,
            "aimed_at": dict(sorted(self.aimed.items())),
            "found_in": {phase: self.found[phase] for phase in PHASES if self.found[phase]},
            "killed": dict(sorted(self.victims.items())),
        }

"""What a check is: something that ranks measure, within a bound, and the leader judges."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch

from bigtrain.config import Settings
from bigtrain.doctor.finding import Finding
from bigtrain.doctor.history import History
from bigtrain.doctor.meeting import Meeting

Result = TypeVar("Result")


@dataclass
class Patient:
    """What is examined: this rank, and on the leader what is known of all."""

    meeting: Meeting
    settings: Settings | None
    """None where no configuration was given, or it cannot be read on this rank."""
    device: torch.device
    history: History = field(default_factory=History)
    """What earlier examinations of this run have measured; on the leader."""
    measured: dict[str, Any] = field(default_factory=dict)
    """By check, what is worth keeping of this one; on the leader."""

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        precision = self.settings.engine.precision if self.settings else "bf16"
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


Measured = Mapping[int, Any]
"""What each rank that took part has measured."""


@dataclass(frozen=True)
class Check:
    """One thing to look at."""

    about: str
    """What it looks at, for `--help` and the documentation."""
    measure: Callable[[Patient], Any]
    """Called on every rank that takes part, all at the same time; returns what JSON can hold. What it raises is a
    failed check: a BigtrainError with its own words, anything else with its message."""
    judge: Callable[[Measured, Patient], Iterable[Finding]]
    """Called on the leader with the answers of those who gave one: what is wrong, and what is right, which is left out
    where anything is wrong. Must not block."""
    takes_part: Literal["ranks", "hosts", "leader"] = "ranks"
    """All ranks, the first of each host, or the leading rank alone."""
    seconds: float = 10.0
    """After which whoever has not answered has failed."""
    needs_settings: bool = False
    together: bool = False
    """Whether ranks wait for each other inside, so that it cannot be done when one is missing."""


def bounded(work: Callable[[], Result], seconds: float) -> Result:
    """What `work` returns or raises; TimeoutError when it has not ended by then, and then it is left behind."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def carry_out() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=carry_out, name="bigtrain-doctor", daemon=True)
    began = time.monotonic()
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"not done after {time.monotonic() - began:.0f} s")
    return results[0]

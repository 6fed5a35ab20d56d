"""What a check is: the ranks measure something within a time limit, and the leader assesses the measurements."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from bigtrain.config import Settings
from bigtrain.doctor.finding import CheckFinding
from bigtrain.doctor.history import MeasurementHistory
from bigtrain.doctor.meeting import Meeting

if TYPE_CHECKING:  # the fast checks are done before PyTorch could be imported
    import torch

Result = TypeVar("Result")


@dataclass
class CheckContext:
    """What a check works with: this rank, and on the leader what is known of all ranks."""

    meeting: Meeting
    settings: Settings | None
    """None where no configuration was given, or it cannot be read on this rank."""
    chosen: torch.device | None
    """This rank's device; None in the fast checks."""
    history: MeasurementHistory = field(default_factory=MeasurementHistory)
    """What earlier preflights of this run have measured; on the leader."""
    measured: dict[str, Any] = field(default_factory=dict)
    """What to keep of this preflight in RUN/doctor.json; on the leader."""

    measures_memory: bool = False
    """Whether to measure the speed of the memory, too, which a datasheet has."""
    planned_ranks: int | None = None
    """The number of ranks of the run, where that of the preflight is another one."""

    @property
    def fast(self) -> bool:
        """Whether these are the fast checks: they have no device, measure no speed and count no parameters."""
        return self.chosen is None

    @property
    def ranks(self) -> int:
        """The number of ranks of the run."""
        return self.planned_ranks or self.meeting.world_size

    @property
    def device(self) -> torch.device:
        """This rank's device."""
        assert self.chosen is not None, "a fast check uses a device"
        return self.chosen

    @property
    def device_type(self) -> str:
        """`cuda` or `cpu`."""
        if self.chosen is not None:
            return self.chosen.type
        return "cuda" if Path("/dev/nvidia0").exists() else "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """The type of number that the model computes with."""
        from bigtrain.engine import COMPUTE_DTYPES

        precision = self.settings.engine.precision if self.settings else "bf16"
        return COMPUTE_DTYPES[precision]


Measured = Mapping[int, Any]
"""The measurement of each rank that took part."""


@dataclass(frozen=True)
class Check:
    """One check."""

    about: str
    """What it checks, for `--help` and the documentation."""
    measure: Callable[[CheckContext], Any]
    """Called on every rank that takes part, on all at the same time. It returns what JSON can hold. An error makes a
    failed check: a BigtrainError with its four parts, any other error with its message."""
    assess: Callable[[Measured, CheckContext], Iterable[CheckFinding]]
    """Called on the leader with the measurements of the ranks that answered. It returns what is wrong, and what is ok;
    the latter is dropped where anything is wrong. It must not block."""
    takes_part: Literal["ranks", "hosts", "leader"] = "ranks"
    """All ranks, the first of each host, or the leader alone."""
    seconds: float = 10.0
    """The time limit. A rank that has not answered by then has failed."""
    shared: bool = False
    """Whether all hosts use the same thing at once, so that the limit grows with their number: a file system, a
    network, or the leader."""
    needs_settings: bool = False
    collective: bool = False
    """Whether ranks wait for each other inside, so that the check is skipped when one is missing."""


def bounded(work: Callable[[], Result], seconds: float) -> Result:
    """Run `work` in a thread, and return what it returns.

    Raises:
        TimeoutError: it has not ended after `seconds`. Its thread goes on in the background.
        BaseException: whatever `work` raises.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, name="bigtrain-doctor", daemon=True)
    started = time.monotonic()
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"not done after {time.monotonic() - started:.0f} s")
    return results[0]

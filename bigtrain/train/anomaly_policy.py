"""What a run does about an anomaly: go back (`rewind`), go on (`note`) or end (`stop`), as the section `guard` says."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.config import GuardSettings
from bigtrain.health import Assessment, Guard
from bigtrain.rundir import EventFields, NotFiniteEvent, OverflowEvent, SpikeEvent
from bigtrain.train.step import StepOutcome

logger = logging.getLogger(__name__)


class AnomalyPolicy:
    """Asks the guard about every step, and decides what follows.

    Args:
        settings: the section `guard`.
        guard: finds the anomalies.
        note: records an event of a step.
    """

    def __init__(self, settings: GuardSettings, guard: Guard, note: Callable[[EventFields, int], None]) -> None:
        self._settings, self._note = settings, note
        self.guard = guard

    @property
    def suspects(self) -> bool:
        """Whether the last steps were outliers, and it is not decided yet what they are: no time to save."""
        return self.guard.suspects

    def check(self, outcome: StepOutcome, batch_digest: str, loss_scaler: Mapping[str, float]) -> Assessment | None:
        """The anomaly that the run has to go back for; None where it goes on.

        A step whose gradient overflows float16 is none: its loss scale was too large.

        Args:
            outcome: of the step.
            batch_digest: of its batch.
            loss_scaler: the state of float16's loss scaling; empty in other precisions.

        Raises:
            BigtrainError: there is one, and the settings say to stop at it; nothing was committed.
        """
        step, loss, grad_norm = outcome.step, outcome.loss, outcome.grad_norm
        if loss_scaler and not outcome.applied and math.isfinite(loss):
            self._note(OverflowEvent(loss, batch_digest, **loss_scaler), step)
            return None
        found = self.guard.assess(step, loss, grad_norm)
        if found.kind in ("fine", "suspicious"):
            return None
        self._note(_event_of(found, outcome, batch_digest), step)
        logger.warning(f"step {step}  {found}")
        if not found.is_anomaly:
            return None
        key = "on_spike" if found.kind == "spike" else "on_nonfinite"
        match getattr(self._settings, key):
            case "rewind":
                return found
            case "note":
                self.guard.forget()  # what is above the old level may be the new one
                return None
        raise BigtrainError(
            f"the run stops at step {step}, as guard.{key} says; the step was not committed",
            found=str(found),
            wanted="a finite loss and gradient norm, in line with those of the steps before",
            fix="lower optimizer.learning_rate or lengthen schedule.warmup_steps, then start again: the run goes on "
            f"from its newest checkpoint; or let it leave the batches out by itself, with guard.{key}=rewind",
        ).on_all_ranks()

    def start_over(self, guard: Guard, remembered: Mapping[str, Any]) -> None:
        """The run is at an earlier step again: take another guard, with what was known then."""
        self.guard = guard
        guard.restore(remembered)


def _event_of(found: Assessment, outcome: StepOutcome, batch_digest: str) -> EventFields:
    if found.kind == "not finite":
        return NotFiniteEvent(outcome.loss, outcome.grad_norm, batch_digest)
    return SpikeEvent(passed=not found.is_anomaly, signs=[outlier.as_record() for outlier in found.outliers])

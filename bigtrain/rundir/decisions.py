"""Decisions: what a run has resolved to do about anomaly, in RUN/decisions.jsonl, durable before it is done.

    {"decision": 1, "kind": "spike", "signs": [...], "rewind_to": 800,
     "skip": {"steps": [903, 1107], "reason": "guard: a spike at steps 1003 to 1007: ..."}, "position": 0, ...}

A decision is an item of `data.skip` that no configuration knows of yet. Whoever asks for the settings of the run gets
them with every decision's item at its place (`with_decisions`): the training, each later start of it under the same
YAML, `data where`, `data diff`, `config show`. The place is what makes the steps in it mean the same for ever, for they
are numbered as the items above it leave them; who adds items to the end of `data.skip` later changes nothing in that.

A checkpoint that was written after the anomaly began, and before it was decided about, is of a course of the run that
is no more: it is void, and so is such a line of metrics.jsonl. Both say themselves how many decisions there were when
they were written.

Nothing here is done twice by doing it again, so a crash at any instant is answered by beginning from the decisions:
that is what every start does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bigtrain.base.errors import BigtrainError
from bigtrain.base.files import fsync_directory
from bigtrain.config import Settings
from bigtrain.config.data_settings import SkipSettings
from bigtrain.rundir.json_lines import JsonLines, read_json_lines, written_to
from bigtrain.rundir.run_state import RunState

if TYPE_CHECKING:
    from bigtrain.checkpoint import Checkpoint  # imports torch, which questions about data do without

Kind = Literal["fine", "suspicious", "passed", "spike", "not finite"]


@dataclass(frozen=True)
class Outlier:
    """A step that is out of line."""

    step: int
    loss: float
    grad_norm: float
    loss_z: float | None = None
    """How many standard deviations above the median; None where it was not compared with any."""
    grad_norm_z: float | None = None

    @property
    def worst(self) -> float:
        """Its larger z-score; infinite for a step that is not finite."""
        return max((z for z in (self.loss_z, self.grad_norm_z) if z is not None), default=math.inf)

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Decision:
    """One of them."""

    decision: int
    """Its number, from 1."""
    kind: Kind
    """`spike` or `not finite`."""
    outliers: tuple[Outlier, ...]
    """The steps that were out of line."""
    rewind_to: int
    """The step to go on from; 0: from the first weights."""
    skip: SkipSettings
    """The batches that are left out."""
    position: int
    """Where `skip` stands among the items of data.skip."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """For people: the worst step's batch, by provenance."""

    @property
    def steps(self) -> range:
        """The steps whose batches are left out, in the numbering of before."""
        assert self.skip.steps is not None
        first, last = self.skip.steps
        return range(first, last + 1)

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **{f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("outliers", "skip")},
            "signs": [outlier.as_record() for outlier in self.outliers],
            "skip": self.skip.model_dump(mode="json", exclude_defaults=True),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Decision:
        """The decision that `as_record` gave."""
        skip = record["skip"]
        return cls(
            **{f.name: record[f.name] for f in fields(cls) if f.name not in ("outliers", "skip")},
            outliers=tuple(Outlier(**outlier) for outlier in record["signs"]),
            skip=SkipSettings(steps=tuple(skip["steps"]), reason=skip["reason"]),
        )


def read_decisions(path: Path) -> tuple[Decision, ...]:
    """All decisions of a run, in their order.

    Raises:
        BigtrainError: one is missing or cannot be understood: without it the run would train on other data.
    """
    decisions = []
    for number, record in enumerate(read_json_lines(path), start=1):
        try:
            decision = Decision.from_record(record)
        except (KeyError, TypeError, ValueError) as error:
            raise BigtrainError(
                f"{path}, decision {number}, cannot be understood", found=f"{type(error).__name__}: {error}"
            ) from error
        if decision.decision != number:
            raise BigtrainError(
                f"{path} does not hold all decisions",
                found=f"decision {decision.decision} in place {number}",
                fix="put the file back as the run wrote it",
            )
        decisions.append(decision)
    return tuple(decisions)


def write_decision(path: Path, decision: Decision) -> None:
    """Add a decision; it is durable when this returns. Raises BigtrainError where the disk does not take it."""
    with written_to(path):
        lines = JsonLines(path)
        lines.append(decision.as_record())
        lines.sync()
        lines.close()
        fsync_directory(path.parent)  # the file may be new


def with_decisions(settings: Settings, decisions: Sequence[Decision]) -> Settings:
    """The settings with every decision's item in data.skip. Those that are there already stay as they are."""
    skips = list(settings.data.skip)
    for decision in decisions:
        if decision.skip not in skips:
            skips.insert(decision.position, decision.skip)
    return _with_skips(settings, skips)


def without_decisions(settings: Settings, decisions: Sequence[Decision]) -> Settings:
    """The settings as they were before these decisions."""
    undone = [decision.skip for decision in decisions]
    return _with_skips(settings, [skip for skip in settings.data.skip if skip not in undone])


def is_superseded(checkpoint: Checkpoint, decisions: Sequence[Decision]) -> bool:
    """Whether a checkpoint is of a course of the run that was given up. Raises BigtrainError where it is unreadable."""
    if all(checkpoint.step < decision.steps.start for decision in decisions):
        return False  # whatever its manifest says
    taken = RunState.of(checkpoint.manifest.state).decisions
    return not is_current(checkpoint.step, taken, decisions)


def is_current(step: int, taken: int, decisions: Sequence[Decision]) -> bool:
    """Whether what was written of a step still counts.

    Args:
        step: the step.
        taken: how many decisions the run had taken when it was written.
        decisions: all decisions of the run.
    """
    return all(step < decision.steps.start for decision in decisions[taken:])


def consecutive_rewinds(decisions: Sequence[Decision], first_step: int, window: int) -> int:
    """How many of the last decisions were each soon followed by anomaly, the newest by anomaly at `first_step`.

    Soon: before `window` steps behind the anomaly before had gone well.
    """
    count = 0
    for decision in reversed(decisions):
        if first_step - decision.outliers[-1].step > window:
            break
        count, first_step = count + 1, decision.outliers[0].step
    return count


def _with_skips(settings: Settings, skips: Sequence[SkipSettings]) -> Settings:
    data = settings.data.model_copy(update={"skip": tuple(skips)})
    return settings.model_copy(update={"data": data})

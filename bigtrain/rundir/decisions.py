"""Decisions: what a run does about an anomaly, in RUN/decisions.jsonl. A decision is durable before it is carried out.

    {"decision": 1, "kind": "spike", "signs": [...], "rewind_to": 800,
     "skip": {"steps": [903, 1107], "reason": "guard: a spike at steps 1003 to 1007: ..."}, "position": 0, ...}

A decision is an item of `data.skip` that the configuration does not have. Everything that reads the settings of the
run gets them with the item of every decision at its position (`with_decisions`): training, each later start under the
same YAML, `data where`, `data diff`, `config show`. Steps in an item are numbered as the items above it leave them, so
the position keeps their meaning. An item that is added at the end of `data.skip` later does not change it.

A checkpoint that was written between the start of the anomaly and the decision is superseded: the run takes another
course. So is such a line of metrics.jsonl. Both record how many decisions there were when they were written.

A decision can be carried out twice without harm. So a start after a crash at any instant begins with the decisions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import TypedDict

from bigtrain.base import STRICT, BigtrainError, as_record, fsync_directory
from bigtrain.config import Settings, SkipSettings
from bigtrain.rundir.bounds import Count
from bigtrain.rundir.json_lines import JsonLines, read_json_lines, written_to
from bigtrain.rundir.run_state import RunState

if TYPE_CHECKING:
    from bigtrain.checkpoint import Checkpoint  # imports torch, which questions about data do without

Kind = Literal["fine", "suspicious", "passed", "spike", "not finite"]


@dataclass(frozen=True)
class Outlier:
    """A step whose loss or gradient norm is an outlier."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    step: Count
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
    """One decision."""

    decision: int
    """Its number, from 1."""
    kind: Kind
    """`spike` or `not finite`."""
    outliers: tuple[Outlier, ...]
    """The steps that were outliers."""
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
    def from_record(cls, record: Mapping[str, Any], where: object) -> Decision:
        """The decision that `as_record` gave. Raises BigtrainError, which names `where`, for any other record."""
        checked = as_record(_DecisionRecord, dict(record), where)
        return cls(outliers=tuple(checked.pop("signs")), **checked)  # type: ignore[misc]


def _of_steps(skip: SkipSettings) -> SkipSettings:
    if skip.steps is None:
        raise ValueError("a decision skips steps")
    return skip


class _DecisionRecord(TypedDict):
    """A line of decisions.jsonl. It has also the times of every line."""

    decision: Count
    kind: Kind
    signs: Annotated[list[Outlier], Field(min_length=1)]
    rewind_to: Count
    skip: Annotated[SkipSettings, AfterValidator(_of_steps)]
    position: Count
    evidence: NotRequired[dict[str, Any]]


def read_decisions(path: Path) -> tuple[Decision, ...]:
    """All decisions of a run, in their order.

    Raises:
        BigtrainError: one is missing or cannot be parsed; without it the run would train on other data.
    """
    decisions = []
    for number, record in enumerate(read_json_lines(path), start=1):
        decision = Decision.from_record(record, f"{path}, decision {number},")
        if decision.decision != number:
            raise BigtrainError(
                f"{path} does not hold all decisions",
                found=f"decision {decision.decision} in line {number}",
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
    """The settings with the item of every decision in data.skip. Items that are there already stay as they are."""
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
    """Whether a decision went back to before a checkpoint. Raises BigtrainError where the checkpoint is unreadable."""
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
    """How many of the last decisions were each soon followed by an anomaly, the newest by the one at `first_step`.

    Soon: within `window` steps after the anomaly before.
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

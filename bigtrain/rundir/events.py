"""The events of a run: each line of RUN/events.jsonl is one of them.

`Event` names them all. Each has a class with its fields, which is what writes it; a line has also `step`, `start` (the
number of the start), `time` (seconds since 1970) and `uptime` (seconds since the process started). Readers compare the
key `event` with `Event`: a line of a later version may have fields that this version does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar

from typing_extensions import TypedDict

from bigtrain.rundir.bounds import Count, Seconds


class Event(StrEnum):
    """The names of all events."""

    START = "start"
    RESUME = "resume"
    FALLBACK = "fallback"
    CHANGE = "change"
    FORECAST = "forecast"
    PLAN = "plan"
    STAGE = "stage"
    EVALUATE = "evaluate"
    SAVE = "save"
    COMMIT = "commit"
    PRUNE_FAILED = "prune failed"
    OVERFLOW = "overflow"
    NOT_FINITE = "not finite"
    SPIKE = "spike"
    SKIP = "skip"
    REWIND = "rewind"
    EVIDENCE = "evidence"
    GAVE_UP = "gave up"
    STRAGGLER = "straggler"
    CAUGHT_UP = "straggler caught up"
    CORRUPTION = "corruption"
    HANG = "hang"
    STOP = "stop"


STARTS = (Event.START, Event.RESUME)
"""Every start of a run writes one of these two, before its first step."""


@dataclass(frozen=True)
class EventFields:
    """The fields of an event. Those with a default are left out of the line where they have it."""

    event: ClassVar[Event]

    def as_record(self) -> dict[str, Any]:
        """The fields by their JSON names, with the name of the event."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        optional = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        written = {name: value for name, value in values.items() if name not in optional or value != optional[name]}
        return {"event": self.event, **{name.removesuffix("_"): value for name, value in written.items()}}


@dataclass(frozen=True)
class StartEvent(EventFields):
    """The run starts at step 0."""

    event = Event.START
    world_size: Count
    """Ranks of this start."""
    wandb_run_id: str | None
    """The W&B run that this run is tracked in; null without tracking."""
    version: str
    """Of bigtrain."""
    plan_id: str
    """The plan of samples."""
    peak: Mapping[str, Any]
    """What counts as 100% MFU: `flops` of all ranks together, `source`, `device`, `kind`,
    `processor`, `measured_matmul_flops`."""
    clock: Mapping[str, Any]
    """When the process started, by the clock of its machine (`boot_id`, `boot_seconds`, `process_seconds`), and what
    preceded it (`before_seconds`, `queued_seconds`, `died_seconds`)."""
    phases: Mapping[str, Seconds]
    """Seconds of each phase of the set-up, from the imports to the meter."""
    run_dir: str
    """The run directory, absolute: a copy of a run is known by it."""


@dataclass(frozen=True)
class ResumeEvent(StartEvent):
    """The run goes on from a checkpoint."""

    event = Event.RESUME
    from_checkpoint: str
    """Name of the checkpoint."""
    parent: Mapping[str, Any] | None = None
    """Only of the first start of a branch: the run that it began as a copy of (`run_dir`, null where it is not known;
    `step`; `wandb_run_id`)."""


@dataclass(frozen=True)
class FallbackEvent(EventFields):
    """A checkpoint was skipped, and an older one or another copy is used."""

    event = Event.FALLBACK
    checkpoint: str
    """Its name."""
    place: str
    """Its folder or URL."""
    problems: str
    """What is wrong with it."""


@dataclass(frozen=True)
class ChangeEvent(EventFields):
    """A setting that changes the mathematics has another value from here on, as `checkpoint.allow_change` allows."""

    event = Event.CHANGE
    key: str
    """The setting."""
    from_: Any
    """Its value before."""
    to: Any
    """Its value from here on."""


@dataclass(frozen=True)
class ForecastEvent(EventFields):
    """What the planner expects of this start, on a device whose datasheet is known."""

    event = Event.FORECAST
    device: str
    """Its name in the datasheets."""
    memory: Mapping[str, float]
    """Bytes of the rank that needs most, by kind."""
    allocated_bytes: float
    """The peak that PyTorch will report as allocated."""
    step_seconds: Mapping[str, float]
    """Seconds of a step by part; they add up to it."""
    tokens_per_second: float
    """Of all ranks."""


@dataclass(frozen=True)
class PlanEvent(EventFields):
    """The plan of samples is another one than that of the checkpoint."""

    event = Event.PLAN
    from_plan: str
    """The id of the plan before."""
    to_plan: str
    """The id of the plan from here on."""
    differs: Sequence[str]
    """The parts of the plan that differ."""
    same_before_step: Count | None
    """The first step with another batch; null where no batch differs."""
    skip: Sequence[Mapping[str, Any]]
    """The items of data.skip from here on."""


@dataclass(frozen=True)
class StageEvent(EventFields):
    """A stage of the run starts with this step: samples of another length, or another rotation."""

    event = Event.STAGE
    sequence_length: Count
    """Tokens in a sample."""
    global_batch_size: Count
    """Samples in a step."""
    micro_batch_size: Count
    """Samples in one forward pass."""
    rope_theta: float
    """See model.rope_theta."""
    rope_scaling: Mapping[str, Any] | None
    """See model.rope_scaling."""


class SourceValidation(TypedDict, total=False):
    """The held-out documents of a source, evaluated. `bigtrain eval` adds accuracies, and the numbers of baselines."""

    source: str
    """Its name."""
    loss: float
    """Nats a token."""
    perplexity: float
    tokens: Count
    metrics: Mapping[str, float]
    """Of labels that are not tokens, such as accuracy and f1."""


@dataclass(frozen=True)
class EvaluateEvent(EventFields):
    """The held-out documents of every source were evaluated."""

    event = Event.EVALUATE
    seconds: Seconds
    """How long it took."""
    validation: Sequence[SourceValidation]
    """For each source: `source` (its name), `loss` in nats, `perplexity`, `tokens`."""
    samples: Sequence[Mapping[str, str]] | None = None
    """Texts that the model generated, where `evaluate.samples` asks for them: `source`, `prompt`, `completion`."""


@dataclass(frozen=True)
class SaveEvent(EventFields):
    """A save has started: the state is copied, and is written in the background."""

    event = Event.SAVE
    stall_seconds: Seconds
    """How long training stood still for it."""


@dataclass(frozen=True)
class CommitEvent(EventFields):
    """A checkpoint is committed: durable and complete."""

    event = Event.COMMIT
    step: Count
    """The step of the checkpoint."""
    seconds: Seconds
    """From the start of the save to the commit."""
    checkpoint: str
    """Its name."""
    local: bool
    """Whether it is in the local tier."""
    waited_seconds: Seconds | None = None
    """How long training waited for it, where it did."""


@dataclass(frozen=True)
class PruneFailedEvent(EventFields):
    """A checkpoint that is no longer kept could not be removed."""

    event = Event.PRUNE_FAILED
    step: Count
    """The step of the checkpoint whose commit should have removed it."""
    error: str
    """Why."""


@dataclass(frozen=True)
class OverflowEvent(EventFields):
    """A float16 gradient overflowed: the step has no update, and the loss scale is lowered."""

    event = Event.OVERFLOW
    loss: float
    """Mean loss of the step, in nats."""
    batch_digest: str
    """Hash of the batch's token ids."""
    cur_scale: float | None = None
    """The loss scale from here on."""
    cur_hysteresis: float | None = None
    """Overflows left before the scale is lowered again."""
    last_overflow_iter: float | None = None
    """Update in which the last overflow was."""
    cur_iter: float | None = None
    """Updates so far."""


@dataclass(frozen=True)
class NotFiniteEvent(EventFields):
    """The loss or the gradient norm of a step is not finite."""

    event = Event.NOT_FINITE
    loss: float
    """Mean loss of the step, in nats."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    batch_digest: str
    """Hash of the batch's token ids."""


@dataclass(frozen=True)
class SpikeEvent(EventFields):
    """The last steps were outliers."""

    event = Event.SPIKE
    passed: bool
    """Whether they were too few for a spike, and the steps after them are in line again."""
    signs: Sequence[Mapping[str, Any]]
    """Each outlier: `step`, `loss`, `grad_norm`, and how many standard deviations above the median these are (`loss_z`,
    `grad_norm_z`)."""


@dataclass(frozen=True)
class SkipEvent(EventFields):
    """A decision leaves batches out."""

    event = Event.SKIP
    decision: Count
    """The number of the decision in decisions.jsonl."""
    steps: Sequence[Count]
    """First and last step whose batch is left out, in the numbering before."""
    reason: str
    """Why."""


@dataclass(frozen=True)
class RewindEvent(EventFields):
    """A decision takes the run back to an earlier step."""

    event = Event.REWIND
    decision: Count
    """The number of the decision in decisions.jsonl."""
    kind: str
    """`spike` or `not finite`."""
    steps: Sequence[Count]
    """First and last outlier."""
    to_step: Count
    """The step that the run goes on from."""


@dataclass(frozen=True)
class EvidenceEvent(EventFields):
    """The documents with the highest loss in the batch that a rewind is about."""

    event = Event.EVIDENCE
    decision: Count
    """The number of the decision in decisions.jsonl."""
    of_step: Count
    """The step of the batch."""
    documents: Sequence[Mapping[str, Any]]
    """Each document with its loss and its origin, highest loss first: `loss`, `loss_tokens`, `source`, `sample`, `id`,
    `file`, `position`, `start`, `end`, `tokens`, `labelled`, `text`."""


@dataclass(frozen=True)
class GaveUpEvent(EventFields):
    """Going back did not help: the run ends."""

    event = Event.GAVE_UP
    steps: Sequence[Count]
    """First and last outlier."""
    rewinds: Count
    """Rewinds in a row."""


@dataclass(frozen=True)
class StragglerEvent(EventFields):
    """A rank is persistently slower than the others."""

    event = Event.STRAGGLER
    rank: Count
    """The rank."""
    host: str
    """Its host."""
    seconds: Seconds
    """Of its own work, a step."""
    others_seconds: Seconds
    """The median of the other ranks."""
    slow: bool
    """Always true."""


@dataclass(frozen=True)
class CaughtUpEvent(StragglerEvent):
    """A straggler is as fast as the others again; `slow` is false."""

    event = Event.CAUGHT_UP


@dataclass(frozen=True)
class CorruptionEvent(EventFields):
    """Weights that must be equal on several ranks are not: the run ends with status 71."""

    event = Event.CORRUPTION
    odd: Sequence[Mapping[str, Any]]
    """Each suspect: `rank`, `host`, `tensors`, whether it is `certain`, and `machine`, its name for the scheduler."""


@dataclass(frozen=True)
class HangEvent(EventFields):
    """The run made no progress: it ends with status 70."""

    event = Event.HANG
    step: Count
    """The step of the rank that wrote this."""
    seconds: Seconds
    """Since the last progress."""
    odd: Sequence[Mapping[str, Any]]
    """Each suspect: `rank`, `host`, `pid`."""
    verdict: str
    """Why these are suspects."""
    exit_status: Count
    """70."""


@dataclass(frozen=True)
class StopEvent(EventFields):
    """The start ends in order."""

    event = Event.STOP
    reason: str
    """Why."""
    exit_status: Count
    """0: all steps are done; 75: stopped on request with a committed checkpoint."""


EVENTS: dict[Event, type[EventFields]] = {
    cls.event: cls
    for cls in (
        StartEvent, ResumeEvent, FallbackEvent, ChangeEvent, ForecastEvent, PlanEvent, StageEvent, EvaluateEvent,
        SaveEvent, CommitEvent, PruneFailedEvent, OverflowEvent, NotFiniteEvent, SpikeEvent, SkipEvent, RewindEvent,
        EvidenceEvent, GaveUpEvent, StragglerEvent, CaughtUpEvent, CorruptionEvent, HangEvent, StopEvent,
    )
}  # fmt: skip
"""Every event and the class of its fields."""

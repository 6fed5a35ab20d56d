"""The files of a run directory. They can be read without PyTorch, on a login node, while the run is training.

directory       where each file is, and which job may write
json_lines      metrics.jsonl, events.jsonl, decisions.jsonl: whole lines are written, torn ones are skipped
records         their lines as readers get them: fields of the right types, within bounds
metrics_columns the same of many lines at once, in columns
decisions       which batches the run leaves out after a spike
starts          each start of the run: which, when, how it ended
ledger          where the time of the run went, over all starts
  closed_starts    its sums over the starts that are over
  counted_seconds  the training that counts
  start_clock      when this process was started
lineage         whether a run is a branch of another
runs            all runs below a folder
provenance      which documents were in a step
plan_diff       from which step on two runs train on other data
failing_hosts   machines that were found failing, for the scheduler
data_card       what the run was trained on, as a document
"""

from bigtrain.rundir.closed_starts import account_of
from bigtrain.rundir.counted_seconds import CountedSeconds
from bigtrain.rundir.data_card import CARD, card_of_run, write_card
from bigtrain.rundir.decisions import (
    Decision,
    Kind,
    Outlier,
    consecutive_rewinds,
    is_superseded,
    read_decisions,
    with_decisions,
    without_decisions,
    write_decision,
)
from bigtrain.rundir.directory import MARK, RunDirectory
from bigtrain.rundir.events import (
    EVENTS,
    STARTS,
    CaughtUpEvent,
    ChangeEvent,
    CommitEvent,
    CorruptionEvent,
    EvaluateEvent,
    Event,
    EventFields,
    EvidenceEvent,
    FallbackEvent,
    ForecastEvent,
    GaveUpEvent,
    HangEvent,
    NotFiniteEvent,
    OverflowEvent,
    PlanEvent,
    PruneFailedEvent,
    ResumeEvent,
    RewindEvent,
    SaveEvent,
    SkipEvent,
    SourceValidation,
    SpikeEvent,
    StageEvent,
    StartEvent,
    StopEvent,
    StragglerEvent,
)
from bigtrain.rundir.failing_hosts import record_failing_hosts
from bigtrain.rundir.json_lines import JsonLines
from bigtrain.rundir.ledger import CLASSES, Ledger, LedgerSummary, LedgerTotals, account, label
from bigtrain.rundir.lineage import Parent, parent_of, remembered_run_id
from bigtrain.rundir.metrics import StepMetrics
from bigtrain.rundir.metrics_columns import TIMES, read_metrics_columns
from bigtrain.rundir.plan_diff import PlanDifference, compare_plans
from bigtrain.rundir.provenance import (
    AppearanceInStep,
    DocumentsOfStep,
    LabelledRun,
    PartOfDocument,
    StepsOfDocument,
    count_evidence,
    documents_of_step,
    evidence_of,
    record_of,
    steps_of_document,
)
from bigtrain.rundir.records import (
    last_of_each_step,
    newest_events,
    read_events,
    read_metrics,
    read_metrics_lines,
    step_of,
)
from bigtrain.rundir.run_state import RunState
from bigtrain.rundir.runs import RunStatus, list_runs
from bigtrain.rundir.start_clock import Phases, clock
from bigtrain.rundir.starts import MICRO, StepTimes, number_of_next_start, seconds_of

__all__ = [
    "CARD",
    "CLASSES",
    "EVENTS",
    "MARK",
    "MICRO",
    "STARTS",
    "TIMES",
    "AppearanceInStep",
    "CaughtUpEvent",
    "ChangeEvent",
    "CommitEvent",
    "CorruptionEvent",
    "CountedSeconds",
    "Decision",
    "DocumentsOfStep",
    "EvaluateEvent",
    "Event",
    "EventFields",
    "EvidenceEvent",
    "FallbackEvent",
    "ForecastEvent",
    "GaveUpEvent",
    "HangEvent",
    "JsonLines",
    "Kind",
    "LabelledRun",
    "Ledger",
    "LedgerSummary",
    "LedgerTotals",
    "NotFiniteEvent",
    "Outlier",
    "OverflowEvent",
    "Parent",
    "PartOfDocument",
    "Phases",
    "PlanDifference",
    "PlanEvent",
    "PruneFailedEvent",
    "ResumeEvent",
    "RewindEvent",
    "RunDirectory",
    "RunState",
    "RunStatus",
    "SaveEvent",
    "SkipEvent",
    "SourceValidation",
    "SpikeEvent",
    "StageEvent",
    "StartEvent",
    "StepMetrics",
    "StepTimes",
    "StepsOfDocument",
    "StopEvent",
    "StragglerEvent",
    "account",
    "account_of",
    "card_of_run",
    "clock",
    "compare_plans",
    "consecutive_rewinds",
    "count_evidence",
    "documents_of_step",
    "evidence_of",
    "is_superseded",
    "label",
    "last_of_each_step",
    "list_runs",
    "newest_events",
    "number_of_next_start",
    "parent_of",
    "read_decisions",
    "read_events",
    "read_metrics",
    "read_metrics_columns",
    "read_metrics_lines",
    "record_failing_hosts",
    "record_of",
    "remembered_run_id",
    "seconds_of",
    "step_of",
    "steps_of_document",
    "with_decisions",
    "without_decisions",
    "write_card",
    "write_decision",
]

"""One training run, from the settings to the last checkpoint.

::

    settings ──► setup: join ─► open data ─► find start ─► build ──► TrainingRun ──► loop
                                                                        │
        fetch a batch and vote     vote.py             what the ranks agree on before a step
        optimize                   step.py             forward, backward, update: the mathematics, no I/O
        record                     recorder.py         metrics.jsonl, events.jsonl, tracker, log
        an anomaly?                anomaly_policy.py   go back, note it, or stop
          go back                  rewind.py           to the newest checkpoint before, its batches left out
        save?                      save_policy.py      after steps, after time, before the job's end
                                     save_interval.py    the interval that costs least
                                     end_of_job.py       how much time is left
        stop?                      stop.py             signals: status 75 with a committed checkpoint

The loop is the file to read first. `setup` also uses `build` (model, engine and meter), `continuation` (may the run go
on?), `superseded` (checkpoints that a rewind gave up), `dry_run` (does a step fit into memory?), `expected_parameters`
and `introduce` (what a start says of itself). `document_losses` names the documents of a batch that the model finds
hard, and `router_balance` moves the routers of experts.
"""

from bigtrain.train.build import engine_at, layout_of, open_loader, open_run_data, ranks
from bigtrain.train.continuation import check_plan
from bigtrain.train.document_losses import documents_of, losses_of_parts
from bigtrain.train.loop import to_the_end, train
from bigtrain.train.ownership import refuse_checkpoints_of_others
from bigtrain.train.setup import open_run
from bigtrain.train.step import LearningRate, StepOutcome, TrainingStep, loss_scale
from bigtrain.train.stop import StopRequest
from bigtrain.train.training import TrainingRun
from bigtrain.train.vote import Agreement, Vote, require_labels

__all__ = [
    "Agreement",
    "LearningRate",
    "StepOutcome",
    "StopRequest",
    "TrainingRun",
    "TrainingStep",
    "Vote",
    "check_plan",
    "documents_of",
    "engine_at",
    "layout_of",
    "loss_scale",
    "losses_of_parts",
    "open_loader",
    "open_run",
    "open_run_data",
    "ranks",
    "refuse_checkpoints_of_others",
    "require_labels",
    "to_the_end",
    "train",
]

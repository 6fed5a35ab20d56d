"""The training loop: one screen, from the first step to the last."""

from __future__ import annotations

from bigtrain.base import DONE, STOPPED
from bigtrain.config import Settings
from bigtrain.train.rewind import rewind
from bigtrain.train.setup import open_run
from bigtrain.train.training import TrainingRun


def train(settings: Settings) -> int:
    """Train until the schedule ends or somebody asks to stop, from the newest checkpoint if there is one.

    Returns:
        0 when the last step is done, 75 when stopped on request with a committed checkpoint.

    Raises:
        BigtrainError: the settings, the data, the run directory or the environment are wrong; nothing was lost.
    """
    with open_run(settings) as run:
        return to_the_end(run)


def to_the_end(run: TrainingRun) -> int:
    """The loop itself, from wherever the run stands."""
    while run.goes_on:
        batch, agreed = run.fetch()
        if agreed.stop_reason:
            return leave(run, reason=agreed.stop_reason)
        if agreed.save_is_due:
            run.save()

        outcome = run.optimize(batch, agreed)
        run.record(outcome, agreed)
        if anomaly := run.anomaly(outcome, agreed):
            rewind(run, anomaly)
            continue

        if run.evaluation_is_due:
            run.evaluate()
        if run.save_is_due:
            run.save()
    if not run.is_over:
        return leave(run, reason="train.stop_after")
    return finish(run)


def leave(run: TrainingRun, reason: str) -> int:
    """Commit what is done and say why the run ends here; the next start goes on from this step."""
    run.save(last=True)
    run.close(reason, STOPPED)
    return STOPPED


def finish(run: TrainingRun) -> int:
    """Evaluate and commit the end of the run, unless an earlier start has already done so."""
    if run.has_trained:
        run.evaluate()
        run.save(last=True)
    run.close(run.why_over, DONE)
    return DONE

"""`bigtrain ladder`: from one target to a law of loss, and back to the target. The package draws it."""

from __future__ import annotations

from collections.abc import Callable

from bigtrain.base import BigtrainError, quantity
from bigtrain.config import Settings
from bigtrain.data import RunData
from bigtrain.estimate import LadderResult, PendingLadder
from bigtrain.trials.ladder.budget import require_new_text
from bigtrain.trials.ladder.design import LadderOptions, design_ladder
from bigtrain.trials.ladder.findings import findings
from bigtrain.trials.ladder.rungs import Rules, folder_of
from bigtrain.trials.ladder.runs import Executor, RunsPending, Trainer
from bigtrain.trials.ladder.tuning import tune


def ladder(
    settings: Settings,
    options: LadderOptions,
    executor: Executor,
    *,
    ranks: int,
    report: Callable[[str], None] = lambda line: None,
) -> LadderResult | PendingLadder:
    """Train smaller models of a target, and predict its loss.

    Args:
        settings: of the target. Its data are built.
        options: what is asked for.
        executor: trains the runs.
        ranks: processes of each run.
        report: called with each line of progress.

    Returns:
        What was found, or which runs have to end first.

    Raises:
        BigtrainError: the target has no smaller models, the budget is too small, text would repeat too often, there is
            no held-out text, or a run failed.
    """
    _require_from_scratch(settings)
    data = _tokens_of_sources(settings)
    rules = Rules(settings, ranks)
    trainer = Trainer(folder_of(settings), executor, report)
    try:
        design = design_ladder(rules, options, trainer)
        for size in design.sizes:
            require_new_text(data, max(design.amounts(size)), f"a rung of {quantity(size.parameters)} parameters")
        sweeps, recipe = tune(rules, design, options, trainer)
        rungs = trainer.train(design.rungs(rules, recipe))
    except RunsPending as pending:
        flops = sum(run.flops for run in pending.runs)
        return PendingLadder(str(settings.run_dir), [run.name for run in pending.runs], pending.job, flops)
    return findings(rules, options, sweeps, recipe, rungs, list(trainer.ended.values()), data)


def _require_from_scratch(settings: Settings) -> None:
    others = {
        "model.init_from": settings.model.init_from,
        "distillation.teacher": settings.distillation.teacher,
        "adapter.method": None if settings.adapter.method == "none" else settings.adapter.method,
    }
    for key, value in others.items():
        if value is not None:
            raise BigtrainError(
                "a ladder is of models that are trained from random weights",
                found=f"{key} {value}",
                wanted=f"no {key}",
                fix=f"leave out {key}",
            )


def _tokens_of_sources(settings: Settings) -> dict[str, tuple[float, int]]:
    """For each source that the run starts with its share of the mixture, and the tokens that it has.

    Raises:
        BigtrainError: the data are not built, or have no held-out text.
    """
    data = RunData.open(settings)
    if not any(packing.rows for packing in data.held_out):
        raise BigtrainError(
            "there is no held-out text, and a ladder predicts the loss on it",
            found=f"data.validation.fraction {settings.data.validation.fraction}, and no rows of it",
            wanted="at least one sequence",
            fix="set data.validation.fraction, for example to 0.01, and build the data again",
        )
    weights = data.plan.phases[0].weights[: len(settings.data.sources)]  # at the first length
    return {
        source.name: (weight / sum(weights), source.tokens)
        for source, weight in zip(data.plan.sources, weights, strict=False)
    }

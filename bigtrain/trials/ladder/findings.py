"""What follows from the runs of a ladder: the law, how far it can be trusted, and the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bigtrain.base import BigtrainError
from bigtrain.config import Settings, flat
from bigtrain.estimate import (
    EXPONENTS,
    FLOPS_PER_PARAMETER_AND_TOKEN,
    BackTest,
    LadderResult,
    OptimalSize,
    RungResult,
    ScalingLaw,
    SweepResult,
    TargetPrediction,
    TrainedPoint,
    bootstrap_laws,
    fit_law,
    interval,
)
from bigtrain.rundir import RunDirectory
from bigtrain.trials.ladder.budget import MOST_EPOCHS, most_repeated
from bigtrain.trials.ladder.design import LadderOptions
from bigtrain.trials.ladder.rungs import LadderRun, Recipe, Rules
from bigtrain.trials.ladder.runs import RunOutcome, differing_keys, outcome_of
from bigtrain.trials.ladder.sizes import FEWEST_SIZES, parameters_of

CONSTANTS: Mapping[str, Callable[[ScalingLaw], float]] = {
    "irreducible_loss": lambda law: law.irreducible_loss,
    "model_factor": lambda law: law.model_factor,
    "model_exponent": lambda law: law.model_exponent,
    "data_factor": lambda law: law.data_factor,
    "data_exponent": lambda law: law.data_exponent,
}


def findings(
    rules: Rules,
    options: LadderOptions,
    sweeps: Sequence[SweepResult],
    recipe: Recipe,
    rungs: Sequence[RunOutcome],
    ended: Sequence[RunOutcome],
    data: Mapping[str, tuple[float, int]],
) -> LadderResult:
    """Fit the law to the rungs, and predict the target.

    Args:
        rules: of the ladder.
        options: of the ladder.
        sweeps: what was tuned.
        recipe: the tuned batch and rate.
        rungs: the runs that the law is fitted to.
        ended: all runs, pilots and sweeps too.
        data: for each source its share of the mixture, and the tokens that it has.

    Raises:
        BigtrainError: a rung diverged, or there are too few for a law.
    """
    points = [TrainedPoint(rung.run.parameters, rung.run.tokens, _loss_of(rung)) for rung in rungs]
    law = fit_law(points)
    laws = bootstrap_laws(points, law)
    target, doubts = _predict(rules, options, recipe, law, laws)
    name, epochs = most_repeated(data, target.tokens)
    if epochs > MOST_EPOCHS:
        doubts.append(
            f"the target would read {name!r} {epochs:.1f} times; the law is one of new text, so its loss will be higher"
        )
    return LadderResult(
        run=str(rules.target.run_dir),
        counted=options.counted,
        rungs=[_rung(rung, law) for rung in rungs],
        sweeps=sweeps,
        law=law,
        intervals={name: interval(laws, of) for name, of in CONSTANTS.items()},
        back_test=_back_test(points),
        target=target,
        optimal=_optimal(law, laws, target.flops),
        flops=sum(each.run.flops for each in ended),
        seconds=sum(each.seconds for each in ended),
        warnings=[*doubts, *_doubts_of_law(laws), *map(_doubt, (sweep for sweep in sweeps if not sweep.grid.inside))],
    )


def _loss_of(rung: RunOutcome) -> float:
    if rung.loss is None:
        settings = rung.run.settings
        raise BigtrainError(
            f"{rung.run.name} diverged",
            found=f"a loss or gradient that is not finite, at learning rate {settings.optimizer.learning_rate}",
            fix=f"lower optimizer.learning_rate or sweep it; then remove {settings.run_dir.parent}",
        )
    return rung.loss


def _rung(rung: RunOutcome, law: ScalingLaw) -> RungResult:
    run, settings = rung.run, rung.run.settings
    return RungResult(
        run=str(settings.run_dir),
        hidden_size=settings.model.hidden_size,
        layers=settings.model.num_hidden_layers,
        parameters=run.parameters,
        tokens=run.tokens,
        global_batch_size=settings.train.global_batch_size,
        learning_rate=settings.optimizer.learning_rate,
        flops=run.flops,
        seconds=rung.seconds,
        loss=_loss_of(rung),
        fitted_loss=law.loss(run.parameters, run.tokens),
    )


def _back_test(points: Sequence[TrainedPoint]) -> BackTest | None:
    """Leave out the largest size, and predict it: the only test of a law that needs no further run."""
    sizes = sorted({point.parameters for point in points})
    if len(sizes) <= FEWEST_SIZES:
        return None
    law = fit_law([point for point in points if point.parameters < sizes[-1]])
    errors = [
        law.loss(point.parameters, point.tokens) / point.loss - 1 for point in points if point.parameters == sizes[-1]
    ]
    return BackTest(round(sizes[-1]), sizes[-1] / sizes[-2], max(errors, key=abs))


def _predict(
    rules: Rules, options: LadderOptions, recipe: Recipe, law: ScalingLaw, laws: Sequence[ScalingLaw]
) -> tuple[TargetPrediction, list[str]]:
    tuned = rules.tuned_target(recipe)
    parameters = parameters_of(tuned.model, options.counted)
    run = LadderRun("target", tuned, parameters, 0.0)
    measured, doubts = _measured(run)
    prediction = TargetPrediction(
        parameters=parameters,
        tokens=run.tokens,
        flops=FLOPS_PER_PARAMETER_AND_TOKEN * parameters * run.tokens,
        loss=law.loss(parameters, run.tokens),
        interval=interval(laws, lambda each: each.loss(parameters, run.tokens)),
        overrides=_overrides(rules.target, tuned),
        measured=measured,
    )
    return prediction, doubts


def _measured(target: LadderRun) -> tuple[float | None, list[str]]:
    """The held-out loss of the target where it has been trained, and why it does not count where it does not."""
    directory = RunDirectory(target.settings.run_dir)
    if not directory.config.is_file() or (outcome := outcome_of(target)) is None:
        return None, []
    if differing := differing_keys(directory.settings(), target.settings):
        return None, [f"{directory.root} was trained with other settings than those tuned here: {differing[0]}"]
    return outcome.loss, []


def _overrides(settings: Settings, tuned: Settings) -> list[str]:
    ours, theirs = flat(tuned), flat(settings)
    written = {True: "true", False: "false", None: "null"}
    return [
        f"{key}={written.get(value, value) if isinstance(value, bool | None) else value}"
        for key, value in ours.items()
        if value != theirs.get(key)
    ]


def _optimal(law: ScalingLaw, laws: Sequence[ScalingLaw], flops: float) -> OptimalSize:
    best = law.optimal(flops)
    return OptimalSize(
        flops=flops,
        best=best,
        parameters=interval(laws, lambda each: each.optimal(flops).parameters),
        tokens=interval(laws, lambda each: each.optimal(flops).tokens),
        loss=law.loss(best.parameters, best.tokens),
    )


def _doubts_of_law(laws: Sequence[ScalingLaw]) -> list[str]:
    """An exponent whose interval reaches a bound was not found in the runs."""
    doubts = []
    for name in ("model_exponent", "data_exponent"):
        found = interval(laws, CONSTANTS[name])
        if found.low <= 1.01 * EXPONENTS[0] or found.high >= 0.99 * EXPONENTS[1]:
            doubts.append(
                f"the runs do not determine the {name} of the law, {found.low:.2f} to {found.high:.2f}: they need more "
                "different sizes or amounts of tokens, or less noise"
            )
    return doubts


def _doubt(sweep: SweepResult) -> str:
    return (
        f"the best {sweep.of} of {sweep.parameters:,} parameters, {sweep.grid.best:.3g}, is at the edge of what was "
        "tried: it may be better beyond"
    )

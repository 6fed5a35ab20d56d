"""Learning rate and batch size, tuned on the smallest rungs; the rules carry them to the others.

On the smallest size first the rate is swept, then the batch, with the rate that goes with it. On further sizes, if
asked for, the rate is swept again: nothing is changed by that, it shows whether muP carries the rate over width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from bigtrain.base import quantity
from bigtrain.estimate import SweepPoint, SweepResult, SweptGrid
from bigtrain.trials.ladder.design import BATCH_REACH, RATE_REACH, LadderDesign, LadderOptions
from bigtrain.trials.ladder.rungs import FEWEST_STEPS, Recipe, Rules
from bigtrain.trials.ladder.runs import Trainer
from bigtrain.trials.ladder.sizes import RungSize
from bigtrain.trials.ladder.sweep import sweep


def tune(
    rules: Rules, design: LadderDesign, options: LadderOptions, trainer: Trainer
) -> tuple[list[SweepResult], Recipe]:
    """Sweep, and return what was found and the tuned recipe.

    Raises:
        BigtrainError: a run failed for another reason than a rate that is too high.
        RunsPending: some runs are not trained.
    """
    sweeps: list[SweepResult] = []
    recipe = rules.first_recipe
    for number, size in enumerate(design.sizes[: options.sweep_sizes]):
        cells = _Cells(rules, size, options.seeds, trainer)
        here = rules.rounded(recipe.at(design.swept_tokens(size)))
        sweeps.append(rates := cells.sweep_rate(here))
        if number == 0:
            here = replace(here, learning_rate=rates.grid.best)
            sweeps.append(batches := cells.sweep_batch(here))
            recipe = here.with_batch(batches.grid.best)
    return sweeps, recipe


class _Cells:
    """Trains one size with several recipes and seeds."""

    def __init__(self, rules: Rules, size: RungSize, seeds: int, trainer: Trainer) -> None:
        self.rules, self.size, self.seeds, self.trainer = rules, size, seeds, trainer

    def sweep_rate(self, here: Recipe) -> SweepResult:
        """The best learning rate for the batch and the tokens of a recipe."""
        grid = sweep(
            here.learning_rate,
            RATE_REACH,
            lambda rates: self._points(rates, [replace(here, learning_rate=rate) for rate in rates]),
        )
        return self._result("learning rate", here, grid)

    def sweep_batch(self, here: Recipe) -> SweepResult:
        """The best batch size for the tokens of a recipe, with the rate that goes with each batch."""
        most = here.tokens / (FEWEST_STEPS * self.rules.target.data.sequence_length)
        grid = sweep(
            here.global_batch_size,
            BATCH_REACH,
            lambda batches: self._points_of_batches([self.rules.rounded(here.with_batch(batch)) for batch in batches]),
            allowed=lambda batch: self.rules.ranks <= batch <= most,
        )
        return self._result("batch size", here, grid)

    def _points_of_batches(self, recipes: Sequence[Recipe]) -> list[SweepPoint]:
        return self._points([recipe.global_batch_size for recipe in recipes], recipes)

    def _points(self, values: Sequence[float], recipes: Sequence[Recipe]) -> list[SweepPoint]:
        first = self.rules.target.train.seed
        runs = [
            self.rules.rung(self.size, recipe, name=self._name(recipe, seed), seed=first + seed)
            for recipe in recipes
            for seed in range(self.seeds)
        ]
        losses = [outcome.loss for outcome in self.trainer.train(runs)]
        points = []
        for number, value in enumerate(values):
            of_value = losses[number * self.seeds : (number + 1) * self.seeds]
            kept = [loss for loss in of_value if loss is not None]
            points.append(SweepPoint(value, kept, diverged=len(of_value) - len(kept)))
        return points

    def _name(self, recipe: Recipe, seed: int) -> str:
        batch, rate = f"{recipe.global_batch_size:.4g}", f"{recipe.learning_rate:.3g}"
        return f"sweep-{quantity(self.size.parameters)}-batch-{batch}-rate-{rate}-seed-{seed}"

    def _result(self, of: Literal["learning rate", "batch size"], here: Recipe, grid: SweptGrid) -> SweepResult:
        self.trainer.report(
            f"best {of} of {quantity(self.size.parameters)} parameters: {grid.best:.3g}, of single seeds "
            f"{grid.spread.low:.3g} to {grid.spread.high:.3g}"
        )
        return SweepResult(of, self.size.model.hidden_size, self.size.parameters, round(here.tokens), grid)

"""The design of a ladder: which sizes, and how many tokens for each, so that all of it fits the budget.

Every size is trained on several amounts of data, or A / N^alpha and B / D^beta could not be separated: along one line
of D over N both fall together. The largest sizes that the budget allows are taken: the nearer the target, the better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bigtrain.base import BigtrainError, quantity
from bigtrain.estimate import Counted
from bigtrain.trials.ladder.budget import Budget, MachineSpeed, PilotTime
from bigtrain.trials.ladder.rungs import FEWEST_STEPS, LadderRun, Recipe, Rules
from bigtrain.trials.ladder.runs import Trainer
from bigtrain.trials.ladder.sizes import FEWEST_SIZES, RungSize, parameters_of, sizes_below, spread_sizes

RATIOS = (0.25, 0.5, 1.0, 2.0)
"""Tokens a parameter of the rungs, as multiples of the target's."""
SPAN = 32.0
"""The largest rung has at most so many times the parameters of the smallest."""
PILOT_RATIO = 16.0
"""By about so much the second pilot is larger than the first."""
RATE_REACH, BATCH_REACH = 2, 1
"""Powers of two on either side of the first rate and the first batch of a sweep."""


@dataclass(frozen=True)
class LadderOptions:
    """What a ladder is asked for."""

    budget: Budget
    sizes: int = 5
    """The most sizes."""
    tokens: Sequence[float] = ()
    """Tokens of the rungs, the same for each size."""
    tokens_per_parameter: Sequence[float] = ()
    """Tokens of the rungs, for each parameter. Default: `RATIOS` times the target's."""
    seeds: int = 2
    """Of each point of a sweep."""
    sweep_sizes: int = 1
    """On how many of the smallest sizes the learning rate is swept; 0: no sweep."""
    counted: Counted = "all"


@dataclass(frozen=True)
class LadderDesign:
    """The sizes of a ladder, and the tokens of each."""

    sizes: Sequence[RungSize]
    amounts: Callable[[RungSize], Sequence[float]]

    def rungs(self, rules: Rules, recipe: Recipe) -> list[LadderRun]:
        """All its runs, with the rate and the batch that a recipe gives each."""
        return [
            rules.rung(size, recipe.at(tokens), name=f"{quantity(size.parameters)}-on-{quantity(tokens)}-tokens")
            for size in self.sizes
            for tokens in self.amounts(size)
        ]

    def swept_tokens(self, size: RungSize) -> float:
        """The amount of data at which a size is tuned: the middle one."""
        amounts = self.amounts(size)
        return amounts[(len(amounts) - 1) // 2]


def design_ladder(rules: Rules, options: LadderOptions, trainer: Trainer) -> LadderDesign:
    """The ladder with the largest rungs that the budget allows. For a budget in hours it trains two pilots.

    Raises:
        BigtrainError: the budget is too small, or the target has too few smaller models.
        RunsPending: the pilots are not trained.
    """
    sizes = sizes_below(rules.target, options.counted)
    amounts = _amounts(rules, options)
    budget = options.budget
    speed = None if budget.seconds is None else _measure_speed(rules, sizes, amounts, trainer)
    cheapest = float("inf")
    for last in range(len(sizes), FEWEST_SIZES - 1, -1):
        design = LadderDesign(spread_sizes(sizes[:last], options.sizes, SPAN), amounts)
        if len(design.sizes) < FEWEST_SIZES:
            continue
        runs = [*design.rungs(rules, rules.first_recipe), *_cells(rules, design, options)]
        cost = budget.cost(runs, speed)
        if cost <= budget.limit:
            trainer.report(
                f"{len(design.sizes)} sizes from {quantity(design.sizes[0].parameters)} to "
                f"{quantity(design.sizes[-1].parameters)} parameters, {len(runs)} runs with the sweeps: "
                f"{budget.written(cost)} of {budget.written(budget.limit)}"
            )
            return design
        cheapest = min(cheapest, cost)
    raise BigtrainError(
        "the budget is too small for a ladder",
        found=budget.written(budget.limit),
        wanted=f"at least {budget.written(cheapest)}: {FEWEST_SIZES} sizes with all their amounts of tokens, and the "
        "sweeps of the smallest",
        fix="raise --budget, or give fewer --tokens or --tokens-per-parameter, or fewer --seeds",
    )


def _amounts(rules: Rules, options: LadderOptions) -> Callable[[RungSize], Sequence[float]]:
    if options.tokens:
        return lambda size: sorted(options.tokens)
    target = rules.target_tokens / parameters_of(rules.target.model, options.counted)
    ratios = sorted(options.tokens_per_parameter) or [target * ratio for ratio in RATIOS]
    return lambda size: [ratio * size.parameters for ratio in ratios]


def _cells(rules: Rules, design: LadderDesign, options: LadderOptions) -> list[LadderRun]:
    """As many runs as the sweeps have before a grid grows, for what they cost."""
    cells = []
    for number, size in enumerate(design.sizes[: options.sweep_sizes]):
        recipe = rules.first_recipe.at(design.swept_tokens(size))
        points = 2 * RATE_REACH + 1 + (2 * BATCH_REACH if number == 0 else 0)
        cells += [rules.rung(size, recipe, name="cell")] * (points * options.seeds)
    return cells


def _measure_speed(
    rules: Rules, sizes: Sequence[RungSize], amounts: Callable[[RungSize], Sequence[float]], trainer: Trainer
) -> MachineSpeed:
    small = sizes[0]
    large = min(sizes[1:], key=lambda size: abs(size.parameters / small.parameters - PILOT_RATIO))
    times = []
    for size in (small, large):
        recipe = rules.rounded(rules.first_recipe.at(min(amounts(size))))
        tokens = recipe.global_batch_size * rules.target.data.sequence_length * FEWEST_STEPS
        pilot = rules.rung(size, recipe.for_tokens(tokens), name=f"pilot-{quantity(size.parameters)}")
        trainer.train([pilot])
        times.append(PilotTime.read(size, pilot))
    return MachineSpeed.of(*times)

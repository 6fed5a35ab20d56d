"""The runs of a ladder: for a size and an amount of data, the settings of a run, by rule.

    tokens      D, by the design of the ladder
    batch       grows as D^0.571 from the batch that was tuned      Li et al. (2025, "Step Law", equation 2)
    rate        grows as the root of the batch                      Malladi et al. (2022), for Adam; so as D^0.29, where
                  and over width it is carried by muP                 Step Law has D^0.307
    schedule    the target's, with the same shares of warm-up and decay

A run stops where its loss is not finite, and a spike is only noted: a rewind would leave out data, and hide from a
sweep that a rate is too high.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.base import BigtrainError, quantity
from bigtrain.config import Settings
from bigtrain.trials.ladder.sizes import ALONE, RungSize
from bigtrain.trials.trial import changed

BATCH_EXPONENT = 0.571
FEWEST_STEPS = 16
"""Of a run: fewer leave no room for a warm-up and a decay."""
SAVES = 4
"""Checkpoints of a run: an interrupted one goes on from the last."""


@dataclass(frozen=True)
class Recipe:
    """A batch size and a learning rate, and the tokens of a run for which they hold."""

    global_batch_size: float
    learning_rate: float
    tokens: float

    def at(self, tokens: float) -> Recipe:
        """What the rule makes of it for another amount of data."""
        batch = self.global_batch_size * (tokens / self.tokens) ** BATCH_EXPONENT
        return self.with_batch(batch).for_tokens(tokens)

    def with_batch(self, batch: float) -> Recipe:
        """Another batch size, and the rate that goes with it."""
        return Recipe(batch, self.learning_rate * math.sqrt(batch / self.global_batch_size), self.tokens)

    def for_tokens(self, tokens: float) -> Recipe:
        """The same for another amount of data."""
        return Recipe(self.global_batch_size, self.learning_rate, tokens)


@dataclass(frozen=True)
class LadderRun:
    """A run of a ladder."""

    name: str
    settings: Settings
    parameters: int
    """N."""
    flops: float

    @property
    def tokens(self) -> int:
        """D, in whole steps."""
        train = self.settings.train
        return self.settings.total_steps * train.global_batch_size * self.settings.data.sequence_length


@dataclass(frozen=True)
class Rules:
    """Makes the runs of a ladder."""

    target: Settings
    ranks: int
    """That share a batch."""

    @property
    def target_tokens(self) -> int:
        """D of the target."""
        return self.target.train.batches.consumed_after(self.target.total_steps) * self.target.data.sequence_length

    @property
    def first_recipe(self) -> Recipe:
        """The target's own batch and rate."""
        return Recipe(self.target.train.global_batch_size, self.target.optimizer.learning_rate, self.target_tokens)

    def rounded(self, recipe: Recipe) -> Recipe:
        """A recipe whose batch divides over the ranks, with the rate that goes with it."""
        return recipe.with_batch(whole_batch(recipe.global_batch_size, self.ranks))

    def rung(self, size: RungSize, recipe: Recipe, *, name: str, seed: int | None = None) -> LadderRun:
        """A run of a size, for the tokens of a recipe, below the folder of the ladder.

        Raises:
            BigtrainError: it would have too few steps.
        """
        train = self._train(recipe)
        if train["steps"] < FEWEST_STEPS:
            raise BigtrainError(
                f"a rung of {quantity(recipe.tokens)} tokens has too few steps",
                found=f"{train['steps']} steps of {train['global_batch_size']} sequences of "
                f"{self.target.data.sequence_length} tokens",
                wanted=f"at least {FEWEST_STEPS} steps",
                fix="give the ladder more --tokens, or the target a smaller train.global_batch_size",
            )
        if seed is not None:
            train["seed"] = seed
        model = size.model.model_dump(mode="json") | self._scaled_by_width
        settings = changed(
            self.target,
            {
                "run_dir": str(folder_of(self.target) / name),
                "model": model,
                "train": train,
                "optimizer": {"learning_rate": self._rate(recipe, train["global_batch_size"])},
                "schedule": self._schedule(train["steps"], train["global_batch_size"]),
                "data": self._data(recipe.tokens),
                "checkpoint": {
                    "every_steps": max(1, train["steps"] // SAVES),
                    "every_minutes": None,
                    "keep": 1,
                    "keep_every_steps": None,
                    "keep_best": False,
                    "dir": None,
                    "local_dir": None,
                    "allow_change": [],
                },
                "evaluate": {"every_steps": train["steps"], "samples": 0, "patience": None, "metric": "loss"},
                "guard": {"on_nonfinite": "stop", "on_spike": "note"},
                "tracking": {"name": None},
                **ALONE,
            },
        )
        tokens = train["steps"] * train["global_batch_size"] * self.target.data.sequence_length
        return LadderRun(name, settings, size.parameters, size.flops_per_token * tokens)

    def tuned_target(self, recipe: Recipe) -> Settings:
        """The target with the batch, the rate and the schedule that the rules give it."""
        train = self._train(recipe.at(self.target_tokens))
        return changed(
            self.target,
            {
                "train": train,
                "optimizer": {"learning_rate": self._rate(recipe.at(self.target_tokens), train["global_batch_size"])},
                "schedule": self._schedule(train["steps"], train["global_batch_size"]),
            },
        )

    @property
    def _scaled_by_width(self) -> dict[str, Any]:
        """muP's base is the target's own width, so that the target stays the plain model that it is, and the smaller
        ones are scaled. Muon's updates do not depend on width."""
        model = self.target.model
        if self.target.optimizer.name == "muon":
            return {}
        return {"mup_base_hidden_size": model.mup_base_hidden_size or model.hidden_size}

    def _train(self, recipe: Recipe) -> dict[str, Any]:
        batch = whole_batch(recipe.global_batch_size, self.ranks)
        share = batch // self.ranks
        most = self.target.train.micro_batch_size
        return {
            "steps": max(1, round(recipe.tokens / (batch * self.target.data.sequence_length))),
            "tokens": None,
            "global_batch_size": batch,
            "batch_size_warmup": [],
            "micro_batch_size": next(size for size in range(min(most, share), 0, -1) if share % size == 0),
            "stop_after": None,
        }

    @staticmethod
    def _rate(recipe: Recipe, batch: int) -> float:
        """The rate of a recipe whose batch was rounded."""
        return float(f"{recipe.with_batch(batch).learning_rate:.4g}")

    def _schedule(self, steps: int, batch: int) -> dict[str, Any]:
        """Warm-up and decay with the shares that they have in the target's schedule."""
        schedule, length = self.target.schedule, self.target.schedule_length
        unit = "token" if schedule.by == "token" else "step"
        whole = steps * (batch * self.target.data.sequence_length if unit == "token" else 1)

        def scaled(part: int | None) -> int | None:
            return max(1, int(part * whole / length)) if part else part

        return {f"warmup_{unit}s": scaled(schedule.warmup), f"decay_{unit}s": scaled(schedule.decay)}

    def _data(self, tokens: float) -> dict[str, Any]:
        """Phases at the same share of the run; batches of the target that are left out are no others' batches."""
        data = self.target.data.model_dump(mode="json")
        share = tokens / self.target_tokens
        return {
            "phases": [{**phase, "from_tokens": max(1, int(phase["from_tokens"] * share))} for phase in data["phases"]],
            "skip": [{**skip, "from_step": 1} for skip in data["skip"] if skip["steps"] is None],
        }


def folder_of(target: Settings) -> Path:
    """Where the runs of a ladder are: RUN-ladder, beside the run directory of the target."""
    return target.run_dir.with_name(f"{target.run_dir.name}-ladder")


def whole_batch(batch: float, ranks: int) -> int:
    """The nearest batch size that divides over the ranks, with at most three significant binary digits for each."""
    unit = ranks * 2 ** max(0, math.floor(math.log2(max(1.0, batch / ranks))) - 2)
    return max(ranks, round(batch / unit) * unit)

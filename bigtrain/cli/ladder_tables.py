"""The tables of `bigtrain ladder`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from bigtrain.base import quantity
from bigtrain.cli.printing import echo, print_table, say
from bigtrain.estimate import Interval, LadderResult, PendingLadder


def print_ladder(found: LadderResult, config: Path) -> None:
    """What was tuned, the runs, the law, and what it says of the target."""
    for swept in found.sweeps:
        print_table(
            f"{swept.of} of {quantity(swept.parameters)} parameters on {quantity(swept.tokens)} tokens: best "
            f"{swept.grid.best:.3g}, of single seeds {_range(swept.grid.spread)}",
            [swept.of, "loss", "of each seed"],
            [
                [f"{point.value:.4g}", f"{point.mean:.4f}", " ".join(f"{loss:.4f}" for loss in point.losses)]
                for point in swept.grid.points
            ],
        )
    print_table(
        "The runs: N parameters, width x layers, D tokens",
        ["N", "shape", "D", "batch", "rate", "loss", "by the law", "error"],
        [
            [
                quantity(rung.parameters),
                f"{rung.hidden_size}x{rung.layers}",
                quantity(rung.tokens),
                rung.global_batch_size,
                f"{rung.learning_rate:.3g}",
                f"{rung.loss:.4f}",
                f"{rung.fitted_loss:.4f}",
                f"{rung.fitted_loss / rung.loss - 1:+.2%}",
            ]
            for rung in found.rungs
        ],
    )
    law, target, optimal = found.law, found.target, found.optimal
    echo(
        f"L = {law.irreducible_loss:.4f} + {law.model_factor:.4g} / N^{law.model_exponent:.3f} + {law.data_factor:.4g} "
        f"/ D^{law.data_exponent:.3f}, N: {found.counted} parameters"
    )
    if (back := found.back_test) is not None:
        echo(f"the smaller sizes predict the largest, {back.times:.1f} times larger, {back.largest_error:+.2%} off")
    what = f"{quantity(target.parameters)} parameters on {quantity(target.tokens)} tokens"
    echo(f"target, {what}: loss {target.loss:.4f}, {_range(target.interval)}")
    if target.measured is not None:
        echo(f"measured: {target.measured:.4f}; the prediction is {target.loss / target.measured - 1:+.2%} off")
    echo(
        f"for its {optimal.flops:.3g} FLOPs the best size is {quantity(optimal.best.parameters)} "
        f"({_range(optimal.parameters)}) on {quantity(optimal.best.tokens)} tokens: loss {optimal.loss:.4f}"
    )
    for warning in found.warnings:
        echo(f"warning: {warning}")
    for line in following(config, target.overrides):
        echo(line)


def print_pending(found: PendingLadder) -> None:
    """The runs that have to end first."""
    for name in found.pending:
        echo(name)
    say(f"{len(found.pending)} runs, {found.flops:.3g} FLOPs; start the ladder again when they have ended")


def following(config: Path, overrides: Sequence[str]) -> list[str]:
    """The commands that train the target as it was tuned, and that say what this costs."""
    words = [str(config), *overrides]
    return [f"bigtrain train {shlex.join(words)}", f"bigtrain plan {shlex.join(words)} --gpus 8 --gpu h100"]


def _range(interval: Interval) -> str:
    def written(value: float) -> str:
        return quantity(value) if value >= 1000 else f"{value:.4g}"

    return f"{written(interval.low)} to {written(interval.high)}"

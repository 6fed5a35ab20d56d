"""The page of a ladder: the runs and their law, what is left over, what was tuned, and what the law says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bigtrain.base import BigtrainError, duration, quantity, write_atomically
from bigtrain.estimate import Interval, LadderResult, RungResult, SweepResult
from bigtrain.report.chart import COLORS, Chart, Line, Point
from bigtrain.report.figure import NARROW, WIDE, Size, svg_chart
from bigtrain.report.page import page

CURVE_POINTS = 60
TARGET = "#dc2626"
MEASURED = "#0f172a"
FRONTIER = "#94a3b8"
NAMES = {
    "irreducible_loss": "E",
    "model_factor": "A",
    "model_exponent": "alpha",
    "data_factor": "B",
    "data_exponent": "beta",
}


def write_ladder_page(file: Path, found: LadderResult) -> None:
    """Write the page of a ladder. Raises BigtrainError where the file cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, ladder_page(found))
    except OSError as error:
        raise BigtrainError(
            f"{file} cannot be written: {error.strerror}", fix="give --page a file in a folder of yours"
        ) from None


def ladder_page(found: LadderResult) -> str:
    """The whole page."""
    return page(
        "ladder.html",
        f"Ladder of {found.run}",
        styles=["report.css", "ladder.css"],
        facts=_facts(found),
        warnings=found.warnings,
        law=_law(found),
        constants=[
            (NAMES[name], _number(getattr(found.law, name)), _range(at)) for name, at in found.intervals.items()
        ],
        curves=_both(_loss_by_tokens(found), WIDE),
        compute=_both(_loss_by_compute(found), WIDE),
        residuals=_both(_residuals(found), WIDE),
        sizes=_both(_loss_by_size(found), WIDE),
        sweeps=[_both(chart, WIDE) for chart in _sweeps(found.sweeps)],
        rungs=[_row(rung) for rung in found.rungs],
        overrides="\n".join(found.target.overrides),
    )


def _facts(found: LadderResult) -> list[tuple[str, str]]:
    target, back = found.target, found.back_test
    facts = [
        (f"predicted loss of the target, {_range(target.interval)}", f"{target.loss:.4f}"),
        ("its parameters", quantity(target.parameters)),
        ("its tokens", quantity(target.tokens)),
    ]
    if target.measured is not None:
        facts.insert(1, (f"measured; predicted {target.loss / target.measured - 1:+.2%}", f"{target.measured:.4f}"))
    if back is not None:
        facts.append((f"error for the largest size, {back.times:.1f} times the others", f"{back.largest_error:+.2%}"))
    best = found.optimal
    return [
        *facts,
        (f"best size for its compute, {_range(best.parameters)}", quantity(best.best.parameters)),
        ("tokens for that", quantity(best.best.tokens)),
        ("FLOPs of the ladder", f"{found.flops:.3g}"),
        ("time of its steps", duration(found.seconds)),
    ]


def _law(found: LadderResult) -> str:
    law = found.law
    return (
        f"L(N, D) = {law.irreducible_loss:.4f} + {_number(law.model_factor)} / N^{law.model_exponent:.3f} + "
        f"{_number(law.data_factor)} / D^{law.data_exponent:.3f}"
    )


def _colors(found: LadderResult) -> dict[int, str]:
    sizes = sorted({rung.parameters for rung in found.rungs})
    return {size: COLORS[number % len(COLORS)] for number, size in enumerate(sizes)}


def _span(values: Sequence[float]) -> list[float]:
    return [float(each) for each in np.geomspace(min(values), max(values), CURVE_POINTS)]


def _loss_by_tokens(found: LadderResult) -> Chart:
    amounts = _span([*(rung.tokens for rung in found.rungs), found.target.tokens])
    lines: list[Line] = []
    for size, color in _colors(found).items():
        lines += [
            Line(quantity(size), [(each, found.law.loss(size, each)) for each in amounts], color=color),
            Line("", [(r.tokens, r.loss) for r in found.rungs if r.parameters == size], bare=True, color=color),
        ]
    curve = [(each, found.law.loss(found.target.parameters, each)) for each in amounts]
    lines.append(Line(f"{quantity(found.target.parameters)}, target", curve, color=TARGET))
    lines += _target_lines(found, found.target.tokens)
    return Chart("Held-out loss by tokens, and the law", lines, "tokens", "nats a token", log_x=True)


def _loss_by_size(found: LadderResult) -> Chart:
    """Along the target's compute: which size is best."""
    best, flops = found.optimal, found.optimal.flops
    low, high = best.best.parameters / 20, best.best.parameters * 20
    sizes = _span([min(low, found.target.parameters), max(high, found.target.parameters)])
    curve: list[Point] = [(size, found.law.loss(size, flops / 6 / size)) for size in sizes]
    lines = [
        Line("by the law", curve, color=COLORS[1]),
        Line("best size", [(best.best.parameters, best.loss)], bare=True, color=COLORS[2]),
        Line("target", [(found.target.parameters, found.target.loss)], bare=True, color=TARGET),
    ]
    return Chart(f"Loss of {flops:.3g} FLOPs by size", lines, "parameters", "nats a token", log_x=True)


def _loss_by_compute(found: LadderResult) -> Chart:
    colors = _colors(found)
    target = found.target.flops
    work = [6.0 * rung.parameters * rung.tokens for rung in found.rungs]
    frontier: list[Point] = []
    for flops in _span([*work, target]):
        best = found.law.optimal(flops)
        frontier.append((flops, found.law.loss(best.parameters, best.tokens)))
    lines = [Line("best sizes", frontier, color=FRONTIER)]
    for size, color in colors.items():
        points = [(6.0 * r.parameters * r.tokens, r.loss) for r in found.rungs if r.parameters == size]
        lines.append(Line(quantity(size), points, bare=True, color=color))
    lines += _target_lines(found, target)
    return Chart("Held-out loss by compute", lines, "6 N D, FLOPs", "nats a token", log_x=True)


def _target_lines(found: LadderResult, x: float) -> list[Line]:
    target = found.target
    lines = [
        Line("", [(x, target.interval.low), (x, target.interval.high)], color=TARGET),
        Line("predicted", [(x, target.loss)], bare=True, color=TARGET),
    ]
    if target.measured is not None:
        lines.append(Line("measured", [(x, target.measured)], bare=True, color=MEASURED))
    return lines


def _residuals(found: LadderResult) -> Chart:
    lines = [
        Line(
            quantity(size),
            [(r.tokens, 100 * (r.fitted_loss / r.loss - 1)) for r in found.rungs if r.parameters == size],
            bare=True,
            color=color,
        )
        for size, color in _colors(found).items()
    ]
    tokens = [rung.tokens for rung in found.rungs]
    lines.append(Line("", [(min(tokens), 0.0), (max(tokens), 0.0)], color=FRONTIER))
    return Chart("The law less the measurement", lines, "tokens", "% of the loss", log_x=True)


def _sweeps(sweeps: Sequence[SweepResult]) -> Iterator[Chart]:
    for of in ("learning rate", "batch size"):
        lines: list[Line] = []
        for number, swept in enumerate(each for each in sweeps if each.of == of):
            color = COLORS[(number + 1) % len(COLORS)]
            points = swept.grid.points
            means = [(point.value, point.mean) for point in points if not point.diverged]
            seeds = [(point.value, loss) for point in points for loss in point.losses]
            lines += [
                Line(f"width {swept.hidden_size}", means, color=color),
                Line("", seeds, bare=True, color=color),
            ]
        if lines:
            yield Chart(f"Loss by {of}, each seed a dot", lines, of, "nats a token", log_x=True)


def _row(rung: RungResult) -> tuple[str, ...]:
    return (
        Path(rung.run).name,
        f"{rung.parameters:,}",
        f"{rung.hidden_size} x {rung.layers}",
        f"{rung.tokens:,}",
        str(rung.global_batch_size),
        f"{rung.learning_rate:.3g}",
        f"{rung.loss:.4f}",
        f"{rung.fitted_loss:.4f}",
        f"{rung.fitted_loss / rung.loss - 1:+.2%}",
    )


def _both(chart: Chart, wide: Size) -> dict[str, Any]:
    draw = partial(svg_chart, chart)
    return {"wide": draw(wide), "narrow": draw(NARROW)}


def _number(value: float) -> str:
    return quantity(value) if value >= 1000 else f"{value:.4g}"


def _range(at: Interval) -> str:
    return f"{_number(at.low)} to {_number(at.high)}"

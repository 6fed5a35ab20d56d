"""The planner's certificate: its forecasts beside measurements that others published.

    python benchmarks/planner.py [--throughput FILE.csv] [--memory FILE.csv] [--json OUT]
    python benchmarks/planner.py --fit             fits the constants of bigtrain/estimate/constants.py again (minutes)
    python benchmarks/planner.py --leave-one-out   fits them without a source and forecasts it, for each source
    python benchmarks/planner.py --record     keeps the result in benchmarks/results/planner.json

It reads files in the columns of shared/published/SOURCES.md, by default those of that folder beside the repository.
Every row counts once: predicted, or not predicted with the input that is missing. Errors are relative and absolute;
medians are of each source first, and their mean is over sources, because two sources have most rows. The headline is
of complete rows: dense, steady, 16 bits, with no input missing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planner_memory import CapacityMark, MemoryCase, capacity_cases, memory_cases
from planner_rows import Measured, Row, Unpredicted, case_of, measured_tokens_per_second, predicted, read_rows
from record import write_result

from bigtrain.base import BigtrainError
from bigtrain.estimate import FITTED, Constants

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "published"
FIT_WITHOUT = ("", "recompute")
"""Inputs that a row may lack and still be fitted to: recipes that say nothing of recomputation mostly have none."""


def main() -> int:
    """Print the tables; return the exit status."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--throughput", type=Path, default=PUBLISHED / "throughput.csv")
    asked.add_argument("--memory", type=Path, default=PUBLISHED / "memory.csv")
    asked.add_argument("--collectives", type=Path, default=PUBLISHED / "collectives.csv", help="for --fit")
    asked.add_argument("--json", type=Path, help="write everything, with each row, to this file")
    asked.add_argument("--fit", action="store_true", help="fit the constants to all sources")
    asked.add_argument("--leave-one-out", action="store_true", help="fit them without each source, and forecast it")
    asked.add_argument("--record", action="store_true", help="keep the result in benchmarks/results/planner.json")
    given = asked.parse_args()
    try:
        throughput, memory = _rows(given.throughput), _rows(given.memory)
        collectives = _rows(given.collectives) if given.fit else []
    except BigtrainError as error:
        print(error, file=sys.stderr)
        return error.status
    found = certificate(throughput, memory, FITTED)
    _print(found)
    if given.fit:
        found["fitted"] = _fit(throughput, memory, collectives)
    if given.leave_one_out:
        found["left_out"] = _leave_one_out(throughput, memory)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.record:
        print(write_result("planner", {key: value for key, value in found.items() if key != "rows"}))
    return 0


def _rows(file: Path) -> list[Row]:
    try:
        return read_rows(file)
    except OSError as error:
        raise BigtrainError(
            "the published measurements cannot be read",
            found=error,
            wanted="a CSV file in the columns of shared/published",
            fix="give --throughput and --memory",
        ) from error


def certificate(throughput: Sequence[Row], memory: Sequence[Row], constants: Constants) -> dict[str, Any]:
    """Forecast every row, and compare.

    Args:
        throughput: rows of throughput.csv.
        memory: rows of memory.csv.
        constants: of the planner.

    Returns:
        `tokens_per_second`, `memory` and `out_of_memory`, each with its sources, and `rows`.
    """
    rows: list[dict[str, Any]] = []
    measured, missing = measured_cases(throughput)
    speeds = []
    for each in measured:
        speed = predicted(each.case, constants)
        speeds.append((each.case.source, each.case.complete, speed, each.tokens_per_second))
        rows.append(_row("tokens_per_second", each.case.row, each.case.complete, speed, each.tokens_per_second))
    cases, memory_missing = memory_cases(memory)
    sizes = []
    for case in cases:
        size = case.forecast(constants)
        sizes.append((case.source, case.complete, size, case.measured_gib))
        rows.append(_row("memory_gib", case.row, case.complete, size, case.measured_gib) | {"kind": case.kind})
    marks, marks_missing = capacity_cases(throughput, memory)
    fits = [(mark.complete, mark.source, mark.fits, mark.forecast_fits(constants)) for mark in marks]
    rows += [{"what": "fits", "row_id": mark.row["row_id"], "source": mark.source, "predicted": forecast,
              "measured": mark.fits} for mark, (*_, forecast) in zip(marks, fits, strict=True)]  # fmt: skip
    return {
        "tokens_per_second": _compared(speeds) | {"not_predicted": missing},
        "memory": _compared(sizes) | {"not_predicted": memory_missing},
        "out_of_memory": _marks(fits) | {"not_predicted": marks_missing},
        "constants": asdict(constants),
        "rows": rows,
    }


def measured_cases(rows: Iterable[Row]) -> tuple[list[Measured], dict[str, int]]:
    """The rows that can be predicted, and how many cannot, by reason."""
    found, missing = [], Counter[str]()
    for row in rows:
        try:
            case = case_of(row)
            found.append(Measured(case, measured_tokens_per_second(case)))
        except Unpredicted as reason:
            missing[str(reason)] += 1
    return found, dict(missing.most_common())


def _row(what: str, row: Row, complete: bool, forecast: float, measured: float) -> dict[str, Any]:
    return {
        "what": what,
        "row_id": row.get("row_id", ""),
        "source": row.get("source_id", ""),
        "complete": complete,
        "predicted": forecast,
        "measured": measured,
    }


def _compared(pairs: Iterable[tuple[str, bool, float, float]]) -> dict[str, Any]:
    by_source: dict[tuple[bool, str], list[float]] = defaultdict(list)
    for source, complete, forecast, measured in pairs:
        by_source[complete, source].append(forecast / measured)
    tables = {
        name: {source: _errors(ratios) for (of, source), ratios in sorted(by_source.items()) if of is complete}
        for name, complete in (("complete", True), ("other", False))
    }
    return {name: _over_sources(sources) | {"sources": sources} for name, sources in tables.items()}


def _errors(ratios: Sequence[float]) -> dict[str, Any]:
    errors = sorted(abs(ratio - 1) for ratio in ratios)
    return {
        "rows": len(ratios),
        "median_error": quantile(errors, 0.5),
        "error_of_90_percent": quantile(errors, 0.9),
        "median_ratio": statistics.median(ratios),
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile of sorted values, between neighbours in proportion."""
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def _over_sources(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if not sources:
        return {"rows": 0}
    return {
        "rows": sum(source["rows"] for source in sources.values()),
        "median_error": statistics.mean(source["median_error"] for source in sources.values()),
        "error_of_90_percent": statistics.mean(source["error_of_90_percent"] for source in sources.values()),
        "median_source": statistics.median(source["median_error"] for source in sources.values()),
    }


def _marks(marks: Sequence[tuple[bool, str, bool, bool]]) -> dict[str, Any]:
    def right(of: Sequence[tuple[bool, str, bool, bool]]) -> dict[str, Any]:
        failed, ran = [m for m in of if not m[2]], [m for m in of if m[2]]
        return {
            "did_not_fit": len(failed),
            "did_not_fit_right": sum(not forecast for *_, forecast in failed),
            "fitted": len(ran),
            "fitted_right": sum(forecast for *_, forecast in ran),
            "right": sum(fits == forecast for *_, fits, forecast in of) / len(of) if of else None,
        }

    tables = {}
    for name, complete in (("complete", True), ("other", False)):
        some = [mark for mark in marks if mark[0] is complete]
        sources = sorted({mark[1] for mark in some})
        tables[name] = right(some) | {"sources": {of: right([m for m in some if m[1] == of]) for of in sources}}
    return tables


def _print(found: Mapping[str, Any]) -> None:
    for what in ("tokens_per_second", "memory"):
        for name in ("complete", "other"):
            _table(f"{what}, {name} rows", found[what][name])
        _missing(found[what]["not_predicted"])
    marks = found["out_of_memory"]
    for name in ("complete", "other"):
        print(f"\nout of memory, {name} rows: rows that did not fit, and rows of the same sources that ran")
        for source, each in [*marks[name]["sources"].items(), ("all", marks[name])]:
            share = "-" if each["right"] is None else f"{each['right']:.1%}"
            print(f"  {source:16} did not fit {each['did_not_fit_right']} of {each['did_not_fit']} right, "
                  f"fitted {each['fitted_right']} of {each['fitted']} right: {share}")  # fmt: skip
    _missing(marks["not_predicted"])


def _table(title: str, table: Mapping[str, Any]) -> None:
    print(f"\n{title}\n  {'source':16} {'rows':>5} {'median':>8} {'90%':>8} {'ratio':>7}")
    for source, each in table["sources"].items():
        print(f"  {source:16} {each['rows']:5} {each['median_error']:8.1%} {each['error_of_90_percent']:8.1%} "
              f"{each['median_ratio']:7.2f}")  # fmt: skip
    if table["rows"]:
        print(f"  {'mean of sources':16} {table['rows']:5} {table['median_error']:8.1%} "
              f"{table['error_of_90_percent']:8.1%}   (median source {table['median_source']:.1%})")  # fmt: skip


def _missing(reasons: Mapping[str, int]) -> None:
    if reasons:
        print("  not predicted: " + ", ".join(f"{count} x {reason}" for reason, count in reasons.items()))


def _usable(
    throughput: Sequence[Row], memory: Sequence[Row]
) -> tuple[list[Measured], list[MemoryCase], list[CapacityMark]]:
    """The rows that constants are fitted to."""
    rows = [row for row in throughput if row.get("scope") == "core" and row.get("missing_inputs") in FIT_WITHOUT]
    sizes, _ = memory_cases(row for row in memory if row.get("scope") in ("core", "oom"))
    marks, _ = capacity_cases(throughput, memory)
    return measured_cases(rows)[0], sizes, [mark for mark in marks if mark.complete]


def _fit(throughput: Sequence[Row], memory: Sequence[Row], collectives: Sequence[Row]) -> dict[str, float]:
    """Fit all constants to all sources."""
    from planner_fit import PRIOR, fit_memory, fit_network, fit_time  # needs SciPy, which a forecast does not

    measured, sizes, marks = _usable(throughput, memory)
    fitted = asdict(fit_memory(sizes, marks, fit_time(measured, fit_network(collectives, PRIOR))))
    print("\nfitted on all sources:")
    for name, value in fitted.items():
        if value != getattr(FITTED, name):
            print(f"  {name} = {value:.4g}  (is {getattr(FITTED, name):.4g})")
    return fitted


def _leave_one_out(throughput: Sequence[Row], memory: Sequence[Row]) -> dict[str, Any]:
    """Forecast each source with constants that were fitted to all others. Those of the network stay: sweeps of
    collectives decide them."""
    from planner_fit import PRIOR, fit_memory, fit_time, of_network, thinned

    prior = of_network(FITTED, PRIOR)
    measured, sizes, marks = _usable(throughput, memory)
    speeds: list[tuple[str, bool, float, float]] = []
    pairs: list[tuple[str, bool, float, float]] = []
    fits: list[tuple[bool, str, bool, bool]] = []
    sources = (
        {each.case.source for each in measured} | {case.source for case in sizes} | {mark.source for mark in marks}
    )
    for source in sorted(sources):
        others = thinned([each for each in measured if each.case.source != source])
        constants = fit_memory(
            [case for case in sizes if case.source != source],
            [mark for mark in marks if mark.source != source],
            fit_time(others, prior, near=FITTED),
        )
        for each in (each for each in measured if each.case.source == source):
            speeds.append((source, each.case.complete, predicted(each.case, constants), each.tokens_per_second))
        for case in (case for case in sizes if case.source == source):
            pairs.append((source, case.complete, case.forecast(constants), case.measured_gib))
        fits += [(m.complete, source, m.fits, m.forecast_fits(constants)) for m in marks if m.source == source]
    found = {"tokens_per_second": _compared(speeds), "memory": _compared(pairs), "out_of_memory": _marks(fits)}
    print("\n== each source forecast with constants that were fitted without it ==")
    _print({key: value | {"not_predicted": {}} for key, value in found.items()})
    return found


if __name__ == "__main__":
    sys.exit(main())

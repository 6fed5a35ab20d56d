"""bigtrain doctor."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigtrain.cli.printing import JsonOption, OverridesArgument, echo, print_json

if TYPE_CHECKING:
    from bigtrain.doctor import DoctorReport

INDENT = " " * 25
WIDTH = 120


def doctor(
    config: Annotated[Path | None, typer.Argument(help="A YAML configuration. Without: the machine alone.")] = None,
    overrides: OverridesArgument = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="CHECK", help="Leave a check out; may be repeated.")] = None,
    patience: Annotated[
        float | None,
        typer.Option(
            min=1, help="Seconds until a rank that has not come is missing. Default: 60, and more with many hosts."
        ),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Only what one process finds in two seconds, without PyTorch.")
    ] = False,
    ranks: Annotated[int | None, typer.Option(min=1, help="With --fast: the number of ranks that will start.")] = None,
    datasheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what the devices were measured at, for `bigtrain plan --datasheet`."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only what is not ok.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check everything a run needs before it starts, alone or on all ranks under torchrun; 0 when nothing failed."""
    from bigtrain.doctor import doctor, fast_doctor

    if fast:
        report = fast_doctor(config, overrides or [], skip=skip or [], ranks=ranks)
    else:
        report = doctor(config, overrides or [], skip=skip or [], patience=patience, datasheet=datasheet)
    if report.leads:
        if as_json:
            print_json(report.as_dict())
        elif not quiet or any(finding.status != "ok" for finding in report.findings):
            echo("\n".join(lines(report, quiet)))
    raise typer.Exit(0 if report.ok else 1)


def lines(report: DoctorReport, quiet: bool = False) -> Iterator[str]:
    """The report for people: a line a finding, and below those that are not ok what was wanted and what to do.

    Args:
        report: the report.
        quiet: whether to leave out what is ok.
    """
    width = max(80, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
    yield f"bigtrain doctor: {report.world_size} rank(s) on {len(report.hosts)} host(s), {report.seconds:.0f} s"
    for finding in report.findings:
        if quiet and finding.status == "ok":
            continue
        yield from _wrapped(f"  {finding.status:<8} {finding.check:<13} ", finding.found, width)
        if finding.status != "ok":
            for label, text in (("wanted", finding.wanted), ("fix", finding.fix)):
                if text is not None:
                    yield from _wrapped(f"{INDENT}{label + ':':8}", text, width)
    counts = {status: sum(f.status == status for f in report.findings) for status in ("ok", "warning", "failed")}
    yield f"  {counts['ok']} ok, {counts['warning']} warning(s), {counts['failed']} failed"


def _wrapped(label: str, text: str, width: int) -> list[str]:
    indent = " " * max(len(label), len(INDENT))
    return [
        part
        for number, line in enumerate(text.splitlines() or [""])
        for part in textwrap.wrap(
            line,
            width,
            initial_indent=indent if number else label,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]

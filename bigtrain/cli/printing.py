"""Printing results: a table for people, one JSON document for programs.

Every command prints through this module, since what it prints may be a stranger's: see `bigtrain.base.show_controls`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bigtrain.base import show_controls, to_json

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.steps=20.")
]


def print_json(result: Any) -> None:
    """One JSON document on stdout; dataclasses are objects, see `bigtrain.base.to_json`."""
    print(json.dumps(to_json(result), indent=2, default=str))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # rich would take [brackets] in a plain str for markup

    table = Table(title=Text(show_controls(title)), title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(Text(show_controls(column)), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*[Text(show_controls(str(cell))) for cell in row])
    Console().print(table)


def say(line: str) -> None:
    """A line of progress on stderr, so that stdout holds results only."""
    print(show_controls(line), file=sys.stderr, flush=True)


def echo(text: object = "", *, nl: bool = True) -> None:
    """Text on stdout, with its control characters shown. `nl`: with a line break at its end."""
    typer.echo(show_controls(str(text)), nl=nl)

"""Printing results: a table for people, one JSON document for programs.

Every command prints through this module, since what it prints may be a stranger's: see `bigtrain.base.show_controls`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from bigtrain.base import show_controls, to_json

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


class TakesOverrides(TyperCommand):
    """A command to which `--train.steps=20`, as the agents of sweeps write it, means the same as `train.steps=20`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put overrides that look like options after all other arguments, without their dashes."""
        options = {name: each for each in self.params for name in (*each.opts, *each.secondary_opts)}
        others: list[str] = []
        overrides: list[str] = []
        value_follows = False
        for position, arg in enumerate(args):
            if arg == "--" and not value_follows:
                others += args[position:]
                break
            override = not value_follows and re.fullmatch(r"--((?:run_dir|\w+(?:\.\w+)+)=.*)", arg, re.DOTALL)
            value_follows = not value_follows and arg in options and not getattr(options[arg], "is_flag", True)
            if override:
                overrides.append(override.group(1))
            else:
                others.append(arg)
        if overrides and "--" not in others:
            others.append("--")
        return super().parse_args(ctx, [*others, *overrides])


OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.steps=20."),
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


def say_json(record: Any) -> None:
    """A record of progress as a line of JSON on stderr."""
    print(json.dumps(to_json(record), default=str), file=sys.stderr, flush=True)


def echo(text: object = "", *, nl: bool = True) -> None:
    """Text on stdout, with its control characters shown. `nl`: with a line break at its end."""
    typer.echo(show_controls(str(text)), nl=nl)

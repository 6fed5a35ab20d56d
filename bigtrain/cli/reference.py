"""The generated pages of docs/reference/: python -m bigtrain.cli.reference writes them all.

A page is made from what the program itself reads: the tree of commands, the tree of settings, the exit statuses. So a
page cannot say what the program does not do, and a test fails where a page is old.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from bigtrain import statuses
from bigtrain.cli.main import app
from bigtrain.config.reference import reference as settings_page

PAGES_DIRECTORY = Path("docs/reference")
"""Relative to the repository's root."""

_COMMANDS_HEAD = """\
# Commands

<!-- Made by `python -m bigtrain.cli.reference` from the commands themselves. -->

`bigtrain COMMAND --help` prints the same in a terminal. `RUN` is a run directory, `CONFIG` a YAML file.
`KEY=VALUE` sets one [setting](config.md) after the file is read. With `--json` a command prints one JSON document on
stdout and nothing else there. An [exit status](exit-status.md) says how a command ended.
"""

_STATUSES_HEAD = """\
# Exit statuses

<!-- Made by `python -m bigtrain.cli.reference` from the module of the exit statuses. -->

The exit status of a process says whether another start would help. `python -m bigtrain.cli.torchrun` and the scripts in
`launch/` end with the status of the worker that failed or stopped first. Stock torchrun ends with 1 in all these cases.

| status | name | meaning | launcher with `--max-restarts N` | Slurm and Kubernetes jobs |
| --- | --- | --- | --- | --- |
"""


def commands_page() -> str:
    """Every command with its arguments and options, in Markdown."""
    parts = [_COMMANDS_HEAD]
    for path, command in commands():
        parts.append(f"## `{path}`\n\n{inspect.cleandoc(command.help or '')}\n")
        hints = get_type_hints(command.callback)
        rows = [_row(parameter, hints) for parameter in command.params if not getattr(parameter, "hidden", False)]
        head = ["| argument or option | takes | default | meaning |", "| --- | --- | --- | --- |"]
        parts.append("\n".join([*head, *rows]) + "\n")
    return "\n".join(parts)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that `--help` shows, as `bigtrain data where` and typer's object, in the order of the help."""

    def below(command: Any, path: str) -> Iterator[tuple[str, Any]]:
        if command.hidden:
            return
        if not hasattr(command, "commands"):
            yield path, command
            return
        for name, inner in command.commands.items():
            yield from below(inner, f"{path} {name}")

    yield from below(typer.main.get_command(app), "bigtrain")


def exit_status_page() -> str:
    """Every exit status of ours, and those of signals, in Markdown."""
    meanings = docstrings(statuses)
    values = {name: value for name, value in vars(statuses).items() if name.isupper() and isinstance(value, int)}
    rows = []
    for name, value in values.items():
        jobs = {statuses.DONE: "done", statuses.STOPPED: "back into the queue, a new pod"}.get(value)
        final = value in statuses.FINAL
        rows.append(
            _cells(
                str(value),
                f"`{name}`",
                meanings.get(name, "Done."),
                "ends with this status" if final else "starts all ranks again",
                jobs or ("end; the user has to act" if final else "start again while the run gets further"),
            )
        )
    rows.append(
        _cells(
            "128 + n",
            "",
            "Signal n killed the process.",
            "starts all ranks again",
            "start again while the run gets further",
        )
    )
    return _STATUSES_HEAD + "\n".join(rows) + "\n"


def docstrings(module: types.ModuleType) -> Mapping[str, str]:
    """The text under each of a module's constants, on one line."""
    body = ast.parse(inspect.getsource(module)).body
    found = {}
    for statement, below in pairwise(body):
        if (
            isinstance(statement, ast.Assign)
            and isinstance(target := statement.targets[0], ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[target.id] = " ".join(below.value.value.split())
    return found


def _row(parameter: Any, hints: Mapping[str, Any]) -> str:
    if parameter.param_type_name == "option":
        name = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
    else:
        name = f"`{(parameter.metavar or parameter.name.upper()).strip('[].')}`" + (
            " ..." if parameter.nargs < 0 else ""
        )
    hint = hints[parameter.name]
    takes = "" if hint is bool else _type_text(hint)
    default = parameter.default
    if parameter.required:
        shown = "(required)"
    elif default in (None, False, (), []) or callable(default):
        shown = ""
    else:
        shown = f"`{default.value if isinstance(default, Enum) else default}`"
    return _cells(name, takes, shown, " ".join((parameter.help or "").split()))


def _type_text(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return ", ".join(_type_text(inner) for inner in get_args(hint) if inner is not type(None))
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) in (list, tuple):
        return _type_text(get_args(hint)[0])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(f"`{member.value}`" for member in hint)
    return {int: "a whole number", float: "a number", str: "text", Path: "a path"}[hint]


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "config.md": settings_page,
    "exit-status.md": exit_status_page,
}
"""Each generated page of `PAGES_DIRECTORY`, and what makes it."""


if __name__ == "__main__":
    for page, text in PAGES.items():
        (PAGES_DIRECTORY / page).write_text(text(), encoding="utf-8")

"""The generated pages of docs/reference/: python -m bigtrain.cli.reference writes them all.

A page is made from what the program itself uses: the tree of commands, the tree of settings, the exit statuses, the
types of events and metrics. So a page cannot say what the program does not do, and a test fails where a page is old.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from bigtrain.base import exit_status as statuses
from bigtrain.cli.json_schemas import RESULTS, docstrings, json_schema
from bigtrain.cli.main import app
from bigtrain.config import reference as settings_page
from bigtrain.rundir import EVENTS, StepMetrics

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

_EVENTS_HEAD = """\
# Events

<!-- Made by `python -m bigtrain.cli.reference` from the types in bigtrain/rundir/events.py. -->

`RUN/events.jsonl` holds one JSON object a line, in the order in which things happened. Rank 0 writes it; only `hang`
may come from another rank. A line that a crash tore is skipped by all readers. Times are in seconds.

Every event has these fields beside its own:

| field | type | meaning |
| --- | --- | --- |
| `event` | text | The name: a heading below. |
| `step` | whole number | Steps that the run has done; 0 before the first. |
| `start` | whole number | The number of this start of the run; `hang` lacks it. |
| `time` | number | Seconds since 1970, by the clock of the machine, which may be set. |
| `uptime` | number | Age in seconds of the process that wrote the line. |
"""

_METRICS_HEAD = """\
# Metrics

<!-- Made by `python -m bigtrain.cli.reference` from the type in bigtrain/rundir/metrics.py. -->

`RUN/metrics.jsonl` holds one JSON object for each step that was done. Where a step was done again after a crash or a
rewind, the last line of that step counts. W&B gets the same fields, and `validation_loss/SOURCE` after an evaluation.
A line has also `start`, `time` and `uptime`, as an [event](events.md) has.
[Speed and memory](../guides/speed.md) says how to read the times and both MFUs.

| field | type | meaning |
| --- | --- | --- |
"""


def events_page() -> str:
    """Every event with its fields, in Markdown."""
    parts = [_EVENTS_HEAD]
    for event, cls in EVENTS.items():
        parts.append(f"## `{event}`\n\n{inspect.getdoc(cls)}\n")
        rows = ["| field | type | meaning |", "| --- | --- | --- |", *_field_rows(cls)]
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def metrics_page() -> str:
    """Every field of a line of metrics.jsonl, in Markdown."""
    return _METRICS_HEAD + "\n".join(_field_rows(StepMetrics)) + "\n"


def _field_rows(cls: type) -> Iterator[str]:
    """A row for each field of a dataclass of JSON values."""
    meanings = {name: text for base in cls.__mro__ if base is not object for name, text in docstrings(base).items()}
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        optional = "" if field.default is dataclasses.MISSING else " Not always there."
        name = f"`{field.name.removesuffix('_')}`"
        yield _cells(name, _json_type(hints[field.name]), meanings[field.name] + optional)


def _json_type(hint: Any) -> str:
    """The JSON type of a field, in words."""
    if hint is Any:
        return "any"
    if get_origin(hint) in (Union, types.UnionType):
        return _json_type(next(inner for inner in get_args(hint) if inner is not type(None)))
    kind = get_origin(hint) or hint
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "object"
    if isinstance(kind, type) and issubclass(kind, Sequence) and kind is not str:
        return f"list of {_plural(_json_type(get_args(hint)[0]))}"
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}[kind]


def _plural(kind: str) -> str:
    return kind if kind == "text" else f"{kind}s"


def commands_page() -> str:
    """Every command with its arguments and options, in Markdown."""
    parts = [_COMMANDS_HEAD]
    for path, command in commands():
        parts.append(f"## `{path}`\n\n{inspect.cleandoc(command.help or '')}\n")
        hints = get_type_hints(command.callback)
        rows = [_row(parameter, hints) for parameter in command.params if not getattr(parameter, "hidden", False)]
        head = ["| argument or option | takes | default | meaning |", "| --- | --- | --- | --- |"]
        parts.append("\n".join([*head, *rows]) + "\n")
        if (name := path.removeprefix("bigtrain ")) in RESULTS:
            parts.append(f"With `--json` it prints what [this JSON schema]({_schema_file(name)}) describes.\n")
    return "\n".join(parts)


def schema_page(command: str) -> str:
    """The JSON schema of what a command prints."""
    return json.dumps(json_schema(command), indent=2) + "\n"


def _schema_file(command: str) -> str:
    return f"json/{command.replace(' ', '-')}.schema.json"


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
    "events.md": events_page,
    "exit-status.md": exit_status_page,
    "metrics.md": metrics_page,
    **{_schema_file(command): partial(schema_page, command) for command in RESULTS},
}
"""Each generated page of `PAGES_DIRECTORY`, and what makes it."""


if __name__ == "__main__":
    for page, text in PAGES.items():
        (PAGES_DIRECTORY / page).parent.mkdir(exist_ok=True)
        (PAGES_DIRECTORY / page).write_text(text(), encoding="utf-8")

"""bigtrain config show|explain|diff|schema."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigtrain.cli.printing import JsonOption, OverridesArgument, TakesOverrides, echo, print_json, print_table
from bigtrain.cli.results import KeyDifference

if TYPE_CHECKING:
    from bigtrain.config import Settings

app = typer.Typer(help="Show, explain and compare settings.", no_args_is_help=True)


@app.command(cls=TakesOverrides)
def show(
    config: Annotated[Path, typer.Argument(help="A YAML configuration, or a run directory.")],
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Print the effective settings with defaults and overrides; of a run, with the batches that it decided to skip."""
    from bigtrain.config import dump_settings

    settings = _settings_at(config, overrides or [])
    if as_json:
        print_json(settings.model_dump(mode="json"))
    else:
        echo(dump_settings(settings), nl=False)


@app.command()
def explain(
    key: Annotated[str, typer.Argument(help="A key such as engine.zero_stage, or a section.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Explain a key: its meaning, its type, its default and the values that it may have."""
    from bigtrain.config import explain

    explanation = explain(key)
    if as_json:
        print_json(explanation.as_dict())
    else:
        echo(str(explanation))


@app.command()
def diff(
    left: Annotated[Path, typer.Argument(help="A configuration or a run directory.")],
    right: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: JsonOption = False,
) -> None:
    """List the settings in which two configurations or runs differ."""
    from bigtrain.config import diff, to_yaml_line

    differences = diff(_settings_at(left), _settings_at(right))
    if as_json:
        print_json([KeyDifference(*difference) for difference in differences])
    elif differences:
        rows = [(d.key, to_yaml_line(d.left), to_yaml_line(d.right)) for d in differences]
        print_table("Settings that differ", ("key", str(left), str(right)), rows)
    else:
        echo("the same settings")


def _settings_at(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """The settings of a configuration or of a run."""
    from bigtrain.config import load_settings

    if not path.is_dir():
        return load_settings(path, overrides)
    from bigtrain.rundir import RunDirectory, read_decisions, with_decisions

    directory = RunDirectory.of_existing_run(path)
    return with_decisions(load_settings(directory.config, overrides), read_decisions(directory.decisions))


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration, for editors."""
    from bigtrain.config import schema

    print_json(schema())

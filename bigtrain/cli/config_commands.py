"""bigtrain config show|explain|diff|schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bigtrain.cli.printing import JsonOption, OverridesArgument, print_json, print_table

app = typer.Typer(help="Effective settings, one key's meaning, the difference of two runs.", no_args_is_help=True)


@app.command()
def show(
    config: Annotated[Path, typer.Argument(help="A YAML configuration.")],
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Print the effective settings, defaults and overrides included."""
    from bigtrain.config import dump_settings, load_settings

    settings = load_settings(config, overrides or [])
    if as_json:
        print_json(settings.model_dump(mode="json"))
    else:
        typer.echo(dump_settings(settings), nl=False)


@app.command()
def explain(
    key: Annotated[str, typer.Argument(help="A key such as engine.zero_stage, or a section.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Say what a key means, its type, its default and what it may be."""
    from bigtrain.config import explain

    explanation = explain(key)
    if as_json:
        print_json(explanation.as_dict())
    else:
        typer.echo(str(explanation))


@app.command()
def diff(
    left: Annotated[Path, typer.Argument(help="A configuration or a run directory.")],
    right: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: JsonOption = False,
) -> None:
    """List the settings in which two configurations or runs differ."""
    from bigtrain.config import diff, load_settings
    from bigtrain.config.yaml12 import to_yaml_line

    def settings_at(path: Path) -> Path:
        return path / "config.yaml" if path.is_dir() else path

    differences = diff(load_settings(settings_at(left)), load_settings(settings_at(right)))
    if as_json:
        print_json([{"key": d.key, "left": d.left, "right": d.right} for d in differences])
    elif differences:
        rows = [(d.key, to_yaml_line(d.left), to_yaml_line(d.right)) for d in differences]
        print_table("Settings that differ", ("key", str(left), str(right)), rows)
    else:
        typer.echo("the same settings")


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration, for editors."""
    from bigtrain.config import schema

    print_json(schema())

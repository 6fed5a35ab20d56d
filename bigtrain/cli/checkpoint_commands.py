"""bigtrain checkpoint list|verify."""

from __future__ import annotations

from typing import Annotated

import typer

from bigtrain.cli.printing import JsonOption, RunArgument, print_json, print_table

app = typer.Typer(help="What is committed, and whether every byte is right.", no_args_is_help=True)


@app.command("list")
def list_(run: RunArgument, as_json: JsonOption = False) -> None:
    """List the committed checkpoints of a run."""
    from bigtrain.run.trained import describe_checkpoints

    rows = describe_checkpoints(run)
    if as_json:
        print_json(rows)
    elif rows:
        print_table(f"Checkpoints of {run}", list(rows[0]), [list(row.values()) for row in rows])
    else:
        typer.echo(f"{run} has no committed checkpoint")


@app.command()
def verify(
    run: RunArgument,
    step: Annotated[int | None, typer.Option(help="Only the checkpoint of this step.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Hash every file of every checkpoint. Status 1 when anything is wrong."""
    from bigtrain.run.trained import verify_checkpoints

    results = verify_checkpoints(run, step)
    if as_json:
        print_json([{"checkpoint": name, "problems": problems} for name, problems in results.items()])
    else:
        for name, problems in results.items():
            typer.echo(f"{name}: " + ("every byte is right" if not problems else "; ".join(problems)))
    if any(results.values()):
        raise typer.Exit(1)

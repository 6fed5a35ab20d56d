"""bigtrain checkpoint list|verify|diff|prune."""

from __future__ import annotations

from typing import Annotated

import typer

from bigtrain.base import to_json
from bigtrain.cli.printing import JsonOption, RunArgument, echo, print_json, print_table

app = typer.Typer(help="List, verify, compare and remove committed checkpoints.", no_args_is_help=True)


@app.command("list")
def list_(run: RunArgument, as_json: JsonOption = False) -> None:
    """List the committed checkpoints of a run."""
    from bigtrain.trained import describe_checkpoints

    rows = describe_checkpoints(run)
    if as_json:
        print_json(rows)
    elif rows:
        records = [to_json(row) for row in rows]
        print_table(f"Checkpoints of {run}", list(records[0]), [list(record.values()) for record in records])
    else:
        echo(f"{run} has no committed checkpoint")


@app.command()
def verify(
    run: RunArgument,
    step: Annotated[int | None, typer.Option(help="Only the checkpoint of this step.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Hash every file of every checkpoint. Status 1 when anything is wrong."""
    from bigtrain.trained import verify_checkpoints

    results = verify_checkpoints(run, step)
    if as_json:
        print_json(results)
    else:
        for result in results:
            problems = "; ".join(result.problems) or "every byte is right"
            echo(f"{result.checkpoint}: {problems}")
    if any(result.problems for result in results):
        raise typer.Exit(1)


@app.command()
def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="A run directory, or a checkpoint's folder or URL.")],
    other: Annotated[
        str, typer.Argument(metavar="B", help="The same. A run stands for its newest verified checkpoint.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Compare two checkpoints: cursor, settings that change the result, versions, and every tensor to the last bit."""
    from bigtrain.trained import diff_checkpoints, say_diff

    difference = diff_checkpoints(one, other)
    if as_json:
        print_json(difference)
    else:
        echo("\n".join(say_diff(difference)))


@app.command()
def prune(
    run: RunArgument,
    keep: Annotated[
        int | None, typer.Option(min=1, help="How many of the newest to keep. Default: checkpoint.keep of the run.")
    ] = None,
    keep_every: Annotated[
        int | None,
        typer.Option(
            min=1, help="Also keep those whose step is a multiple of it. Default: checkpoint.keep_every_steps."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove old checkpoints; the newest verified one always stays."""
    from bigtrain.rundir import RunDirectory
    from bigtrain.train import refuse_checkpoints_of_others
    from bigtrain.trained import prune_checkpoints

    refuse_checkpoints_of_others(RunDirectory.of_existing_run(run))
    pruned = prune_checkpoints(run, keep, keep_every, dry_run=dry_run)
    if as_json:
        print_json(pruned)
        return
    for path in pruned.removed:
        echo(f"{'would remove' if dry_run else 'removed'} {path}")
    if not pruned.removed:
        echo("nothing to remove")

"""bigtrain data build|verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bigtrain.cli.printing import JsonOption, OverridesArgument, print_json, print_table, say

app = typer.Typer(help="Build and check the tokenizer and the token shards.", no_args_is_help=True)


@app.command()
def build(
    config: Annotated[Path, typer.Argument(help="A YAML configuration.")],
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Make tokenizer and shards of every source; what is there is kept, what a kill left half done is redone."""
    from bigtrain.config import load_settings
    from bigtrain.data import build, open_datasets

    settings = load_settings(config, overrides or [])
    build(settings.data, vocab_size=settings.model.vocab_size, report=say)
    columns = ("source", "split", "documents", "tokens", "shards")
    rows = [
        (dataset.name, split, dataset.manifest.documents, dataset.tokens, len(dataset.shards))
        for split in ("train", "validation")
        for dataset in open_datasets(settings.data, model_vocab_size=settings.model.vocab_size, split=split)
    ]
    if as_json:
        sources = [dict(zip(columns, row, strict=True)) for row in rows]
        print_json({"directory": str(settings.data.dir), "sources": sources})
    else:
        print_table(f"Data in {settings.data.dir}", columns, [(*row[:2], *(f"{n:,}" for n in row[2:])) for row in rows])


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help="A data directory (data.dir of a configuration).")],
    as_json: JsonOption = False,
) -> None:
    """Read every byte: checksums, counts, ids within the vocabulary. Status 1 when anything is wrong."""
    from bigtrain.data import verify

    report = verify(directory)
    if as_json:
        print_json(report.to_json())
    else:
        for problem in report.problems:
            typer.echo(problem)
        typer.echo(
            f"{directory}: {report.tokens:,} tokens of {report.documents:,} documents in {report.shards} shards; "
            + (f"{len(report.problems)} problems" if report.problems else f"all {report.blocks:,} blocks are right")
        )
    if not report.ok:
        raise typer.Exit(1)

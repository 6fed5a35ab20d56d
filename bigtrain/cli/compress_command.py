"""bigtrain compress."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bigtrain.cli.printing import JsonOption, echo, print_json


class Score(StrEnum):
    """What a weight is worth."""

    magnitude = "magnitude"
    wanda = "wanda"


class Scope(StrEnum):
    """What weights are compared with."""

    tensor = "tensor"
    model = "model"


class IntegerType(StrEnum):
    """The types of codes."""

    int8 = "int8"
    int4 = "int4"


class Rounding(StrEnum):
    """How codes are chosen."""

    nearest = "nearest"
    gptq = "gptq"


def compress(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or the OUT of an earlier compress.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The folder to write; eval, generate, export and init_from read it.")
    ],
    step: Annotated[
        int | None, typer.Option(help="The checkpoint of this step. Default: the newest verified one.")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Keep so many attention heads in each layer.")] = None,
    channels: Annotated[int | None, typer.Option(help="Keep so many feed-forward channels in each layer.")] = None,
    importance: Annotated[
        Score, typer.Option(help="What heads and channels are worth: wanda also looks at what they read.")
    ] = Score.wanda,
    prune: Annotated[
        Score | None, typer.Option(help="Zero single weights of the blocks' matrices: those of the lowest score.")
    ] = None,
    sparsity: Annotated[float | None, typer.Option(help="prune: the share of the weights to zero.")] = None,
    pattern: Annotated[str | None, typer.Option(metavar="N:M", help="prune: of M neighbours N stay, as 2:4.")] = None,
    scope: Annotated[
        Scope, typer.Option(help="prune magnitude: compare weights within a matrix, or in the whole model.")
    ] = Scope.tensor,
    quantise: Annotated[
        IntegerType | None, typer.Option(help="Store the blocks' matrices as integers of this type, with scales.")
    ] = None,
    rounding: Annotated[
        Rounding, typer.Option(help="quantise: to the nearest integer, or so that errors cancel on training rows.")
    ] = Rounding.gptq,
    group_size: Annotated[int, typer.Option(help="quantise: weights in a row that share a scale.")] = 64,
    calibration_rows: Annotated[int, typer.Option(help="wanda, gptq: rows of the run's training data.")] = 128,
    seed: Annotated[int, typer.Option(help="wanda, gptq: which rows.")] = 0,
    merge: Annotated[bool, typer.Option(help="Merge the adapter of the run into the weights first.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a trained model smaller: fewer heads and channels, fewer weights, or integers in place of floats."""
    from bigtrain.trained import Compression, compress_run

    compression = Compression(
        heads=heads,
        channels=channels,
        importance=importance.value,
        prune=None if prune is None else prune.value,
        sparsity=sparsity,
        pattern=None if pattern is None else _pattern(pattern),
        scope=scope.value,
        quantise=None if quantise is None else quantise.value,
        rounding=rounding.value,
        group_size=group_size,
        calibration_rows=calibration_rows,
        seed=seed,
    )
    result = compress_run(run, out, compression, step=step, merge=merge)
    if as_json:
        print_json(result)
        return
    echo(
        f"{out}: {result.parameters:,} parameters of step {result.step}, before {result.parameters_before:,}; "
        f"{result.sparsity:.1%} of the blocks' weights are 0"
    )
    echo(f"{result.bytes / 1e6:,.1f} MB of weights, in the precision of the training {result.bytes_before / 1e6:,.1f}")


def _pattern(text: str) -> tuple[int, int]:
    kept, colon, of = text.partition(":")
    if not (colon and kept.isdecimal() and of.isdecimal()):
        raise typer.BadParameter(f"{text!r} is not N:M, such as 2:4", param_hint="--pattern")
    return int(kept), int(of)

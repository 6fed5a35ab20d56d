"""bigtrain ladder."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigtrain.base import BigtrainError
from bigtrain.cli.printing import JsonOption, OverridesArgument, print_json, say

if TYPE_CHECKING:
    from bigtrain.trials import Budget, Executor


class TrainingPlace(StrEnum):
    """Where the runs of a ladder are trained."""

    here = "here"
    slurm = "slurm"


class CountedParameters(StrEnum):
    """Which parameters the law counts."""

    all = "all"
    non_embedding = "non-embedding"


def ladder(
    config: Annotated[Path, typer.Argument(help="A YAML configuration: the target.")],
    budget: Annotated[str, typer.Option(help="For all runs together: FLOPs, as 1e15, or a time here, as 90m or 2h.")],
    overrides: OverridesArgument = None,
    sizes: Annotated[int, typer.Option(min=3, help="The most sizes of models.")] = 5,
    tokens: Annotated[
        str | None, typer.Option(metavar="LIST", help="Tokens of the runs of each size, as 1e6,2e6,4e6.")
    ] = None,
    tokens_per_parameter: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="The same for each parameter. Default: 1/4, 1/2, 1, 2 times the target's."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each point of a sweep.")] = 2,
    sweep_sizes: Annotated[
        int,
        typer.Option(
            min=0,
            help="On how many of the smallest sizes the learning rate is swept. The first one tunes it, the others "
            "show whether it carries over; 0: the target's rate and batch are taken as they are.",
        ),
    ] = 1,
    count: Annotated[
        CountedParameters, typer.Option(help="What the law counts as parameters.")
    ] = CountedParameters.all,
    on: Annotated[
        TrainingPlace, typer.Option(help="Where to train: on this machine, or as job arrays.")
    ] = TrainingPlace.here,
    processes: Annotated[
        int | None,
        typer.Option("-n", "--processes", min=1, help="Processes of a run. Default: one a GPU, or 2 on a CPU."),
    ] = None,
    launcher: Annotated[
        str | None, typer.Option(help="What starts the ranks, as for `verify-resume`. Default: torchrun.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="slurm: GPUs of a run, on one node.")] = None,
    time: Annotated[str | None, typer.Option(help="slurm: the walltime of a run.")] = None,
    partition: Annotated[str | None, typer.Option(help="slurm: the partition.")] = None,
    account: Annotated[str | None, typer.Option(help="slurm: the account.")] = None,
    sbatch: Annotated[str, typer.Option(help="slurm: more options of sbatch, as one string.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs that would be trained next.")] = False,
    page: Annotated[Path | None, typer.Option(help="Where to write the page. Default: RUN-ladder/ladder.html.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a ladder of smaller models, tune them, fit a law of loss, and predict the loss of the target. Started again
    it goes on: with --on slurm, when the jobs have ended."""
    from bigtrain.config import load_settings

    settings = load_settings(config, overrides or [])
    from bigtrain.cli.ladder_tables import print_ladder, print_pending
    from bigtrain.estimate import LadderResult
    from bigtrain.report import write_ladder_page
    from bigtrain.submit import ArrayOptions
    from bigtrain.trials import Budget, Here, LadderOptions, Launcher, NotAtAll, OnSlurm, ladder_folder
    from bigtrain.trials import ladder as train_ladder

    if tokens is not None and tokens_per_parameter is not None:
        raise typer.BadParameter("give --tokens or --tokens-per-parameter; each says how many tokens the runs have")
    options = LadderOptions(
        budget=Budget.parse(budget),
        sizes=sizes,
        tokens=_amounts("--tokens", tokens),
        tokens_per_parameter=_amounts("--tokens-per-parameter", tokens_per_parameter),
        seeds=seeds,
        sweep_sizes=sweep_sizes,
        counted=count.value,
    )
    ranks = Launcher.of(launcher, processes or (None if launcher else gpus))
    executor: Executor = Here(ranks, say)
    if on is TrainingPlace.slurm:
        _require_flops(options.budget)
        array = ArrayOptions(ranks.processes or 1, gpus, time, partition, account, _words(sbatch))
        executor = OnSlurm(array, say)
    if dry_run:
        executor = NotAtAll()
    found = train_ladder(settings, options, executor, ranks=ranks.processes or 1, report=say)
    if isinstance(found, LadderResult):
        file = page or ladder_folder(settings) / "ladder.html"
        write_ladder_page(file, found)
        say(f"the page with the fits: {file}")
    if as_json:
        print_json(found)
    elif isinstance(found, LadderResult):
        print_ladder(found, config)
    else:
        print_pending(found)


def _amounts(option: str, text: str | None) -> list[float]:
    try:
        amounts = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        amounts = [0.0]
    if any(not 0 < amount < float("inf") for amount in amounts):
        raise typer.BadParameter(f"{text!r} is no list of numbers, such as 1e6,2e6,4e6", param_hint=option)
    return amounts


def _words(sbatch: str) -> list[str]:
    try:
        return shlex.split(sbatch)
    except ValueError as error:
        raise typer.BadParameter(f"{error}", param_hint="--sbatch") from None


def _require_flops(budget: Budget) -> None:
    if budget.flops is None:
        raise BigtrainError(
            "--budget is a time, which is measured on this machine, and --on slurm trains on others",
            found=f"--budget with {budget.written(budget.limit)}, and --on slurm",
            wanted="floating-point operations",
            fix="give --budget 1e19, for example",
        )

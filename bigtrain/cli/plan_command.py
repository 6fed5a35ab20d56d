"""bigtrain plan."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigtrain.base import BigtrainError, duration, quantity, write_asked_for
from bigtrain.cli.printing import JsonOption, OverridesArgument, echo, print_json, print_table

if TYPE_CHECKING:
    from bigtrain.estimate import PlannedRun

MEANINGS = {
    "weights": "the copy that computes; at stage 3 a part of it",
    "gradients": "what a step accumulates, in float32; from stage 2 on a part of it",
    "master_weights": "float32 weights that the optimizer updates; from stage 1 on a part of them",
    "moments": "of the optimizer; from stage 1 on a part of them",
    "activations_kept": "what the forward pass keeps for the backward pass, of all blocks",
    "activations_recomputed": "what one block has at a time in the backward pass",
    "logits_and_loss": "logits that are in memory at a time",
    "collective_buffers": "gathered weights at stage 3; buckets of gradients below it",
    "optimizer_step": "what the optimizer's step needs beyond the peak of the backward pass",
    "fragmentation": "what the allocator holds and cannot use",
    "context": "CUDA, its libraries and NCCL, which the allocator does not see",
    "matrix_products": "weights times tokens, at the rate that the shape of each product reaches",
    "attention": "queries, keys and values, at the rate of the kernel",
    "elementwise": "norms, activations and sums, at the bandwidth of the memory",
    "launch": "waiting for the host to launch kernels",
    "recomputation": "what activation checkpointing computes a second time",
    "pipeline_bubble": "waiting for the first and the last micro-batch",
    "optimizer": "reading and writing the optimizer's states",
    "overhead": "data, logging, synchronisation, and waiting for the slowest rank",
    "saving": "standing still for checkpoints",
    "exposed_gradients": "sums of gradients that no computation hides",
    "exposed_weights": "gathered weights that no computation hides",
    "exposed_tensor": "sums over ranks that share a matrix",
    "exposed_context": "exchanges between ranks that share a sequence",
    "exposed_experts": "tokens on their way to experts",
    "exposed_pipeline": "states on their way to the next stage",
}
"""Of the rows of a plan."""


def plan(
    config: Annotated[Path, typer.Argument(help="A YAML configuration.")],
    overrides: OverridesArgument = None,
    *,
    gpus: Annotated[int, typer.Option(help="How many GPUs, 1 to 65,536.")],
    gpu: Annotated[str, typer.Option(help="Their kind: h100, h200, a100-80, b200, mi300x, ...")],
    nodes: Annotated[int | None, typer.Option(help="Over how many nodes. Default: as few as hold them.")] = None,
    interconnect: Annotated[
        str | None,
        typer.Option(help="Between nodes: infiniband-400, efa, ethernet-100, or Gbit/s of one GPU. Default: usual."),
    ] = None,
    datasheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with datasheets of devices that are not known.")
    ] = None,
    price: Annotated[str | None, typer.Option(help="Of one GPU and hour, with its currency: 2.50USD.")] = None,
    tokens: Annotated[str | None, typer.Option(help="To train on: 300B, 15T. Default: those of the settings.")] = None,
    hours: Annotated[float | None, typer.Option(min=0.0, help="In place of tokens: how long to train.")] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Look for the fastest layout that the settings allow, and show five.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each row means.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with figures.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the overrides of the layout, one a line.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Forecast memory, time and cost of a run before it is queued, without a GPU and without PyTorch."""
    from bigtrain.config import load_settings
    from bigtrain.estimate import Machines, Price, Wish, amount_of
    from bigtrain.estimate import plan as make_plan

    given = overrides or []
    settings = load_settings(config, given)

    def accepts(arguments: Sequence[str]) -> bool:
        try:
            load_settings(config, [*given, *arguments])
        except BigtrainError:
            return False
        return True

    machines = Machines.of(gpu, gpus, nodes=nodes, network=interconnect, datasheets=datasheet)
    wish = Wish(
        None if tokens is None else amount_of("--tokens", tokens),
        hours,
        None if price is None else Price.of(price),
    )
    planned = make_plan(settings, machines, wish, searches=search, accepts=accepts)
    if html is not None:
        from bigtrain.report import write_plan_page

        write_plan_page(html, planned, f"{config.stem} on {gpus:,} x {planned.gpu}")
    if out is not None:
        write_asked_for(out, "".join(f"{override}\n" for override in planned.overrides))
    if as_json:
        print_json(planned)
    else:
        print_plan(planned, config, given, explain=explain)


def print_plan(planned: PlannedRun, config: Path, given: Sequence[str], *, explain: bool) -> None:
    """Print a plan for people.

    Args:
        planned: the answer.
        config: that it is of.
        given: overrides of the user.
        explain: whether to say what each row means.
    """
    room = planned.peak_gib + planned.left_gib
    fits = "fits" if planned.fits else f"does not fit: {-planned.left_gib:.1f} GiB are missing"
    echo(
        f"{config.stem}, {quantity(planned.parameters)} parameters, on {planned.gpus:,} x {planned.gpu} "
        f"({planned.nodes:,} node(s), {planned.network_gbit:.0f} Gbit/s a GPU between them)"
    )
    echo(f"memory: {planned.peak_gib:.1f} of {room:.1f} GiB, {fits}")
    echo(
        f"speed: {planned.seconds:.3g} s a step, {planned.tokens_per_second_per_gpu:,.0f} tokens/s a GPU, "
        f"MFU {planned.mfu:.1%} ({planned.mfu_causal:.1%} causal)"
    )
    cost = "" if planned.cost is None else f", {planned.cost:,.0f} {planned.currency}"
    energy = "" if planned.energy_kwh is None else f", {planned.energy_kwh:,.0f} kWh of the GPUs"
    training = "" if planned.goodput is None else f" ({planned.goodput['training']:.1%} of them train)"
    echo(
        f"run: {quantity(planned.tokens)} tokens in {duration(planned.hours * 3600)} by the clock{training}, "
        f"{quantity(planned.gpu_hours)} GPU-hours{cost}{energy}\n"
    )
    if planned.stages:
        _print_stages(planned)
    _print_parts("Memory of the rank that needs most", "GiB", planned.memory, 2**30, explain)
    _print_parts(f"A step of {planned.seconds:.3g} s", "seconds", planned.step_seconds, 1.0, explain)
    if planned.best:
        _print_layouts(planned)
    if not planned.fits:
        way_out = " ".join(planned.remedies) or "more GPUs, or GPUs with more memory"
        echo(f"what would fit, cheapest first: {way_out}")
    elif planned.overrides:
        echo(shlex.join(["bigtrain", "train", str(config), *given, *planned.overrides]))


def _print_parts(title: str, unit: str, parts: dict[str, float], scale: float, explain: bool) -> None:
    total = sum(parts.values())
    rows = [
        [part.replace("_", " "), f"{size / scale:.3g}", f"{size / total:.1%}", *([MEANINGS[part]] if explain else [])]
        for part, size in parts.items()
        if size > 0
    ]
    print_table(title, ["what", unit, "share", *(["meaning"] if explain else [])], rows)


def _print_stages(planned: PlannedRun) -> None:
    print_table(
        "Stages: the figures below are those of the first, hours and cost those of all",
        ["from step", "tokens in a sample", "micro-batch", "GiB", "fits", "s a step", "tokens", "hours"],
        [
            [
                f"{stage.first_step:,}",
                f"{stage.sequence_length:,}",
                str(stage.micro_batch_size),
                f"{stage.peak_gib:.1f}",
                "yes" if stage.fits else "no",
                f"{stage.seconds:.3g}",
                quantity(stage.tokens),
                duration(stage.hours * 3600),
            ]
            for stage in planned.stages
        ],
    )


def _print_layouts(planned: PlannedRun) -> None:
    print_table(
        f"The fastest layouts: {planned.tried} tried, {planned.fitting} fit",
        ["layout", "GiB", "s a step", "tokens/s a GPU", "MFU", "hours", "waits longest for"],
        [
            [
                each.name,
                f"{each.peak_gib:.1f}",
                f"{each.seconds:.3g}",
                f"{each.tokens_per_second_per_gpu:,.0f}",
                f"{each.mfu:.1%}",
                duration(each.hours * 3600),
                each.limit,
            ]
            for each in planned.best
        ],
    )

"""A profile as tables: time, operators, memory."""

from __future__ import annotations

from bigtrain.base import gibibytes, quantity
from bigtrain.cli.printing import echo, print_table
from bigtrain.trials import Profile

OPERATORS_SHOWN = 15


def print_profile(found: Profile) -> None:
    """Print the three tables and the paths of the files."""
    ms = 1000
    kind = "the datasheet's" if found.peak["source"] == "datasheet" else "the measured matmul peak"
    echo(
        f"{found.run}, {found.world_size} process(es): {found.step_seconds * ms:.1f} ms a step, "
        f"{quantity(found.tokens_per_second)} tokens/s, MFU {found.mfu:.1%} ({found.mfu_causal:.1%} causal) of {kind} "
        f"{found.peak['flops'] / 1e12:.4g} TFLOP/s"
    )
    if products := [row for row in found.operators if row.flops_per_second]:
        seconds = sum(row.seconds for row in products)
        rate = sum(row.seconds * (row.flops_per_second or 0) for row in products) / seconds
        share = sum(row.share for row in products)
        echo(f"matrix products: {share:.0%} of a step on a rank, at {rate / 1e12:.4g} TFLOP/s")
    echo(f"under the profiler, where the second table is from: {found.traced_step_seconds * ms:.1f} ms a step\n")
    print_table(
        "Where the time of a step goes",
        ["part", "ms", "share"],
        [
            [part.replace("_", "/"), f"{seconds * ms:.2f}", f"{seconds / found.step_seconds:.1%}"]
            for part, seconds in found.breakdown.items()
        ],
    )
    rows = [
        [
            row.name,
            f"{row.seconds * ms:.2f}",
            f"{row.share:.1%}",
            f"{row.calls:,.0f}" if row.calls else "",
            f"{row.flops_per_second / 1e12:.4g}" if row.flops_per_second else "",
            f"{row.share_of_peak:.0%}" if row.share_of_peak else "",
        ]
        for row in found.operators
    ]
    rest = found.operators[OPERATORS_SHOWN:]
    if rest:
        seconds, share = sum(row.seconds for row in rest), sum(row.share for row in rest)
        more = [f"({len(rest)} others)", f"{seconds * ms:.2f}", f"{share:.1%}", "", "", ""]
        rows = [*rows[:OPERATORS_SHOWN], more]
    print_table(
        "What costs most, on rank 0",
        ["operator", "ms a step", "share", "calls", "TFLOP/s", "of peak"],
        rows,
    )
    print_table(
        f"Memory at the peak, on rank 0: {gibibytes(found.peak_bytes)}",
        ["what", "size", "share"],
        [[what, gibibytes(size), f"{size / found.peak_bytes:.1%}"] for what, size in found.memory.items()],
    )
    print_table(
        "A micro-batch between its forward and its backward pass",
        ["what", "size"],
        [[what, gibibytes(size)] for what, size in found.forward.items()],
    )
    echo("\n".join(found.files))

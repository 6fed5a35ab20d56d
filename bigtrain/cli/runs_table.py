"""The table of `bigtrain runs`."""

from __future__ import annotations

from pathlib import Path

from bigtrain.base import duration, quantity
from bigtrain.rundir import RunStatus

COLUMNS = ["run", "state", "step", "loss", "tokens/s", "goodput", "last event", "ago", "checkpoints"]


def row_of(state: RunStatus, root: Path) -> list[str]:
    """The row of a run; an unknown value is a dash."""
    name = str(Path(state.run).relative_to(root)) if Path(state.run) != root else state.run
    total = "" if state.total_steps is None else f"/{state.total_steps:,}"
    kept = "-" if state.checkpoints is None else f"{state.checkpoints}, {quantity(state.checkpoint_bytes or 0)}B"
    return [
        name,
        state.state,
        f"{state.step:,}{total}",
        "-" if state.loss is None else f"{state.loss:.4f}",
        "-" if state.tokens_per_second is None else quantity(state.tokens_per_second),
        "-" if state.goodput is None else f"{state.goodput:.1%}",
        state.last_event or "-",
        duration(state.age_seconds),
        kept,
    ]

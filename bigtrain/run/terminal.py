"""What a person sees of a run: a few lines at the start, then one line every few steps."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

LOGGER = logging.getLogger("bigtrain")


def log_to(rank: int, log_file: Path) -> None:
    """Send this rank's log to its file; the first rank's to the terminal as well."""
    LOGGER.handlers.clear()
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO)
    to_file = logging.FileHandler(log_file)
    to_file.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(message)s"))
    LOGGER.addHandler(to_file)
    if rank == 0:
        to_terminal = logging.StreamHandler(sys.stderr)
        to_terminal.setFormatter(logging.Formatter("%(message)s"))
        LOGGER.addHandler(to_terminal)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42s, 3m05s, 2h07m, 3d04h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def quantity(value: float) -> str:
    """A count with three significant figures: 950, 12.3k, 6.84M, 8.03B."""
    for divisor, suffix in ((1, ""), (1e3, "k"), (1e6, "M"), (1e9, "B")):
        if value < 999.5 * divisor:
            return f"{value / divisor:.3g}{suffix}"
    return f"{value / 1e12:.3g}T"

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

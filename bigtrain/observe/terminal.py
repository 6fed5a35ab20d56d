"""The log of a run: a few lines at the start, then one line every few steps, in a file and on the terminal."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from bigtrain.base import show_controls
from bigtrain.config import without_secrets

LOGGER = logging.getLogger("bigtrain")


class _Formatter(logging.Formatter):
    """Hides secrets and shows control characters in every message."""

    def format(self, record: logging.LogRecord) -> str:
        return show_controls(without_secrets(super().format(record)))


def log_to(rank: int, log_file: Path) -> None:
    """Send this rank's log to its file; the first rank's to the terminal as well."""
    LOGGER.handlers.clear()
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO)
    to_file = logging.FileHandler(log_file)
    to_file.setFormatter(_Formatter(f"%(asctime)s rank {rank} %(levelname)s %(message)s"))
    LOGGER.addHandler(to_file)
    if rank == 0:
        to_terminal = logging.StreamHandler(sys.stderr)
        to_terminal.setFormatter(_Formatter("%(message)s"))
        LOGGER.addHandler(to_terminal)

"""The log of a run: a few lines at the start, then one line every few steps, in a file and on the terminal."""

from __future__ import annotations

import logging
import sys
from io import TextIOWrapper
from pathlib import Path

from bigtrain.base import show_controls
from bigtrain.config import without_secrets

LOGGER = logging.getLogger("bigtrain")


class _Formatter(logging.Formatter):
    """Hides secrets and shows control characters in every message."""

    def format(self, record: logging.LogRecord) -> str:
        return show_controls(without_secrets(super().format(record)))


class _LogFile(logging.FileHandler):
    """A file that is made with its first line. A disk that fails later costs lines of the log, not the run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, delay=True)

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)


def log_to(rank: int, log_file: Path, *, local_rank: int = 0) -> None:
    """Send this rank's log to its file; the first rank's to the terminal as well.

    All ranks report the same of a step. So only the first rank of each machine writes all lines, and the others write
    warnings and errors. Their files are made when there are any.

    Raises:
        OSError: the first rank's file cannot be opened.
    """
    LOGGER.handlers.clear()
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO if local_rank == 0 else logging.WARNING)
    to_file = _LogFile(log_file)
    to_file.setFormatter(_Formatter(f"%(asctime)s rank {rank} %(levelname)s %(message)s"))
    LOGGER.addHandler(to_file)
    if rank == 0:
        to_file.stream = to_file._open()
        to_terminal = logging.StreamHandler(sys.stderr)
        to_terminal.setFormatter(_Formatter("%(message)s"))
        LOGGER.addHandler(to_terminal)

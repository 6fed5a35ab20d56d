"""Golden runs in processes forked from one that has imported everything, see tests/forkserver.py."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import forkserver
from tests.golden.record import QUIET, Start


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    """How `record.py` has commands run here."""
    if torch.cuda.is_available():
        pytest.skip("the golden runs are those of a CPU")

    def forked(processes: int | None, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        command = ("-m", "bigtrain", *arguments)
        return (
            forkserver.python(*command, cwd=cwd)
            if processes is None
            else forkserver.torchrun(processes, *command, cwd=cwd)
        )

    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        yield forked

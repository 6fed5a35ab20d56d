"""A process may have as many files open as its hard limit says, and says so where that is too few."""

import resource
import subprocess
import sys

import pytest

from bigtrain.base import BigtrainError
from bigtrain.base.open_files import BESIDE, require_open_files

PRINT = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"


def limited(soft: int, hard: int, script: str) -> str:
    """What a script prints that starts with these limits."""
    command = f"ulimit -Sn {soft}; ulimit -Hn {hard}; exec {sys.executable} -c '{script}'"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.strip()


def test_the_soft_limit_becomes_the_hard_one_also_of_what_is_started():
    script = (
        "import subprocess, sys; from bigtrain.base import raise_open_files; raise_open_files(); "
        f'subprocess.run([sys.executable, "-c", "{PRINT}"])'
    )
    assert limited(256, 2048, script) == "2048 2048"


def test_too_few_open_files_are_an_error_that_names_the_limit(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (4096, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: None)
    require_open_files(1_024, 128)
    with pytest.raises(BigtrainError) as caught:
        require_open_files(16_384, 2_048)
    said = str(caught.value)
    assert "4,096" in said and f"{2 * 16_384 + 2_048 + BESIDE:,}" in said and "ulimit -Hn" in said

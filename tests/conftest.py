"""What every room's tests share: components that CI must have, and a quiet environment for child processes."""

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Searching on is for people: CI tries the same examples each time. No deadlines: machines are shared.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("default", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Models this small gain nothing by threads, and threads that spin crawl on a machine that others use too. Ranks under a
# launcher take their share of the cores all the same: bigtrain/engine/topology.py.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


TOGETHER = {"engine": "tests/engine/"}
"""Rooms whose files share what takes long to make; elsewhere a file is what one of several pytest workers does."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Divide the tests among the workers of pytest-xdist: `--dist loadgroup`."""
    for item in items:
        path = item.path.relative_to(item.config.rootpath).as_posix()
        group = next((room for room, start in TOGETHER.items() if path.startswith(start)), path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def require():
    """Skip, with the reason, a test whose component is missing; with BIGTRAIN_REQUIRE set, as in CI, fail instead."""

    def check(module: str) -> None:
        if importlib.util.find_spec(module) is None:
            reason = f"needs the package {module}"
            if os.environ.get("BIGTRAIN_REQUIRE"):
                pytest.fail(reason)
            pytest.skip(reason)

    return check


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of the size that is its parameter."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)

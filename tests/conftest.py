"""What the tests of every package share: components that CI must have, and a quiet environment for child processes."""

import importlib.util
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings

from tests import costs

# The same examples each time, everywhere. tests/run.sh then draws others at random, with a seed that it prints. No
# deadlines: machines are shared.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40)
settings.register_profile("random", deadline=None, max_examples=40)  # --hypothesis-profile=random
settings.register_profile("thorough", deadline=None, max_examples=400)
settings.load_profile("fixed")

# Child processes, wherever they start, import this checkout's packages `bigtrain` and `tests`.
ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Models this small gain nothing by threads, and threads that spin crawl on a machine that others use too. Ranks under a
# launcher take their share of the cores all the same: bigtrain/engine/topology.py.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell has what it starts in the background ignore these two, and bash cannot trap what was ignored when it began.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

SHARED_ROUNDS = dict.fromkeys(("tests/engine/test_parity.py", "tests/engine/test_state.py"), "tests/engine/conftest.py")
"""Files that share a fixture that takes long to make: one worker gets them all."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-costs", action="store_true", help="write what each file took to tests/costs.json")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record-costs") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(costs.Recorder())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, give a free worker of pytest-xdist the file that takes longest: see tests/costs.py.

    The marks of `--dist loadgroup`, which are for this, do nothing with pytest 9.2 and pytest-xdist 3.8.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class HeaviestFirst(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return SHARED_ROUNDS.get(file, file)

        def _assign_work_unit(self, node: Any) -> None:
            self.workqueue.move_to_end(max(self.workqueue, key=self._cost), last=False)
            super()._assign_work_unit(node)

        def _cost(self, scope: str) -> float:
            tests = Counter(nodeid.partition("::")[0] for nodeid in self.workqueue[scope])
            return sum(costs.cost(file, number) for file, number in tests.items())

    return HeaviestFirst(config, log)


@pytest.fixture(scope="session")
def require():
    """Skip, with the reason, a test whose component is missing; with BIGTRAIN_REQUIRE set, as in CI, fail instead."""

    def check(module: str) -> None:
        if importlib.util.find_spec(module) is None:
            _missing(f"needs the package {module}")

    return check


@pytest.fixture(scope="session")
def require_command():
    """The same for a program, by its name; returns where it lies."""

    def check(name: str) -> str:
        return shutil.which(name) or _missing(f"needs the program {name}")

    return check


def _missing(reason: str) -> NoReturn:
    if os.environ.get("BIGTRAIN_REQUIRE"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def kernels_forgotten() -> Iterator[None]:
    """Whether the CPU's kernels compile is found out once a process: forget it before and after a test."""
    from bigtrain.model.cpu import cpu_kernels

    cpu_kernels._load.cache_clear()
    yield
    cpu_kernels._load.cache_clear()


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

"""Stock torchrun loses the exit status of a stop; a run under it says so, and names the launcher that keeps it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.system.run_sandbox import STATUS_STOPPED, RunSandbox, small_settings

WARNING = "`python -m bigtrain.cli.torchrun` takes the same options and keeps the exit status"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> RunSandbox:
    """A small dataset with its configuration."""
    directory = tmp_path_factory.mktemp("stock_torchrun")
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(small_settings(directory)))
    sandbox = RunSandbox(directory, config)
    assert sandbox.bigtrain("data", "build", config).returncode == 0
    return sandbox


def train_one_step(launcher: str, built: RunSandbox, run: Path) -> subprocess.CompletedProcess:
    """Start a run that stops on request after its first step, as a user starts it."""
    command = [sys.executable, "-m", launcher, "--standalone", "--nproc-per-node=1", "-m", "bigtrain", "train"]
    # Without what a test's own process may have from a launcher.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    environment.pop("BIGTRAIN_LAUNCHER_PID", None)
    return subprocess.run(
        [*command, str(built.config), f"run_dir={run}", "train.stop_after=1"],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=built.directory,
        env=environment,
    )


@pytest.mark.slow
def test_under_stock_torchrun_the_start_names_the_better_launcher_once(built: RunSandbox, tmp_path: Path) -> None:
    """torchrun turns status 75 into a failure of every rank; the log says before that which launcher keeps it."""
    done = train_one_step("torch.distributed.run", built, tmp_path / "run")
    assert done.returncode == 1 and "ChildFailedError" in done.stderr, done.stderr
    assert done.stderr.count(WARNING) == 1, done.stderr
    assert done.stderr.index(WARNING) < done.stderr.index("ChildFailedError")
    assert (tmp_path / "run" / "checkpoints" / "step-00000001").is_dir()


@pytest.mark.slow
def test_under_bigtrain_s_launcher_the_status_is_kept_without_a_warning(built: RunSandbox, tmp_path: Path) -> None:
    done = train_one_step("bigtrain.cli.torchrun", built, tmp_path / "run")
    assert done.returncode == STATUS_STOPPED, done.stderr
    assert "bigtrain.cli.torchrun" not in done.stdout + done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-00000001").is_dir()

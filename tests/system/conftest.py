"""Runs that several tests look at."""

import pytest
import yaml

from tests.system.run_sandbox import RunSandbox, small_settings


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> RunSandbox:
    """Data built once for all system tests."""
    directory = tmp_path_factory.mktemp("sandbox")
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(small_settings(directory)))
    sandbox = RunSandbox(directory, config)
    result = sandbox.bigtrain("data", "build", config)
    assert result.returncode == 0, result.stderr
    return sandbox


@pytest.fixture
def sandbox(built, tmp_path) -> RunSandbox:
    """A run directory of one's own over the data that all share."""
    settings = yaml.safe_load(built.config.read_text())
    settings["run_dir"] = str(tmp_path / "run")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    return RunSandbox(tmp_path, config)


@pytest.fixture(scope="session")
def undisturbed(built) -> RunSandbox:
    """One run of two processes from the first step to the last, which others are compared with."""
    status, output = built.train(2)
    assert status == 0, output
    return built

"""Runs that several tests look at."""

import pytest
import yaml
from house import House, finish, small_settings


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> House:
    """Data built once for all system tests."""
    directory = tmp_path_factory.mktemp("house")
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(small_settings(directory)))
    house = House(directory, config)
    result = house.apart("data", "build", config)
    assert result.returncode == 0, result.stderr
    return house


@pytest.fixture
def house(built, tmp_path) -> House:
    """A run directory of one's own over the data that all share."""
    settings = yaml.safe_load(built.config.read_text())
    settings["run_dir"] = str(tmp_path / "run")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    return House(tmp_path, config)


@pytest.fixture(scope="session")
def undisturbed(built) -> House:
    """One run of two processes from the first step to the last, which others are compared with."""
    status, output = finish(built.start_training(2))
    assert status == 0, output
    return built

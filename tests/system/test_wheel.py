"""A wheel of bigtrain, installed alone outside the source tree, does what a checkout does."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.system.run_sandbox import ROOT, read_metrics, small_settings

pytestmark = pytest.mark.slow

OF_A_CHECKOUT = {"setup.sh", "constraints.sh", "quickstart.sh", "try_export.py"}
"""Scripts of launch/ that do not travel."""


def run(*command: str | Path, cwd: Path, timeout: float = 240) -> str:
    """A command in an environment that names neither the source tree nor a Python. Returns what it printed."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHON", "VIRTUAL_ENV")}
    clean["PATH"] = os.defpath
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=clean, timeout=timeout
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, as building leaves folders beside the sources; with the setuptools that is here."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("bigtrain", "launch"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip_wheel = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(*pip_wheel, "--wheel-dir", tree / "dist", tree, cwd=tree)
    (built,) = (tree / "dist").iterdir()
    return built


@dataclass
class Installed:
    """An environment of its own with the wheel in it, and a folder to work in."""

    environment: Path
    folder: Path

    @property
    def launch(self) -> Path:
        return next(self.environment.glob("lib/python*/site-packages/bigtrain/launch"))

    def bigtrain(self, *arguments: str | Path) -> str:
        return run(self.environment / "bin/bigtrain", *arguments, cwd=self.folder)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Installed:
    """The wheel, and of the environment of the tests the packages that bigtrain needs, but not bigtrain."""
    environment = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=environment)
    # A folder that a .pth file names is searched, but .pth files in it are not read: that of the editable bigtrain.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(environment, tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def config(installed) -> Path:
    """A small run, with its data built."""
    file = installed.folder / "config.yaml"
    file.write_text(yaml.safe_dump(small_settings(installed.folder)))
    installed.bigtrain("data", "build", file)
    return file


def test_a_wheel_has_every_file_of_the_package_and_no_other(wheel):
    """A kind of data file that pyproject.toml does not name would be missing only where bigtrain is installed."""
    package = {
        str(path.relative_to(ROOT)): path.stat().st_mode & 0o111
        for folder in (ROOT / "bigtrain", ROOT / "bigtrain/launch")  # a link, which rglob does not follow
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name not in OF_A_CHECKOUT
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {
            entry.filename: entry.external_attr >> 16 & 0o111
            for entry in archive.infolist()
            if ".dist-info/" not in entry.filename
        }
    assert found == package


def test_nothing_of_an_installed_wheel_comes_from_the_source_tree(installed):
    script = "import bigtrain, sys; print(bigtrain.__file__, *sys.path, sep='\\n')"
    package, *searched = run(installed.environment / "bin/python", "-c", script, cwd=installed.folder).split("\n")
    assert Path(package).is_relative_to(installed.environment)
    assert str(ROOT) not in searched


def test_an_installed_wheel_trains_by_its_own_launch_script(installed, config):
    """The script finds the Python of its environment by where it lies: none is on PATH or in PYTHON."""
    run(installed.launch / "local.sh", config, "train.steps=4", "schedule.decay_steps=1", cwd=installed.folder)
    assert [record["step"] for record in read_metrics(installed.folder / "run/metrics.jsonl")] == [1, 2, 3, 4]
    assert "step-00000004" in installed.bigtrain("checkpoint", "verify", installed.folder / "run")


def test_an_installed_wheel_submits_to_slurm_its_own_scripts(installed, config):
    """What sbatch would be handed starts each node by the node.sh of the wheel, with the Python beside it."""
    shown = installed.bigtrain("submit", "slurm", config, "--nodes", "2", "--dry-run")
    command = shlex.split(shown.strip().splitlines()[-1])
    script = command.index(str(installed.launch / "slurm.sbatch"))
    started = run(command[script], "--dry-run", *command[script + 1 :], cwd=installed.folder)
    node = shlex.split(started.splitlines()[-1])
    assert str(installed.launch / "node.sh") in node
    ranks = run(installed.launch / "node.sh", "--dry-run", "train", config, cwd=installed.folder)
    assert str(installed.environment / "bin/python") in shlex.split(ranks.splitlines()[-1])


@pytest.mark.parametrize("kind", ["job", "trainjob"])
def test_an_installed_wheel_fills_its_kubernetes_manifests(installed, config, kind):
    options = ("--nodes", "2", "--image", "registry.example/bigtrain:1", "--claim", "scratch", "--kind", kind)
    shown = installed.bigtrain("submit", "kubernetes", config, *options, "--dry-run")
    kinds = {document["kind"] for document in yaml.safe_load_all(shown)}
    assert {"ConfigMap", {"job": "Job", "trainjob": "TrainJob"}[kind]} <= kinds

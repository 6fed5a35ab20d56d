"""The steps of docker/Dockerfile make, on a bare Debian, a system in which a user without rights trains."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.dockerfile import PROXIES, carry_out
from tests.system.run_sandbox import ROOT, read_metrics

SMALL = ["train.steps=3", "schedule.warmup_steps=1", "schedule.decay_steps=1", "evaluate.max_sequences=4"]
FEW_TEXTS = ["data.tokenizer.train_bytes=200000", "data.workers=1"]


@pytest.fixture(scope="module")
def debian(tmp_path_factory, require_command):
    """A root directory with nothing but Debian's minimum of the release that the Dockerfile names."""
    if os.geteuid():
        pytest.skip("a root directory of one's own needs root")
    root = tmp_path_factory.mktemp("debian") / "root"
    sources = "\n".join(path.read_text() for path in Path("/etc/apt").glob("sources.list*") if path.is_file())
    sources += "\n".join(path.read_text() for path in Path("/etc/apt/sources.list.d").glob("*"))
    mirror = re.search(r"https?://\S+/debian/?(?=\s)", sources + "\n")
    release = re.search(r"^FROM debian:(\w+)-slim", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    command = [require_command("debootstrap"), "--variant=minbase", release.group(1), str(root)]
    done = subprocess.run(
        [*command, mirror.group() if mirror else "http://deb.debian.org/debian"], text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    for given_by_engines in ("resolv.conf", "hosts"):
        shutil.copy(f"/etc/{given_by_engines}", root / "etc")
    for configured in Path("/etc/apt/apt.conf.d").glob("*proxy*"):
        shutil.copy(configured, root / "etc/apt/apt.conf.d")
    yield root
    shutil.rmtree(root)


@pytest.fixture
def packages(tmp_path, monkeypatch) -> tuple[list[Path], str]:
    """The folders that pip is configured to look into on this machine, and the index it asks."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    values = dict(re.findall(r"\.([a-z-]+)='(.*)'", said))
    if cert := values.get("cert"):  # a bundle of its own: the place of Debian's is Debian's to fill
        shutil.copy(cert, tmp_path / "certificates.pem")
        monkeypatch.setenv("PIP_CERT", str(tmp_path / "certificates.pem"))
    found = {Path(path.removeprefix("file://")) for value in values.values() for path in value.split()}
    folders = {path for path in found if path.is_absolute() and path.is_dir()}
    # An index in a folder DIR/simple points to files beside it.
    folders = {path.parent if path.name == "simple" else path for path in folders}
    configured = {Path(path) for path in ("/etc/xdg/pip", "/root/.config/pip") if Path(path).is_dir()}
    return sorted({*folders, *configured, tmp_path}), values.get("index-url", "https://pypi.org/simple")


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_the_steps_of_the_dockerfile_make_a_system_that_trains(debian, packages, tmp_path_factory):
    """The steps of the dockerfile make a system in which a plain user trains."""
    mounts, index = packages
    work = tmp_path_factory.mktemp("stages")
    image = carry_out(ROOT / "docker/Dockerfile", ROOT, work, debian, {"DEVICE": "cpu", "CPU_INDEX": index}, mounts)
    assert image.user.split(":")[0] not in ("0", "root"), "the image would run as root"
    helped = image.run([*image.entry, *image.command], [])
    assert helped.returncode == 0 and "Usage: bigtrain" in helped.stdout, helped.stderr

    config = "/opt/bigtrain/configs/quickstart.yaml"
    built = image.run([*image.entry, "bigtrain", "data", "build", config, *FEW_TEXTS], [])
    assert built.returncode == 0, built.stderr[-3000:]
    trained = image.run([*image.entry, "/opt/bigtrain/launch/local.sh", config, *SMALL, *FEW_TEXTS], [])
    assert trained.returncode == 0, trained.stderr[-3000:] + trained.stdout[-3000:]
    run = image.root / "workspace/runs/quickstart"
    assert [record["step"] for record in read_metrics(run / "metrics.jsonl")] == [1, 2, 3]
    assert {path.lstat().st_uid for path in run.rglob("*")} == {1000}
    assert not any(name in (run / "config.yaml").read_text() for name in PROXIES)

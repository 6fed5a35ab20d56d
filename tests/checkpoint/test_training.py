"""Real training on real processes, with its checkpoints in tiers, at a URL, and on disks that fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from bigtrain.base.errors import BigtrainError
from bigtrain.cli.checkpoint_commands import app
from tests.data.servers import BUCKET, S3Server, s3_environment
from tests.system.run_sandbox import RunSandbox, curve, kill_ranks, small_settings


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> RunSandbox:
    """Data, and a run of two processes without faults."""
    directory = tmp_path_factory.mktemp("sandbox")
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(small_settings(directory)))
    sandbox = RunSandbox(directory, config)
    result = sandbox.bigtrain("data", "build", str(config))
    assert result.returncode == 0, result.stderr
    status, output = sandbox.train(2)
    assert status == 0, output
    return sandbox


@pytest.fixture
def sandbox(built: RunSandbox, tmp_path: Path) -> RunSandbox:
    settings = yaml.safe_load(built.config.read_text())
    settings["run_dir"] = str(tmp_path / "run")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    return RunSandbox(tmp_path, config)


def commits(sandbox: RunSandbox, local: bool | None = None) -> list[int]:
    return [e["step"] for e in sandbox.events() if e["event"] == "commit" and local in (None, e["local"])]


def command(*arguments: str) -> str:
    """What `bigtrain checkpoint` prints; in this process, as a start of Python takes seconds."""
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, BigtrainError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("small_disk", ["3m"], indirect=True)
@pytest.mark.slow
def test_a_full_disk_in_a_background_save_stops_all_ranks_with_its_cause(sandbox: RunSandbox, small_disk: Path) -> None:
    """The ranks stop at the next step, and the error has the cause."""
    status, output = sandbox.train(2, f"checkpoint.dir={small_disk}")
    assert status == 1, output
    assert output.count("error:") == 1 and "No space left on device" in output and "Traceback" not in output
    assert "the checkpoint of step 8 could not be written" in output
    assert commits(sandbox) == [4] and 8 <= sandbox.metrics()[-1]["step"] < 12
    saves = [e for e in sandbox.events() if e["event"] == "save"]
    assert [e["step"] for e in saves] == [4, 8] and all(e["stall_seconds"] >= 0 for e in saves)


@pytest.mark.slow
def test_after_kill_9_a_run_goes_on_from_its_nearest_tier(
    built: RunSandbox, sandbox: RunSandbox, tmp_path: Path
) -> None:
    """After kill -9, a run with two tiers goes on from the local one, and without it from the durable one."""
    tiers = [f"checkpoint.local_dir={tmp_path}/scratch", "checkpoint.durable_every=3", "checkpoint.every_steps=2"]
    training = sandbox.start_forked(2, *tiers)
    sandbox.wait_for_step(7)
    kill_ranks(training)
    shutil.copytree(sandbox.run, tmp_path / "second")
    assert sandbox.train(2, *tiers)[0] == 0
    assert curve(sandbox.metrics()) == curve(built.metrics())
    (resume,) = [e for e in sandbox.events() if e["event"] == "resume"]
    assert resume["step"] >= 4  # the only durable one may be that of step 2
    assert commits(sandbox, local=False)[0] == 2 and commits(sandbox, local=False)[-1] == 12

    second = RunSandbox(tmp_path, sandbox.config)  # the same run, on machines with empty disks
    shutil.rmtree(sandbox.run)
    (tmp_path / "second").rename(sandbox.run)
    shutil.rmtree(tmp_path / "scratch")
    durable = max(int(path.name.removeprefix("step-")) for path in (second.run / "checkpoints").glob("step-*"))
    assert second.train(2, *tiers)[0] == 0
    (resume,) = [e for e in second.events() if e["event"] == "resume"]
    assert resume["step"] == durable and curve(second.metrics()) == curve(built.metrics())


@pytest.mark.slow
def test_a_run_with_checkpoints_at_a_url_is_killed_and_goes_on(
    built: RunSandbox, sandbox: RunSandbox, require: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose checkpoints are at a URL is killed, goes on, and is inspected."""
    for module in ("s3fs", "moto", "boto3"):
        require(module)
    import s3fs

    server = S3Server()
    for name, value in s3_environment(f"http://127.0.0.1:{server.port}").items():
        monkeypatch.setenv(name, value)
    server.start()
    try:
        url = f"checkpoint.dir=s3://{BUCKET}/run"
        training = sandbox.start_forked(2, url)
        sandbox.wait_for_step(9)
        kill_ranks(training)
        status, output = sandbox.train(2, url)
        assert status == 0, output
        assert curve(sandbox.metrics()) == curve(built.metrics())
        assert not (sandbox.run / "checkpoints").exists()

        s3fs.S3FileSystem.clear_instance_cache()
        root = f"s3://{BUCKET}/run"
        run = str(sandbox.run)
        listed = json.loads(command("list", run, "--json"))
        assert [row["path"] for row in listed] == [f"{root}/step-{step:08d}" for step in (4, 8, 12)]
        assert command("verify", run).count("every byte is right") == 3
        assert "tensors are equal to the last bit" in command("diff", str(built.run), run)
        other = command("diff", f"{root}/step-00000004", run)
        assert "tensors differ" in other and "cursor step: 4 -> 12" in other
        dry = command("prune", run, "--keep", "1", "--keep-every", "8", "--dry-run")
        assert dry == f"would remove {root}/step-00000004\n"
        assert command("prune", run, "--keep", "1").count("removed") == 2
        assert command("verify", run) == f"{root}/step-00000012: every byte is right\n"
        with pytest.raises(BigtrainError, match="--keep N"):
            command("prune", run)
    finally:
        server.kill()
        s3fs.S3FileSystem.clear_instance_cache()

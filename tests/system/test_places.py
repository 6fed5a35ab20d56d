"""Each place that a command reads or writes may be broken: one message and status 1, before the first step."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import forkserver
from tests.data.servers import S3Server, s3_environment
from tests.matrix import thinned
from tests.refusals import assert_refused
from tests.system.run_sandbox import RunSandbox, as_json


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths at which nothing can be written, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "link").symlink_to(folder / "nowhere" / "deeper")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "file").write_text("years of work")
    return {
        "dangling link": folder / "link",
        "below a dangling link": folder / "link" / "run",
        "circle of links": folder / "loop",
        "below a file": folder / "file" / "run",
        "name too long": folder / ("n" * 300),
        "path too long": folder / Path(*["d"] * 2500),
    }


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that can only be read once the test has filled it, by `mount -o remount,ro`."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def only_read(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


BROKEN = ["dangling link", "below a dangling link", "circle of links", "below a file", "name too long", "path too long"]
WRITING = {
    "train run_dir": ["train", "CONFIG", "run_dir={}"],
    "train data.dir": ["train", "CONFIG", "data.dir={}"],
    "train checkpoint.dir": ["train", "CONFIG", "checkpoint.dir={}"],
    "train checkpoint.local_dir": ["train", "CONFIG", "checkpoint.local_dir={}"],
    "profile": ["profile", "CONFIG", "--out", "{}", "--steps=1", "--warmup=0"],
    "verify-resume": ["verify-resume", "CONFIG", "run_dir={}", "-n1", "--steps=3"],
    "data build": ["data", "build", "CONFIG", "data.dir={}"],
    "data funnel": ["data", "funnel", "DATA", "--html", "{}"],
    "export": ["export", "RUN", "{}", "--no-check"],
    "export to gguf": ["export", "RUN", "{}", "--no-check", "--to=gguf"],
}
READING = {
    "replay": ["replay", "{}", "--step=2"],
    "eval": ["eval", "{}"],
    "generate": ["generate", "{}", "a"],
    "prompts": ["generate", "RUN", "--prompts", "{}"],
    "export of a run": ["export", "{}", "OUT"],
    "import": ["import", "{}", "OUT"],
    "report": ["report", "{}"],
    "runs": ["runs", "{}"],
    "checkpoint list": ["checkpoint", "list", "{}"],
    "checkpoint verify": ["checkpoint", "verify", "{}"],
    "checkpoint diff": ["checkpoint", "diff", "{}", "RUN"],
    "checkpoint prune": ["checkpoint", "prune", "{}", "--keep=1"],
    "data where": ["data", "where", "{}", "--step=1"],
    "data when": ["data", "when", "{}", "--document=json:x"],
    "data diff": ["data", "diff", "{}", "RUN"],
    "data card": ["data", "card", "{}"],
    "data verify": ["data", "verify", "{}"],
    "data index": ["data", "index", "{}"],
    "data funnel of": ["data", "funnel", "{}"],
    "config show": ["config", "show", "{}"],
}
MATRIX = [(command, fault) for command in {**WRITING, **READING} for fault in BROKEN]
QUICK = [(command, BROKEN[number % len(BROKEN)]) for number, command in enumerate({**WRITING, **READING}) if number % 2]


@pytest.mark.parametrize(("command", "fault"), thinned(MATRIX, QUICK))
def test_a_place_that_is_broken_is_one_message(
    command: str, fault: str, broken: dict[str, Path], undisturbed: RunSandbox, sandbox: RunSandbox
) -> None:
    """Whatever is wrong with a path, each command that uses it ends with one message and status 1."""
    names = {"CONFIG": sandbox.config, "RUN": undisturbed.run, "DATA": undisturbed.directory / "data"}
    names["OUT"] = sandbox.directory / "out"
    arguments = [names.get(part, part.format(broken[fault])) for part in {**WRITING, **READING}[command]]
    assert_refused(sandbox.bigtrain(*arguments))
    assert not (sandbox.run / "metrics.jsonl").exists()
    assert not names["OUT"].exists()


def test_a_path_with_nul_in_the_configuration_is_named(sandbox: RunSandbox) -> None:
    text = sandbox.config.read_text().replace(f"run_dir: {sandbox.run}", r'run_dir: "runs/a\0b"')
    sandbox.config.write_text(text)
    assert_refused(sandbox.bigtrain("train", sandbox.config), "run_dir", "NUL")


@pytest.fixture
def readable(undisturbed: RunSandbox, read_only: Path) -> Path:
    """A finished run that may only be read."""
    shutil.copytree(undisturbed.run, read_only / "run")
    only_read(read_only)
    return read_only / "run"


def test_a_run_that_may_only_be_read_is_shown(readable: Path, sandbox: RunSandbox) -> None:
    """What can be read is shown, and a page or card that cannot be written is said, with its path."""
    report = sandbox.bigtrain("report", readable, "--json")
    assert as_json(report)["step"] == 12 and as_json(report)["report"] is None
    assert f"{readable}/report.html is not written: Read-only file system" in report.stderr
    card = sandbox.bigtrain("data", "card", readable)
    assert card.returncode == 0 and "json" in card.stdout and "data-card.md" in card.stderr
    steps = [row["step"] for row in as_json(sandbox.bigtrain("checkpoint", "list", readable, "--json"))]
    assert steps == [4, 8, 12]
    assert as_json(sandbox.bigtrain("runs", readable.parent, "--json"))[0]["state"] == "finished"
    pruned = sandbox.bigtrain("checkpoint", "prune", readable, "--keep=1")
    assert_refused(pruned, f"run_dir {readable} cannot be written", found="can only be read", fix="mount")


def test_a_read_only_run_dir_is_refused_once_by_all_ranks(readable: Path, sandbox: RunSandbox) -> None:
    result = sandbox.train(2, f"run_dir={readable}")
    assert_refused(result, f"run_dir {readable} cannot be written", found="can only be read")


@pytest.mark.parametrize("name", ["samples.json", "evaluation.json", "data/json/funnel.json"])
@pytest.mark.parametrize("content", ['{"step": 12, "sam', '{"step": "x"}', "[]", "\x00" * 64])
def test_a_torn_side_file_is_left_out_of_the_report(
    name: str, content: str, undisturbed: RunSandbox, sandbox: RunSandbox
) -> None:
    """A side file that cannot be read counts as absent, and the report says so once."""
    shutil.copytree(undisturbed.run, sandbox.run, ignore=shutil.ignore_patterns("checkpoints"))
    file = sandbox.run / name
    if name.startswith("data/"):
        shutil.copytree(undisturbed.directory / "data", sandbox.directory / "data", symlinks=True)
        config = yaml.safe_load((sandbox.run / "config.yaml").read_text())
        config["data"]["dir"] = str(sandbox.directory / "data")
        (sandbox.run / "config.yaml").write_text(yaml.safe_dump(config))
        file = sandbox.directory / name
    file.write_text(content)
    done = sandbox.bigtrain("report", sandbox.run)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out") == 1 and file.name in done.stderr, done.stderr


def test_after_the_first_step_an_error_of_the_disk_is_a_crash(sandbox: RunSandbox, broken: dict[str, Path]) -> None:
    """The launcher starts a run again whose disk has failed, but not one that cannot begin."""
    script = "import sys; from bigtrain.base import report_step; from bigtrain.cli.main import main\n"
    script += "if sys.argv.pop(1) == 'trained': report_step()\nmain()\n"
    (sandbox.directory / "later.py").write_text(script)
    command = ["runs", broken["name too long"]]
    before = forkserver.python(sandbox.directory / "later.py", "new", *command)
    assert_refused(before, "nnn", found="too long")
    after = forkserver.python(sandbox.directory / "later.py", "trained", *command)
    assert after.returncode == 3 and "Traceback" in after.stderr


def test_a_traceback_is_shown_to_who_asks(monkeypatch: pytest.MonkeyPatch, broken: dict[str, Path]) -> None:
    monkeypatch.setenv("BIGTRAIN_TRACEBACK", "1")
    done = forkserver.python("-m", "bigtrain", "runs", broken["name too long"])
    assert done.returncode == 1 and "Traceback" in done.stderr and "error: " in done.stderr


# checkpoint.dir


@pytest.fixture
def store(require, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for module in ("s3fs", "moto", "boto3"):
        require(module)
    server = S3Server()
    for name, value in s3_environment(f"http://127.0.0.1:{server.port}").items():
        monkeypatch.setenv(name, value)
    server.start()
    yield server
    server.kill()


def test_a_bucket_that_is_missing_is_found_before_the_first_step(store: S3Server, sandbox: RunSandbox) -> None:
    """Training, the doctor and the list of checkpoints name the bucket that is not there."""
    there = "checkpoint.dir=s3://no-such-bucket/run"
    refused = sandbox.train(2, there)
    assert_refused(refused, "s3://no-such-bucket/run", "the store has no bucket", fix="create the bucket")
    assert not (sandbox.run / "metrics.jsonl").exists()
    skipped = [f"--skip={name}" for name in ("matmul", "network", "clocks", "data", "tracker", "sharing")]
    checks = json.loads(sandbox.bigtrain("doctor", sandbox.config, there, *skipped, "--json").stdout)["checks"]
    assert any("no-such-bucket" in check["found"] for check in checks if check["status"] == "failed"), checks


@pytest.mark.long
def test_two_runs_do_not_save_into_one_folder(sandbox: RunSandbox, tmp_path: Path) -> None:
    """The second is refused and names the first; a run that was moved goes on; its copy does not."""
    folder, first, moved = tmp_path / "kept", tmp_path / "first", tmp_path / "moved"

    def train(run: Path, *overrides: str) -> subprocess.CompletedProcess:
        places = [f"run_dir={run}", f"checkpoint.dir={folder}"]
        return sandbox.bigtrain("train", sandbox.config, *places, "evaluate.every_steps=null", *overrides)

    assert train(first, "train.stop_after=2").returncode == 75
    second = train(tmp_path / "second")
    assert_refused(second, f"checkpoint.dir {folder}", found=str(first), fix="another checkpoint.dir")
    first.rename(moved)
    assert train(moved, "train.stop_after=4").returncode == 75
    shutil.copytree(moved, tmp_path / "copy")
    assert_refused(train(tmp_path / "copy"), found=str(moved))
    (folder / "run.json").unlink()  # as earlier versions left it
    assert train(moved, "train.stop_after=5").returncode == 75


def test_the_checkpoints_of_another_run_dir_are_refused(undisturbed: RunSandbox, sandbox: RunSandbox) -> None:
    refused = sandbox.bigtrain("train", sandbox.config, f"checkpoint.dir={undisturbed.run}/checkpoints")
    assert_refused(refused, "another run", found=str(undisturbed.run))


def test_a_checkpoint_dir_that_was_replaced_is_named(undisturbed: RunSandbox, sandbox: RunSandbox) -> None:
    shutil.copytree(undisturbed.run, sandbox.run, ignore=shutil.ignore_patterns("checkpoints"))
    refused = sandbox.bigtrain("train", sandbox.config, f"checkpoint.dir={sandbox.directory}/kept")
    assert_refused(refused, found=[f"{sandbox.directory}/kept", "step 12"], fix="checkpoint.dir")


def test_a_local_tier_that_is_gone_is_recorded(undisturbed: RunSandbox, sandbox: RunSandbox) -> None:
    """Where the disk of the nodes was emptied, the durable copy is used, and an event says so."""
    shutil.copytree(undisturbed.run, sandbox.run)
    committed = {
        "event": "commit",
        "step": 12,
        "seconds": 0.1,
        "checkpoint": "step-00000012",
        "local": True,
        "time": 0.0,
    }
    with (sandbox.run / "events.jsonl").open("a") as events:
        events.write(json.dumps(committed) + "\n")
    done = sandbox.bigtrain("train", sandbox.config, f"checkpoint.local_dir={sandbox.directory}/local")
    assert done.returncode == 0, done.stderr
    fallback = [event for event in sandbox.events() if event["event"] == "fallback"]
    assert len(fallback) == 1 and str(sandbox.directory / "local") in fallback[0]["place"]
    assert "durable tier" in fallback[0]["problems"]


# OUT, and other working directories


def test_out_that_is_not_a_folder_of_ours_is_left_as_it_is(undisturbed: RunSandbox, sandbox: RunSandbox) -> None:
    """A link, the working directory, or an earlier export with files of the user: refused, and nothing is changed."""
    out = sandbox.directory / "out"
    assert sandbox.bigtrain("export", undisturbed.run, out, "--no-check").returncode == 0
    assert sandbox.bigtrain("export", undisturbed.run, out, "--no-check").returncode == 0  # an earlier one is replaced
    (sandbox.directory / "link").symlink_to(out)
    assert_refused(sandbox.bigtrain("export", undisturbed.run, "link", "--no-check"), "link", "symbolic link")
    assert_refused(sandbox.bigtrain("export", undisturbed.run, ".", "--no-check"), "working directory")
    (out / "notes.txt").write_text("years of work")
    assert_refused(sandbox.bigtrain("export", undisturbed.run, out, "--no-check"), str(out), found="notes.txt")
    assert (out / "notes.txt").read_text() == "years of work"
    (out / "notes.txt").unlink()
    imported = sandbox.directory / "imported"
    assert sandbox.bigtrain("import", out, imported, "--no-check").returncode == 0
    (imported / "mine").mkdir()
    assert_refused(sandbox.bigtrain("import", out, imported, "--no-check"), str(imported), found="mine")
    assert sorted(path.name for path in sandbox.directory.iterdir()) == ["config.yaml", "imported", "link", "out"]


@pytest.mark.parametrize("small_disk", ["100k"], indirect=True)
def test_a_refused_import_leaves_nothing(undisturbed: RunSandbox, sandbox: RunSandbox, small_disk: Path) -> None:
    hf = sandbox.directory / "hf"
    assert sandbox.bigtrain("export", undisturbed.run, hf, "--no-check").returncode == 0
    refused = sandbox.bigtrain("import", hf, small_disk / "imported", "--no-check")
    assert_refused(refused, "imported", found="the disk is full")
    assert not list(small_disk.iterdir())


@pytest.mark.long
def test_a_run_with_relative_paths_is_used_from_anywhere(built: RunSandbox, tmp_path: Path) -> None:
    """Paths in RUN/config.yaml are those of the directory in which the run was started."""
    start = tmp_path / "start"
    start.mkdir()
    (start / "data").symlink_to(built.directory / "data")
    settings = yaml.safe_load(built.config.read_text())
    settings["run_dir"], settings["data"]["dir"], settings["checkpoint"]["dir"] = "runs/r", "data", "kept"
    (start / "config.yaml").write_text(yaml.safe_dump(settings))
    trained = forkserver.python("-m", "bigtrain", "train", "config.yaml", "train.stop_after=2", cwd=start)
    assert trained.returncode == 75, trained.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for arguments in (["export", "../start/runs/r", "out", "--no-check"], ["eval", "../start/runs/r"]):
        done = forkserver.python("-m", "bigtrain", *arguments, cwd=elsewhere)
        assert done.returncode == 0, done.stderr
    listed = forkserver.python("-m", "bigtrain", "runs", "../start", "--json", cwd=elsewhere)
    assert as_json(listed)[0]["checkpoints"] == 1


# Machines that lack something


def without_flock(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    """A command whose file systems have no flock."""
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=flock"]
    strace += ["-e", "inject=flock:error=ENOLCK", sys.executable, *map(str, command)]
    return subprocess.run(strace, capture_output=True, text=True, cwd=cwd, timeout=200)


@pytest.mark.long
def test_file_systems_without_flock_train_and_say_so(sandbox: RunSandbox, require_command) -> None:
    """Data are built and a run is trained; the lock that needs no flock is named, and is gone afterwards."""
    require_command("strace")
    data = f"data.dir={sandbox.directory}/data"
    built = without_flock("-m", "bigtrain", "data", "build", sandbox.config, data, cwd=sandbox.directory)
    assert built.returncode == 0 and "has no flock" in built.stderr, built.stderr
    launched = ["-m", "bigtrain.cli.torchrun", "--standalone", "--nproc-per-node=2", "-m", "bigtrain", "train"]
    done = without_flock(*launched, sandbox.config, data, "train.stop_after=2", cwd=sandbox.directory)
    assert done.returncode == 75 and "has no flock" in done.stderr, done.stderr
    assert not (sandbox.run / ".lock.owner").exists()
    skipped = [f"--skip={name}" for name in ("matmul", "network", "clocks", "data", "tracker", "sharing")]
    report = without_flock("-m", "bigtrain", "doctor", sandbox.config, *skipped, "--json", cwd=sandbox.directory)
    assert "without flock" in report.stdout


@pytest.mark.long
def test_a_user_without_name_and_home_trains(built: RunSandbox, tmp_path_factory, require_command) -> None:
    """A container's uid trains, W&B included; where it may not write, one message says so."""
    require_command("setpriv")
    if os.getuid():
        pytest.skip("needs root to be another user")
    folder = tmp_path_factory.mktemp("user")
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)
    folder.chmod(0o777)
    # It may read what root may, as Python itself may lie in root's home, but write nothing of root's.
    user = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--inh-caps=+dac_read_search"]
    user += ["--ambient-caps=+dac_read_search", "env", "-u", "HOME", "-u", "USER", "-u", "LOGNAME"]
    user += [f"TMPDIR={folder}", "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-m", "bigtrain", "train", built.config]

    def train(run: Path) -> subprocess.CompletedProcess:
        options = [f"run_dir={run}", "train.stop_after=2", "tracking.wandb=offline"]
        return subprocess.run([*map(str, user), *options], capture_output=True, text=True, cwd=folder, timeout=200)

    done = train(folder / "run")
    assert done.returncode == 75 and "W&B" not in done.stderr, done.stderr
    assert list((folder / "run" / "wandb").glob("offline-run-*"))
    assert not list(folder.glob("bigtrain-home-*")) and not (folder / "~").exists()
    refused = train(built.directory / "not-mine")
    assert_refused(refused, f"run_dir {built.directory}/not-mine cannot be written", found="this user may not")

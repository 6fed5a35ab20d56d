"""Under a real Slurm: submitted, preempted, requeued, at the end of its walltime, a run goes on as if nothing had been.

Two nodes with a process each; every test compares with one run that nothing disturbed.
"""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

import bigtrain
from tests.system.cluster import Slurm
from tests.system.run_sandbox import CLI, RunSandbox, curve

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
STEPS = 12


@pytest.fixture(scope="module")
def slurm(require_command):
    if os.geteuid():
        pytest.skip("Slurm's daemons need root to start jobs")
    cluster = Slurm({name: require_command(name) for name in ("munged", "slurmctld", "slurmd")})
    yield cluster
    cluster.stop()


def submit(slurm: Slurm, sandbox: RunSandbox, *arguments: str, fault: str = "") -> str:
    """The number of a job of two nodes."""
    command = [*CLI, "submit", "slurm", str(sandbox.config), "--nodes", "2", "--cpus-per-node", "1"]
    command += ["--processes-per-node", "1", *([] if "--doctor" in arguments else ["--no-doctor"]), *arguments]
    environment = {**slurm.environment, **({"BIGTRAIN_FAULT": fault} if fault else {})}
    done = subprocess.run(command, env=environment, cwd=sandbox.directory, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def output(sandbox: RunSandbox, number: str) -> str:
    return (sandbox.run / "logs" / f"slurm-{number}.out").read_text()


def words_of_script(sandbox: RunSandbox, number: str) -> list[str]:
    """What the job's script said, by the line."""
    return [
        line.partition(": ")[2] for line in output(sandbox, number).splitlines() if line.startswith("slurm.sbatch: ")
    ]


def story(slurm: Slurm, sandbox: RunSandbox, number: str) -> str:
    """For a test that fails: what everybody but the ranks said of a job."""
    said = [line for line in output(sandbox, number).splitlines() if not line.startswith(("step ", "frame "))]
    return "\n".join(["", *said, *slurm.log_of(number)])


def run_of(directory, built: RunSandbox) -> RunSandbox:
    settings = yaml.safe_load(built.config.read_text())
    settings["run_dir"] = str(directory / "run")
    (directory / "config.yaml").write_text(yaml.safe_dump(settings))
    return RunSandbox(directory, directory / "config.yaml")


@pytest.fixture(scope="module")
def quiet_curve(slurm, built, tmp_path_factory):
    """The loss curve of a job that nothing disturbs."""
    sandbox = run_of(tmp_path_factory.mktemp("quiet"), built)
    number = submit(slurm, sandbox)
    job = slurm.wait_for(number, "COMPLETED", "FAILED", "CANCELLED")
    assert job["JobState"] == "COMPLETED", story(slurm, sandbox, number)
    assert sandbox.metrics()[-1]["world_size"] == 2 and sandbox.metrics()[-1]["step"] == STEPS
    return curve(sandbox.metrics())


def test_a_preempted_job_commits_waits_in_the_queue_and_goes_on(slurm, sandbox, quiet_curve):
    number = submit(slurm, sandbox, fault="slow,rank=*,at=step,delay=1")
    sandbox.wait_for_step(3)
    urgent = slurm("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
    slurm.wait_for(number, "PENDING", timeout=90)
    assert sandbox.events()[-1]["event"] == "stop", sandbox.events()
    stopped_at = sandbox.metrics()[-1]["step"]
    assert (sandbox.run / f"checkpoints/step-{stopped_at:08d}/manifest.json").is_file()
    slurm.wait_for(urgent, "COMPLETED")
    job = slurm.wait_for(number, "COMPLETED", "FAILED", "CANCELLED")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), story(slurm, sandbox, number)
    assert curve(sandbox.metrics()) == quiet_curve
    assert [event["event"] for event in sandbox.events()].count("resume") == 1


def test_a_job_whose_walltime_ends_leaves_in_time_and_goes_on_in_the_next(slurm, sandbox, quiet_curve):
    number = submit(slurm, sandbox, "--time", "3", "--signal-lead", "75", fault="slow,rank=*,at=step,delay=10")
    job = slurm.wait_for(number, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", timeout=600)
    assert job["JobState"] == "COMPLETED" and int(job["Restarts"]) >= 1, story(slurm, sandbox, number)
    first = words_of_script(sandbox, number)[:1]
    assert first == ["stopped on request (status 75); back into the queue"], story(slurm, sandbox, number)
    assert curve(sandbox.metrics()) == quiet_curve


def test_a_crash_is_requeued_while_the_run_gets_further_and_no_longer(slurm, sandbox):
    number = submit(
        slurm, sandbox, "--max-restarts", "0", "checkpoint.asynchronous=false", fault="kill,rank=1,at=step,step=7"
    )
    job = slurm.wait_for(number, "COMPLETED", "FAILED", "CANCELLED")
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "1"), story(slurm, sandbox, number)
    requeued = rf".*\(status {128 + signal.SIGKILL}\); back into the queue"
    given_up = r".* came no further than an earlier start; not requeued"
    said = "\n".join(words_of_script(sandbox, number))
    assert re.fullmatch(f"{requeued}\n{given_up}", said), story(slurm, sandbox, number)
    assert max(record["step"] for record in sandbox.metrics()) < STEPS


@pytest.mark.parametrize("preflight", ["--doctor", "--no-doctor"])
def test_what_the_user_has_to_mend_ends_the_job(slurm, sandbox, preflight):
    number = submit(slurm, sandbox, preflight, "--no-check", "data.dir=nowhere")
    job = slurm.wait_for(number, "COMPLETED", "FAILED", "CANCELLED")
    said = output(sandbox, number)
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "0", "1:0"), said
    assert "nowhere" in said and ("preflight failed" in said) == (preflight == "--doctor")


def test_jobs_of_a_chain_take_turns(slurm, sandbox, quiet_curve):
    first, second = submit(slurm, sandbox, "--chain", "2", fault="slow,rank=*,at=step,delay=1").split()
    sandbox.wait_for_step(3)
    slurm("scancel", "--signal=USR1", first)
    assert slurm.wait_for(first, "COMPLETED", "FAILED", "CANCELLED")["ExitCode"] == "75:0", story(slurm, sandbox, first)
    job = slurm.wait_for(second, "COMPLETED", "FAILED", "CANCELLED")
    assert job["JobState"] == "COMPLETED", story(slurm, sandbox, second)
    assert curve(sandbox.metrics()) == quiet_curve


def test_ranks_that_srun_starts_alone_find_each_other(slurm, sandbox, quiet_curve):
    """They meet by Slurm's variables; in the job's script, outside srun, a process refuses to train alone."""
    train = [sys.executable, "-m", "bigtrain", "train", str(sandbox.config)]
    # Both nodes are this machine, whose cores the ranks would share; those of other jobs here have all of them.
    environment = slurm.environment | {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    ask = {"env": environment, "cwd": sandbox.directory, "capture_output": True, "text": True, "timeout": 400}
    done = subprocess.run(["srun", "--nodes=2", "--ntasks=2", "--cpu-bind=none", *train], **ask)
    assert done.returncode == 0, done.stderr
    assert sandbox.metrics()[-1]["world_size"] == 2 and curve(sandbox.metrics()) == quiet_curve
    script = f"#!/bin/sh\nexec {' '.join(train)} run_dir={sandbox.directory}/alone\n"
    log = sandbox.directory / "alone.out"
    options = ["--wait", "--nodes=2", "--ntasks=2", f"--output={log}"]
    done = subprocess.run(["sbatch", *options], input=script, **ask)
    assert done.returncode == 1, done.stderr
    assert "it would train alone" in log.read_text() and "srun" in log.read_text()
    assert not (sandbox.directory / "alone").exists()


REPORTS = """
import os, sys
if "RANK" in os.environ:
    with open(os.environ["SEEN"], "a") as file:
        file.write(sys.prefix + "\\n")
"""


def test_ranks_start_from_an_environment_that_was_unpacked_on_their_node(slurm, sandbox, quiet_curve, monkeypatch):
    """Packed once, handed on by sbcast, unpacked, used by all ranks, and removed at the end of the job."""
    environment, node_local = sandbox.directory / "environment", sandbox.directory / "node local"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "all.pth").write_text(sysconfig.get_path("purelib"))
    (packages / "sitecustomize.py").write_text(REPORTS)
    monkeypatch.setitem(slurm.environment, "PYTHON", str(environment / "bin" / "python"))
    monkeypatch.setitem(slurm.environment, "PYTHONPATH", str(Path(bigtrain.__file__).parents[1]))
    monkeypatch.setitem(slurm.environment, "SEEN", str(sandbox.directory / "seen"))
    number = submit(slurm, sandbox, "--stage-env", str(node_local))
    job = slurm.wait_for(number, "COMPLETED", "FAILED", "CANCELLED")
    assert job["JobState"] == "COMPLETED", story(slurm, sandbox, number)
    seen = set((sandbox.directory / "seen").read_text().split("\n")) - {""}
    assert seen == {f"{node_local}/bigtrain-env-{number}-0"}
    assert list(node_local.iterdir()) == []
    assert curve(sandbox.metrics()) == quiet_curve


@pytest.fixture(scope="module")
def spare_node(require_command):
    """A cluster with a node more than the jobs need."""
    if os.geteuid():
        pytest.skip("Slurm's daemons need root to start jobs")
    cluster = Slurm({name: require_command(name) for name in ("munged", "slurmctld", "slurmd")}, nodes=3)
    yield cluster
    cluster.stop()


NVIDIA_SMI = """#!/bin/sh
errors=0
[ "$SLURMD_NODENAME" != n2 ] || errors=3
echo "0, NVIDIA H200, Enabled, $errors, No, No, No, Not Active, 40"
"""


def found_failing(sandbox: RunSandbox) -> list[tuple[str, str]]:
    lines = (sandbox.run / "failing-hosts.jsonl").read_text().splitlines()
    return [(line["host"], line["found_by"]) for line in map(json.loads, lines)]


def test_nodes_that_were_found_failing_are_kept_out_of_the_requeued_job(spare_node, sandbox, monkeypatch):
    """The preflight finds memory errors on a node; the job goes back into the queue and trains on the others."""
    tools = sandbox.directory / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(NVIDIA_SMI)
    (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setitem(spare_node.environment, "PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setitem(spare_node.environment, "OMP_NUM_THREADS", "1")  # two nodes share this machine's cores
    number = submit(spare_node, sandbox, "--doctor", "--exclude-failing")
    job = spare_node.wait_for(number, "COMPLETED", "FAILED", "CANCELLED")
    assert (job["JobState"], job["Restarts"], job["ExcNodeList"]) == ("COMPLETED", "1", "n2"), output(sandbox, number)
    assert words_of_script(sandbox, number)[0] == (
        "the preflight found failing nodes (status 1); back into the queue, without n2"
    )
    assert found_failing(sandbox) == [("n2", "doctor")]
    assert (sandbox.metrics()[-1]["step"], sandbox.metrics()[-1]["world_size"]) == (STEPS, 2)


def test_a_node_whose_weights_were_corrupted_is_kept_out(spare_node, sandbox, quiet_curve, monkeypatch):
    """Also where the run got no further, which would otherwise end the job."""
    monkeypatch.setitem(spare_node.environment, "BIGTRAIN_FAULT_MARKS", str(sandbox.directory))
    settings = ("--max-restarts", "0", "guard.replica_check_every_steps=1")
    number = submit(spare_node, sandbox, "--exclude-failing", *settings, fault="flip,rank=1,step=1")
    job = spare_node.wait_for(number, "COMPLETED", "FAILED", "CANCELLED")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), story(spare_node, sandbox, number)
    ((failing, found_by),) = found_failing(sandbox)
    assert found_by == "corruption" and job["ExcNodeList"] == failing and failing not in job["NodeList"]
    assert curve(sandbox.metrics()) == quiet_curve


def test_data_are_built_on_the_nodes_of_a_job_after_a_loss_as_well(slurm, built, tmp_path):
    """The nodes become a Ray cluster, which is taken down again. A build that lost its nodes goes on in the requeued
    job, and the data are those that processes build."""
    settings = yaml.safe_load(built.config.read_text())
    wanted = {path.parent.parent.name: path.read_bytes() for path in manifests(Path(settings["data"]["dir"]))}
    settings["data"]["dir"] = str(tmp_path / "data")
    settings["run_dir"] = str(tmp_path / "run")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [*CLI, "submit", "slurm", str(config), "--build-data", "--nodes", "2", "--cpus-per-node", "1"]
    done = subprocess.run(command, env=slurm.environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    number, log = done.stdout.strip(), tmp_path / f"run/logs/data-{done.stdout.strip()}.out"
    slurm.wait_until(lambda: log.is_file() and "Ray: " in log.read_text(), 240, lambda: str(slurm.job(number)))
    slurm("scancel", "--signal=KILL", f"{number}.0")
    job = slurm.wait_for(number, "COMPLETED", "FAILED", "CANCELLED", timeout=400)
    said = log.read_text()
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), said
    assert "back into the queue" in said
    assert {path.parent.parent.name: path.read_bytes() for path in manifests(tmp_path / "data")} == wanted
    left = subprocess.run(["pgrep", "-f", f"bigtrain-ray-.*slurm-{number}-"], capture_output=True, text=True)
    assert left.returncode == 1, left.stdout
    assert not list(Path("/tmp").glob(f"bigtrain-ray-*slurm-{number}-1*"))


def manifests(data: Path) -> list[Path]:
    """Of the training data of each source."""
    return sorted(data.glob("*/train/manifest.json"))

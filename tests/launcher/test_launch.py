"""The launch scripts print what they would do, pass on their arguments, and refuse what they do not understand."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.matrix import one_of_each, thinned
from tests.system.run_sandbox import small_settings

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = {
    "local.sh": ["CONFIG"],
    "node.sh": ["train", "CONFIG"],
    "ssh.sh": ["a,b", "CONFIG"],
    "slurm.sbatch": ["CONFIG"],
    "build-data.sbatch": ["CONFIG"],
}
"""The arguments that each needs."""


def call(script: str, *arguments: str, cwd: Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", str(LAUNCH / script), *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, input=stdin, capture_output=True, text=True, timeout=60
    )


def options_of(script: str) -> list[str]:
    return ["--launch", str(LAUNCH)] if script.endswith(".sbatch") else []


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself_and_refuses_what_it_does_not_know(script, tmp_path):
    helped = call(script, *options_of(script), "--help", cwd=tmp_path)
    assert helped.returncode == 0 and f"launch/{script}" in helped.stdout and "#" not in helped.stdout
    assert call(script, *options_of(script), cwd=tmp_path).returncode == 2
    unknown = call(script, *options_of(script), "--floppy", *SCRIPTS[script], cwd=tmp_path)
    assert unknown.returncode == 2 and "--floppy" in unknown.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_prints_commands_and_leaves_no_trace(script, tmp_path):
    shown = call(script, *options_of(script), "--dry-run", *SCRIPTS[script], "a.b=[1, 2]", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    started = "data build --on ray CONFIG" if script == "build-data.sbatch" else "train CONFIG"
    assert started in shown.stdout.replace("\\", "") and "1" in shown.stdout
    assert not shown.stderr and not list(tmp_path.iterdir())


def test_the_commands_of_a_dry_run_work_when_they_are_typed(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nfor each; do printf "%s\\n" "$each"; done\nenv | grep NCCL\n')
    python.chmod(0o755)
    arguments = ("train", "C", 'text="a $HOME \\"b"')
    shown = call("node.sh", "--dry-run", *arguments, cwd=tmp_path, PYTHON=str(python))
    typed = subprocess.run(["bash", "-c", shown.stdout], capture_output=True, text=True)
    done = call("node.sh", *arguments, cwd=tmp_path, PYTHON=str(python))
    assert typed.stdout == done.stdout and 'text="a $HOME \\"b"' in done.stdout


def test_variables_that_are_set_win_over_the_defaults(tmp_path):
    shown = call("local.sh", "--dry-run", "CONFIG", cwd=tmp_path, NCCL_DEBUG="INFO", BIGTRAIN_MAX_RESTARTS="9")
    assert "NCCL_DEBUG" not in shown.stdout and "--max-restarts=9" in shown.stdout
    assert "TORCH_NCCL_DUMP_ON_TIMEOUT" in shown.stdout
    assert "--max-restarts=4" in call("local.sh", "--dry-run", "--max-restarts", "4", "CONFIG", cwd=tmp_path).stdout


def test_one_machine_has_its_fast_checks_before_any_rank_starts(tmp_path):
    """What they find is said once, and nothing is started; `--doctor` makes all checks, `--no-doctor` none."""
    shown = {
        option: call("local.sh", *option.split(), "--dry-run", "CONFIG", "a=b", cwd=tmp_path, NPROC="3").stdout
        for option in ("", "--doctor", "--no-doctor")
    }
    assert "-m bigtrain doctor --fast --quiet --ranks 3 CONFIG a=b\n" in shown[""]
    assert "--fast" not in shown["--doctor"] and "-m bigtrain doctor CONFIG a=b" in shown["--doctor"]
    assert "doctor" not in shown["--no-doctor"]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(small_settings(tmp_path)))
    refused = call("local.sh", str(config), "train.steps=many", cwd=tmp_path)
    assert refused.returncode == 1 and refused.stdout.count("failed   configuration") == 1
    assert "torchrun" not in refused.stdout + refused.stderr
    assert not (tmp_path / "run").exists()


def test_machines_meet_at_the_first_and_the_preflight_one_port_higher(tmp_path):
    arguments = ("--nodes=2:4", "--rendezvous=n1", "--node-rank=1", "--doctor", "--dry-run", "train", "CONFIG")
    shown = call("node.sh", *arguments, cwd=tmp_path, BIGTRAIN_PORT="1234").stdout.replace("\\", "")
    preflight, training = shown.splitlines()[-2:]
    assert "--rdzv-endpoint=n1:1235" in preflight and "doctor CONFIG" in preflight
    assert "--rdzv-endpoint=n1:1234" in training and "train CONFIG" in training
    assert "--nnodes=2:4" in training and "--rdzv-conf=rank=1," in training
    named = call("node.sh", "--nodes=2", "--rendezvous=n1:7", "--dry-run", "train", "CONFIG", cwd=tmp_path).stdout
    assert "--rdzv-endpoint=n1:7 " in named and "rank=" not in named
    alone = call("node.sh", "--nodes=2", "--dry-run", "train", "CONFIG", cwd=tmp_path)
    assert alone.returncode == 2 and "--rendezvous" in alone.stderr


def test_a_pod_s_rank_is_read_from_kubeflow_s_variables(tmp_path):
    kubeflow = {"PET_NNODES": "3", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "m", "PET_MASTER_PORT": "77"}
    shown = call("node.sh", "--dry-run", "train", "CONFIG", cwd=tmp_path, PET_NPROC_PER_NODE="4", **kubeflow).stdout
    for wanted in ("--nnodes=3", "--rdzv-endpoint=m:77", "rdzv-conf=rank=0", "--nproc-per-node=4"):
        assert wanted in shown
    assert "PET_" not in shown


def command_in(folder: Path, name: str, script: str) -> Path:
    """A command of this name that carries out a shell script."""
    folder.mkdir(exist_ok=True)
    command = folder / name
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    return command


NO_NUMBERS = ["09", "abc", "-1", "1 2", "0x1", "1e3", "99999999999999999999", "$(JOB_COMPLETION_INDEX)"]
NO_NUMBERS += ["PATH[$(touch executed)]", "$(touch executed)", "a[`touch executed`]"]
MACHINES = ("node.sh", "--nodes=2", "--rendezvous=n1")
NUMBERS = {
    "--node-rank": (*MACHINES, "--node-rank={}", "train"),
    "--node-rank of one machine": ("node.sh", "--node-rank={}", "train"),
    "PET_NODE_RANK": (*MACHINES, "train"),
    "SLURM_NODEID": (*MACHINES, "train"),
    "BIGTRAIN_PORT": (*MACHINES, "train"),
    "--rendezvous": ("node.sh", "--nodes=2", "--rendezvous=n1:{}", "train"),
    "--min-hosts": ("ssh.sh", "--min-hosts={}", "a,b"),
    "--max-requeues": ("slurm.sbatch", "--launch", str(LAUNCH), "--max-requeues={}"),
    "SLURM_RESTART_COUNT": ("slurm.sbatch", "--launch", str(LAUNCH)),
    "SLURM_JOB_ID": ("slurm.sbatch", "--launch", str(LAUNCH)),
    "--max-requeues of a build": ("build-data.sbatch", "--launch", str(LAUNCH), "--max-requeues={}"),
    "--node-rank of Ray": ("ray-node.sh", "--head=n1:7", "--node-rank={}", "data"),
    "--head of Ray": ("ray-node.sh", "--head=n1:{}", "--node-rank=0", "data"),
    "BIGTRAIN_PORT of a job": ("slurm.sbatch", "--launch", str(LAUNCH)),
}


def kinds(case: tuple[str, str]) -> dict[str, object]:
    """Each place meets a value that is no number, and one that bash would execute."""
    where, value = case
    return {"value": value, "place": (where, "executed" in value)}


PLACES = list(itertools.product(NUMBERS, NO_NUMBERS))


@pytest.mark.parametrize(("where", "value"), thinned(PLACES, keep=one_of_each(PLACES, kinds)))
def test_what_is_not_a_number_is_refused_and_never_executed(where, value, tmp_path):
    """Bash arithmetic would take 09 for an error and a subscript for a command; then nothing may be started."""
    here, tools = tmp_path / "here", tmp_path / "tools"
    here.mkdir()
    (here / "CONFIG").write_text("a: 1\n")
    started = command_in(tools, "python", f'touch "{here}/started"')
    for name in ("ssh", "srun", "scontrol", "squeue"):
        command_in(tools, name, f'exec "{started}"')
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": str(started), "BIGTRAIN_SSH": str(tools / "ssh")}
    if not where.startswith("--"):
        environment[where.split()[0]] = value
    script, *arguments = (argument.replace("{}", value) for argument in NUMBERS[where])
    refused = call(script, *arguments, "CONFIG", cwd=here, **environment)
    assert refused.returncode == 2, refused.stderr
    assert value in refused.stderr and "wanted" in refused.stderr
    assert [path.name for path in here.iterdir()] == ["CONFIG"]


def test_a_rank_and_a_port_of_any_plain_number_are_taken(tmp_path):
    for rank, port in (("0", "1"), ("9", "65534"), ("10", "29400"), ("123456", "8080")):
        arguments = (*MACHINES[1:], f"--node-rank={rank}", "--doctor", "--dry-run", "train", "CONFIG")
        shown = call("node.sh", *arguments, cwd=tmp_path, BIGTRAIN_PORT=port)
        assert shown.returncode == 0, shown.stderr
        preflight, training = shown.stdout.replace("\\", "").splitlines()[-2:]
        for line, number in ((training, int(port)), (preflight, int(port) + 1)):
            assert f"--rdzv-endpoint=n1:{number} " in line and f"=rank={rank}," in line
    shown = call("node.sh", "--nodes=2", "--rendezvous=fe80::1", "--dry-run", "train", "CONFIG", cwd=tmp_path)
    assert "--rdzv-endpoint=fe80::1:29400 " in shown.stdout


@pytest.mark.parametrize("broken", ["sed", "grep"])
def test_hosts_or_settings_that_cannot_be_read_whole_start_nothing(broken, tmp_path):
    """A command that fails in the middle must not leave a job of half of the machines, or without its settings."""
    tools = tmp_path / "tools"
    (tmp_path / "hosts").write_text("a\nb\n")
    command_in(tools, broken, "echo HOME; exit 4")
    path = f"{tools}:{os.environ['PATH']}"
    failed = call("ssh.sh", "--dry-run", "hosts", "CONFIG", cwd=tmp_path, PATH=path)
    assert failed.returncode and not failed.stdout


@pytest.mark.parametrize(
    ("squeue", "ends"),
    [("exit 1", ""), ("echo", ""), ("echo N/A", ""), ("echo 2030-01-01T00:00:00", "1893456000")],
)
def test_the_end_of_a_job_is_slurm_s_or_unknown(squeue, ends, tmp_path):
    """`date` takes an empty text for midnight: the run would have stopped at its first step."""
    tools = tmp_path / "tools"
    command_in(tools, "squeue", squeue)
    command_in(tools, "scontrol", "echo node1 NodeAddr=127.0.0.1")
    command_in(tools, "srun", 'echo "ends: ${BIGTRAIN_END_TIME-}, waits since: ${BIGTRAIN_QUEUED_SINCE-}"')
    slurm = {"SLURM_JOB_ID": "5", "SLURM_JOB_NODELIST": "node1", "TZ": "UTC"}
    arguments = (*options_of("slurm.sbatch"), "--no-doctor", "--run", str(tmp_path / "run"), "CONFIG")
    done = call("slurm.sbatch", *arguments, cwd=tmp_path, PATH=f"{tools}:{os.environ['PATH']}", **slurm)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"ends: {ends}, waits since: {ends}\n"


SCONTROL = r"""
case "$*" in
  "show hostnames none") echo none ;;
  "show hostnames"*) printf "%s\n" n1 n2 ;;
  *"show job"*) echo "JobId=5 Partition=p ReqNodeList=$ASKED ExcNodeList=$ALREADY NumNodes=2" ;;
  "show node"*) echo "NodeAddr=127.0.0.1" ;;
  requeue*) echo "$*" >>called ;;
  update*) echo "$*" >>called; exit "${REFUSES:-0}" ;;
  hold*) echo "$*" >>called ;;
esac
"""
FOUND = '{{"host": "{}", "found_by": "doctor", "reason": "gpus: has 3 errors", "time": 1.0}}\\n'


@pytest.mark.parametrize(
    ("found", "nodes", "of_job", "called", "said"),
    [
        (["n1"], "n1 n2 n3", {}, ["requeue 5", "update JobId=5 ExcNodeList=n1"], "without n1"),
        (["n1", "n1", "n2"], "n1 n2 n3", {}, ["requeue 5", "update JobId=5 ExcNodeList=n1"], "n2 failed, and is not"),
        (["n1"], "n2 n3", {}, ["requeue 5", "update JobId=5 ExcNodeList=n1"], "without n1"),  # drained by Slurm
        (["n1"], "n1 n2", {}, [], "n1 failed, and is not kept out: without it p has fewer than 2 usable nodes"),
        (["n1"], "n1 n2 n3", {"ALREADY": "none"}, ["requeue 5", "update JobId=5 ExcNodeList=none,n1"], "without n1"),
        (["n1"], "n1 n2 n3", {"ASKED": "n[1-2]"}, [], "the job asks for the nodes n[1-2]"),
        (["n7", "x;touch executed", "-x", "$(id)"], "n1 n2 n3", {}, [], "the preflight failed"),
        ([], "n1 n2 n3", {}, [], "the preflight failed"),
        (
            ["n1"], "n1 n2 n3", {"REFUSES": "1"},
            ["requeue 5", "update JobId=5 ExcNodeList=n1", "hold 5"], "scontrol release 5",
        ),
    ],
)  # fmt: skip
def test_failing_nodes_are_kept_out_while_enough_are_left(found, nodes, of_job, called, said, tmp_path):
    """Those that were found since the job started, of its own nodes, and none that the job cannot do without."""
    tools, run = tmp_path / "tools", tmp_path / "run"
    run.mkdir()
    (run / "failing-hosts.jsonl").write_text(FOUND.format("n2").replace("\\n", "\n"))  # of an earlier job
    lines = "".join(FOUND.format(host) for host in found)
    command_in(tools, "squeue", "exit 1")
    command_in(tools, "srun", f"printf '{lines}' >>run/failing-hosts.jsonl; exit 1")
    command_in(tools, "sinfo", f"printf '%s idle\\n' {nodes}; echo n8 drained; echo n9 'idle*'")
    command_in(tools, "scontrol", SCONTROL)
    command_in(tools, "sleep", "exit 0")
    slurm = {"SLURM_JOB_ID": "5", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "PATH": f"{tools}:/bin"}
    slurm |= {"ASKED": "(null)", "ALREADY": "(null)", **of_job}
    arguments = (*options_of("slurm.sbatch"), "--exclude-failing", "--run", "run", "CONFIG")
    done = call("slurm.sbatch", *arguments, cwd=tmp_path, **slurm)
    assert done.returncode == 1 and said in done.stderr, done.stderr
    file = tmp_path / "called"
    tried = file.read_text().splitlines() if file.exists() else []
    assert list(dict.fromkeys(tried)) == called and len(tried) <= len(called) + 20, done.stderr
    assert not (tmp_path / "executed").exists()


WAITING = """#!{python} -S
# in place of the launcher: prints which signal came, and ends with status 75
import signal, sys, time
def stop(number, frame):
    print(signal.Signals(number).name, flush=True)
    sys.exit(75)
for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGQUIT):
    signal.signal(name, stop)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def waiting(tmp_path):
    python = tmp_path / "python"
    python.write_text(WAITING.format(python=sys.executable))
    python.chmod(0o755)
    return python


def start(waiting: Path, *options: str) -> subprocess.Popen:
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "node.sh"), *options, "train", "CONFIG"],
        env={**os.environ, "PYTHON": str(waiting)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("order", ["TERM", "USR1", "QUIT"])
def test_orders_on_stdin_reach_the_launcher_and_its_status_comes_back(waiting, order):
    process = start(waiting, "--orders-on-stdin")
    output, _ = process.communicate(f"{order}\n", timeout=60)
    assert (output, process.returncode) == (f"SIG{order}\n", 75)


def test_a_signal_is_passed_on_whenever_it_comes():
    """Also in the instant in which bash begins to wait, which is where it comes in a few of these."""
    script = f'source "{LAUNCH}/common.sh"; pass_signals_on; echo started; attend sleep 30; exit "$status"'
    asked = []
    for number in range(60):
        process = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "started\n"
        time.sleep(number * 2e-5)
        process.terminate()
        asked.append(process)
    assert {process.wait(60) for process in asked} == {128 + signal.SIGTERM}


def test_the_end_of_the_orders_is_a_request_to_stop(waiting):
    process = start(waiting, "--orders-on-stdin")
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == ("SIGTERM\n", 75)


def test_a_signal_during_the_preflight_ends_it_before_anything_starts(waiting):
    process = start(waiting, "--doctor")
    process.terminate()
    assert process.wait(60) == 75
    assert process.stdout.read() == "SIGTERM\n", "the preflight was asked to stop, and no training was started"


def test_after_a_failed_preflight_nothing_starts(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *doctor*) exit 1 ;; esac\ntouch trained\n')
    python.chmod(0o755)
    failed = call("node.sh", "--doctor", "train", "CONFIG", cwd=tmp_path, PYTHON=str(python))
    assert failed.returncode == 1 and "--no-doctor" in failed.stderr and not (tmp_path / "trained").exists()
    assert call("node.sh", "--no-doctor", "train", "CONFIG", cwd=tmp_path, PYTHON=str(python)).returncode == 0
    assert (tmp_path / "trained").exists()


def test_machines_that_cannot_be_reached_or_lack_files_are_all_named(tmp_path):
    (tmp_path / "c.yaml").write_text("a: 1\n")
    ssh = tmp_path / "ssh"  # one machine answers, from a directory of its own
    ssh.write_text(
        '#!/bin/sh\n[ "$1" = far ] && { echo no route; exit 255; }\n'
        '[ "$1" = odd ] && sed -i s/1/2/ c.yaml\nsh -c "$2"\n'
    )
    ssh.chmod(0o755)
    failed = call("ssh.sh", "here,far", "c.yaml", cwd=tmp_path, BIGTRAIN_SSH=str(ssh))
    assert failed.returncode == 1 and "far: no route" in failed.stderr and "here:" not in failed.stderr
    failed = call("ssh.sh", "odd,far", "c.yaml", cwd=tmp_path, BIGTRAIN_SSH=str(ssh))
    assert "odd:" in failed.stderr and "far: no route" in failed.stderr


@pytest.mark.parametrize(("hard", "status"), [(70, 2), (256, 1)])
def test_more_machines_than_open_files_are_refused_or_the_limit_is_raised(hard, status, tmp_path):
    """The soft limit is raised for as many machines as the hard one allows; more are refused before anything starts."""
    (tmp_path / "c.yaml").write_text("a: 1\n")
    ssh = command_in(tmp_path / "tools", "ssh", "ulimit -Sn >>limits; exit 255")
    hosts = ",".join(f"n{number}" for number in range(20))
    script = f'ulimit -Sn 40; ulimit -Hn {hard}; exec bash "{LAUNCH}/ssh.sh" {hosts} c.yaml'
    environment = {**os.environ, "BIGTRAIN_SSH": str(ssh)}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    if status == 2:
        assert "20 machines need 84 open files here, and the hard limit is 70" in done.stderr
        assert not (tmp_path / "limits").exists()
    else:
        assert set((tmp_path / "limits").read_text().split()) == {"84"}


HOSTILE = st.one_of(
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=12),
    st.sampled_from(
        [
            "a b",
            "'",
            '"',
            "$(touch executed)",
            "; touch executed",
            "a\nb",
            "|",
            "-x",
            "--dry-run",
            "`id`",
            "\\",
            "*",
            "~",
            "%n",
            "&",
        ]
    ),
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(override=HOSTILE, value=HOSTILE)
def test_whatever_a_value_holds_reaches_each_machine_as_it_was(override, value, tmp_path):
    """Through ssh's remote shell an override and a variable arrive unchanged, and nothing is executed."""
    (tmp_path / "c.yaml").write_text("a: 1\n")
    arrived = tmp_path / "arrived"
    arrived.unlink(missing_ok=True)
    python = command_in(tmp_path / "tools", "python", f'printf "%s\\0" "$BIGTRAIN_SOME" "$@" >>"{arrived}"')
    ssh = command_in(tmp_path / "tools", "ssh", 'exec sh -c "$2"')
    done = call(
        "ssh.sh", "--no-doctor", "n1", "c.yaml", f"a={override}", cwd=tmp_path,
        PYTHON=str(python), BIGTRAIN_SSH=str(ssh), BIGTRAIN_SOME=value,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    variable, *arguments, _ = arrived.read_bytes().decode().split("\0")
    assert (variable, arguments[-1], arguments[-2]) == (value, f"a={override}", "c.yaml")
    assert {path.name for path in tmp_path.iterdir()} == {"c.yaml", "arrived", "tools"}


@pytest.mark.parametrize(
    "host",
    [
        "n1,-oProxyCommand=touch executed",
        "a b",
        "a|b",
        "$(touch executed)",
        "a;b",
        "",
        "a,,b",
        "a\n-x",
        "a'",
        "a slots=8",
    ],
)
def test_a_host_that_is_no_name_is_refused(host, tmp_path):
    ssh = command_in(tmp_path / "tools", "ssh", "touch started")
    refused = call("ssh.sh", host, "CONFIG", cwd=tmp_path, BIGTRAIN_SSH=str(ssh))
    assert refused.returncode == 2 and "wanted a name or an address" in refused.stderr
    (tmp_path / "hosts").write_text("n1\nn2 slots=8\n")
    refused = call("ssh.sh", "hosts", "CONFIG", cwd=tmp_path, BIGTRAIN_SSH=str(ssh))
    assert refused.returncode == 2 and "n2 slots=8" in refused.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"hosts", "tools"}


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        (["--processes=abc"], {}),
        (["--processes=0"], {}),
        ([], {"NPROC": "two"}),
        ([], {"BIGTRAIN_MAX_RESTARTS": "-1"}),
        (["--max-restarts=1e3"], {}),
        (["--nodes=3:2", "--rendezvous=n1"], {}),
        (["--nodes=2", "--rendezvous=$(touch executed)"], {}),
        (["--nodes=2", "--rendezvous=-x"], {}),
        ([], {"BIGTRAIN_RENDEZVOUS": "join_timeout=abc"}),
        ([], {"WORLD_SIZE": "2", "RANK": "1"}),
        ([], {"SLURM_STEP_NUM_TASKS": "2"}),
        ([], {"OMPI_COMM_WORLD_SIZE": "2"}),
    ],
)
def test_what_torchrun_would_not_take_or_would_start_alone_is_refused(options, environment, tmp_path):
    """Another launcher that starts this one once for each rank would have each of them train alone."""
    python = command_in(tmp_path / "tools", "python", "touch started")
    refused = call("node.sh", *options, "train", "CONFIG", cwd=tmp_path, PYTHON=str(python), **environment)
    assert refused.returncode == 2 and "wanted" in refused.stderr, refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tools"]
    if not options and "WORLD_SIZE" in next(iter(environment)):
        given = ("--nodes=2", "--rendezvous=n1", "--node-rank=1", "train", "CONFIG")
        assert call("node.sh", *given, cwd=tmp_path, PYTHON=str(python), **environment).returncode == 0


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_script_without_usable_streams_starts_its_job(streams, tmp_path):
    python = command_in(tmp_path / "tools", "python", "touch started")
    command = [
        "env",
        "-i",
        f"PYTHON={python}",
        "bash",
        "-c",
        f'"$0" "$@" {streams}',
        str(LAUNCH / "local.sh"),
        "CONFIG",
    ]
    assert subprocess.run(command, cwd=tmp_path, timeout=60).returncode == 0
    assert (tmp_path / "started").exists()


def test_the_options_of_an_override_s_value_are_not_the_script_s(tmp_path):
    """`--launch` after the configuration is no option of slurm.sbatch."""
    shown = call("slurm.sbatch", *options_of("slurm.sbatch"), "--dry-run", "CONFIG", "--launch", "x", cwd=tmp_path)
    assert shown.returncode == 0 and shown.stdout.strip().endswith("train CONFIG --launch x"), shown.stderr


def test_an_environment_is_packed_and_unpacked_with_the_package(tmp_path):
    """A Python that is unpacked elsewhere runs from there; what cannot be unpacked is an error."""
    environment, copy = tmp_path / "environment", tmp_path / "node" / "copy"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = {"PYTHON": str(environment / "bin" / "python"), "PYTHONPATH": str(LAUNCH.parent)}
    assert call("stage-env.sh", "pack", "packed.tar", cwd=tmp_path, **python).returncode == 0
    for _ in range(2):  # a second one finds it done
        done = call("stage-env.sh", "unpack", "packed.tar", str(copy), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    asked = "import sys, bigtrain; print(sys.prefix, bigtrain.__file__)"
    command = [copy / "bin" / "python", "-c", asked]
    environment_of_rank = {**os.environ, "PYTHONPATH": str(copy / "checkout")}
    said = subprocess.run(command, env=environment_of_rank, capture_output=True, text=True, cwd="/").stdout.split()
    assert said == [str(copy), str(copy / "checkout" / "bigtrain" / "__init__.py")]
    assert sorted(path.name for path in copy.parent.iterdir()) == ["copy"]
    (tmp_path / "broken.tar").write_text("no archive")
    failed = call("stage-env.sh", "unpack", "broken.tar", str(tmp_path / "new"), cwd=tmp_path)
    assert failed.returncode != 0 and not (tmp_path / "new").exists()


def test_the_environment_is_not_staged_into_an_image_or_a_relative_folder(tmp_path):
    for options in (["--stage-env", "here"], ["--stage-env", "/dev/shm", "--container", "image"]):
        refused = call("slurm.sbatch", *options_of("slurm.sbatch"), *options, "--dry-run", "CONFIG", cwd=tmp_path)
        assert refused.returncode == 2 and "--stage-env" in refused.stderr

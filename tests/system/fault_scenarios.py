"""The scenarios of the fault table: each plays some rows in one run and sees to it that their promises are kept."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import yaml

from bigtrain.checkpoint import StorageTiers
from bigtrain.rundir.json_lines import read_json_lines
from bigtrain.train.stop import ONE_ORDER_SECONDS
from tests.observe.wandb_server import WandbServer, history
from tests.system.fault_runs import (
    Launched,
    Outcome,
    ScenarioRuns,
    after,
    assert_nothing_lost,
    last_digests,
    starts,
    steps_done,
    wait_for_all,
)
from tests.system.run_sandbox import ROOT, STATUS_STOPPED, RunSandbox, curve

if TYPE_CHECKING:
    from tests.system.fault_table import Fault

Play = Callable[[ScenarioRuns, "Sequence[Fault]"], list[Outcome]]

LENIENCE = 6
"""How many times longer than promised a fault may go unnoticed where the machine has other work too."""
UNHURRIED = "slow,rank=*,at=step,delay=0.4"
"""Steps that take long enough to hit something between them."""
SLOW_SAVE_SECONDS = ONE_ORDER_SECONDS + 7
"""A save that is still under way when signals after the first are no longer taken for the same."""


def noticed(run: Launched, fault: Fault, strike: float, until: float = float("inf")) -> float:
    """Seconds from a fault to the line that tells of it, which has to come in time."""
    heard = run.heard(*fault.says, since=strike - 0.1, until=until)
    assert heard is not None, f"{fault.what}: nothing has {fault.says}:\n{run.output[-8000:]}"
    seconds = max(0.0, heard - strike)
    assert seconds <= LENIENCE * fault.within, f"{fault.what}: noticed after {seconds:.1f} s"
    return round(seconds, 1)


def restarting(*overrides: str, environment: dict[str, str] | None = None) -> Play:
    """Each row strikes one start; the launcher makes the next one by itself, until the run is at its end."""

    def play(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
        orders = ";".join(f"{fault.planted},start={start}" for start, fault in enumerate(faults))
        run = runs.launch(*overrides, orders=orders, restarts=len(faults) + 1, environment=environment)
        run.finish()
        strikes = run.strikes()
        assert len(strikes) == len(faults), f"{len(strikes)} orders were carried out:\n{run.output[-8000:]}"
        assert_nothing_lost(runs.sandbox, runs.undisturbed)
        outcomes = []
        for fault, (strike, until) in zip(faults, itertools.pairwise([*strikes, float("inf")]), strict=True):
            outcome = after(runs.sandbox, strike, until)
            outcome.noticed_after = noticed(run, fault, strike, until)
            outcomes.append(outcome)
        return outcomes

    return play


def rewinding(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
    """Numbers out of line: the run goes back, leaves the batches out, and is then one that never had them."""
    sandbox = runs.sandbox
    run = runs.launch(
        *("checkpoint.every_steps=2", "guard.skip_before=1", "guard.skip_after=1", "guard.confirm_steps=1"),
        *("guard.window=4", "guard.loss_z=100", "guard.grad_norm_z=null"),
        orders=";".join(fault.planted for fault in faults),
    )
    run.finish()
    assert len(starts(sandbox)) == 1, "a process was started again"
    strikes = run.strikes()
    decisions = list(read_json_lines(sandbox.run / "decisions.jsonl"))
    assert len(strikes) == len(decisions) == len(faults)

    settings = yaml.safe_load(sandbox.config.read_text())
    settings["data"]["skip"] = skips = []
    for decision in decisions:
        skips.insert(decision["position"], decision["skip"])
    settings["run_dir"] = str(sandbox.directory / "by-hand/run")
    by_hand = RunSandbox(sandbox.directory / "by-hand", sandbox.directory / "by-hand/config.yaml")
    by_hand.directory.mkdir()
    by_hand.config.write_text(yaml.safe_dump(settings))
    status, output = by_hand.train(2)
    assert status == 0, output
    assert curve(sandbox.metrics()) == curve(by_hand.metrics()) != curve(runs.undisturbed.metrics())
    assert last_digests(sandbox.run) == last_digests(by_hand.run) != {}

    outcomes = []
    for fault, (strike, until) in zip(faults, itertools.pairwise([*strikes, float("inf")]), strict=True):
        outcome = after(sandbox, strike, until)
        outcome.noticed_after = noticed(run, fault, strike, until)
        outcomes.append(outcome)
    return outcomes


def suspect_rank(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
    """A straggler, and then a weight that rots in one of its copies."""
    slow, rotten = faults
    run = runs.launch(
        *("guard.straggler_every_steps=2", "guard.replica_check_every_steps=1", "checkpoint.asynchronous=false"),
        orders=f"{slow.planted},start=0;{rotten.planted}",
        restarts=1,
    )
    run.finish()
    (strike,) = run.strikes()
    assert_nothing_lost(runs.sandbox, runs.undisturbed)
    straggler = next(event for event in runs.sandbox.events() if event["event"] == "straggler")
    assert straggler["rank"] == 1 and straggler["seconds"] > straggler["others_seconds"] + 0.05
    (corruption,) = [event for event in runs.sandbox.events() if event["event"] == "corruption"]
    assert [odd["rank"] for odd in corruption["odd"]] == [1]
    told = Outcome(
        noticed(run, slow, steps_done(runs.sandbox)[5]["time"]), remark="after six steps that it was slow in"
    )
    outcome = after(runs.sandbox, strike)
    outcome.noticed_after = noticed(run, rotten, strike)
    return [told, outcome]


def asked_to_stop(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
    """SIGTERM; SIGUSR1 from a queue; more of them while the save takes long; a second SIGTERM while it hangs."""
    outcomes = []

    def stopped(run: Launched, strike: float, fault: Fault) -> None:
        run.finish(STATUS_STOPPED)
        outcomes.append(Outcome(noticed(run, fault, strike), remark=f"left after {time.time() - strike:.1f} s"))
        assert steps_done(runs.sandbox)[-1]["step"] == StorageTiers.of(runs.sandbox.run).all()[-1].step

    for fault, number in zip(faults[:2], (signal.SIGTERM, signal.SIGUSR1), strict=True):
        run = runs.launch(orders=UNHURRIED)
        run.wait_for_steps(2)
        strike = time.time()
        run.process.send_signal(number)
        stopped(run, strike, fault)

    slow_save = f"slow,rank=1,at=save.writing,delay={SLOW_SAVE_SECONDS}"
    run = runs.launch("checkpoint.every_steps=100", orders=f"{UNHURRIED};{slow_save}")
    run.wait_for_steps(1)
    strike = time.time()
    run.process.send_signal(signal.SIGUSR1)
    time.sleep(ONE_ORDER_SECONDS + 2)
    assert run.heard("stop: SIGUSR1", since=strike) is None, "the save was over before there was another signal"
    for number in (signal.SIGUSR1, signal.SIGTERM):
        run.process.send_signal(number)
    stopped(run, strike, faults[2])

    run = runs.launch("checkpoint.asynchronous=false", orders=f"{UNHURRIED};hang,rank=1,at=save.writing")
    run.wait_for_steps(1)
    run.process.send_signal(signal.SIGTERM)
    run.wait_until(lambda: bool(run.strikes()), "no save began")
    time.sleep(ONE_ORDER_SECONDS + 1)
    strike = time.time()
    run.process.send_signal(signal.SIGTERM)
    assert run.finish(None) not in (0, STATUS_STOPPED)
    seconds = time.time() - strike
    assert seconds <= LENIENCE * faults[3].within, f"left after {seconds:.1f} s"
    outcomes.append(Outcome(round(seconds, 1)))

    runs.launch().finish()
    assert_nothing_lost(runs.sandbox, runs.undisturbed)
    return outcomes


def time_is_up(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
    """The end of the time that was allotted: of a minute and a quarter the last fifth is for a step and the way out."""
    end = time.time() + 75
    run = runs.launch(orders=UNHURRIED.replace("0.4", "8"), environment={"BIGTRAIN_END_TIME": f"{end:.0f}"})
    run.finish(STATUS_STOPPED)
    left = end - time.time()
    assert left > 0, "left after the end of its time"
    assert steps_done(runs.sandbox)[-1]["step"] == StorageTiers.of(runs.sandbox.run).all()[-1].step
    runs.launch().finish()
    assert_nothing_lost(runs.sandbox, runs.undisturbed)
    return [Outcome(remark=f"left {left:.1f} s before the end of its time")]


def launcher_lost(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
    """kill -9 of the launcher itself: nobody is left who could restart anything."""
    run = runs.launch(orders=UNHURRIED)
    run.wait_for_steps(3)
    ranks = list(run.ranks().values())
    assert len(ranks) == 2
    strike = time.time()
    run.process.kill()
    wait_for_all(ranks)
    run.finish(-signal.SIGKILL)
    gone = time.time() - strike
    assert gone <= LENIENCE * faults[0].within
    assert steps_done(runs.sandbox)[-1]["step"] == StorageTiers.of(runs.sandbox.run).all()[-1].step
    runs.launch().finish()
    assert_nothing_lost(runs.sandbox, runs.undisturbed)
    outcome = after(runs.sandbox, strike + gone)
    return [Outcome(noticed(run, faults[0], strike), outcome.resumed_after, 0, f"no rank left after {gone:.1f} s")]


def launched_twice(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
    """A second job in the run directory of one that is at work."""
    first = runs.launch(orders=UNHURRIED.replace("0.4", "4"))
    first.wait_for_steps(1)
    second = runs.launch()
    second.finish(1)
    outcome = Outcome(noticed(second, faults[0], second.began))
    assert first.process.poll() is None, "the first job did not outlive the second"
    first.finish()
    assert len(starts(runs.sandbox)) == 1
    assert_nothing_lost(runs.sandbox, runs.undisturbed)
    return [outcome]


def port_taken(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
    """Somebody else listens where the ranks want to meet."""
    with closing(socket.socket()) as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        port = somebody.getsockname()[1]
        fixed = ("--nnodes=1", "--master-addr=127.0.0.1", f"--master-port={port}")
        run = runs.launch(rendezvous=fixed)
        run.finish(1)
    outcome = Outcome(noticed(run, faults[0], run.began))
    runs.launch(rendezvous=fixed).finish()
    assert_nothing_lost(runs.sandbox, runs.undisturbed)
    return [outcome]


def damaged_at_rest(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
    """What a start may find: rot in the newest checkpoints, half a save, half a line, a lock whose holder is dead."""
    sandbox = runs.sandbox
    status, output = sandbox.train(2, "train.stop_after=10")
    assert status == STATUS_STOPPED, output
    newest, before = (StorageTiers.of(sandbox.run).all()[number] for number in (-1, -2))
    assert (newest.step, before.step) == (10, 8)
    rotten = next((sandbox.run / "checkpoints" / newest.name).glob("state-00001*"))
    content = bytearray(rotten.read_bytes())
    content[len(content) // 2] ^= 1
    rotten.write_bytes(content)
    manifest = sandbox.run / "checkpoints" / before.name / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[: manifest.stat().st_size // 2])
    (sandbox.run / "checkpoints/.step-00000011.staging").mkdir()
    (sandbox.run / "checkpoints/.step-00000011.staging/state-00000-of-00002.safetensors").write_bytes(b"half")
    with (sandbox.run / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b'{"step": 11, "loss": 6.0')
    (sandbox.run / ".lock").write_text("process 999999 on a host that is gone")

    run = runs.launch()
    run.finish()
    assert_nothing_lost(sandbox, runs.undisturbed)
    assert starts(sandbox)[-1]["step"] == 4
    assert not list((sandbox.run / "checkpoints").glob(".*"))
    outcome = after(sandbox, run.began)
    heard = [noticed(run, fault, run.began) if fault.says else None for fault in faults]
    return [Outcome(at, outcome.resumed_after, outcome.steps_repeated) for at in heard]


def disk_full(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
    """A file system that is full at a save, one that is full at a line of metrics.jsonl; then there is room again."""
    sandbox = runs.sandbox
    outcomes = []
    for fault, size, overrides in (
        (faults[0], "6m", ["checkpoint.every_steps=2"]),
        (faults[1], "1m", [f"checkpoint.dir={sandbox.directory / 'elsewhere'}"]),
    ):
        sandbox.run.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(sandbox.run)], check=True)
        try:
            run = runs.launch(*overrides, orders=UNHURRIED, restarts=3)
            if fault is faults[1]:
                run.wait_for_steps(5)
                strike = time.time()
                fill(sandbox.run / "filler")
            run.finish(1)
            if fault is faults[0]:
                strike = [event["time"] for event in sandbox.events() if event["event"] == "save"][-1]
            assert len(starts(sandbox)) == 1, "a start that cannot help was made"
            seconds = noticed(run, fault, strike)
            subprocess.run(["mount", "-o", "remount,size=64m", str(sandbox.run)], check=True)
            (sandbox.run / "filler").unlink(missing_ok=True)
            again = runs.launch(*overrides)
            again.finish()
            outcome = after(sandbox, again.began)
            outcomes.append(Outcome(seconds, outcome.resumed_after, outcome.steps_repeated))
            assert curve(sandbox.metrics()) == curve(runs.undisturbed.metrics())
        finally:
            for left in runs.launched:
                if left.process.poll() is None:
                    left.kill()
            subprocess.run(["umount", str(sandbox.run)], check=True)
    return outcomes


def fill(path: os.PathLike[str]) -> None:
    """Write until there is no room for a byte."""
    with open(path, "wb", buffering=0) as file:  # noqa: PTH123
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def disk_failing(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
    """The kernel answers with an I/O error: to the fsync of a checkpoint's file, then to a line of metrics.jsonl."""
    run_dir = runs.sandbox.run
    staged = run_dir / "checkpoints/.step-00000004.staging/state-00001-of-00002.safetensors"
    metrics = run_dir / "metrics.jsonl"
    outcomes = []
    for fault, path, inject in ((faults[0], staged, "fsync:error=EIO"), (faults[1], metrics, "write:error=EIO:when=7")):
        traced = f"trace={inject.partition(':')[0]}"  # alone: else each call of each process waits for strace
        strace = ("strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-P", str(path), "-e", traced)
        run = runs.launch(under=(*strace, "-e", f"inject={inject}"), restarts=3)
        run.finish(1)
        last = steps_done(runs.sandbox)[-1]["time"]
        outcomes.append(Outcome(noticed(run, fault, last)))
    again = runs.launch()
    again.finish()
    assert_nothing_lost(runs.sandbox, runs.undisturbed)
    outcomes[-1].resumed_after = after(runs.sandbox, again.began).resumed_after
    return outcomes


def slow_disk(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
    """Every write of a checkpoint takes seconds: training goes on beside it."""
    orders = "slow,rank=1,at=save.writing,delay=2;slow,rank=*,at=step,delay=0.2"
    run = runs.launch(orders=orders)
    run.finish()
    assert_nothing_lost(runs.sandbox, runs.undisturbed)
    events = runs.sandbox.events()
    durable = {event["step"]: event["time"] for event in events if event["event"] == "commit"}
    saved = {event["step"]: event["time"] for event in events if event["event"] == "save"}
    beside = [line["step"] for line in steps_done(runs.sandbox) if saved[4] < line["time"] < durable[4]]
    assert len(beside) >= 3, f"steps {beside} while the save was written"
    return [Outcome(remark=f"{len(beside)} steps were done while one save was written")]


def clock_jumps(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
    """The wall clock goes forward by an hour and then back by two, while steps go on."""
    clock, library = (runs.sandbox.directory / name for name in ("clock", "shifted_clock.so"))
    source = ROOT / "tests/system/shifted_clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    clock.write_text("0")
    faked = {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(clock)}
    run = runs.launch("checkpoint.every_minutes=10", orders=UNHURRIED, environment=faked)
    for step, shift in ((3, "3600"), (7, "-3600")):
        run.wait_for_steps(step)
        clock.write_text(shift)
    run.finish()
    lines = steps_done(runs.sandbox)
    jumps = [b["time"] - a["time"] for a, b in itertools.pairwise(lines)]
    assert max(jumps) > 3000 and min(jumps) < -3000, f"the clock did not jump: {jumps}"
    assert all(0 < line["step_seconds"] < 100 for line in lines)
    events = runs.sandbox.events()
    assert [event["step"] for event in events if event["event"] == "save"] == [4, 8, 12]
    assert all(0 <= event["seconds"] < 100 for event in events if "seconds" in event)
    assert_nothing_lost(runs.sandbox, runs.undisturbed)
    return [Outcome()]


def surroundings(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
    """What the user's shell, folders and disks may be like: one start is refused, the next one trains to its end."""
    refused, _closed_terminal, no_flock, walltime, modules = faults
    sandbox = runs.sandbox
    (sandbox.directory / "file").write_text("not a folder")
    run = runs.launch(f"checkpoint.dir={sandbox.directory / 'file' / 'checkpoints'}", restarts=3)
    run.finish(1)
    assert steps_done(sandbox) == [] and run.output.count("error: ") == 1, run.output
    outcomes = [Outcome(noticed(run, refused, run.began))]

    own = ("secrets", "statistics", "tokenizers", "wandb")
    for name in own:
        (sandbox.directory / f"{name}.py").write_text("raise ImportError('this is a module of the user')\n")
    traced = ("strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=flock")
    run = runs.launch(
        orders=UNHURRIED,
        under=("nohup", *traced, "-e", "inject=flock:error=ENOSYS"),
        environment={"SLURM_JOB_END_TIME": f"{time.time() - 7200:.0f}"},
    )
    run.wait_for_steps(3)
    strike = time.time()
    os.killpg(run.process.pid, signal.SIGHUP)
    for rank in run.ranks().values():
        rank.send_signal(signal.SIGHUP)
    run.finish()
    assert len(starts(sandbox)) == 1, "a process was started again"
    assert_nothing_lost(sandbox, runs.undisturbed)
    assert not list(sandbox.run.rglob("*.owner")), "a lock was left"
    followed = sum(line["time"] > strike for line in steps_done(sandbox))
    outcomes.append(Outcome(remark=f"{followed} steps followed"))
    outcomes += [Outcome(noticed(run, fault, run.began)) for fault in (no_flock, walltime)]
    assert "this is a module of the user" not in run.output, modules.what
    return [*outcomes, Outcome(remark=" and ".join((", ".join(own[:-1]), own[-1])) + " lay there")]


def tracker_outage(runs: ScenarioRuns, faults: Sequence[Fault]) -> list[Outcome]:
    """The server of W&B is there at the start, and refuses every connection from the middle on."""
    server, sandbox = WandbServer(), runs.sandbox
    settings = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567"}
    run = runs.launch("tracking.wandb=online", "tracking.patience_seconds=5", orders=UNHURRIED, environment=settings)
    run.wait_until(lambda: "UpsertBucket" in server.queries, "W&B did not open its run")
    run.wait_for_steps(3)
    strike = time.time()
    server.close()
    run.finish()
    assert len(starts(sandbox)) == 1, "a process was started again"
    assert_nothing_lost(sandbox, runs.undisturbed)
    (folder,) = (sandbox.run / "wandb").glob("run-*")
    assert [row["step"] for row in history(folder) if "loss" in row] == list(range(1, 13))
    lines = steps_done(sandbox)
    followed = sum(line["time"] > strike for line in lines)
    assert followed, "no step was done without the server"
    return [Outcome(noticed(run, faults[0], lines[-1]["time"]), remark=f"{followed} steps followed")]

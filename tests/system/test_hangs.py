"""A run that stands still ends by itself and names who held it up; one that ends by itself is started again."""

import os
import signal
import socket
import time

import pytest

from bigtrain.base.exit_status import CRASHED, HUNG
from bigtrain.base.faults import FAULT
from tests.refusals import assert_refused
from tests.system.run_sandbox import curve, finish

BOUND = 6
WATCHED = [f"guard.hang_seconds={BOUND}", "evaluate.every_steps=null"]


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_its_host_and_stack_and_all_leave(sandbox, monkeypatch):
    monkeypatch.setenv(FAULT, "hang,rank=1,at=optimizer,step=4")
    status, output = sandbox.train(2, *WATCHED)
    assert status == HUNG, output
    (event,) = [event for event in sandbox.events() if event["event"] == "hang"]
    (odd,) = event["odd"]
    assert (odd["rank"], odd["host"]) == (1, socket.gethostname())
    assert BOUND <= event["seconds"] <= BOUND + 5  # of time that this rank has run
    assert f"rank 1 on {socket.gethostname()} (process {odd['pid']}) has stalled" in output and "step 4" in output
    written = sorted((sandbox.run / "logs").glob("hang-*"))
    assert [path.name[-14:] for path in written] == ["rank-00000.txt", "rank-00001.txt"]
    assert "in optimize" in written[1].read_text() and "all_reduce" in written[0].read_text()


@pytest.mark.long
def test_a_background_save_that_does_not_end_is_a_named_hang(sandbox, monkeypatch):
    """A save behind the training that does not end is a hang with a name."""
    monkeypatch.setenv(FAULT, "hang,rank=1,at=save.writing,count=1;slow,rank=*,at=step,delay=4")
    status, output = sandbox.train(2, "guard.hang_slow_seconds=20", "checkpoint.every_steps=2", timeout=300)
    assert status == HUNG, output
    (event,) = [event for event in sandbox.events() if event["event"] == "hang"]
    assert [odd["rank"] for odd in event["odd"]] == [1] and "a background save" in event["verdict"]
    assert event["step"] > 2  # the training had gone on


@pytest.mark.long
@pytest.mark.parametrize(("point", "stage"), [("eval", 0), ("forward", 3)])
def test_wherever_a_rank_hangs_it_is_the_one_that_is_named(sandbox, monkeypatch, point, stage):
    """Also rank 0, and at stage 3, where every layer is a collective."""
    rank = 0 if stage else 1
    monkeypatch.setenv(FAULT, f"hang,rank={rank},at={point}")
    bounds = ["guard.hang_seconds=5", "guard.hang_slow_seconds=20"]
    precision = "bf16" if stage else "fp32"
    status, output = sandbox.train(
        2, *bounds, f"engine.zero_stage={stage}", f"engine.precision={precision}", "engine.dry_run=false", timeout=300
    )
    assert status == HUNG, output
    (event,) = [event for event in sandbox.events() if event["event"] == "hang"]
    assert [odd["rank"] for odd in event["odd"]] == [rank], event


@pytest.mark.long
def test_a_process_that_is_alone_notices_by_itself(sandbox, monkeypatch):
    monkeypatch.setenv(FAULT, "hang,rank=0,at=data,count=2")
    done = sandbox.bigtrain("train", sandbox.config, *WATCHED)
    assert done.returncode == HUNG, done.stderr
    assert "rank 0" in done.stderr and "waiting for data" in done.stderr
    (stacks,) = (sandbox.run / "logs").glob("hang-*")
    assert "bigtrain-loader" in stacks.read_text()


@pytest.mark.long
def test_a_run_comes_back_by_itself_from_whatever_befalls_its_ranks(undisturbed, sandbox):
    """Each of these starts is cut short in another way; together they do what the undisturbed run did."""
    training = sandbox.start_training(
        2,
        *WATCHED[:1],
        "checkpoint.asynchronous=false",
        "checkpoint.every_steps=2",
        restarts=2,
        faults="kill,rank=1,at=step,step=4,start=0;stop,rank=0,at=step,step=6,start=1;exit,rank=1,at=data,count=2,start=2;"
        "crash,rank=0,at=backward,step=12,start=3",
    )
    status, output = finish(training, timeout=400)
    assert status == 0, output
    assert curve(sandbox.metrics()) == curve(undisturbed.metrics())
    told = [line for line in output.splitlines() if ": restart " in line]
    assert len(told) == 4, output
    assert "rank 1" in told[0] and "killed by SIGKILL" in told[0]
    assert "hung" in told[1] and "rank 0" in output and "does not answer" in output
    assert all("crashed" in line for line in told[2:])
    (hang,) = [event for event in sandbox.events() if event["event"] == "hang"]
    assert [odd["rank"] for odd in hang["odd"]] == [0]
    assert sum(event["event"] == "resume" for event in sandbox.events()) == 4


@pytest.mark.long
def test_a_run_that_dies_again_and_again_without_a_commit_is_given_up(sandbox):
    training = sandbox.start_training(1, restarts=1, faults="crash,rank=0,at=load;crash,rank=0,at=step,step=3")
    status, output = finish(training)
    assert status == CRASHED, output
    assert output.count(": restart ") == 1 and "given up after 1 restart(s) without a commit" in output


@pytest.mark.slow
def test_a_mistake_of_the_user_s_is_reported_once(sandbox):
    assert_refused(finish(sandbox.start_training(2, "train.global_batch_size=7", restarts=3)), "global_batch_size")


@pytest.mark.long
def test_a_stop_signal_reaches_a_launcher_between_two_starts(sandbox):
    training = sandbox.start_training(1, restarts=100, faults="kill,rank=0,at=step,step=1")
    end = time.monotonic() + 120
    while not (sandbox.run / ".lock").exists():
        assert time.monotonic() < end and training.poll() is None
        time.sleep(0.05)
    os.kill(training.pid, signal.SIGTERM)
    status, output = finish(training)
    assert status in (75, 137), output  # the worker may have been about to die when it was asked

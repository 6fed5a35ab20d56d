"""Killed or asked to stop at any moment, a run goes on as if nothing had happened."""

import os
import random
import signal
import time

import psutil
import pytest

from tests.system.run_sandbox import STATUS_STOPPED, curve, finish, workers_of

# CI plays what is marked long here in the table of faults.
ALSO = pytest.mark.long


@pytest.mark.parametrize(
    "victims", [pytest.param("one rank", marks=ALSO), "all ranks", pytest.param("launcher", marks=ALSO)]
)
def test_after_kill_9_the_loss_curve_is_that_of_an_undisturbed_run(undisturbed, sandbox, victims):
    # Not behind the training: by step 5 the checkpoint of step 4 has to be there.
    training = sandbox.start_training(2, "checkpoint.asynchronous=false")
    sandbox.wait_for_step(random.randint(5, 9))
    pids = {"one rank": workers_of(training)[:1], "all ranks": workers_of(training), "launcher": [training.pid]}
    for pid in pids[victims]:
        os.kill(pid, signal.SIGKILL)
    status, output = finish(training)
    assert status != 0, output

    status, output = sandbox.train(2)
    assert status == 0, output
    assert curve(sandbox.metrics()) == curve(undisturbed.metrics())
    assert any(event["event"] == "resume" for event in sandbox.events())


def test_no_rank_outlives_a_launcher_that_is_killed_while_they_start(undisturbed, sandbox):
    for delay in (0.5, 3.0):
        training = sandbox.start_training(2)
        while not (ranks := psutil.Process(training.pid).children()):
            time.sleep(0.01)
        time.sleep(delay)
        os.kill(training.pid, signal.SIGKILL)
        finish(training, timeout=60)  # until nobody holds the other end of its output
        assert psutil.wait_procs(ranks, timeout=10)[1] == []
    status, output = sandbox.train(2)
    assert status == 0, output
    assert curve(sandbox.metrics()) == curve(undisturbed.metrics())


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_commits_leaves_with_75_and_the_next_start_goes_on(undisturbed, sandbox, stop_signal):
    training = sandbox.start_training(2)
    sandbox.wait_for_step(2)
    os.kill(training.pid, stop_signal)
    status, output = finish(training)
    assert status == STATUS_STOPPED, output
    stopped_at = sandbox.metrics()[-1]["step"]
    assert stopped_at < 12
    assert (sandbox.run / f"checkpoints/step-{stopped_at:08d}/manifest.json").is_file()

    status, output = sandbox.train(2)
    assert status == 0, output
    assert curve(sandbox.metrics()) == curve(undisturbed.metrics())


def test_stop_after_commits_leaves_with_75_and_does_not_bend_the_schedule(undisturbed, sandbox):
    assert sandbox.train(2, "train.stop_after=5")[0] == STATUS_STOPPED
    assert sandbox.metrics()[-1]["step"] == 5
    assert sandbox.train(2, "train.stop_after=5")[0] == STATUS_STOPPED
    assert sandbox.metrics()[-1]["step"] == 5
    status, output = sandbox.train(2)
    assert status == 0, output
    assert curve(sandbox.metrics()) == curve(undisturbed.metrics())


def test_a_run_killed_before_its_first_checkpoint_starts_over(undisturbed, sandbox):
    training = sandbox.start_training(2, "checkpoint.every_steps=100")
    sandbox.wait_for_step(2)
    for pid in workers_of(training):
        os.kill(pid, signal.SIGKILL)
    finish(training)
    status, output = sandbox.train(2)
    assert status == 0, output
    assert curve(sandbox.metrics()) == curve(undisturbed.metrics())

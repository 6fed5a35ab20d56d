"""Killed or asked to stop at any moment, a run goes on as if nothing had happened."""

import contextlib
import os
import random
import signal
import time

import psutil
import pytest

from tests.matrix import thinned
from tests.system.run_sandbox import STATUS_STOPPED, curve, finish, kill_ranks, workers_of

# CI plays what is marked long here in the fault table.


def test_after_kill_9_the_loss_curve_is_that_of_an_undisturbed_run(undisturbed, sandbox):
    # Synchronous: by step 5 the checkpoint of step 4 has to be there.
    training = sandbox.start_forked(2, "checkpoint.asynchronous=false")
    sandbox.wait_for_step(random.randint(5, 9))
    kill_ranks(training)

    status, output = sandbox.train(2)
    assert status == 0, output
    assert curve(sandbox.metrics()) == curve(undisturbed.metrics())
    assert any(event["event"] == "resume" for event in sandbox.events())


@pytest.mark.long
@pytest.mark.parametrize("victims", ["one rank", "all ranks", "launcher"])
def test_the_same_after_kill_9_of_processes_of_a_launcher(undisturbed, sandbox, victims):
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


@pytest.mark.parametrize("delay", thinned([0.5, 3.0], keep=[0.5]))
def test_no_rank_outlives_a_launcher_that_is_killed_while_they_start(undisturbed, sandbox, delay):
    training = sandbox.start_training(2)
    while not (ranks := psutil.Process(training.pid).children()):
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(training.pid, signal.SIGKILL)
    finish(training, timeout=60)  # until no process holds the other end of its output
    assert psutil.wait_procs(ranks, timeout=60)[1] == []
    status, output = sandbox.train(2)
    assert status == 0, output
    assert curve(sandbox.metrics()) == curve(undisturbed.metrics())


@pytest.mark.parametrize("stop_signal", thinned([signal.SIGTERM, signal.SIGINT], keep=[signal.SIGTERM]))
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


@pytest.mark.long
def test_a_run_that_ignores_hang_up_outlives_its_terminal(undisturbed, sandbox):
    """As with nohup: HUP and INT to launcher and ranks change nothing, and TERM still commits."""
    with signals_ignored(signal.SIGHUP, signal.SIGINT):
        training = sandbox.start_training(2)
    sandbox.wait_for_step(2)
    for pid in (training.pid, *workers_of(training)):
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signal.SIGINT)
    sandbox.wait_for_step(5)
    os.kill(training.pid, signal.SIGTERM)
    status, output = finish(training)
    assert status == STATUS_STOPPED, output
    assert sandbox.metrics()[-1]["step"] >= 5 and "SIGTERM" in str(sandbox.events()[-1])


@contextlib.contextmanager
def signals_ignored(*numbers):
    """What is started meanwhile inherits that these signals are ignored."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_stop_after_commits_leaves_with_75_and_does_not_bend_the_schedule(undisturbed, sandbox):
    assert sandbox.train(2, "train.stop_after=5")[0] == STATUS_STOPPED
    assert sandbox.metrics()[-1]["step"] == 5
    assert sandbox.train(2, "train.stop_after=5")[0] == STATUS_STOPPED
    assert sandbox.metrics()[-1]["step"] == 5
    status, output = sandbox.train(2)
    assert status == 0, output
    assert curve(sandbox.metrics()) == curve(undisturbed.metrics())


def test_a_run_killed_before_its_first_checkpoint_starts_over(undisturbed, sandbox):
    training = sandbox.start_forked(2, "checkpoint.every_steps=100")
    sandbox.wait_for_step(2)
    kill_ranks(training)
    status, output = sandbox.train(2)
    assert status == 0, output
    assert curve(sandbox.metrics()) == curve(undisturbed.metrics())

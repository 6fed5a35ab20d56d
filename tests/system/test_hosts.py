"""A run on several hosts goes on without those that are lost and with those that come, and nothing of it is lost.

The hosts are namespaces on one bridge (`hosts.py`): their processes die as in a power cut, their cables can be pulled.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from bigtrain.base.exit_status import CRASHED
from bigtrain.base.faults import FAULT
from bigtrain.rundir.json_lines import read_json_lines
from tests.system.hosts import Host, Network, Started, launcher, skip_unless_possible
from tests.system.run_sandbox import STATUS_STOPPED, RunSandbox, curve

pytestmark = pytest.mark.long

HANG_SECONDS = 12
SHORT_SECONDS = 3
"""Of a cut that TCP mends within HANG_SECONDS: it tries again after 0.2, 0.6, 1.4, 3 and 6.2 seconds."""
PATIENCE = 240
"""Seconds for what takes some twenty on a quiet machine."""


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    skip_unless_possible()
    network = Network(tmp_path)
    try:
        yield network
    finally:
        network.close()


def start(
    sandbox: RunSandbox, hosts: list[Host], master: Host, nodes: str, command: str, *options: str
) -> dict[str, Started]:
    """A command on these hosts, which meet at the master."""
    what = ["-m", "bigtrain", command, sandbox.config, *options]
    slow = {FAULT: "slow,rank=0,at=step,delay=0.2"}  # so that there is something left to do when a host comes
    return {
        host.name: host.start(
            *launcher(nodes, master.name, *what, is_master=host is master), environment=slow if ":" in nodes else None
        )
        for host in hosts
    }


def finish(started: dict[str, Started]) -> dict[str, int]:
    return {name: each.finish(PATIENCE) for name, each in started.items()}


def told(started: dict[str, Started]) -> str:
    return "\n".join(f"--- {name}\n{each.output}" for name, each in started.items())


def test_a_run_on_two_hosts_equals_that_of_one_host(
    undisturbed: RunSandbox, sandbox: RunSandbox, network: Network
) -> None:
    """A run on two hosts is that of one host and the preflight looks at both."""
    hosts = [network.add(number) for number in range(2)]
    preflight = start(sandbox, hosts, hosts[0], "2", "doctor", "--json")
    assert finish(preflight) == {"host-a": 0, "host-b": 0}, told(preflight)
    output = "".join(each.output for each in preflight.values())
    report = json.JSONDecoder().raw_decode(output[output.index("{") :])[0]
    assert sorted(report["hosts"]) == ["host-a", "host-b"] and report["world_size"] == 2
    found = {check["check"]: check["found"] for check in report["checks"]}
    assert "gloo by interface eth0" in found["names"] and "all within" in found["clocks"], found

    training = start(sandbox, hosts, hosts[0], "2", "train")
    assert finish(training) == {"host-a": 0, "host-b": 0}, told(training)
    assert curve(sandbox.metrics()) == curve(undisturbed.metrics())
    assert "step" in (sandbox.run / "logs" / "rank-00001.log").read_text()  # the first rank of its host


class Elastic:
    """A run that goes on while hosts come and go, and how long it takes to do so."""

    def __init__(self, sandbox: RunSandbox, network: Network) -> None:
        self.sandbox, self.network = sandbox, network
        self.started: dict[str, Started] = {}
        self.seconds: dict[str, float] = {}

    def launch(self, *numbers: int) -> None:
        """Begin on these hosts, which meet at the first."""
        hosts = [self.host(number) for number in numbers]
        self.started |= start(self.sandbox, hosts, hosts[0], "1:3", "train")

    def host(self, number: int) -> Host:
        """The host of this number, made anew where it is dead."""
        there = self.network.hosts.get(f"host-{'abc'[number]}")
        return there if there is not None and there.alive else self.network.add(number)

    def join(self, number: int, master: int) -> None:
        """One more host for a job that runs already."""
        self.started |= start(self.sandbox, [self.host(number)], self.host(master), "1:3", "train")

    def rejoin(self, number: int, master: int) -> None:
        """The same for one that was cut off, if its launcher has given up; it may be back by itself."""
        launcher = self.started[self.host(number).name]
        if launcher.process.poll() is not None:
            assert launcher.finish() == CRASHED, launcher.output
            self.join(number, master)

    def await_world(
        self, size: int, what: str, since: float, steps: int = 6, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Until this many ranks have done so many steps more than there were; notes when the first was done."""
        reached = max((record["step"] for record in self.sandbox.metrics()), default=0)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            new = [r for r in self.lines() if r["world_size"] == size and r["time"] > since]
            if new and new[-1]["step"] >= reached + steps:
                self.seconds[what] = round(new[0]["time"] - since, 1)
                return
            meanwhile()
            time.sleep(0.2)
        raise AssertionError(f"{what}: {size} ranks have not gone on\n{told(self.started)}")

    def lines(self) -> list[dict]:
        """Every step that was done, as often as it was."""
        return list(read_json_lines(self.sandbox.run / "metrics.jsonl"))

    def longest_pause(self, since: float) -> float:
        """Between two steps."""
        times = [since, *(record["time"] for record in self.lines() if record["time"] > since)]
        return round(max(later - earlier for earlier, later in pairwise(times)), 1)

    def starts(self) -> int:
        return sum(event["event"] in ("start", "resume") for event in self.sandbox.events())

    def finish(self) -> None:
        """Ask all that run to stop, and compare every step that was done, some twice, with those of one process."""
        running = [each for each in self.started.values() if each.process.poll() is None]
        for each in running:
            each.signal(signal.SIGTERM)
        assert [each.finish(PATIENCE) for each in running] == [STATUS_STOPPED] * len(running), told(self.started)
        sandbox, steps = self.sandbox, self.sandbox.metrics()[-1]["step"]
        status, output = sandbox.train(1, f"train.stop_after={steps}", f"run_dir={sandbox.directory}/reference")
        assert status == STATUS_STOPPED, output
        reference = {record["step"]: record for record in sandbox.metrics(sandbox.directory / "reference")}
        assert sorted(reference) == [record["step"] for record in sandbox.metrics()]  # no step is missing
        for record in self.lines():
            undisturbed = reference[record["step"]]
            assert record["batch_digest"] == undisturbed["batch_digest"]
            assert math.isclose(record["loss"], undisturbed["loss"], rel_tol=1e-3), (record, undisturbed)


@pytest.fixture
def elastic(
    built: RunSandbox, sandbox: RunSandbox, network: Network, capsys: pytest.CaptureFixture[str]
) -> Iterator[Elastic]:
    """A long run that is ready for one, two and three hosts."""
    settings = yaml.safe_load(sandbox.config.read_text())
    settings["train"] |= {"steps": 4000, "global_batch_size": 12}
    settings["schedule"] = {"name": "constant"}
    settings["optimizer"]["learning_rate"] = 3e-4
    settings["engine"]["precision"] = "fp32"
    settings["checkpoint"] = {"every_steps": 5, "keep": 3}
    settings["evaluate"] = {"every_steps": None}
    settings["guard"] = {"hang_seconds": HANG_SECONDS, "on_spike": "note"}
    sandbox.config.write_text(yaml.safe_dump(settings))
    run = Elastic(sandbox, network)
    yield run
    with capsys.disabled():
        print(json.dumps(run.seconds, indent=1))


def test_a_run_survives_hosts_that_are_lost_and_come_back(
    elastic: Elastic,
) -> None:
    """Hosts are lost cut off and come back and the run goes on with the same batches and losses."""
    run = elastic
    began = time.time()
    run.launch(0, 1, 2)
    run.await_world(3, "three hosts begin", began)

    lost = time.time()
    run.host(2).kill()
    run.await_world(2, "a host is lost: the others go on after", lost)

    back = time.time()
    run.join(2, master=0)
    run.await_world(3, "it comes back: all go on after", back)

    starts, cut = run.starts(), time.time()
    run.host(1).cut()
    time.sleep(SHORT_SECONDS)
    run.host(1).mend()
    what = f"a link is cut for {SHORT_SECONDS} s: all go on after"
    run.await_world(3, what, time.time())
    run.seconds[what] = run.longest_pause(cut)
    assert run.starts() == starts, told(run.started)  # nobody has noticed more than a slow step

    cut = time.time()
    run.host(1).cut()
    run.await_world(2, "a link is cut for good: the others go on after", cut)
    hangs = [event for event in run.sandbox.events() if event["event"] == "hang"]  # host-b may tell its own view of it
    assert ["host-b"] in [[odd["host"] for odd in hang["odd"]] for hang in hangs], hangs
    mended = time.time()
    run.host(1).mend()
    run.await_world(3, "its link is mended: all go on after", mended, meanwhile=lambda: run.rejoin(1, master=0))
    run.finish()


def test_without_the_first_host_the_others_leave_for_a_restart(elastic: Elastic) -> None:
    """The first host is lost the others leave to be started again and nothing is lost."""
    began = time.time()
    elastic.launch(0, 1)
    elastic.await_world(2, "two hosts begin", began)
    lost = time.time()
    elastic.host(0).kill()
    assert elastic.started["host-b"].finish(PATIENCE) == CRASHED, told(elastic.started)
    elastic.seconds["the first host is lost: the other's launcher has left after"] = round(time.time() - lost, 1)
    again = time.time()
    elastic.launch(1)
    elastic.await_world(1, "it is started again, as the first: it goes on after", again)
    elastic.finish()

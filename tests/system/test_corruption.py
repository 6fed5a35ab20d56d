"""A rank that computes slowly, and one whose weights rot, are named; nothing rotten is saved, and the run goes on."""

import socket

import pytest

from bigtrain.base.exit_status import CORRUPTED
from bigtrain.base.faults import FAULT
from tests.system.run_sandbox import curve

WATCHED = ["guard.straggler_every_steps=1", "guard.replica_check_every_steps=1", "checkpoint.asynchronous=false"]


@pytest.mark.long
def test_a_slow_rank_and_a_corrupted_weight_are_named(undisturbed, sandbox, monkeypatch):
    """A slow rank and a rotten weight are named and the next start goes on."""
    monkeypatch.setenv(FAULT, "slow,rank=0,at=forward,delay=0.1;flip,rank=1,step=7,tensor=layers.1,bit=3")
    status, output = sandbox.train(2, *WATCHED)
    assert status == CORRUPTED, output
    (slow,) = [event for event in sandbox.events() if event["event"] == "straggler"]
    assert (slow["rank"], slow["host"]) == (0, socket.gethostname()) and slow["seconds"] > slow["others_seconds"] + 0.05
    (rotten,) = [event for event in sandbox.events() if event["event"] == "corruption"]
    (odd,) = rotten["odd"]
    assert (odd["rank"], odd["certain"], rotten["step"]) == (1, True, 6)
    assert len(odd["tensors"]) == 1 and "layers.1" in odd["tensors"][0]
    assert output.count("the weights are not the same on all ranks") == 1 and odd["tensors"][0] in output

    monkeypatch.delenv(FAULT)
    status, output = sandbox.train(2)
    assert status == 0, output
    assert curve(sandbox.metrics()) == curve(undisturbed.metrics())

"""Promises of fault injection: a fault happens where and when it was set, once; an unknown one is refused."""

import math
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base import faults
from bigtrain.base.faults import (
    ACTIONS,
    ALTERS,
    MARKS,
    POINTS,
    Fault,
    altered,
    damage,
    parse_faults,
    reached,
    set_faults,
)


@pytest.fixture(autouse=True)
def no_faults(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    yield
    set_faults()


def set_text(text: str) -> None:
    set_faults(*parse_faults(text))


@given(
    action=st.sampled_from([a for a in ACTIONS if a not in ALTERS]),
    rank=st.sampled_from(["*", "0", "17"]),
    at=st.sampled_from(POINTS),
    count=st.integers(1, 9),
    step=st.none() | st.integers(1, 9),
    start=st.none() | st.integers(0, 3),
)
def test_a_fault_is_parsed_as_it_was_written(action, rank, at, count, step, start):
    fault = Fault(action, rank, at, count, step, start, times=0 if action == "slow" else 1)
    assert Fault.parse(str(fault)) == fault


@pytest.mark.parametrize(
    "text",
    [
        "kill,rank=0,at=nowhere",
        "kill,at=step",
        "kill,rank=0,at=step,when=now",
        "kill,rank=0",
        "kill,rank=0,rank=1,at=step",
        "rank=0,at=step",
        "nan,rank=0,at=step",
        "crash,rank=0,at=step,delay=1",
        "harm,rank=0,at=step",
        "kill,rank=x,at=step",
    ],
)
def test_a_fault_that_is_not_understood_is_refused(text):
    """It must never pass for one that was injected."""
    with pytest.raises(ValueError):
        parse_faults(text)


def test_a_fault_happens_only_in_its_step_its_start_and_its_rank(monkeypatch):
    set_text("crash,rank=0,at=backward,step=2,start=1,count=2")
    reached("step", 2)
    reached("backward")
    reached("backward")  # the first start
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for step in (1, 2):
        reached("step", step)
        reached("backward")
    monkeypatch.setenv("RANK", "1")
    reached("backward")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RuntimeError, match="an injected crash"):
        reached("backward")
    reached("backward")  # once


def test_a_fault_with_a_mark_is_not_injected_by_a_later_start(monkeypatch, tmp_path):
    monkeypatch.setenv(MARKS, str(tmp_path))
    set_text("nan,rank=*,times=2;exit,rank=0,at=step,status=9")
    assert math.isnan(altered("loss", 1.0)) and math.isnan(altered("loss", 1.0)) and altered("loss", 1.0) == 1
    with pytest.raises(SystemExit) as left:
        reached("step")
    assert left.value.code == 9
    set_text("nan,rank=*,times=2;exit,rank=0,at=step,status=9")  # another process
    assert altered("loss", 1.0) == 1 and altered("loss", 1.0) == 1
    reached("step")
    set_text("nan,rank=*,times=2")  # and one of another rank
    monkeypatch.setenv("RANK", "1")
    assert math.isnan(altered("loss", 1.0))
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_slow_is_slow_every_time():
    set_text("slow,rank=0,at=forward,delay=0.05")
    started = time.perf_counter()
    for _ in range(3):
        reached("forward")
    assert time.perf_counter() - started >= 0.15


def test_a_spike_reaches_the_gradient():
    set_text("spike,rank=0,factor=50,step=3")
    weight = torch.ones(1, requires_grad=True)
    gradients = []
    for step in (2, 3, 4):
        reached("step", step)
        altered("loss", 2 * weight.sum()).backward()
        gradients.append(float(weight.grad))
        weight.grad = None
    assert gradients == [2, 100, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_flip_changes_one_bit_of_the_weight_that_was_named(dtype):
    set_text("flip,rank=0,tensor=up,bit=6")
    weights = {name: torch.nn.Parameter(torch.ones(3, 4, dtype=dtype)) for name in ("down", "up", "up_too")}
    damage(weights.items)
    assert [int((w != 1).sum()) for w in weights.values()] == [0, 1, 0]
    changed = weights["up"].detach().view(-1)[:1].view(torch.uint8) ^ torch.ones(1, dtype=dtype).view(torch.uint8)
    assert changed.tolist() == [1 << 6] + [0] * (dtype.itemsize - 1)
    damage(weights.items)
    assert int((weights["up"] != 1).sum()) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_with_the_fault_exit_ends_without_a_message(capfd):
    set_text("exit,rank=0,at=data")
    thread = threading.Thread(target=lambda: reached("data"))
    thread.start()
    thread.join()
    assert capfd.readouterr() == ("", "")


def test_without_faults_a_point_does_nothing():
    set_faults()
    assert faults._faults == [] and altered("loss", 3) == 3
    reached("step", 1)
    damage(lambda: pytest.fail("the weights are not asked for"))

"""Faults on order: a process that harms itself at a named point, for those who want to see what a run makes of it.

    BIGTRAIN_FAULT="kill,rank=1,at=save.written,count=2"      kill -9 of rank 1 where it reaches that point the 2nd time
    BIGTRAIN_FAULT="kill,rank=*,at=step,step=7,delay=0.05"    of every rank, 50 ms after step 7 has begun
    BIGTRAIN_FAULT="nan,rank=0,step=9;hang,rank=1,at=optimizer,step=12,start=0"                        two, one by one

The victim may be on another machine than whoever gives the order: so it is the victim that carries it out. An order is
an action, then who, where and when:

    rank=R      which rank, or * for every one
    at=POINT    one of the points below; what alters a value has its own
    count=N     at which of the times that the process comes by (1)
    step=K      only in step K of the training: what happens from its begin to the begin of the next
    start=S     only in the S-th restart by the launcher (0: the first start); each start counts anew
    times=T     that often in a row (1; slow: for ever)
    delay=D     kill, stop: so many seconds after that, while the process goes on; slow: how many seconds it takes

A run that restarts by itself comes by again. `start=0` says "only once" where torchrun restarts it; where others do,
or a run goes back by itself, name a folder in BIGTRAIN_FAULT_MARKS: an order leaves a mark there before it is carried
out, and is not carried out by the same rank where one lies.

    kill        SIGKILL, which nothing can catch
    stop        SIGSTOP: the process stands still, alive
    hang        the thread that is here sleeps for ever
    slow        it sleeps for `delay` seconds: a straggler, a slow disk
    crash       it raises a RuntimeError
    exit        it raises SystemExit: a process leaves with `status` (3); a thread vanishes without a word
    nan         the loss of a micro-batch, and with it its gradient, is NaN (at=loss)
    spike       it is `factor` (1000) times what it is (at=loss)
    flip        bit `bit` (6) of the first element of the first weight with `tensor` in its name (at=weights)

The points, in their order on a rank:

    matmul          a device's speed is being measured, at the start and by the doctor
    load            the state of a checkpoint is about to be read
    data            the loader's thread is about to assemble the next batches
    step            a step begins, its batch is there
    forward         a micro-batch is about to go through the model (before step 1 that of the dry run)
    loss            it has
    backward        its gradient is about to be computed
    weights         the gradient is there; the update is to come
    optimizer       it is about to come
    eval            an evaluation is about to begin
    guard.decided   a decision to go back is durable, and nothing is done about it yet
    save.begun      the state is about to be copied
    save.copied     it is copied; training goes on while the rest happens behind it
    save.writing    in the middle of the rank's file
    save.written    the file is durable; others may still be writing theirs
    save.manifest   rank 0: all files are durable, and the manifest is about to be written
    save.staged     rank 0: the manifest is durable, and the rename is about to come
    save.renamed    rank 0: the directory has its final name; its parent has not been fsynced yet
    save.pruning    rank 0: an old checkpoint is out of sight, and not gone yet

Without the variable a point costs one comparison.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

FAULT = "BIGTRAIN_FAULT"
MARKS = "BIGTRAIN_FAULT_MARKS"

POINTS = (
    "matmul",
    "load",
    "data",
    "step",
    "forward",
    "loss",
    "backward",
    "weights",
    "optimizer",
    "eval",
    "guard.decided",
    "save.begun",
    "save.copied",
    "save.writing",
    "save.written",
    "save.manifest",
    "save.staged",
    "save.renamed",
    "save.pruning",
)
ACTIONS = ("kill", "stop", "hang", "slow", "crash", "exit", "nan", "spike", "flip")
ALTERS = {"nan": "loss", "spike": "loss", "flip": "weights"}
"""Actions that alter a value, and the one point where it is."""
_DELAYED = ("kill", "stop", "slow")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Fault:
    """An order. The fields are described above."""

    action: str
    rank: str
    at: str
    count: int = 1
    step: int | None = None
    start: int | None = None
    times: int = 1
    """0: for ever."""
    delay: float = 0.0
    status: int = 3
    factor: float = 1000.0
    bit: int = 6
    tensor: str = ""

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"unknown fault {self.action!r}; there are {', '.join(ACTIONS)}")
        if self.at not in POINTS:
            raise ValueError(f"unknown point {self.at!r}; there are {', '.join(POINTS)}")
        if ALTERS.get(self.action, self.at) != self.at:
            raise ValueError(f"{self.action} is for the point {ALTERS[self.action]}, not {self.at}")
        if self.delay and self.action not in _DELAYED:
            raise ValueError(f"delay is for {', '.join(_DELAYED)}, not {self.action}")
        if self.rank != "*" and not self.rank.isdecimal():
            raise ValueError(f"rank is a number or *, not {self.rank!r}")

    def __str__(self) -> str:
        given = [f"{f.name}={value}" for f in fields(self)[1:] if (value := getattr(self, f.name)) != f.default]
        return ",".join([self.action, *given])

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read an order as it stands in the environment.

        Raises:
            ValueError: it is not one; an order that is not understood must not pass for one that was carried out.
        """
        action, *items = text.strip().split(",")
        given: dict[str, Any] = {}
        for item in items:
            name, found, value = item.partition("=")
            if not found or name not in _READ or name in given:
                raise ValueError(f"{FAULT}={text}: {item!r} is not understood; an order is ACTION,rank=R,at=POINT,...")
            given[name] = _READ[name](value)
        given.setdefault("at", ALTERS.get(action, ""))
        given.setdefault("rank", "")
        if action == "slow":
            given.setdefault("times", 0)
        try:
            return cls(action, **given)
        except ValueError as error:
            raise ValueError(f"{FAULT}={text}: {error}") from error


_READ: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("rank", "at", "tensor"), str),
    **dict.fromkeys(("count", "step", "start", "times", "status", "bit"), int),
    **dict.fromkeys(("delay", "factor"), float),
}


def parse_orders(text: str) -> list[Fault]:
    """The orders of a text, separated by `;`. Raises ValueError."""
    return [Fault.parse(order) for order in text.split(";") if order.strip()]


_orders = parse_orders(os.environ.get(FAULT, ""))
_passed: Counter[Fault] = Counter()
_carried_out: set[Fault] = set()
_step: int | None = None


def obey(*orders: Fault) -> None:
    """Take these orders in place of those in the environment; for processes that were forked."""
    global _orders, _step
    _orders, _step = list(orders), None
    _passed.clear()
    _carried_out.clear()


def reached(point: str, step: int | None = None) -> None:
    """This process has come to a point; what it was ordered to suffer here, it does.

    Args:
        step: the step of the training that begins here.
    """
    if not _orders:
        return
    if step is not None:
        global _step
        _step = step
    for order in _orders:
        if order.at == point and order.action not in ALTERS and _is_due(order):
            _suffer(order)


def altered(point: str, value: Value) -> Value:
    """A number or tensor of this process, as the orders for this point want it."""
    if _orders:
        for order in _orders:
            if order.at == point and order.action in ("nan", "spike") and _is_due(order):
                factor: Any = float("nan") if order.action == "nan" else order.factor
                value = factor * value
    return value


def damage(named_tensors: Callable[[], Iterable[tuple[str, Any]]]) -> None:
    """The weights of this process, at the point `weights`; one bit of them is flipped where that was ordered."""
    if _orders:
        for order in _orders:
            if order.action == "flip" and _is_due(order):
                held = (tensor for name, tensor in named_tensors() if order.tensor in name and tensor.numel())
                _flip(next(held), order.bit)


def _is_due(order: Fault) -> bool:
    """Count that this process has come by, and say whether it is its turn."""
    if order.rank not in ("*", os.environ.get("RANK", "0")) or order.step not in (None, _step):
        return False
    if order.start not in (None, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))):
        return False
    _passed[order] += 1
    if _passed[order] < order.count or (order.times and _passed[order] >= order.count + order.times):
        return False
    return order.action == "slow" or _leave_mark(order)


def _leave_mark(order: Fault) -> bool:
    """Whether this rank has not carried the order out yet; from now on it has."""
    if MARKS not in os.environ or order in _carried_out:
        return True
    name = hashlib.sha256(f"{order} by {os.environ.get('RANK', '0')}".encode()).hexdigest()[:16]
    try:
        with Path(os.environ[MARKS], f"{order.action}-{name}").open("x") as mark:
            mark.write(f"{order}\n")
    except FileExistsError:
        return False
    _carried_out.add(order)
    return True


def _suffer(order: Fault) -> None:
    if order.action == "hang":
        while True:
            time.sleep(3600)
    if order.action == "slow":
        time.sleep(order.delay)
        return
    if order.action == "crash":
        raise RuntimeError(f"a crash on order: {FAULT}={order}")
    if order.action == "exit":
        raise SystemExit(order.status)
    number = signal.SIGKILL if order.action == "kill" else signal.SIGSTOP
    if order.delay:
        timer = threading.Timer(order.delay, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
    else:
        os.kill(os.getpid(), number)


def _flip(tensor: Any, bit: int) -> None:
    import torch

    octets = tensor.detach().view(-1)[:1].view(torch.uint8)
    octets[bit // 8] ^= 1 << (bit % 8)

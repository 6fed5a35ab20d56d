"""Fault injection: a process harms itself at a named point, to show how a run copes with it.

    BIGTRAIN_FAULT="kill,rank=1,at=save.written,count=2"      kill -9 of rank 1 where it reaches that point the 2nd time
    BIGTRAIN_FAULT="kill,rank=*,at=step,step=7,delay=0.05"    of every rank, 50 ms after step 7 has started
    BIGTRAIN_FAULT="nan,rank=0,step=9;hang,rank=1,at=optimizer,step=12,start=0"                        two faults

The process that suffers a fault injects it itself, because it may run on another machine. A fault is an action, then
the rank, the point and the moment:

    rank=R      the rank, or * for every one
    at=POINT    one of the points below; an action that alters a value has its own
    count=N     the N-th time that the process reaches the point (1)
    step=K      only in step K of the training: from its start to the start of the next step
    start=S     only in the S-th restart by the launcher (0: the first start); each start counts from 0 again
    times=T     this many times in a row (1; slow: without end)
    delay=D     kill, stop: seconds until it happens, while the process goes on; slow: seconds that it takes

A run that restarts reaches a point again. Under torchrun, `start=0` makes a fault happen once. Where others restart the
run, or it goes back by itself, name a folder in BIGTRAIN_FAULT_MARKS. A rank leaves a mark there before it injects a
fault, and does not inject one for which a mark is there.

    kill        SIGKILL, which no process can catch
    stop        SIGSTOP: the process is stopped, but does not end
    hang        the thread at this point sleeps for ever
    slow        the thread sleeps for `delay` seconds: a straggler, a slow disk
    crash       it raises a RuntimeError
    exit        it raises SystemExit: a process ends with `status` (3); a thread ends without any message
    nan         the loss of a micro-batch, and with it its gradient, is NaN (at=loss)
    spike       the loss is multiplied by `factor` (1000) (at=loss)
    flip        bit `bit` (6) of the first element of the first weight with `tensor` in its name (at=weights)

The points, in their fault on a rank:

    matmul          the speed of a device is being measured, at the start and by the doctor
    load            before the state of a checkpoint is read
    data            before the loader's thread assembles the next batches
    step            a step starts, and its batch is there
    forward         before a micro-batch goes through the model (before step 1: that of the dry run)
    loss            after it
    backward        before its gradient is computed
    weights         the gradient is there, and the update has not started
    optimizer       before the update
    eval            before an evaluation
    guard.decided   a decision to go back is durable, and not yet carried out
    save.begun      before the state is copied
    save.copied     the state is copied; from here on the save goes on in the background
    save.writing    in the middle of the rank's file
    save.written    the file is durable; other ranks may still be writing theirs
    save.manifest   rank 0: all files are durable, and the manifest is not yet written
    save.staged     rank 0: the manifest is durable, and the directory is not yet renamed
    save.renamed    rank 0: the directory has its final name; its parent has not been fsynced yet
    save.pruning    rank 0: an old checkpoint has been renamed, and not yet removed

Without the variable a point costs one comparison.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from bigtrain.base.environment import number_of, text_of
from bigtrain.base.errors import BigtrainError

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
    """One fault to inject. The module's docstring describes the fields."""

    action: str
    rank: str
    at: str
    count: int = 1
    step: int | None = None
    start: int | None = None
    times: int = 1
    """0: without end."""
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
        if not math.isfinite(self.delay) or self.delay < 0 or not math.isfinite(self.factor):
            raise ValueError("delay is a number of seconds from 0, and factor a finite number")
        numbers = (self.count - 1, self.times, self.bit, self.step or 0, self.start or 0)
        if min(numbers) < 0 or self.bit > 7 * 8 + 7 or not 0 <= self.status <= 255:
            raise ValueError("count is at least 1, status at most 255, and no number is negative")
        if self.rank != "*" and not self.rank.isdecimal():
            raise ValueError(f"rank is a number or *, not {self.rank!r}")

    def __str__(self) -> str:
        given = [f"{f.name}={value}" for f in fields(self)[1:] if (value := getattr(self, f.name)) != f.default]
        return ",".join([self.action, *given])

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Parse a fault as it is written in the environment.

        Raises:
            ValueError: the text is not a fault. One that is not understood must not pass for one that was injected.
        """
        action, *items = text.strip().split(",")
        given: dict[str, Any] = {}
        for item in items:
            name, found, value = item.partition("=")
            if not found or name not in _READ or name in given:
                raise ValueError(f"{FAULT}={text}: {item!r} is not understood; a fault is ACTION,rank=R,at=POINT,...")
            try:
                given[name] = _READ[name](value)
            except ValueError:
                raise ValueError(f"{FAULT}={text}: {item!r} has a value that is not a number") from None
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


def parse_faults(text: str) -> list[Fault]:
    """Parse the faults of a text, separated by `;`. Raises ValueError."""
    return [Fault.parse(fault) for fault in text.split(";") if fault.strip()]


_faults: list[Fault] = []
_not_understood: str | None = None
try:
    _faults = parse_faults(os.environ.get(FAULT, ""))
except ValueError as error:  # an import is no place for a user's error; `check_faults` raises it
    _not_understood = str(error)
_passed: Counter[Fault] = Counter()
_injected: set[Fault] = set()
_step: int | None = None


def set_faults(*faults: Fault) -> None:
    """Replace the faults of the environment by these, in a process that was forked."""
    global _faults, _step
    _faults, _step = list(faults), None
    _passed.clear()
    _injected.clear()


def check_faults() -> None:
    """Make sure that the variables for fault injection are understood.

    Raises:
        BigtrainError: they are not. A fault that is not understood must not pass for one that was injected.
    """
    if _not_understood is not None:
        raise BigtrainError(
            f"the environment variable {FAULT} is not a fault that can be injected",
            found=_not_understood,
            wanted="ACTION,rank=R,at=POINT,... as bigtrain/base/faults.py describes it",
            fix=f"correct it, or remove it: unset {FAULT}",
        )
    if (marks := text_of(MARKS)) and not Path(marks).is_dir():
        raise BigtrainError(
            f"the environment variable {MARKS} does not name a folder",
            found=f"{MARKS}={marks}",
            wanted="a folder that every rank can write to",
            fix=f"mkdir -p {marks}; or unset {MARKS}",
        )


def reached(point: str, step: int | None = None) -> None:
    """Inject the faults of this point, if there are any.

    Args:
        point: the point that this process has reached, one of POINTS.
        step: the step of the training that starts here.
    """
    if not _faults:
        return
    if step is not None:
        global _step
        _step = step
    for fault in _faults:
        if fault.at == point and fault.action not in ALTERS and _is_due(fault):
            _inject(fault)


def altered(point: str, value: Value) -> Value:
    """Return a number or tensor, altered by the faults of this point, if there are any.

    Args:
        point: the point that this process has reached, one of POINTS.
        value: the number or tensor.
    """
    if _faults:
        for fault in _faults:
            if fault.at == point and fault.action in ("nan", "spike") and _is_due(fault):
                factor: Any = float("nan") if fault.action == "nan" else fault.factor
                value = factor * value
    return value


def damage(named_tensors: Callable[[], Iterable[tuple[str, Any]]]) -> None:
    """Flip one bit of this process's weights, at the point `weights`, if a fault says so.

    Args:
        named_tensors: returns the weights with their names.
    """
    if _faults:
        for fault in _faults:
            if fault.action == "flip" and _is_due(fault):
                held = (tensor for name, tensor in named_tensors() if fault.tensor in name and tensor.numel())
                _flip(next(held), fault.bit)


def _is_due(fault: Fault) -> bool:
    """Count that this process has reached a fault's point, and return whether to inject it this time."""
    if fault.rank not in ("*", os.environ.get("RANK", "0")) or fault.step not in (None, _step):
        return False
    if fault.start not in (None, (number_of("TORCHELASTIC_RESTART_COUNT", 0, 10**9) or 0)):
        return False
    _passed[fault] += 1
    if _passed[fault] < fault.count or (fault.times and _passed[fault] >= fault.count + fault.times):
        return False
    return fault.action == "slow" or _leave_mark(fault)


def _leave_mark(fault: Fault) -> bool:
    """Leave a mark for a fault of this rank; False where one is there, because it was injected before."""
    marks = text_of(MARKS)
    if marks is None or fault in _injected:
        return True
    name = hashlib.sha256(f"{fault} by {os.environ.get('RANK', '0')}".encode()).hexdigest()[:16]
    try:
        with Path(marks, f"{fault.action}-{name}").open("x") as mark:
            mark.write(f"{fault}\n")
    except FileExistsError:
        return False
    _injected.add(fault)
    return True


def _inject(fault: Fault) -> None:
    if fault.action == "hang":
        while True:
            time.sleep(3600)
    if fault.action == "slow":
        time.sleep(fault.delay)
        return
    if fault.action == "crash":
        raise RuntimeError(f"an injected crash: {FAULT}={fault}")
    if fault.action == "exit":
        raise SystemExit(fault.status)
    number = signal.SIGKILL if fault.action == "kill" else signal.SIGSTOP
    if fault.delay:
        timer = threading.Timer(fault.delay, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
    else:
        os.kill(os.getpid(), number)


def _flip(tensor: Any, bit: int) -> None:
    import torch

    octets = tensor.detach().view(-1)[:1].view(torch.uint8)
    octets[bit // 8] ^= 1 << (bit % 8)

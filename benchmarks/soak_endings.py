"""How a chapter of the soak ends: by a fault from outside, of those that the fault table has."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any, Protocol

import psutil

from bigtrain.checkpoint import StorageTiers
from tests.system.fault_runs import Launched

STOPPED, DONE = 75, 0
FAMILY_SECONDS = 120.0


class Harmed(Protocol):
    """What has to know that a checkpoint was harmed from outside."""

    sandbox: Any

    def expect_to_fall_back(self) -> None: ...


def _asked(number: signal.Signals) -> Callable[[Launched, Harmed], None]:
    def end(run: Launched, _watched: Harmed) -> None:
        run.process.send_signal(number)
        assert run.finish(None) in (STOPPED, DONE), run.output[-1500:]

    return end


def _launcher_killed(run: Launched, _watched: Harmed) -> None:
    ranks = list(run.ranks().values())
    run.process.kill()
    assert psutil.wait_procs(ranks, FAMILY_SECONDS)[1] == [], "a rank outlived the launcher"


def _all_killed(run: Launched, _watched: Harmed) -> None:
    os.killpg(run.process.pid, signal.SIGKILL)


def _checkpoint_rots(run: Launched, watched: Harmed) -> None:
    _asked(signal.SIGTERM)(run, watched)
    newest = StorageTiers.of(watched.sandbox.run).all()[-1]
    file = next((watched.sandbox.run / "checkpoints" / newest.name).glob("state-*"))
    with file.open("r+b") as state:
        state.seek(file.stat().st_size // 2)
        byte = state.read(1)
        state.seek(-1, os.SEEK_CUR)
        state.write(bytes([byte[0] ^ 1]))
    watched.expect_to_fall_back()


def _line_torn(run: Launched, watched: Harmed) -> None:
    _asked(signal.SIGTERM)(run, watched)
    with (watched.sandbox.run / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b'{"step": 999999, "loss": 6.')


def _second_job(run: Launched, watched: Harmed) -> None:
    second = Launched(watched.sandbox, processes=1)
    try:
        assert second.finish(None) == 1, f"a second job left with {second.process.returncode}"
        assert second.heard("another job is training in run_dir"), second.output[-1500:]
        time.sleep(1)
    finally:
        second.kill()
    _asked(signal.SIGTERM)(run, watched)


ENDINGS: tuple[tuple[str, Callable[[Launched, Harmed], None]], ...] = (
    ("SIGTERM", _asked(signal.SIGTERM)),
    ("SIGUSR1", _asked(signal.SIGUSR1)),
    ("the launcher is killed", _launcher_killed),
    ("everything is killed", _all_killed),
    ("the newest checkpoint rots", _checkpoint_rots),
    ("a line of metrics.jsonl is torn", _line_torn),
    ("a second job", _second_job),
)

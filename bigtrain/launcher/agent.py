"""torchrun's agent, the process on each node that starts the workers and watches them, with three changes.

1. When a worker dies, the others are ended within seconds, also those that hang. torchrun waits half a minute.
2. `restarts` decides whether all workers are started again, and all nodes do the same. The agent that decides writes
   its decision into the agents' store, and the others follow it.
3. The agent holds the workers' store, a new one for each start. torchrun has it in rank 0, which may be the rank that
   hangs, or shares the first agent's, with the last start's keys in it.

This is written against torch 2.11 to 2.13. All uses of torchrun's private names are in this file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar, NoReturn, get_args

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.rendezvous.api import RendezvousError

from bigtrain.base import (
    HUNG,
    PROGRESS,
    STOPPED,
    STORE,
    End,
    describe,
    ignore_stop_signals,
    mark_of,
    of_shell,
    record_death,
    require_open_files,
    show_controls,
)
from bigtrain.launcher.interface import bound_store
from bigtrain.launcher.rendezvous import Rendezvous
from bigtrain.launcher.restarts import Death, Restarts, cause

GRACE_SECONDS = 3
"""Seconds from SIGTERM to SIGKILL for workers whose peer has died: they can do nothing without it."""
LEAVING_SECONDS = 30
"""Seconds for workers that are about to end by themselves."""
REPORTING_SECONDS = 5
"""Seconds for the worker that prints an error which all have found."""
PATIENCE_SECONDS = 2.0
"""Seconds to wait for another node's message when this node's workers may have failed only because of that node."""
ASK_EVERY_SECONDS = 1.0
"""Seconds between two looks for another node's message."""
_DECISION = "bigtrain/decision"
"""A key in the agents' store, new for each start: empty, `_RESTART`, `_ONE_NODE_LESS`, or the exit status for all."""
_RESTART, _ONE_NODE_LESS = "restart", "one node less"
_STARTS, _ADDRESS = "bigtrain/starts", "bigtrain/address"
"""Keys in the agents' store: the number of starts that each agent has seen; the address of the workers' store."""


class Leave(Exception):
    """Raised to end the launcher with this exit status, and a message to print where there is one."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message)
        self.status = status


class Agent(LocalElasticAgent):
    """The agent of one node."""

    asked_by: ClassVar[set[int]] = set()
    """The stop signals that have come. After the first one nothing is started again."""
    working = False
    """Whether there are workers to which a signal can be forwarded."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._spec = self._worker_group.spec
        handler = self._spec.rdzv_handler
        self._elastic = isinstance(handler, Rendezvous) and handler.limits.least < handler.limits.most
        if isinstance(handler, Rendezvous) and handler.is_first:
            require_open_files(handler.limits.most * self._spec.local_world_size, handler.limits.most)
        self._restarts = Restarts(self._spec.max_restarts)
        self._starts = 0
        """Starts of the workers, with the present one. All nodes use the number of the agent that has seen most."""
        self._next_look = 0.0
        self._master: Any = None
        # A folder of its own, which mkdtemp makes for this user alone: another user can neither foresee nor make the
        # marks by which ranks report, nor put a link in their place.
        self._progress = Path(tempfile.mkdtemp(prefix="bigtrain-"), "progress")
        os.environ[PROGRESS] = str(self._progress)

    def run(self, role: str = "default") -> RunResult:
        """Run the workers until they are done. Raises Leave."""
        try:
            return super().run(role)
        except RendezvousError:  # this node was cut off. The others go on, and this one may come back
            if self._elastic:
                self._keep_open()
            raise
        finally:
            shutil.rmtree(self._progress.parent, ignore_errors=True)

    def _rendezvous(self, worker_group: Any) -> None:
        super()._rendezvous(worker_group)
        self._starts += 1
        os.environ[STORE], self._starts = self._open_store(worker_group)
        self._next_look = time.monotonic() + ASK_EVERY_SECONDS

    def _open_store(self, group: Any) -> tuple[str, int]:
        """The host:port of the workers' store for this start, which the first agent holds, and the start's number."""
        group.store.set(f"{_STARTS}/{group.group_rank}", str(self._starts))
        self._master = None
        if group.group_rank == 0:
            address = self._spec.local_addr  # bigtrain/launcher/interface.py has chosen it, if it could
            self._master = bound_store(address, 0) if address else TCPStore(group.master_addr, 0, is_master=True)
            counts = group.store.multi_get([f"{_STARTS}/{node}" for node in range(group.group_world_size)])
            endpoint = f"{address or group.master_addr}:{self._master.port}"
            group.store.set(_DECISION, "")
            group.store.set(_ADDRESS, json.dumps([endpoint, max(map(int, counts))]))
        endpoint, starts = json.loads(group.store.get(_ADDRESS))
        return str(endpoint), int(starts)

    def _start_workers(self, worker_group: Any) -> dict[int, Any]:
        # The base class hands them max_restarts - _remaining_restarts as the number of their restart.
        self._spec.max_restarts, self._remaining_restarts = self._starts - 1, 0
        if self.asked_by:
            self._leave(STOPPED)
        for mark in self._marks():
            mark.unlink(missing_ok=True)
        pids: dict[int, Any] = super()._start_workers(worker_group)
        Agent.working = True
        return pids

    def _monitor_workers(self, worker_group: Any) -> RunResult:
        ended = self._ended(worker_group)
        if died := cause(ended, self._crashed_at(worker_group)):
            record_death()
            if died.final:
                self._let_leave(worker_group, LEAVING_SECONDS if died.status == STOPPED else REPORTING_SECONDS)
            # Where the run hung, each rank that could has reported before the first of them ended.
            self._end_workers(GRACE_SECONDS, signal.SIGKILL if died.status == HUNG else signal.SIGTERM)
            self._decide(worker_group, died)
        elif (message := self._message_of_others(worker_group)) not in (None, _ONE_NODE_LESS):
            record_death()
            self._follow(worker_group, message)
        elif len(ended) < len(worker_group.workers):
            return RunResult(state=WorkerState.HEALTHY)
        else:  # all are done. The base class collects their results; alone it would also handle one that just died
            result: RunResult = super()._monitor_workers(worker_group)
            return result
        self._remaining_restarts = 1  # the base class restarts once; the next death is decided here again
        return RunResult(state=WorkerState.FAILED)

    def _stop_workers(self, worker_group: Any) -> None:
        """End the workers before a restart. Healthy ones, where a node joins or leaves, commit; no others are left."""
        self._end_workers(LEAVING_SECONDS)

    def _ended(self, group: Any) -> dict[int, int]:
        """The return codes of this node's workers that have ended, by rank."""
        context: Any = self._pcontext
        handlers = context.subprocess_handlers if context else {}
        ended = {group.workers[local_rank].global_rank: each.proc.poll() for local_rank, each in handlers.items()}
        hung = {rank: HUNG for rank in ended if mark_of(str(self._progress), "hung", str(rank)).exists()}
        return {rank: status for rank, status in ended.items() if status is not None} | hung

    def _crashed_at(self, group: Any) -> dict[int, int]:
        """When the workers of this node reported that they crash, in nanoseconds, by rank."""
        ranks = [worker.global_rank for worker in group.workers]
        marks = {rank: mark_of(str(self._progress), "crashed", str(rank)) for rank in ranks}
        return {rank: int(mark.read_text()) for rank, mark in marks.items() if mark.exists()}

    def _let_leave(self, group: Any, seconds: float) -> None:
        """Wait until the workers have ended by themselves, for this time at most."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and len(self._ended(group)) < len(group.workers):
            time.sleep(0.1)

    def _end_workers(self, grace: int, number: signal.Signals = signal.SIGTERM) -> None:
        Agent.working = False
        if self._pcontext is not None:
            self._pcontext.close(number, grace)
            self._pcontext = None  # a worker that waits for a dead disk does not end; it is not waited for again

    def _decide(self, group: Any, died: Death) -> None:
        """Decide what to do about a worker that has died. Returns if all are to be started again. Raises Leave."""
        what = f"rank {died.rank} on {socket.gethostname()} {describe(died.status)}"
        if died.status == STOPPED and self._goes_on_otherwise(group):
            return
        if -died.status in self.asked_by:  # the signal came before the worker handled it, so nothing had started
            self._leave(STOPPED)
        if died.final or self.asked_by:
            self._leave(of_shell(died.status), "" if died.final else what)
        message = self._message_of_others(group, PATIENCE_SECONDS if died.may_follow_another else 0.0)
        if message not in (None, _RESTART, _ONE_NODE_LESS):
            self._leave_as(str(message))
        if not self._restarts.limit:
            self._leave(of_shell(died.status), what)
        if not self._restarts.allow(self._newest_commit()):
            self._leave(
                of_shell(died.status),
                f"{what}; given up after {self._restarts.limit} restart(s) without a commit in between",
            )
        self._send(group, _RESTART)
        print(show_controls(f"{what}: {self._restarts}"), file=sys.stderr, flush=True)

    def _goes_on_otherwise(self, group: Any) -> bool:
        """Whether the workers stopped because a node joins or leaves, and are to be started again."""
        if self.asked_by or not self._elastic:
            return False
        if self._spec.rdzv_handler.num_nodes_waiting() > 0:
            return True
        message = self._message_of_others(group, PATIENCE_SECONDS)
        # The first answer may have been a second old, and the ranks may stop within it.
        return message == _ONE_NODE_LESS or (message is None and self._spec.rdzv_handler.num_nodes_waiting() > 0)

    def _follow(self, group: Any, message: str | None) -> None:
        """Do as another node's agent has decided. Returns if all are to be started again. Raises Leave."""
        if message != _RESTART:  # its workers have ended, and these are about to, unless they wait for them
            self._let_leave(group, LEAVING_SECONDS)
            self._end_workers(GRACE_SECONDS)
            self._leave_as(str(message))
        self._end_workers(GRACE_SECONDS)

    def _message_of_others(self, group: Any, patience: float = 0.0) -> str | None:
        """The decision of another node's agent for all nodes; None where there is none yet.

        Args:
            group: the workers of all nodes.
            patience: seconds to wait for one; 0 looks once, at most every ASK_EVERY_SECONDS.
        """
        if group.group_world_size == 1 or (not patience and time.monotonic() < self._next_look):
            return None
        end = time.monotonic() + patience
        with contextlib.suppress(Exception):  # the node that holds the store is gone; the rendezvous will notice
            while True:
                if decision := group.store.get(_DECISION):  # not check(), which waits for a lost node without end
                    return str(decision.decode())
                if time.monotonic() >= end:
                    break
                time.sleep(0.1)
        self._next_look = time.monotonic() + ASK_EVERY_SECONDS
        return None

    def _send(self, group: Any, message: str) -> None:
        if group.group_world_size > 1:
            with contextlib.suppress(Exception):
                group.store.set(_DECISION, message)

    def _leave(self, status: int, message: str = "") -> NoReturn:
        ignore_stop_signals()
        group: Any = self._worker_group
        if (group.group_world_size or 1) > 1:  # None before the agents have met
            if self.asked_by and self._elastic:
                self._send(group, _ONE_NODE_LESS)
                self._keep_open()
            else:
                self._send(group, str(status))
            time.sleep(2 * ASK_EVERY_SECONDS)  # for the others to read it: the store may end with this process
        raise Leave(status, message)

    def _leave_as(self, message: str) -> NoReturn:
        """Leave as another node has decided. That node closes the job for all, and its store may be gone."""
        self._keep_open()
        self._leave(int(message))

    def _marks(self) -> list[Path]:
        patterns = [mark_of(self._progress.name, end, "*").name for end in get_args(End)]
        return [mark for pattern in patterns for mark in self._progress.parent.glob(pattern)]

    def _keep_open(self) -> None:
        """Keep the job open when this node leaves: torchrun would close it for all, also for nodes that come back."""
        handler: Any = self._spec.rdzv_handler
        if isinstance(handler, Rendezvous):
            handler.leave()
        handler.shutdown = lambda: True

    def _newest_commit(self) -> int:
        try:
            return int(self._progress.read_text())
        except (OSError, ValueError):
            return -1

"""torchrun's agent, the process on each node that starts the workers and watches them, with three things changed.

A worker that dies takes the others with it within seconds, also those that stand still and answer nothing; torchrun
waits half a minute. Whether all are started again then is for `restarts` to say, on all nodes alike: who leaves for
good says so in the agents' store, and the others follow. And the store that the workers meet in lies here, new for each
start, instead of in rank 0 or, shared, in the first agent: torch 2.13 keeps the keys of the last start in that one, and
a node that joins later never learns of it. Only a launcher can hold it where rank 0 may be the one that stands still.

Written against torch 2.11 to 2.13; every use of a private name is here.
"""

from __future__ import annotations

import contextlib
import json
import os
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

from bigtrain.base.exit_status import HUNG, STOPPED, describe, of_shell
from bigtrain.base.launcher_protocol import PROGRESS, STORE, End, ignore_stop_signals, mark_of, record_death
from bigtrain.launcher.interface import bound_store
from bigtrain.launcher.restarts import Death, Restarts, cause

GRACE_SECONDS = 3
"""For workers whose peer has died: what they hold is of no use without it."""
LEAVING_SECONDS = 30
"""For workers that are about to leave by themselves."""
SPEAKING_SECONDS = 5
"""For the one that tells the user what all have found to be wrong."""
PATIENCE_SECONDS = 2.0
"""How long to wait for another node's word when one's own workers may have failed only because of it."""
ASK_EVERY_SECONDS = 1.0
_VERDICT = "bigtrain/verdict"
"""In the agents' store, new for each start: one of the two words, or the status to leave with."""
_RESTART, _ONE_NODE_LESS = "restart", "one node less"
_STARTS, _MEETING = "bigtrain/starts", "bigtrain/meeting"


class Leave(Exception):
    """The launcher leaves with this status."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message)
        self.status = status


class Agent(LocalElasticAgent):
    """One node's."""

    asked_by: ClassVar[set[int]] = set()
    """The signals that have asked for an end: from then on nothing is started again."""
    working = False
    """Whether there are workers that a signal can be handed on to."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._spec = self._worker_group.spec
        nodes: Any = getattr(self._spec.rdzv_handler, "settings", None)
        self._elastic = nodes is not None and nodes.min_nodes < nodes.max_nodes
        self._restarts = Restarts(self._spec.max_restarts)
        self._starts = 0
        """Of the workers, with the one at work; on all nodes that of the one that has been here longest."""
        self._next_question = 0.0
        self._master: Any = None
        handle, name = tempfile.mkstemp(prefix="bigtrain-progress-")
        os.close(handle)
        self._progress = Path(name)
        os.environ[PROGRESS] = name

    def run(self, role: str = "default") -> RunResult:
        """Until the workers are done. Raises Leave."""
        try:
            return super().run(role)
        except RendezvousError:  # this node was cut off: the others go on, and it may come back
            if self._elastic:
                self._keep_open()
            raise
        finally:
            for file in (self._progress, *self._marks()):
                file.unlink(missing_ok=True)

    def _rendezvous(self, worker_group: Any) -> None:
        super()._rendezvous(worker_group)
        self._starts += 1
        os.environ[STORE], self._starts = self._meet(worker_group)
        self._next_question = time.monotonic() + ASK_EVERY_SECONDS

    def _meet(self, group: Any) -> tuple[str, int]:
        """host:port of a store for this start, which the first agent holds, and the number of the start."""
        count, meeting = self._key(_STARTS), self._key(_MEETING)
        group.store.set(f"{count}/{group.group_rank}", str(self._starts))
        self._master = None
        if group.group_rank == 0:
            address = self._spec.local_addr  # bigtrain/launcher/interface.py has chosen it, if it could
            self._master = bound_store(address, 0) if address else TCPStore(group.master_addr, 0, is_master=True)
            counts = group.store.multi_get([f"{count}/{node}" for node in range(group.group_world_size)])
            place = f"{address or group.master_addr}:{self._master.port}"
            group.store.set(meeting, json.dumps([place, max(map(int, counts))]))
        place, starts = json.loads(group.store.get(meeting))
        return str(place), int(starts)

    def _key(self, name: str) -> str:
        """In the agents' store: a dynamic rendezvous has a new one for each round, a static one counts starts alike."""
        return f"{name}/{self._starts}" if self._spec.rdzv_handler.get_backend() == "static" else name

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
                self._let_leave(worker_group, LEAVING_SECONDS if died.status == STOPPED else SPEAKING_SECONDS)
            # Where the run hung, each rank that could has said what it saw before the first of them left.
            self._end_workers(GRACE_SECONDS, signal.SIGKILL if died.status == HUNG else signal.SIGTERM)
            self._judge(worker_group, died)
        elif (word := self._word_of_others(worker_group)) not in (None, _ONE_NODE_LESS):
            record_death()
            self._follow(worker_group, word)
        elif len(ended) < len(worker_group.workers):
            return RunResult(state=WorkerState.HEALTHY)
        else:  # all are done, and it gathers what they leave; it would judge by itself one that has died meanwhile
            result: RunResult = super()._monitor_workers(worker_group)
            return result
        self._remaining_restarts = 1  # one, and what comes after it is for another time
        return RunResult(state=WorkerState.FAILED)

    def _stop_workers(self, worker_group: Any) -> None:
        """Before a restart. Healthy ones, where a node joins or has left, commit first; of others none is left."""
        self._end_workers(LEAVING_SECONDS)

    def _ended(self, group: Any) -> dict[int, int]:
        """The workers of this node that have ended: rank -> status."""
        context: Any = self._pcontext
        handlers = context.subprocess_handlers if context else {}
        ended = {group.workers[local_rank].global_rank: each.proc.poll() for local_rank, each in handlers.items()}
        hung = {rank: HUNG for rank in ended if mark_of(str(self._progress), "hung", str(rank)).exists()}
        return {rank: status for rank, status in ended.items() if status is not None} | hung

    def _crashed_at(self, group: Any) -> dict[int, int]:
        """When which workers of this node said that they crash."""
        ranks = [worker.global_rank for worker in group.workers]
        marks = {rank: mark_of(str(self._progress), "crashed", str(rank)) for rank in ranks}
        return {rank: int(mark.read_text()) for rank, mark in marks.items() if mark.exists()}

    def _let_leave(self, group: Any, seconds: float) -> None:
        """Wait until the workers have left by themselves, or have had time for it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and len(self._ended(group)) < len(group.workers):
            time.sleep(0.1)

    def _end_workers(self, grace: int, number: signal.Signals = signal.SIGTERM) -> None:
        Agent.working = False
        if self._pcontext is not None:
            self._pcontext.close(number, grace)
            self._pcontext = None  # what waits for a dead disk is left behind, and not waited for again

    def _judge(self, group: Any, died: Death) -> None:
        """Say what happens now that a worker has died; returns if all are to be started again. Raises Leave."""
        what = f"rank {died.rank} on {socket.gethostname()} {describe(died.status)}"
        if died.status == STOPPED and self._goes_on_otherwise(group):
            return
        if -died.status in self.asked_by:  # before it could listen, so that nothing was begun
            self._leave(STOPPED)
        if died.final or self.asked_by:
            self._leave(of_shell(died.status), "" if died.final else what)
        word = self._word_of_others(group, PATIENCE_SECONDS if died.may_follow_another else 0.0)
        if word not in (None, _RESTART, _ONE_NODE_LESS):
            self._leave_as(str(word))
        if not self._restarts.limit:
            self._leave(of_shell(died.status), what)
        if not self._restarts.allow(self._newest_commit()):
            self._leave(
                of_shell(died.status),
                f"{what}; given up after {self._restarts.limit} restart(s) without a commit in between",
            )
        self._say(group, _RESTART)
        print(f"{what}: {self._restarts}", file=sys.stderr, flush=True)

    def _goes_on_otherwise(self, group: Any) -> bool:
        """Whether workers that have stopped did so because a node comes or goes, and are wanted again."""
        if self.asked_by or not self._elastic:
            return False
        if self._spec.rdzv_handler.num_nodes_waiting() > 0:
            return True
        return self._word_of_others(group, PATIENCE_SECONDS) == _ONE_NODE_LESS

    def _follow(self, group: Any, word: str | None) -> None:
        """Do as another node's agent has decided; returns if all are to be started again. Raises Leave."""
        if word != _RESTART:  # its workers have left, and ours are about to, unless they wait for them
            self._let_leave(group, LEAVING_SECONDS)
            self._end_workers(GRACE_SECONDS)
            self._leave_as(str(word))
        self._end_workers(GRACE_SECONDS)

    def _word_of_others(self, group: Any, patience: float = 0.0) -> str | None:
        """What the agent of another node has decided for all; None where none has, as far as is known."""
        if group.group_world_size == 1 or (not patience and time.monotonic() < self._next_question):
            return None
        end = time.monotonic() + patience
        with contextlib.suppress(Exception):  # the node that holds the store is gone, which the rendezvous will tell
            while True:
                if group.store.check([self._key(_VERDICT)]):
                    return str(group.store.get(self._key(_VERDICT)).decode())
                if time.monotonic() >= end:
                    break
                time.sleep(0.1)
        self._next_question = time.monotonic() + ASK_EVERY_SECONDS
        return None

    def _say(self, group: Any, word: str) -> None:
        if group.group_world_size > 1:
            with contextlib.suppress(Exception):
                group.store.set(self._key(_VERDICT), word)

    def _leave(self, status: int, message: str = "") -> NoReturn:
        ignore_stop_signals()
        group: Any = self._worker_group
        if (group.group_world_size or 1) > 1:  # None before the agents have met
            if self.asked_by and self._elastic:
                self._say(group, _ONE_NODE_LESS)
                self._keep_open()
            else:
                self._say(group, str(status))
            time.sleep(2 * ASK_EVERY_SECONDS)  # the store may go with us
        raise Leave(status, message)

    def _leave_as(self, word: str) -> NoReturn:
        """As another node has decided, which closes the job for all: the store may have gone with it."""
        self._keep_open()
        self._leave(int(word))

    def _marks(self) -> list[Path]:
        patterns = [mark_of(self._progress.name, end, "*").name for end in get_args(End)]
        return [mark for pattern in patterns for mark in self._progress.parent.glob(pattern)]

    def _keep_open(self) -> None:
        """Leave alone: torchrun's last act would close the job for all, and for whoever wants to come back."""
        handler: Any = self._spec.rdzv_handler
        handler.shutdown = lambda: True

    def _newest_commit(self) -> int:
        try:
            return int(self._progress.read_text())
        except (OSError, ValueError):
            return -1

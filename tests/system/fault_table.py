"""The fault table: what can happen to a run, what it says then, what it does by itself, what must be equal at the end.

A row is a fault. Rows that one run can have, one start after the other, share it: a scenario. `play` does what is
planted, fails where a promise of a row is not kept, and returns what became of each of its rows. The rows are tested by
test_faults.py, rendered by fault_page.py, and repeated at random by benchmarks/soak.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from bigtrain.base.faults import Fault as Order
from tests.system import fault_scenarios as scenarios
from tests.system.fault_runs import Outcome, ScenarioRuns

SAME = "all losses, gradient norms and digests, repeated steps too, and the last weights and moments: bit for bit"
SAME_SKIPS = "bit for bit that of a run with the same `data.skip` from the start"
AT_ONCE = 5.0
"""Seconds for what the launcher or the run notices by itself."""
BUSY = 60.0
"""For what comes with a start, which imports PyTorch and DeepSpeed first."""


@dataclass(frozen=True)
class Fault:
    """A row."""

    what: str
    planted: str
    """The order for BIGTRAIN_FAULT, or in words what the scenario does."""
    says: tuple[str, ...]
    """Words of one line of the output."""
    then: str
    """What happens by itself."""
    within: float = AT_ONCE
    """Seconds until it says so on a machine that has nothing else to do; the test grants six times that."""
    end: str = SAME


@dataclass(frozen=True)
class Scenario:
    """Rows that are played in one run."""

    name: str
    faults: tuple[Fault, ...]
    play: Callable[[ScenarioRuns, tuple[Fault, ...]], list[Outcome]]
    needs: tuple[str, ...] = ()
    """Programs, by their names."""


RESTARTS = "the launcher starts all ranks again, from the newest checkpoint"
REWINDS = "the run goes back to the checkpoint before it, leaves the batches out and records why"
HANG_SECONDS = 5.0
SLOW_SECONDS = 20.0
"""The bound of what may take longer: stages of the start, the first step, saves."""
ROOM = "stops with status 1; when there is room, the next start goes on"
NEXT_START = "stops with status 1; the next start goes on"
ONE_BEFORE = "goes on from the one before"


def killed(what: str, order: str) -> Fault:
    """A row of a rank that dies of SIGKILL."""
    return Fault(what, f"kill,{order}", (f"rank {order[5]} on ", "was killed by SIGKILL: restart"), RESTARTS)


def crashed(what: str, order: str) -> Fault:
    """A row of a rank in which something raises what nobody expects."""
    return Fault(what, f"crash,{order}", (f"rank {order[5]} on ", "crashed", "restart"), RESTARTS)


def hung(what: str, order: str, rank: int, bound: float = HANG_SECONDS) -> Fault:
    """A row of a rank that holds up all others, which is to be found out within so many seconds, and 5."""
    return Fault(what, order, ("no step in", f"rank {rank} on "), RESTARTS, bound + 5)


SCENARIOS = (
    Scenario(
        "killed in a step",
        (
            killed("a rank is killed while its loader assembles a batch", "rank=0,at=data"),
            killed("a rank is killed in the forward pass", "rank=1,at=forward,count=9"),
            crashed("the loader's thread crashes", "rank=0,at=data,count=3"),
            killed("a rank is killed while a checkpoint is loaded", "rank=1,at=load"),
            killed("a rank is killed in the backward pass", "rank=0,at=backward,count=6"),
            killed("a rank is killed in the update", "rank=1,at=optimizer,count=3"),
            killed("a rank is killed in an evaluation", "rank=0,at=eval,count=2"),
            crashed("a rank crashes", "rank=1,at=step,count=2"),
        ),
        scenarios.restarting("checkpoint.every_steps=1", "evaluate.every_steps=1"),
    ),
    Scenario(
        "killed in a save",
        (
            killed("a rank is killed in a save: the copy is about to be made", "rank=1,at=save.begun,count=2"),
            killed("... the copy is made", "rank=0,at=save.copied,count=2"),
            killed("... in the middle of its file", "rank=1,at=save.writing,count=2"),
            killed("... its file is durable, others may not be", "rank=0,at=save.written,count=2"),
            killed("... all files are durable, the manifest is not", "rank=0,at=save.manifest,count=2"),
            killed("... the rename is to come", "rank=0,at=save.staged,count=2"),
            killed("... the rename is done", "rank=0,at=save.renamed,count=2"),
            killed("... an old checkpoint is half removed", "rank=0,at=save.pruning"),
        ),
        scenarios.restarting("checkpoint.every_steps=1", "checkpoint.keep=1"),
    ),
    Scenario(
        "hangs",
        (
            hung("the loader's thread hangs", "hang,rank=1,at=data,count=4", 1),
            Fault("the loader's thread vanishes", "exit,rank=0,at=data,count=4", ("rank 0 on ", "crashed"), RESTARTS),
            hung("rank 0 stands still (SIGSTOP)", "stop,rank=0,at=step,count=2", 0),
            hung("rank 1 stands still (SIGSTOP)", "stop,rank=1,at=backward,count=5", 1),
            hung("a rank does not come to a collective", "hang,rank=1,at=optimizer,count=3", 1),
            hung("the disk of a save answers no more", "hang,rank=1,at=save.writing", 1, SLOW_SECONDS),
        ),
        scenarios.restarting(
            "checkpoint.every_steps=1",
            f"guard.hang_seconds={HANG_SECONDS}",
            f"guard.hang_slow_seconds={SLOW_SECONDS}",
        ),
    ),
    Scenario(
        "a rank is not what it should be",
        (
            Fault(
                "a rank computes slowly",
                "slow,rank=1,at=forward,delay=0.3",
                ("rank 1 on ", "is slow"),
                "it is named, again when it has caught up; the run goes on",
            ),
            Fault(
                "a bit of one copy of a weight flips",
                "flip,rank=1,step=9",
                ("found:", "rank 1 on "),
                "nothing is kept of this step; " + RESTARTS,
            ),
        ),
        scenarios.suspect_rank,
    ),
    Scenario(
        "numbers out of line",
        (
            Fault(
                "the loss of one micro-batch is NaN",
                "nan,rank=1,step=6",
                ("not finite at step 6",),
                REWINDS,
                end=SAME_SKIPS,
            ),
            Fault(
                "the loss of one micro-batch jumps",
                "spike,rank=0,step=10",
                ("a spike at step 10",),
                REWINDS,
                end=SAME_SKIPS,
            ),
        ),
        scenarios.rewinding,
    ),
    Scenario(
        "asked to stop",
        (
            Fault("SIGTERM", "kill -TERM of the launcher", ("stop: SIGTERM",), "commits, leaves with 75"),
            Fault("SIGUSR1, as queues send it", "kill -USR1", ("stop: SIGUSR1",), "commits, leaves with 75"),
            Fault(
                "SIGUSR1 again, and then SIGTERM, while the last save takes long",
                "kill -USR1, and again later, and kill -TERM",
                ("stop: SIGUSR1",),
                "commits all the same, leaves with 75",
                within=scenarios.SLOW_SAVE_SECONDS + AT_ONCE,
            ),
            Fault("a second SIGTERM while the last save hangs", "kill -TERM, and again later", (), "leaves at once"),
        ),
        scenarios.asked_to_stop,
    ),
    Scenario(
        "the time is up",
        (Fault("the allotted time ends", "BIGTRAIN_END_TIME", ("stop:",), "commits ahead of it, leaves with 75"),),
        scenarios.time_is_up,
    ),
    Scenario(
        "the launcher is lost",
        (
            Fault(
                "the launcher is killed",
                "kill -9 of the launcher",
                ("stop: SIGTERM",),
                "the ranks commit and leave; the next start goes on",
            ),
        ),
        scenarios.launcher_lost,
    ),
    Scenario(
        "launched twice",
        (
            Fault(
                "a second job in the run directory",
                "the same command again",
                ("another job is training in run_dir",),
                "the second is refused with status 1; the first does not notice",
                BUSY + 20,
            ),
        ),
        scenarios.launched_twice,
    ),
    Scenario(
        "the port is taken",
        (
            Fault(
                "the rendezvous port is taken",
                "a socket that listens there",
                ("port",),
                "is refused before any rank begins",
                BUSY,
            ),
        ),
        scenarios.port_taken,
    ),
    Scenario(
        "damage at rest",
        (
            Fault("the newest checkpoint rots", "a bit is flipped", ("step-00000010", "is skipped"), ONE_BEFORE, BUSY),
            Fault("a manifest is torn", "half is cut off", ("step-00000008", "is skipped"), ONE_BEFORE, BUSY),
            Fault("half a save is left", "a staging folder", (), "it is cleared"),
            Fault("a line of metrics.jsonl is torn", "half a line at its end", (), "it is skipped"),
            Fault("a lock file is left", "a .lock that nobody holds", (), "it is taken over"),
        ),
        scenarios.damaged_at_rest,
    ),
    Scenario(
        "the disk is full",
        (
            Fault("no space for a save", "a tmpfs of 6 MB", ("No space left on device",), ROOM),
            Fault("no space for metrics.jsonl", "a tmpfs, filled", ("No space left on device",), ROOM),
        ),
        scenarios.disk_full,
        ("mount",),
    ),
    Scenario(
        "the disk fails",
        (
            Fault("an I/O error at a save", "EIO for fsync (strace)", ("Input/output error",), NEXT_START),
            Fault("an I/O error at metrics.jsonl", "EIO for write (strace)", ("Input/output error",), NEXT_START),
        ),
        scenarios.disk_failing,
        ("strace",),
    ),
    Scenario(
        "the disk is slow",
        (Fault("saves take long", "slow,rank=1,at=save.writing,delay=2", (), "trains on beside them"),),
        scenarios.slow_disk,
    ),
    Scenario(
        "the clock jumps",
        (Fault("the wall clock jumps", "+1 h, then -2 h", (), "no save, alarm or step time is off"),),
        scenarios.clock_jumps,
        ("cc",),
    ),
    Scenario(
        "the surroundings are not in order",
        (
            Fault(
                "the place of the checkpoints cannot be written",
                "checkpoint.dir below a file",
                ("the checkpoint folder", "cannot be written"),
                "is refused with status 1 before the first step, and not started again",
                BUSY,
            ),
            Fault(
                "the terminal is closed under `nohup`",
                "kill -HUP of the launcher's process group and of each rank",
                (),
                "trains on",
            ),
            Fault(
                "the file system has no flock",
                "ENOSYS for flock (strace)",
                ("has no flock",),
                "trains, with a lock that needs none",
                BUSY,
            ),
            Fault(
                "the end of a job is over that the shell remembers",
                "SLURM_JOB_END_TIME, two hours ago",
                ("SLURM_JOB_END_TIME=", "is ignored"),
                "trains to the end",
                BUSY,
            ),
            Fault("the user's modules have names of others", "in the working directory", (), "they replace nothing"),
        ),
        scenarios.surroundings,
        ("strace", "nohup"),
    ),
    Scenario(
        "the tracker goes away",
        (
            Fault(
                "W&B's server goes away in the middle",
                "its connections are refused",
                ("W&B", "Training has not waited for it"),
                "trains on and ends; every step is in W&B's file, for `wandb sync`",
                within=BUSY,
            ),
        ),
        scenarios.tracker_outage,
    ),
)

RANK_0_ALONE = ("save.manifest", "save.staged", "save.renamed", "save.pruning")
ONCE_A_STEP = ("step", "forward", "backward", "optimizer")


def at_random(chance: random.Random, processes: int, *, steps: int, start: int) -> Order:
    """Some row that strikes a running start, of some rank, within so many steps (if its point comes by by then).

    Args:
        start: which of the launcher's starts it strikes.
    """
    rows = [Order.parse(fault.planted) for scenario in SCENARIOS for fault in scenario.faults if fault.then == RESTARTS]
    # A process that stands still cannot notice it itself, and the first start may have nothing to load.
    rows = [row for row in rows if not (row.action == "stop" and processes == 1) and (row.at != "load" or start)]
    row = chance.choice(rows)
    rank = "0" if row.at in RANK_0_ALONE else str(chance.randrange(processes))
    return replace(row, rank=rank, count=chance.randint(1, steps) if row.at in ONCE_A_STEP else 1, start=start)

"""What every thread of this process is doing: read by the process itself, from a thread that is not stuck."""

from __future__ import annotations

import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from traceback import FrameSummary

OURS = str(Path(__file__).parents[1])
"""The package bigtrain."""
COLLECTIVES = (
    "torch/distributed/distributed_c10d.py",
    "deepspeed/comm/",
    "torch/distributed/nn/",
)
"""Where a thread is that waits for other ranks."""
SAVER = "saver"
"""The thread that saves behind the training."""


@dataclass(frozen=True)
class ThreadDump:
    """The threads of a process at one moment."""

    text: str
    """All stacks, the innermost frame of each last, as Python prints them."""
    where: str
    """The innermost frame of ours in the thread that the training waits for."""
    waits_for_ranks: bool
    """Whether that thread is inside a collective."""
    waits_for_disk: bool
    """Whether it is in the kernel, uninterruptibly: a disk or a file server does not answer."""


def take_dump(behind: bool = False) -> ThreadDump:
    """Look at all threads.

    Args:
        behind: whether it is the saver's thread that is late, and not the training.
    """
    stacks = {ident: traceback.extract_stack(frame) for ident, frame in sys._current_frames().items()}
    threads = {thread.ident: thread for thread in threading.enumerate()}
    told = []
    for ident, stack in stacks.items():
        thread = threads.get(ident)
        name = thread.name if thread else "a thread that Python did not start"
        state = _kernel(thread.native_id if thread else None)
        told.append(f"{name}{f' ({state})' if state else ''}:\n" + "".join(traceback.format_list(stack)))
    thread = _awaited(stacks, behind)
    stack = stacks.get(thread.ident or 0, traceback.StackSummary())
    return ThreadDump(
        text="\n".join(told),
        where=_where(stack),
        waits_for_ranks=any(place in frame.filename for frame in stack for place in COLLECTIVES),
        waits_for_disk=_kernel(thread.native_id).startswith("D"),
    )


def _awaited(stacks: dict[int, traceback.StackSummary], behind: bool) -> threading.Thread:
    """The thread that holds this rank up: the main one, or that which it waits for."""
    main = threading.main_thread()
    saver = next((thread for thread in threading.enumerate() if thread.name == SAVER), None)
    joins = any(frame.filename.endswith("checkpoint/saver.py") for frame in stacks.get(main.ident or 0, ()))
    return saver if saver is not None and (behind or joins) else main


def _where(stack: list[FrameSummary]) -> str:
    own = [frame for frame in stack if frame.filename.startswith(OURS)]
    if not own:
        return "outside bigtrain"
    path = Path(own[-1].filename).relative_to(Path(OURS).parent)
    return f"{path}:{own[-1].lineno} in {own[-1].name}"


def _kernel(native_id: int | None) -> str:
    """The state of a thread and what it waits for in the kernel, as far as this system tells: `D nfs_wait`."""
    task = Path(f"/proc/self/task/{native_id}")
    try:
        state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        waits_in = (task / "wchan").read_text().strip("0")
    except (OSError, IndexError):
        return ""
    return f"{state} {waits_in}".strip()

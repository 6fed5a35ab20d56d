"""A dump of every thread of this process. The process takes it itself, from a thread that is not stuck."""

from __future__ import annotations

import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from traceback import FrameSummary

PACKAGE = str(Path(__file__).parents[1])
"""The folder of the package bigtrain."""
COLLECTIVES = (
    "torch/distributed/distributed_c10d.py",
    "deepspeed/comm/",
    "torch/distributed/nn/",
)
"""A thread with one of these files in its stack waits for other ranks."""
SAVER = "saver"
"""The name of the thread that writes a background save."""


@dataclass(frozen=True)
class ThreadDump:
    """The threads of a process at one moment."""

    text: str
    """All stacks, as Python prints them: the innermost frame is the last of each."""
    where: str
    """The innermost frame in bigtrain's code of the thread that holds up the training."""
    waits_for_ranks: bool
    """Whether that thread is inside a collective."""
    waits_for_disk: bool
    """Whether that thread is in uninterruptible sleep in the kernel: a disk or a file server does not answer."""


def take_dump(saving: bool = False) -> ThreadDump:
    """Dump all threads of this process.

    Args:
        saving: whether it is the saver's thread that is late, and not the training.
    """
    stacks = {ident: traceback.extract_stack(frame) for ident, frame in sys._current_frames().items()}
    threads = {thread.ident: thread for thread in threading.enumerate()}
    texts = []
    for ident, stack in stacks.items():
        thread = threads.get(ident)
        name = thread.name if thread else "a thread that Python did not start"
        state = _kernel_state(thread.native_id if thread else None)
        texts.append(f"{name}{f' ({state})' if state else ''}:\n" + "".join(traceback.format_list(stack)))
    thread = _awaited_thread(stacks, saving)
    stack = stacks.get(thread.ident or 0, traceback.StackSummary())
    return ThreadDump(
        text="\n".join(texts),
        where=_innermost_own_frame(stack),
        waits_for_ranks=any(file in frame.filename for frame in stack for file in COLLECTIVES),
        waits_for_disk=_kernel_state(thread.native_id).startswith("D"),
    )


def _awaited_thread(stacks: dict[int, traceback.StackSummary], saving: bool) -> threading.Thread:
    """The thread that holds this rank up: the main one, or the saver's where the main one waits for it."""
    main = threading.main_thread()
    saver = next((thread for thread in threading.enumerate() if thread.name == SAVER), None)
    waits_for_saver = any(frame.filename.endswith("checkpoint/saver.py") for frame in stacks.get(main.ident or 0, ()))
    return saver if saver is not None and (saving or waits_for_saver) else main


def _innermost_own_frame(stack: list[FrameSummary]) -> str:
    own = [frame for frame in stack if frame.filename.startswith(PACKAGE)]
    if not own:
        return "outside bigtrain"
    path = Path(own[-1].filename).relative_to(Path(PACKAGE).parent)
    return f"{path}:{own[-1].lineno} in {own[-1].name}"


def _kernel_state(native_id: int | None) -> str:
    """A thread's state and what it waits for in the kernel, `D nfs_wait` for example; empty where unknown."""
    task = Path(f"/proc/self/task/{native_id}")
    try:
        state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        waits_in = (task / "wchan").read_text().strip("0")
    except (OSError, IndexError):
        return ""
    return f"{state} {waits_in}".strip()

"""A checkpoint of a large model, of which there are only the manifest and headers, and what each rank does with it.

`python -m tests.scale.checkpoints 1024 4096 16384` prints what a save, a search and a load cost at these sizes.
"""

from __future__ import annotations

import gc
import json
import math
import pickle
import resource
import sys
import time
import tracemalloc
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch

from bigtrain.base import HeaderEntry, safetensors_header
from bigtrain.checkpoint import Checkpoint, CheckpointManifest, Cursor, Fragment, load, verify
from bigtrain.checkpoint.commit import About, _manifest
from bigtrain.checkpoint.contents import Contents
from bigtrain.checkpoint.division import Division, Run
from bigtrain.checkpoint.manifest import MANIFEST, FileChecksum, parse_manifest, step_name
from bigtrain.checkpoint.storage import Storage
from bigtrain.config import load_settings
from bigtrain.model import build_model

KINDS = ("master", "exp_avg", "exp_avg_sq")
Shapes = Mapping[str, tuple[int, ...]]
ABOUT = About(Cursor(100, 800, "plan", 100), {"optimizer.learning_rate": 0.1}, 3, {}, "layout")


@cache
def llama_70b() -> Shapes:
    """The parameters of configs/llama-70b.yaml."""
    with torch.device("meta"):
        model = build_model(load_settings(Path("configs/llama-70b.yaml"), []).model)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


class _Elements:
    """The number of elements of a fragment, without memory for them."""

    def __init__(self, count: int) -> None:
        self.numel = lambda: count


def stage_3(shapes: Shapes, rank: int, ranks: int, *, allocated: bool = False) -> list[Fragment]:
    """What ZeRO 3 gives a rank: an equal piece of each tensor, and of the last ones less."""
    return [
        Fragment(name, kind, shape, start, torch.zeros(length) if allocated else cast(Any, _Elements(length)))
        for name, shape in shapes.items()
        for start, length in [_piece(math.prod(shape), rank, ranks)]
        if length > 0
        for kind in KINDS
    ]


def stage_1(shapes: Shapes, rank: int, ranks: int) -> list[Fragment]:
    """What ZeRO 1 gives a rank: an equal range of all tensors laid end to end."""
    ends = list(accumulate(math.prod(shape) for shape in shapes.values()))
    part = -(-ends[-1] // ranks)
    found = []
    for (name, shape), end in zip(shapes.items(), ends, strict=True):
        start, low, high = end - math.prod(shape), rank * part, (rank + 1) * part
        if max(start, low) < min(end, high):
            length = min(end, high) - max(start, low)
            found += [Fragment(name, k, shape, max(start, low) - start, cast(Any, _Elements(length))) for k in KINDS]
    return found


def _piece(size: int, rank: int, ranks: int) -> tuple[int, int]:
    part = -(-size // ranks)
    return rank * part, min(part, size - rank * part)


def division_at_stage_3(shapes: Shapes, ranks: int, within: range | None = None) -> Division:
    """What the reports of these ranks of `stage_3` join to, without asking each of them."""
    within = within or range(ranks)
    runs = {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        part = -(-size // ranks)
        whole = range(within.start, min(within.stop, size // part))
        of_tensor = [Run(whole.start, len(whole), whole.start * part, part)] if whole else []
        if size % part and size // part in within:
            rest = Run(size // part, 1, size // part * part, size % part)
            of_tensor.append(rest)
        if of_tensor:
            runs[name, KINDS] = of_tensor
    return Division(runs)


def contents_at_stage_3(shapes: Shapes, ranks: int, within: range | None = None) -> Contents:
    """What these ranks report of a save, as their parent in the tree receives it."""
    within = within or range(ranks)
    listed = {name: list(shape) for name, shape in shapes.items()}
    files = [
        (f"state-{rank:05d}-of-{ranks:05d}.safetensors", FileChecksum(1 << 20, f"{rank:032x}"), "") for rank in within
    ]
    return Contents(listed, set(KINDS), division_at_stage_3(shapes, ranks, within), "", files)


def children(rank: int, ranks: int) -> Iterator[range]:
    """The ranks of each subtree that a rank hears of, as in `RankTree`."""
    stride = 1
    while stride < ranks and not rank % (stride * 8):
        for child in range(rank + stride, min(rank + stride * 8, ranks), stride):
            yield range(child, min(child + stride, ranks))
        stride *= 8


@dataclass
class HeadersOnly:
    """A storage whose files have headers, made by the project's code when asked for, and any number as contents."""

    shapes: Shapes
    ranks: int
    manifest: bytes
    opened: list[str] = field(default_factory=list)
    bytes_read: int = 0

    def location(self, step: int) -> str:
        return f"nowhere/{step_name(step)}"

    @contextmanager
    def open(self, step: int, name: str) -> Iterator[_HeaderReader]:
        self.opened.append(name)
        yield _HeaderReader(self, name)


class _HeaderReader:
    def __init__(self, storage: HeadersOnly, name: str) -> None:
        self._storage = storage
        if name == MANIFEST:
            self._head, self._ends, self.size = storage.manifest, [], len(storage.manifest)
            return
        rank = int(name.split("-")[1])
        pieces = stage_3(storage.shapes, rank, storage.ranks)
        entries = [
            HeaderEntry(f"{f.kind}/{f.name}/{f.offset}", "F32", (f.data.numel(),), 4 * f.data.numel()) for f in pieces
        ]
        self._head, _ = safetensors_header(entries)
        self._pieces, self._ends = pieces, list(accumulate((e.nbytes for e in entries), initial=len(self._head)))
        self.size = self._ends[-1]

    def read_into(self, start: int, target: memoryview) -> None:
        self._storage.bytes_read += len(target)
        if start < len(self._head):
            target[:] = self._head[start : start + len(target)]
            return
        at = bisect_right(self._ends, start) - 1
        first = self._pieces[at].offset + (start - self._ends[at]) // 4
        assert start + len(target) <= self._ends[at + 1]
        target.cast("f")[:] = memoryview(contents(self._pieces[at].kind, first, len(target) // 4))


def contents(kind: str, start: int, length: int) -> Any:
    """What elements of a tensor of `HeadersOnly` are."""
    return (np.arange(start, start + length) % 65_521 + 100_000 * KINDS.index(kind)).astype(np.float32)


def checkpoint_at_stage_3(shapes: Shapes, ranks: int, *, described: bool = True) -> Checkpoint:
    """One that `ranks` ranks have saved at ZeRO 3.

    Args:
        described: whether the manifest has the division, which those of earlier versions lack.
    """
    manifest = _manifest(ABOUT, contents_at_stage_3(shapes, ranks))
    if not described:
        object.__setattr__(manifest, "pieces", None)
    return Checkpoint(100, cast(Storage, HeadersOnly(shapes, ranks, manifest.to_json().encode())))


@dataclass
class OneOfMany:
    """One rank of a job, without the others: rank 0 records what it sends, and another rank plays that back."""

    rank: int
    world_size: int
    of_all: Contents
    """What all ranks hold, where they report it to rank 0."""
    sent: list[Any]
    """By rank 0, in order: what all ranks get, or a list of what each gets."""
    bytes: int = 0
    """Sent up and received by this rank; by rank 0, received from none and sent to one child."""

    def reduce(self, value: Any, merge: Callable[[Any, Any], Any]) -> Any:
        self.bytes += len(pickle.dumps(value))
        if self.rank == 0:
            return self.of_all if isinstance(value, Contents) else value
        return None

    def broadcast(self, value: Any) -> Any:
        if self.rank == 0:
            self.sent.append(value)
            self.bytes += len(pickle.dumps(value))
            return value
        return self._received(self.sent.pop(0))

    def scatter(self, values: Any) -> Any:
        if self.rank == 0:
            self.sent.append(values)
            return values[0]
        return self._received(self.sent.pop(0)[self.rank])

    def _received(self, value: Any) -> Any:
        message = pickle.dumps(value)
        self.bytes += len(message)
        return pickle.loads(message)


@dataclass
class Cost:
    """Of one rank."""

    cpu_seconds: float
    bytes: int = 0
    """In messages."""
    opened: int = 0
    """Files."""
    read: int = 0
    """Bytes of files."""

    def __str__(self) -> str:
        return f"{self.cpu_seconds:6.2f} s CPU, {self.bytes:,} B of messages, {self.opened} files, {self.read:,} B read"


def cost_of(action: Callable[[], Any], ranks: OneOfMany | None = None, storage: HeadersOnly | None = None) -> Cost:
    """CPU seconds of one call, and what it moved."""
    opened, read = (len(storage.opened), storage.bytes_read) if storage else (0, 0)
    start = time.process_time()
    action()
    seconds = time.process_time() - start
    moved = (len(storage.opened) - opened, storage.bytes_read - read) if storage else (0, 0)
    return Cost(seconds, ranks.bytes if ranks else 0, *moved)


def commit_on_first_rank(shapes: Shapes, ranks: int) -> Cost:
    """What rank 0 does with the reports of its children, until it has the text of the manifest."""
    messages = [pickle.dumps(contents_at_stage_3(shapes, ranks, within)) for within in children(0, ranks)]
    own = contents_at_stage_3(shapes, ranks, range(1))

    def join() -> None:
        joined = own
        for message in messages:
            joined = joined.merged(pickle.loads(message))
        assert joined.division == division_at_stage_3(shapes, ranks)
        _manifest(ABOUT, joined).to_json().encode()

    cost = cost_of(join)
    cost.bytes = sum(map(len, messages))
    return cost


def load_of(
    checkpoint: Checkpoint, shapes: Shapes, rank: int, ranks: int, sent: list[Any]
) -> tuple[Cost, list[Fragment]]:
    """What one rank of another number of ranks does to load its part. Rank 0 first: it fills `sent`."""
    own = stage_3(shapes, rank, ranks, allocated=True)
    of_all = contents_at_stage_3(shapes, ranks)
    played = OneOfMany(rank, ranks, of_all, sent if rank == 0 else list(sent))
    return cost_of(lambda: load(checkpoint, own, ranks=played), played, cast(HeadersOnly, checkpoint.storage)), own


def planning_of(checkpoint: Checkpoint, shapes: Shapes, ranks: int) -> tuple[Cost, float]:
    """What only rank 0 does in a load, without the reading of its own part: its cost, and the peak of its memory in MB.

    The memory is that of a second load, as counting it takes time.
    """
    of_all = contents_at_stage_3(shapes, ranks)
    own = stage_3(shapes, 0, ranks)

    def plan() -> OneOfMany:
        played = OneOfMany(0, ranks, of_all, [])
        load(checkpoint, own, ranks=played)
        return played

    with patch("bigtrain.checkpoint.load._read", lambda *_: None):
        gc.collect()
        gc.freeze()  # what this process holds of other ranks
        cost = cost_of(plan, storage=cast(HeadersOnly, checkpoint.storage))
        tracemalloc.start()
        plan()
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        gc.unfreeze()
    return cost, peak


def is_right(own: list[Fragment]) -> bool:
    """Whether fragments have what the files of `HeadersOnly` hold."""
    return all(np.array_equal(each.data.numpy(), contents(each.kind, each.offset, each.data.numel())) for each in own)


def verification_of(checkpoint: Checkpoint, rank: int, ranks: int, sent: list[Any]) -> Cost:
    """What one rank does to check the sizes of its part of the files."""
    played = OneOfMany(rank, ranks, Contents({}, set(), Division({}), ""), sent if rank == 0 else list(sent))
    return cost_of(
        lambda: verify(checkpoint, contents=False, ranks=played), played, cast(HeadersOnly, checkpoint.storage)
    )


def report(ranks: int, shapes: Shapes) -> dict[str, Any]:
    """What a save, a verification and a load cost at a number of ranks, on rank 0 and on another one."""
    checkpoint, to = checkpoint_at_stage_3(shapes, ranks), ranks * 3 // 4
    text = cast(HeadersOnly, checkpoint.storage).manifest
    parsed: list[CheckpointManifest] = []
    found: dict[str, Any] = {
        "bytes of the manifest": len(text),
        "bytes of its pieces": len(json.dumps(json.loads(text)["pieces"])),
        "commit, rank 0": commit_on_first_rank(shapes, ranks),
        "report of a rank, bytes": len(pickle.dumps(Contents.of(stage_3(shapes, 9, ranks), 9))),
        "manifest read": cost_of(lambda: parsed.append(parse_manifest(MANIFEST, text))),
    }
    sent: list[Any] = []
    found["sizes, rank 0"] = verification_of(checkpoint, 0, ranks, sent)
    found["sizes, another"] = verification_of(checkpoint, ranks // 3, ranks, sent)
    sent = []
    planning, peak = planning_of(checkpoint, shapes, to)
    found |= {f"load at {to}, what only rank 0 does": planning, "peak memory of it, MB": round(peak, 1)}
    found[f"load at {to}, rank 0, with its own part"] = load_of(checkpoint, shapes, 0, to, sent)[0]
    found[f"load at {to}, another"], own = load_of(checkpoint, shapes, to // 3, to, sent)
    assert is_right(own)
    found["peak memory, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
    return found


if __name__ == "__main__":
    for size in map(int, sys.argv[1:]):
        for what, value in report(size, llama_70b()).items():
            print(f"{size:6}  {what:28} {value}", flush=True)

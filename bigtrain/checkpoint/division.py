"""How tensors are divided among the files of a checkpoint, or among the ranks of a job, in a few numbers.

A `Run` says it for ranks that follow each other and hold pieces of equal length:

    stage 0     one run for each tensor: all ranks hold it, and each saves its share
    stage 1, 2  about as many runs as there are ranks and tensors together
    stage 3     two runs for each size of tensor: equal pieces, and a shorter last one

Runs are joined from what the ranks report, on the way up their tree. So any division is exact, and one without a
regularity only takes more runs. The manifest has them, and rank 0 of a load finds by bisection which files each rank
has to open. The headers of these files are the proof: see `Coverage`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigtrain.base import BigtrainError
from bigtrain.checkpoint.fragment import MASTER, Fragment
from bigtrain.checkpoint.manifest import MANIFEST, CheckpointManifest, TensorPieces
from bigtrain.checkpoint.overlap import Region, region_of

Integers = npt.NDArray[np.int64]

LARGEST_DIVISION = 1 << 20
"""Runs in a manifest. A division that needs more is left to the headers."""
_LARGEST_TENSOR = 1 << 62
_MOST_PIECES = 1 << 22
"""Pieces of one tensor."""
_ALL_FROM = 256
"""A rank that needs more pieces of a tensor, and more than a quarter of all, reads all files without a list of them."""


class Run(NamedTuple):
    """Pieces of one tensor, on ranks that follow each other."""

    first: int
    """The first of the ranks, which is the number of its file in a checkpoint."""
    ranks: int
    start: int
    """First element, as in `Region`."""
    length: int
    """Elements of each piece; the next rank has those that follow."""
    holder: int = 0
    holders: int = 1
    """With more than one, all ranks hold the same piece, and each saves a part: the first of them that of number
    `holder`."""
    width: int = 0
    """0: the pieces are ranges of the flattened tensor."""
    left: int = 0
    right: int = 0

    def followed_by(self, other: Run) -> Run | None:
        """The run of both, if there is one."""
        if other.first != self.first + self.ranks or (self.length, self[5:]) != (other.length, other[5:]):
            return None
        same = self.holders > 1
        start, holder = self.start + (0 if same else self.ranks * self.length), self.holder + self.ranks * same
        return self._replace(ranks=self.ranks + other.ranks) if (other.start, other.holder) == (start, holder) else None

    def __str__(self) -> str:
        used = 9 if self.width else 6 if self.holders > 1 else 4
        return ",".join(map(str, self[:used]))


class Strip(NamedTuple):
    """The pieces of a tensor that have the same columns, by their start."""

    width: int
    left: int
    right: int
    rank: Integers
    start: Integers
    end: Integers


@dataclass(frozen=True)
class Division:
    """The pieces of tensors that some ranks hold, or some files."""

    runs: dict[tuple[str, tuple[str, ...]], list[Run]]
    """Of a parameter's name, and the kinds of its state that are divided in this way; in rank order."""

    @classmethod
    def of(cls, fragments: Iterable[Fragment], rank: int) -> Division:
        """What one rank holds."""
        pieces = (
            (
                (each.name, each.kind, region_of(each.shape, each.shard, each.offset, length)),
                (each.holder, each.holders),
            )
            for each in fragments
            if (length := each.data.numel())
        )
        return cls._of(pieces, rank)

    @classmethod
    def of_file(cls, pieces: Iterable[tuple[str, str, Region]], number: int) -> Division:
        """What one file holds: names, kinds and elements."""
        return cls._of(((piece, (0, 1)) for piece in pieces if piece[2].start < piece[2].end), number)

    @classmethod
    def of_manifest(cls, manifest: CheckpointManifest, location: str) -> Division | None:
        """What a manifest says; None where an earlier version wrote it.

        Raises:
            BigtrainError: it names files or elements that cannot be.
        """
        if manifest.pieces is None:
            return None
        found = cls({})
        for each in manifest.pieces:
            runs = [_parsed(text, len(manifest.files), location) for text in each.runs.split()]
            if sum(run.ranks for run in runs) > _MOST_PIECES:
                raise _damaged(location, f"more than {_MOST_PIECES:,} pieces of a tensor")
            for name in each.tensors:
                found.runs[name, tuple(each.kinds)] = runs
        return found

    def merged(self, higher: Division) -> Division:
        """Together with the pieces of the ranks that follow. It changes this one."""
        for key, following in higher.runs.items():
            own = self.runs.setdefault(key, [])
            joined = own[-1].followed_by(following[0]) if own else None
            own[len(own) - (joined is not None) :] = following if joined is None else [joined, *following[1:]]
        return self

    def copied(self) -> Division:
        """One that can be changed."""
        return Division({key: list(runs) for key, runs in self.runs.items()})

    def records(self) -> list[TensorPieces] | None:
        """For the manifest. None where it would be too long."""
        if sum(map(len, self.runs.values())) > LARGEST_DIVISION:
            return None
        alike: defaultdict[tuple[tuple[str, ...], str], list[str]] = defaultdict(list)
        for (name, kinds), runs in self.runs.items():
            alike[kinds, " ".join(map(str, runs))].append(name)
        return [TensorPieces(list(kinds), sorted(names), runs) for (kinds, runs), names in sorted(alike.items())]

    def files_for(
        self, targets: Division, ranks: int, files: int, shapes: Mapping[str, Sequence[int]], location: str
    ) -> list[Integers | None]:
        """The files that hold what each rank of another division needs, and perhaps some that it does not need.

        Args:
            targets: what the ranks hold. Of a piece that several hold, each needs the whole.
            ranks: their number.
            files: number of files of the checkpoint, whose division this is.
            shapes: of the whole parameters.
            location: of the checkpoint, for the message.

        Returns:
            For each rank the numbers of the files, in order; None for all files.

        Raises:
            BigtrainError: the pieces of a tensor do not cover each of its elements once.
        """
        found: list[Integers] = []
        all_files = np.zeros(ranks, dtype=bool)
        strips: dict[tuple[Run, ...], list[Strip]] = {}
        whole: dict[tuple[Run, ...], list[Strip]] = {}
        for size, stored, held, tensor in self._pairs(targets, shapes):
            if stored not in strips:
                strips[stored] = list(_strips(stored, shares=True))
            if not _tile(strips[stored], size):
                raise not_whole(location, tensor, sum(int((s.end - s.start).sum()) for s in strips[stored]), size)
            if held not in whole:
                whole[held] = list(_strips(held, shares=False))
            for target in whole[held]:
                for source in strips[stored]:
                    found.append(_needed(source, target, files, all_files))
        pairs = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
        bounds = np.searchsorted(pairs, np.arange(ranks + 1) * files)
        return [
            None if all_files[rank] else pairs[bounds[rank] : bounds[rank + 1]] - rank * files for rank in range(ranks)
        ]

    def _pairs(
        self, targets: Division, shapes: Mapping[str, Sequence[int]]
    ) -> Iterator[tuple[int, tuple[Run, ...], tuple[Run, ...], str]]:
        """The tensors that the targets need, once for all that are divided alike: elements, runs here and there."""
        here: defaultdict[tuple[str, str], tuple[Run, ...]] = defaultdict(tuple)
        as_tuples: dict[int, tuple[Run, ...]] = {}
        for (name, kinds), runs in self.runs.items():
            shared = as_tuples.setdefault(id(runs), tuple(runs))
            for kind in kinds:
                here[name, kind] += shared
        seen = set()
        for (name, kinds), wanted in targets.runs.items():
            size = int(np.prod([int(length) for length in shapes[name]], dtype=object))
            for kind in kinds:
                pair = (size, here[name, kind], tuple(wanted))
                if pair not in seen:
                    seen.add(pair)
                    yield (*pair, f"{kind} of {name}")

    @classmethod
    def _of(cls, pieces: Iterable[tuple[tuple[str, str, Region], tuple[int, int]]], rank: int) -> Division:
        kinds: defaultdict[tuple[str, Run], list[str]] = defaultdict(list)
        for (name, kind, region), holders in pieces:
            columns = (region.width, region.left, region.right) if region.width else (0, 0, 0)
            kinds[name, Run(rank, 1, region.start, region.end - region.start, *holders, *columns)].append(kind)
        runs: defaultdict[tuple[str, tuple[str, ...]], list[Run]] = defaultdict(list)
        once: dict[Any, Any] = {}  # equal values are one object, which is sent once
        for (name, run), of_piece in kinds.items():
            sorted_kinds = tuple(sorted(of_piece, key=lambda kind: (kind != MASTER, kind)))
            runs[name, once.setdefault(sorted_kinds, sorted_kinds)].append(once.setdefault(run, run))
        return cls(dict(runs))


class Coverage:
    """The elements of one tensor that pieces hold, none of them twice."""

    def __init__(self) -> None:
        self._ranges: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        self.elements = 0
        """How many."""

    def add(self, region: Region) -> bool:
        """Add a piece; False if it shares an element with an earlier one."""
        start, end = region.start, region.end
        if start == end:
            return True
        columns = (region.width, region.left, region.right) if region.width else (0, 0, 1)
        if columns not in self._ranges:
            for width, left, right in self._ranges:
                if width != columns[0] or (left < columns[2] and columns[1] < right):
                    return False
        ranges = self._ranges.setdefault(columns, [])
        self.elements += end - start
        at = bisect_left(ranges, (start, end))
        if (at and ranges[at - 1][1] > start) or (at < len(ranges) and ranges[at][0] < end):
            return False
        if at < len(ranges) and ranges[at][0] == end:
            end = ranges.pop(at)[1]
        if at and ranges[at - 1][1] == start:
            at, start = at - 1, ranges.pop(at - 1)[0]
        ranges.insert(at, (start, end))
        return True


def not_whole(location: str, tensor: str, elements: int, size: int) -> BigtrainError:
    """The error where pieces do not cover each element of a tensor once: the memory would be whatever it was."""
    return BigtrainError(
        f"{location} does not hold all of {tensor}",
        found=f"{elements} elements, in pieces that overlap or leave a gap",
        wanted=f"each of its {size} elements once",
        fix="use another checkpoint: `bigtrain checkpoint verify RUN` lists those that are right",
    )


def _parsed(text: str, files: int, location: str) -> Run:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (4, 6, 9):
        raise _damaged(location, text)
    run = Run(*numbers)
    pieces, parts = (run.ranks, run.holders) if run.holders == 1 else (1, run.holders)
    if (
        min(numbers) < 0
        or run.ranks < 1
        or run.first + run.ranks > files
        or run.start + run.length * pieces * parts > _LARGEST_TENSOR
        or run.holders < 1
        or (run.holder + run.ranks > run.holders if run.holders > 1 else run.holder > 0)
        or not (run.left < run.right <= run.width <= _LARGEST_TENSOR if run.width else run.left == run.right == 0)
    ):
        raise _damaged(location, text)
    return run


def _damaged(location: str, found: str) -> BigtrainError:
    return BigtrainError(
        f"{location}/{MANIFEST} is damaged",
        found=found[:100],
        wanted="pieces of tensors in the files of the checkpoint",
    )


def _strips(runs: Sequence[Run], *, shares: bool) -> Iterator[Strip]:
    """The pieces of runs.

    Args:
        shares: of pieces that several ranks hold, the part that each saves; else the whole, for each of them.
    """
    if not runs:
        return
    table = np.array(runs, dtype=np.int64)
    of_run = np.repeat(np.arange(len(table)), table[:, 1])
    number = np.arange(len(of_run)) - np.repeat(np.cumsum(table[:, 1]) - table[:, 1], table[:, 1])
    first, _, start, length, holder, holders, *_ = table[of_run].T
    alone = holders == 1
    share = [(holder + number + edge) * length // holders if shares else edge * length for edge in (0, 1)]
    begin = start + np.where(alone, number * length, share[0])
    end = start + np.where(alone, (number + 1) * length, share[1])
    there = begin < end
    rank, begin, end, columns = (first + number)[there], begin[there], end[there], table[of_run, 6:][there]
    for width, left, right in np.unique(columns, axis=0):
        same = (columns == (width, left, right)).all(axis=1)
        order = np.argsort(begin[same], kind="stable")
        yield Strip(int(width), int(left), int(right), rank[same][order], begin[same][order], end[same][order])


def _tile(strips: Sequence[Strip], size: int) -> bool:
    """Whether the pieces cover each element of a tensor once."""
    widths = {strip.width for strip in strips}
    if len(widths) != 1:
        return not size and not strips
    width = widths.pop() or 1
    edges = sorted((strip.left, strip.right) for strip in strips) if strips[0].width else [(0, 1)]
    follow = [left for left, _ in edges] == [0, *(right for _, right in edges[:-1])] and edges[-1][1] == width
    return (
        follow
        and size % width == 0
        and all(
            strip.start[0] == 0
            and strip.end[-1] == size // width * ((strip.right - strip.left) or 1)
            and bool((strip.start[1:] == strip.end[:-1]).all())
            for strip in strips
        )
    )


def _needed(source: Strip, target: Strip, files: int, all_files: npt.NDArray[np.bool_]) -> Integers:
    """The files of a strip that ranks need, each pair as rank * files + file. Marks the ranks that need very many."""
    window = _window(source, target)
    if window is None:
        return np.zeros(0, dtype=np.int64)
    first = np.searchsorted(source.end, window[0], side="right")
    count = np.maximum(np.searchsorted(source.start, window[1], side="left") - first, 0)
    most = (count > _ALL_FROM) & (count > files // 4)
    all_files[target.rank[most]] = True
    count[most] = 0
    inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.unique(np.repeat(target.rank * files, count) + source.rank[np.repeat(first, count) + inside])


def _window(source: Strip, target: Strip) -> tuple[Integers, Integers] | None:
    """The elements of the source's columns that pieces of the target may share, rounded to whole rows."""
    if (source.width, source.left, source.right) == (target.width, target.left, target.right):
        return target.start, target.end
    if source.width and target.width:
        if source.width != target.width:  # shards of two dimensions, which cannot be read: `shared` says so
            return np.zeros_like(target.start), np.full_like(target.end, _LARGEST_TENSOR)
        if source.right <= target.left or target.right <= source.left:
            return None
    width = source.width or target.width
    here, there = ((strip.right - strip.left) or width for strip in (source, target))
    return target.start // there * here, -(-target.end // there) * here

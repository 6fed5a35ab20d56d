"""Which elements two pieces of one tensor share, and their positions in each piece.

A parameter is treated as a matrix of `rows` x `width`. A rank with a shard of dimension 1 holds some of the columns of
every row. ZeRO flattens these columns and divides the result into ranges: a `Region` is such a range. A piece of a
whole parameter, or of a shard of dimension 0, is a range of the flattened parameter: it has all columns.

A region consists of at most three rectangles: the rest of a first row, whole rows, the start of a last row. So two
regions share at most nine rectangles, and each of them is one strided copy, however large it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bigtrain.checkpoint.fragment import TensorShard


@dataclass(frozen=True)
class Region:
    """Elements [start, end) of some columns of a matrix, flattened."""

    start: int
    end: int
    width: int | None = None
    """Columns of the matrix. None: the region is a range of the flattened parameter, and any width fits."""
    left: int = 0
    right: int = 0
    """The region has the columns [left, right) of each row; meaningless without a width."""


@dataclass(frozen=True)
class Shared:
    """A rectangle that two regions share: `rows` runs of `columns` elements."""

    rows: int
    columns: int
    source: int
    """Element of the source at which the first run starts."""
    source_stride: int
    """Elements of the source from one run to the next."""
    target: int
    target_stride: int


def region_of(shape: tuple[int, ...], shard: TensorShard | None, offset: int, length: int) -> Region:
    """Elements [offset, offset + length) of a flattened parameter, or of its flattened shard."""
    if shard is None:
        return Region(offset, offset + length)
    inner = math.prod(shape[shard.dim + 1 :])
    if shard.dim == 0:
        before = shard.start * inner
        return Region(before + offset, before + offset + length)
    left, right = shard.start * inner, (shard.start + shard.length) * inner
    return Region(offset, offset + length, shape[shard.dim] * inner, left, right)


def shared(source: Region, target: Region) -> Iterator[Shared]:
    """The rectangles that two regions share. They hold every shared element once.

    Raises:
        ValueError: the regions are of shards of different dimensions, neither of which is 0.
    """
    if source.width is None and target.width is None:  # the usual case, for which speed matters: there are many pairs
        start, end = max(source.start, target.start), min(source.end, target.end)
        if start < end:
            yield Shared(1, end - start, start - source.start, end - start, start - target.start, end - start)
        return
    width = source.width or target.width
    assert width is not None
    if target.width not in (None, width):
        raise ValueError(f"shards with rows of {width} and {target.width} elements")
    source, target = _of_width(source, width), _of_width(target, width)
    for one in _rectangles(source):
        for other in _rectangles(target):
            top, bottom = max(one.top, other.top), min(one.bottom, other.bottom)
            left, right = max(one.left, other.left), min(one.right, other.right)
            if top < bottom and left < right:
                yield Shared(
                    bottom - top,
                    right - left,
                    _place(source, top, left),
                    source.right - source.left,
                    _place(target, top, left),
                    target.right - target.left,
                )


@dataclass(frozen=True)
class _IndexRectangle:
    top: int
    bottom: int
    left: int
    right: int


def _of_width(region: Region, width: int) -> Region:
    return region if region.width else Region(region.start, region.end, width, 0, width)


def _place(region: Region, row: int, column: int) -> int:
    return row * (region.right - region.left) + column - region.left - region.start


def _rectangles(region: Region) -> Iterator[_IndexRectangle]:
    run = region.right - region.left
    (first, skipped), (last, rest) = divmod(region.start, run), divmod(region.end, run)
    if first == last:
        yield _IndexRectangle(first, first + 1, region.left + skipped, region.left + rest)
        return
    if skipped:
        yield _IndexRectangle(first, first + 1, region.left + skipped, region.right)
        first += 1
    if first < last:
        yield _IndexRectangle(first, last, region.left, region.right)
    if rest:
        yield _IndexRectangle(last, last + 1, region.left, region.left + rest)

"""Fills fragments from files, piece by piece, and proves that each element was filled once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bigtrain.base import BigtrainError
from bigtrain.checkpoint.checkpoint import Checkpoint
from bigtrain.checkpoint.division import Coverage, not_whole
from bigtrain.checkpoint.fragment import Fragment
from bigtrain.checkpoint.manifest import CheckpointSummary
from bigtrain.checkpoint.overlap import Region, Shared, region_of, shared
from bigtrain.checkpoint.storage import Reader
from bigtrain.checkpoint.tensor_file import StoredPiece, bytes_of, read_header, stored_pieces

_BLOCK = 1 << 23
"""Elements that are read at once where they cannot be read directly into their fragment."""


@contextmanager
def opened(checkpoint: Checkpoint, name: str) -> Iterator[Reader]:
    """A file of a checkpoint. Raises BigtrainError where it cannot be read, also later."""
    try:
        with checkpoint.open(name) as reader:
            yield reader
    except OSError as error:
        raise BigtrainError(f"{checkpoint.location} cannot be read", found=f"{name}: {error}") from error


def pieces_in(
    reader: Reader, name: str, summary: CheckpointSummary, kinds: Collection[str] | None = None
) -> Iterator[StoredPiece]:
    """The pieces in a file, by its header. See `stored_pieces`. Raises OSError and BigtrainError."""
    return stored_pieces(name, read_header(reader), reader.size, summary.tensors, kinds)


@dataclass
class _Target:
    fragment: Fragment
    region: Region
    filled: int = 0
    """Elements."""


class Filling:
    """Fragments that are filled from one file after the other."""

    def __init__(self, location: str, fragments: Sequence[Fragment]) -> None:
        """See the class.

        Args:
            location: of the checkpoint, for messages.
            fragments: what is to be filled.
        """
        self._location = location
        self._targets: defaultdict[tuple[str, str], list[_Target]] = defaultdict(list)
        for fragment in fragments:
            if length := fragment.data.numel():
                region = region_of(fragment.shape, fragment.shard, fragment.offset, length)
                self._targets[fragment.name, fragment.kind].append(_Target(fragment, region))
        self._stored: defaultdict[tuple[str, str], Coverage] = defaultdict(Coverage)

    def take(self, reader: Reader, pieces: Iterator[StoredPiece]) -> None:
        """Copy what the fragments need of the pieces in a file.

        Raises:
            OSError: it cannot be read.
            BigtrainError: a piece has elements that an earlier one had.
        """
        overlaps: list[tuple[int, Shared, Fragment]] = []
        for piece in pieces:
            key = (piece.name, piece.kind)
            if key not in self._targets or piece.region.start == piece.region.end:
                continue
            if not self._stored[key].add(piece.region):
                size = self._targets[key][0].fragment.size
                raise not_whole(self._location, f"{piece.kind} of {piece.name}", self._stored[key].elements, size)
            for target in self._targets[key]:
                for overlap in shared(piece.region, target.region):
                    target.filled += overlap.rows * overlap.columns
                    overlaps.append((piece.begin, overlap, target.fragment))
        for begin, overlap, fragment in sorted(overlaps, key=lambda each: each[0] + 4 * each[1].source):
            _copy(reader, begin, overlap, fragment.data)

    def check_complete(self) -> None:
        """Raise BigtrainError where an element of a fragment was in no file: it would be whatever it was before."""
        for (name, kind), targets in self._targets.items():
            for target in targets:
                if target.filled != target.fragment.data.numel():
                    raise BigtrainError(
                        f"{self._location} does not hold all of {kind} of {name}",
                        found=f"{target.filled} elements",
                        wanted=target.fragment.data.numel(),
                        fix="use another checkpoint: `bigtrain checkpoint verify RUN` lists those that are right",
                    )


def _copy(reader: Reader, begin: int, overlap: Shared, target: torch.Tensor) -> None:
    """Read a rectangle of a piece, which starts at byte `begin` of the file, into a fragment's memory."""
    length = overlap.rows * overlap.columns
    if overlap.rows == 1 or overlap.columns == overlap.source_stride == overlap.target_stride:
        if target.device.type == "cpu":  # directly into the fragment
            reader.read_into(begin + 4 * overlap.source, bytes_of(target[overlap.target : overlap.target + length]))
            return
        overlap = Shared(length, 1, overlap.source, 1, overlap.target, 1)  # one run, read in blocks
    # The elements between the rows are read too: one large read is faster than many small ones.
    rows = max(1, min(overlap.rows, _BLOCK // max(1, overlap.source_stride)))
    block = torch.empty((rows - 1) * overlap.source_stride + overlap.columns, dtype=torch.float32)
    for row in range(0, overlap.rows, rows):
        count = min(rows, overlap.rows - row)
        part = block[: (count - 1) * overlap.source_stride + overlap.columns]
        reader.read_into(begin + 4 * (overlap.source + row * overlap.source_stride), bytes_of(part))
        size = (count, overlap.columns)
        place = rectangle(target, size, overlap.target_stride, overlap.target + row * overlap.target_stride)
        place.copy_(torch.as_strided(part, size, (overlap.source_stride, 1)))


def rectangle(flat: torch.Tensor, size: tuple[int, int], stride: int, start: int) -> torch.Tensor:
    """A rectangle of a 1-D tensor: `size` elements, rows `stride` apart, from element `start` on."""
    return torch.as_strided(flat, size, (stride, 1), flat.storage_offset() + start)

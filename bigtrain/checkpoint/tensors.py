"""The whole tensors of a checkpoint, for one process: without an engine or a process group."""

from __future__ import annotations

import math
import weakref
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby

import torch
import xxhash

from bigtrain.base import BigtrainError, raise_open_files
from bigtrain.checkpoint.checkpoint import Checkpoint
from bigtrain.checkpoint.division import Coverage, not_whole
from bigtrain.checkpoint.filling import Filling, pieces_in
from bigtrain.checkpoint.fragment import MASTER, Fragment
from bigtrain.checkpoint.overlap import Region
from bigtrain.checkpoint.storage import Reader
from bigtrain.checkpoint.tensor_file import StoredPiece, bytes_of

_OTHER_FILES = 256
"""Files that the rest of the process may have open."""


class Tensors:
    """The whole tensors of a checkpoint, each read on request, without an engine or a process group."""

    def __init__(self, checkpoint: Checkpoint, kinds: Collection[str] | None = None) -> None:
        """Read the headers.

        Args:
            checkpoint: where they are.
            kinds: tensors of other kinds are not read. None: all may be.

        Raises:
            BigtrainError: the checkpoint is damaged or incomplete.
        """
        self.manifest = checkpoint.manifest
        self._checkpoint = checkpoint
        self._files = _OpenFiles(checkpoint, list(self.manifest.files))
        # A checkpoint may have tens of millions of pieces, so they are numbers in columns and no objects.
        self._pieces: defaultdict[tuple[str, str], array[int]] = defaultdict(lambda: array("q"))
        covered: defaultdict[tuple[str, str], Coverage] = defaultdict(Coverage)
        for number, (file, checksum) in enumerate(self.manifest.files.items()):
            with self._files.reader(number) as reader:
                if reader.size != checksum.size:
                    raise BigtrainError(
                        f"{checkpoint.location}/{file} is damaged",
                        found=f"{reader.size:,} bytes",
                        wanted=f"{checksum.size:,}",
                        fix="use another checkpoint: `bigtrain checkpoint verify RUN` lists those that are right",
                    )
                for piece in pieces_in(reader, file, self.manifest, kinds):
                    region, key = piece.region, (piece.name, piece.kind)
                    row = (number, piece.begin, region.start, region.end, region.width or 0, region.left, region.right)
                    self._pieces[key].extend(row)
                    if not covered[key].add(region):
                        raise self._not_whole(*key, covered[key].elements)
        for key, found in covered.items():
            if found.elements != self._size(key[0]):
                raise self._not_whole(*key, found.elements)
        self.stored = sorted({*self._pieces, *((name, MASTER) for name in self.manifest.tensors)})
        """All tensors by (name, kind): the master weights of every parameter, and the optimizer's moments."""

    def read(self, name: str, kind: str = MASTER) -> torch.Tensor:
        """One tensor, float32. Raises BigtrainError."""
        if (name, kind) not in self._pieces and self._size(name):
            raise self._not_whole(name, kind, 0)
        tensor = torch.empty(self.manifest.tensors[name], dtype=torch.float32)
        whole = Fragment(name, kind, tuple(tensor.shape), 0, tensor.view(-1))
        filling = Filling(self._checkpoint.location, [whole])
        rows = iter(self._pieces.get((name, kind), ()))
        for number, rows_of_file in groupby(zip(*[rows] * 7, strict=True), key=lambda row: row[0]):
            pieces = (
                StoredPiece(name, kind, Region(start, end, width or None, left, right), begin)
                for _, begin, start, end, width, left, right in rows_of_file
            )
            with self._files.reader(number) as reader:
                filling.take(reader, pieces)
        filling.check_complete()
        return tensor

    def digests(self) -> dict[tuple[str, str], str]:
        """xxh3-128 of every tensor by (name, kind), independent of its pieces. One tensor is in memory at a time."""
        return {
            (name, kind): xxhash.xxh3_128(bytes_of(self.read(name, kind))).hexdigest() for name, kind in self.stored
        }

    def _size(self, name: str) -> int:
        return math.prod(self.manifest.tensors[name])

    def _not_whole(self, name: str, kind: str, elements: int) -> BigtrainError:
        return not_whole(self._checkpoint.location, f"{kind} of {name}", elements, self._size(name))


class _OpenFiles:
    """Files of a checkpoint that stay open between reads, as many as this process may have open."""

    def __init__(self, checkpoint: Checkpoint, names: Sequence[str]) -> None:
        self._checkpoint, self._names = checkpoint, names
        self._open: dict[int, tuple[ExitStack, Reader]] = {}
        self._most = _most_open_files(len(names))
        weakref.finalize(self, _close, self._open)

    @contextmanager
    def reader(self, number: int) -> Iterator[Reader]:
        """The file of a number. Raises BigtrainError where it cannot be read, also later."""
        name = self._names[number]
        try:
            if number not in self._open:
                if len(self._open) == self._most:  # the newest: in rounds through all files, the oldest is next
                    self._open.popitem()[1][0].close()
                held = ExitStack()
                self._open[number] = (held, held.enter_context(self._checkpoint.open(name)))
            yield self._open[number][1]
        except OSError as error:
            raise BigtrainError(f"{self._checkpoint.location} cannot be read", found=f"{name}: {error}") from error


def _most_open_files(wanted: int) -> int:
    """How many files may stay open, of each of two checkpoints: `compare` reads two."""
    return max(1, min(wanted, (raise_open_files() - _OTHER_FILES) // 2))


def _close(files: dict[int, tuple[ExitStack, Reader]]) -> None:
    for held, _ in files.values():
        held.close()


class _Weights(Mapping[str, torch.Tensor]):
    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tensors = Tensors(checkpoint, (MASTER,))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors.manifest.tensors)

    def __len__(self) -> int:
        return len(self._tensors.manifest.tensors)


def load_weights(checkpoint: Checkpoint) -> Mapping[str, torch.Tensor]:
    """All float32 weights by parameter name, whole, each read again at every request.

    Raises:
        BigtrainError: here or at a request: the checkpoint is damaged or incomplete.
    """
    return _Weights(checkpoint)


def tensor_digests(checkpoint: Checkpoint) -> dict[tuple[str, str], str]:
    """xxh3-128 of every whole tensor by (name, kind). Two checkpoints of the same state have the same digests.

    Raises:
        BigtrainError: the checkpoint is damaged or incomplete.
    """
    return Tensors(checkpoint).digests()

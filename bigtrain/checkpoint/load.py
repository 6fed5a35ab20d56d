"""Reads a checkpoint into the fragments of the current ranks.

The files hold a parameter in pieces, as the ranks that saved it were divided. The current fragments may be divided in
another way. The ranks share the reading of the headers. Then each rank opens only the files that hold parts of its own
fragments, and copies the overlaps. This one path serves the same ranks, another world size, ZeRO stage or
tensor-parallel size, and a single process that reads the weights one tensor at a time.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import xxhash

from bigtrain.base import BigtrainError, Ranks, collected, collectively
from bigtrain.checkpoint.checkpoint import Checkpoint
from bigtrain.checkpoint.fragment import MASTER, Fragment
from bigtrain.checkpoint.manifest import CheckpointManifest
from bigtrain.checkpoint.overlap import Region, Shared, region_of, shared
from bigtrain.checkpoint.storage import Reader
from bigtrain.checkpoint.tensor_file import StoredPiece, bytes_of, read_header, read_rng, stored_pieces

_BLOCK = 1 << 23
"""Elements that are read at once where they cannot be read directly into their fragment."""


@dataclass(frozen=True)
class Loaded:
    """What this rank loaded from a checkpoint beside the tensors, which are in the fragments."""

    manifest: CheckpointManifest
    rng: dict[str, torch.Tensor] | None
    """State of the random generators that this rank saved. None if the checkpoint has another world size."""


def reinitialize(fragments: Sequence[Fragment], first_weights: Callable[[str, tuple[int, ...]], torch.Tensor]) -> None:
    """Fill this rank's fragments with the state before step 1, without a checkpoint.

    Args:
        first_weights: gives the whole initial value of a parameter from its name and shape.
    """
    for fragment in fragments:
        if fragment.kind != MASTER:
            fragment.data.zero_()
        elif fragment.data.numel():
            values = first_weights(fragment.name, fragment.shape).to(torch.float32).contiguous()
            everything = region_of(fragment.shape, None, 0, fragment.size)
            region = region_of(fragment.shape, fragment.shard, fragment.offset, fragment.data.numel())
            for part in shared(everything, region):
                size = (part.rows, part.columns)
                _at(fragment.data, size, part.target_stride, part.target).copy_(
                    _at(values.view(-1), size, part.source_stride, part.source)
                )


def load(checkpoint: Checkpoint, fragments: Sequence[Fragment], *, ranks: Ranks) -> Loaded:
    """Fill this rank's fragments from a checkpoint of any ZeRO stage and world size. Every rank calls it.

    Raises:
        BigtrainError: on every rank, when a rank cannot read, or the checkpoint is of another model.
    """
    failed = f"the checkpoint {checkpoint.location} cannot be loaded"
    own_shapes = {fragment.name: list(fragment.shape) for fragment in fragments}
    of_all_ranks = ranks.broadcast(collected(ranks, failed, lambda: own_shapes))
    model_shapes = {name: shape for shapes in of_all_ranks for name, shape in shapes.items()}

    def open_part() -> tuple[CheckpointManifest, list[tuple[str, bytes]]]:
        manifest = checkpoint.manifest
        _check_same_model(manifest, model_shapes, {fragment.kind for fragment in fragments})
        names = list(manifest.files)[ranks.rank :: ranks.world_size]
        return manifest, [(name, zlib.compress(_header(checkpoint, name), 1)) for name in names]

    parts = ranks.broadcast(collected(ranks, failed, open_part))
    manifest = parts[ranks.rank][0]
    heads = ((name, zlib.decompress(head)) for _, part in parts for name, head in part)
    loaded: list[Loaded] = []

    def read() -> None:
        _fill(
            checkpoint, _index(checkpoint.location, heads, manifest, {(f.name, f.kind) for f in fragments}), fragments
        )
        rng = None
        if manifest.world_size == ranks.world_size:
            with checkpoint.open(list(manifest.files)[ranks.rank]) as reader:
                rng = read_rng(reader)
        loaded.append(Loaded(manifest, rng))

    collectively(ranks, failed, read)
    return loaded[0]


class Tensors:
    """The whole tensors of a checkpoint, each read on request, without an engine or a process group."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read the headers.

        Raises:
            BigtrainError: the checkpoint is damaged or incomplete.
        """
        self.manifest = checkpoint.manifest
        self._checkpoint = checkpoint
        heads = ((name, _header(checkpoint, name)) for name in self.manifest.files)
        self._pieces = _index(checkpoint.location, heads, self.manifest)
        self.stored = sorted({*self._pieces, *((name, MASTER) for name in self.manifest.tensors)})
        """All tensors by (name, kind): the master weights of every parameter, and the optimizer's moments."""

    def read(self, name: str, kind: str = MASTER) -> torch.Tensor:
        """One tensor, float32. Raises BigtrainError."""
        tensor = torch.empty(self.manifest.tensors[name], dtype=torch.float32)
        whole = Fragment(name, kind, tuple(tensor.shape), 0, tensor.view(-1))
        _fill(self._checkpoint, self._pieces, [whole])
        return tensor

    def digests(self) -> dict[tuple[str, str], str]:
        """xxh3-128 of every tensor by (name, kind), independent of its pieces. One tensor is in memory at a time."""
        return {
            (name, kind): xxhash.xxh3_128(bytes_of(self.read(name, kind))).hexdigest() for name, kind in self.stored
        }


class _Weights(Mapping[str, torch.Tensor]):
    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tensors = Tensors(checkpoint)

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


def _check_same_model(manifest: CheckpointManifest, model: dict[str, list[int]], kinds: set[str]) -> None:
    stored = manifest.tensors
    if differing := [name for name in sorted(stored.keys() | model.keys()) if stored.get(name) != model.get(name)]:
        raise BigtrainError(
            "the checkpoint is of another model",
            found=", ".join(f"{name} {stored.get(name, 'absent')}" for name in differing),
            wanted=", ".join(f"{name} {model.get(name, 'absent')}" for name in differing),
            fix="restore the section model of the settings, or start another run in a new run_dir",
        )
    if missing := sorted(kinds - set(manifest.kinds)):
        raise BigtrainError("the checkpoint lacks optimizer state", found=manifest.kinds, wanted=missing)


def _header(checkpoint: Checkpoint, name: str) -> bytes:
    try:
        with checkpoint.open(name) as reader:
            return read_header(reader)
    except OSError as error:
        raise BigtrainError(f"{checkpoint.location} cannot be read", found=f"{name}: {error}") from error


Index = Mapping[tuple[str, str], Sequence[StoredPiece]]


def _index(
    location: str,
    heads: Iterable[tuple[str, bytes]],
    manifest: CheckpointManifest,
    wanted: set[tuple[str, str]] | None = None,
) -> Index:
    """The pieces of every (name, kind), or of those in `wanted`, in the checkpoint at a location. Raises BigtrainError
    where they do not cover each tensor once."""
    pieces: defaultdict[tuple[str, str], list[StoredPiece]] = defaultdict(list)
    for file, head in heads:
        for piece in stored_pieces(file, head, manifest.files[file].size, manifest.tensors):
            if wanted is None or (piece.name, piece.kind) in wanted:
                pieces[piece.name, piece.kind].append(piece)
    for (name, kind), of_tensor in pieces.items():
        _check_tiling(location, f"{kind} of {name}", [piece.region for piece in of_tensor], manifest.tensors[name])
    return pieces


def _check_tiling(location: str, tensor: str, regions: Sequence[Region], shape: Sequence[int]) -> None:
    """Raise BigtrainError where pieces do not cover each element of a tensor once: the memory of others would be
    whatever it was before."""
    widths = {region.width for region in regions}
    width = next(iter(widths)) or 1
    columns: defaultdict[tuple[int, int], list[Region]] = defaultdict(list)
    for region in regions:
        columns[(region.left, region.right) if region.width else (0, 1)].append(region)
    rows = math.prod(shape) // width
    whole = len(widths) == 1 and _tile(columns, width)
    whole = whole and all(
        _tile([(r.start, r.end) for r in inside], rows * (right - left)) for (left, right), inside in columns.items()
    )
    if not whole:
        elements = sum(region.end - region.start for region in regions)
        raise BigtrainError(
            f"{location} does not hold all of {tensor}",
            found=f"{elements} elements, in pieces that overlap or leave a gap",
            wanted=f"each of its {math.prod(shape)} elements once",
            fix="use another checkpoint: `bigtrain checkpoint verify RUN` lists those that are right",
        )


def _tile(ranges: Iterable[tuple[int, int]], end: int) -> bool:
    """Whether ranges follow each other from 0 to `end`, in some order."""
    position = 0
    for start, after in sorted(ranges):
        if start != position:
            return False
        position = after
    return position == end


def _fill(checkpoint: Checkpoint, pieces: Index, fragments: Sequence[Fragment]) -> None:
    """Copy the stored pieces into every fragment that overlaps them. Raises BigtrainError if an element is not
    stored."""
    by_file: defaultdict[str, list[tuple[int, Shared, Fragment]]] = defaultdict(list)
    for fragment in fragments:
        if not fragment.data.numel():
            continue
        region = region_of(fragment.shape, fragment.shard, fragment.offset, fragment.data.numel())
        covered = 0
        for piece in pieces.get((fragment.name, fragment.kind), ()):
            for overlap in shared(piece.region, region):
                covered += overlap.rows * overlap.columns
                by_file[piece.file].append((piece.begin, overlap, fragment))
        if covered != fragment.data.numel():
            raise BigtrainError(
                f"{checkpoint.location} does not hold all of {fragment.kind} of {fragment.name}",
                found=f"{covered} elements",
                wanted=fragment.data.numel(),
            )
    try:
        for file in sorted(by_file):
            with checkpoint.open(file) as reader:
                for begin, overlap, fragment in sorted(by_file[file], key=lambda each: each[0] + 4 * each[1].source):
                    _copy(reader, begin, overlap, fragment.data)
    except OSError as error:
        raise BigtrainError(f"{checkpoint.location} cannot be read", found=f"{file}: {error}") from error


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
        place = _at(target, size, overlap.target_stride, overlap.target + row * overlap.target_stride)
        place.copy_(torch.as_strided(part, size, (overlap.source_stride, 1)))


def _at(flat: torch.Tensor, size: tuple[int, int], stride: int, start: int) -> torch.Tensor:
    """A rectangle of a 1-D tensor: `size` elements, rows `stride` apart, from element `start` on."""
    return torch.as_strided(flat, size, (stride, 1), flat.storage_offset() + start)

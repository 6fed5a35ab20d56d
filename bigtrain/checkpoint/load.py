"""Reads a checkpoint into the fragments of the current ranks.

The files hold a parameter in pieces, as the ranks that saved it were divided. The current fragments may be divided in
another way. Rank 0 compares the two divisions, and sends each rank the files to open. Each rank reads the headers of
these, and copies the parts of its own fragments. The headers prove that rank 0 was right: each element comes once.

A manifest of an earlier version does not have the division. Then the ranks first share the reading of all headers, and
join what these say on the way to rank 0. This one path serves the same ranks, another world size, ZeRO stage or
tensor-parallel size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from bigtrain.base import BigtrainError, Ranks, collectively, on_first_rank
from bigtrain.checkpoint.checkpoint import Checkpoint
from bigtrain.checkpoint.contents import Contents
from bigtrain.checkpoint.division import Division
from bigtrain.checkpoint.filling import Filling, opened, pieces_in, rectangle
from bigtrain.checkpoint.fragment import MASTER, Fragment
from bigtrain.checkpoint.manifest import CheckpointManifest, CheckpointSummary
from bigtrain.checkpoint.overlap import region_of, shared
from bigtrain.checkpoint.tensor_file import read_rng


@dataclass(frozen=True)
class Loaded:
    """What this rank loaded from a checkpoint beside the tensors, which are in the fragments."""

    summary: CheckpointSummary
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
                rectangle(fragment.data, size, part.target_stride, part.target).copy_(
                    rectangle(values.view(-1), size, part.source_stride, part.source)
                )


def load(checkpoint: Checkpoint, fragments: Sequence[Fragment], *, ranks: Ranks) -> Loaded:
    """Fill this rank's fragments from a checkpoint of any ZeRO stage and world size. Every rank calls it.

    Raises:
        BigtrainError: on every rank, when a rank cannot read, or the checkpoint is of another model.
    """
    failed = f"the checkpoint {checkpoint.location} cannot be loaded"
    on_rank_0: list[CheckpointManifest] = []

    def read_manifest() -> tuple[CheckpointSummary, bool]:
        on_rank_0.append(checkpoint.manifest)
        return on_rank_0[0].summary, on_rank_0[0].pieces is not None

    summary, described = on_first_rank(ranks, read_manifest)
    held = ranks.reduce(Contents.of(fragments, ranks.rank), Contents.merged)
    names = list(on_rank_0[0].files) if on_rank_0 else []
    by_headers = None if described else _division_by_headers(checkpoint, names, summary, ranks)
    plans: list[_Plan] = []

    def plan() -> list[str]:
        assert held is not None
        _check_same_model(summary, held.shapes, held.kinds)
        division = by_headers or Division.of_manifest(on_rank_0[0], checkpoint.location)
        assert division is not None
        files = division.files_for(held.division, ranks.world_size, len(names), summary.tensors, checkpoint.location)
        same = names if len(names) == ranks.world_size else [None] * ranks.world_size
        plans.extend(
            _Plan(None if chosen is None else [names[number] for number in chosen.tolist()], own)
            for chosen, own in zip(files, same, strict=True)
        )
        return names if any(chosen is None for chosen in files) else []

    everything = on_first_rank(ranks, plan)
    own = ranks.scatter(plans or None)
    files = everything if own.files is None else own.files
    return Loaded(summary, collectively(ranks, failed, lambda: _read(checkpoint, files, own.saved, summary, fragments)))


@dataclass(frozen=True)
class _Plan:
    """What a rank reads, as rank 0 gives it."""

    files: list[str] | None
    """The names of the files that hold its fragments; None for all."""
    saved: str | None
    """The file that it saved; None where there is not one for each rank."""


def _division_by_headers(
    checkpoint: Checkpoint, names: Sequence[str], summary: CheckpointSummary, ranks: Ranks
) -> Division | None:
    """The division that the headers show, on rank 0: for a manifest that does not have it. The ranks share the reading.

    Args:
        names: of all files, on rank 0.
    """
    size, count = ranks.world_size, len(names)
    bounds = [rank * count // size for rank in range(size + 1)]
    parts = [(first, names[first:end]) for first, end in pairwise(bounds)]
    own = ranks.scatter(parts if ranks.rank == 0 else None)

    def read() -> Division:
        found = Division({})
        for number, name in enumerate(own[1], own[0]):
            with opened(checkpoint, name) as reader:
                pieces = ((each.name, each.kind, each.region) for each in pieces_in(reader, name, summary))
                found = found.merged(Division.of_file(pieces, number))
        return found

    failed = f"the checkpoint {checkpoint.location} cannot be loaded"
    return ranks.reduce(collectively(ranks, failed, read), Division.merged)


def _read(
    checkpoint: Checkpoint,
    files: Sequence[str],
    saved: str | None,
    summary: CheckpointSummary,
    fragments: Sequence[Fragment],
) -> dict[str, torch.Tensor] | None:
    """Fill the fragments from these files. Returns the random state in the file that this rank saved."""
    filling = Filling(checkpoint.location, fragments)
    kinds = {fragment.kind for fragment in fragments}
    for name in files:
        with opened(checkpoint, name) as reader:
            filling.take(reader, pieces_in(reader, name, summary, kinds))
    filling.check_complete()
    if saved is None:
        return None
    with opened(checkpoint, saved) as reader:
        return read_rng(reader)


def _check_same_model(summary: CheckpointSummary, model: dict[str, list[int]], kinds: set[str]) -> None:
    stored = summary.tensors
    if differing := [name for name in sorted(stored.keys() | model.keys()) if stored.get(name) != model.get(name)]:
        raise BigtrainError(
            "the checkpoint is of another model",
            found=", ".join(f"{name} {stored.get(name, 'absent')}" for name in differing),
            wanted=", ".join(f"{name} {model.get(name, 'absent')}" for name in differing),
            fix="restore the section model of the settings, or start another run in a new run_dir",
        )
    if missing := sorted(kinds - set(summary.kinds)):
        raise BigtrainError("the checkpoint lacks optimizer state", found=summary.kinds, wanted=missing)

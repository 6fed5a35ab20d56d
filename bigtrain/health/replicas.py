"""Silent corruption: weights that must be the same on several ranks are compared, and the rank that differs is named.

A bit that flipped in a memory or on a link raises no error. Ranks hold copies of the same weights at ZeRO stages 0 to
2, and at stage 3 those that are kept whole. Before the update, when the weights have just been used, the ranks compare
one fingerprint of their copies. The gradient of a rank whose copy differs cannot be trusted.

From stage 1 on each rank also compares its part of the weights with the float32 master that it was made from. The
master then decides which copy is right. At stage 0, where each rank has its own masters, the majority decides; of two
ranks that differ both are named.

What this cannot detect:

- At stages 1 and 2 every update replaces the copies. A flip between two checks, and the gradients that a rank computed
  with it, are gone by the next check.
- At stage 3 a weight is on one rank only. A flip that its master shares, or one in the master's low bits, looks like
  training.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bigtrain.base import CORRUPTED, BigtrainError, gather, machine_name
from bigtrain.engine import Engine, Part, Topology
from bigtrain.health.fingerprint import fingerprint, fingerprints

Fingerprints = Mapping[str, int]
"""The fingerprint of each tensor, by name."""
_INTEGERS = {2: torch.int16, 4: torch.int32}
"""The integer type of as many bytes."""
Piece = tuple[str, int, int]
"""A part of a tensor: name, offset and length, in elements."""


@dataclass(frozen=True)
class ReplicaMismatch:
    """A rank with weights that differ from its peers' or from their masters."""

    rank: int
    host: str
    tensors: list[str]
    """Their names."""
    certain: bool = True
    """Whether it is this rank that is wrong, and not the one that it differs from."""
    machine: str = ""
    """The name by which the scheduler knows its host."""

    def __str__(self) -> str:
        names = ", ".join(self.tensors[:4]) + (f" and {len(self.tensors) - 4} more" if len(self.tensors) > 4 else "")
        return f"rank {self.rank} on {self.host}{'' if self.certain else ', or the one it differs from'}: {names}"


def compare(engine: Engine, topology: Topology) -> list[ReplicaMismatch]:
    """Compare this rank's weights with those of its peers. Every rank calls it, and gets the same result."""
    copies, corrupted = engine.copies(), _unlike_their_masters(engine.parts())
    # With tensor parallelism ranks of different shards hold different parts of the matrices.
    shard = topology.shard_rank if topology.tensor_size > 1 else 0
    gathered = topology.broadcast(gather(topology, (shard, fingerprint(copies.values()), corrupted)))
    if len({(shard, number) for shard, number, _ in gathered}) == len({shard for shard, _, _ in gathered}):
        wrong = {rank: set(tensors) for rank, (_, _, tensors) in enumerate(gathered)}
        return _mismatches(topology, wrong, certain=True)

    own = dict(zip(copies, fingerprints(copies.values()), strict=True))
    of_ranks: list[tuple[int, Fingerprints]] = topology.broadcast(gather(topology, (shard, own)))
    doubtful = _that_differ(of_ranks)
    masters = [part for part in engine.parts() if part.name in doubtful]
    if not any(topology.broadcast(gather(topology, bool(masters)))):
        return _mismatches(topology, *by_majority(of_ranks))
    pieces = [(part.name, part.offset, part.master.numel()) for part in masters]
    expected_here = dict(zip(pieces, fingerprints(part.expected for part in masters), strict=True))
    expected = _of_shard(topology.broadcast(gather(topology, (shard, expected_here))), shard)
    found = _pieces_of(copies, list(expected))
    unlike = sorted({piece[0] for piece, number in expected.items() if found[piece] != number})
    wrong = {rank: set(tensors) for rank, tensors in enumerate(topology.broadcast(gather(topology, unlike)))}
    for rank, (_, _, tensors) in enumerate(gathered):
        wrong[rank] |= set(tensors)
    return _mismatches(topology, wrong, certain=True)


def corruption(mismatches: Sequence[ReplicaMismatch]) -> BigtrainError:
    """Make the error with which every rank ends, with status 71. The next start goes on from the newest checkpoint."""
    error = BigtrainError(
        "the weights are not the same on all ranks; nothing of this step was kept",
        found="\n          ".join(map(str, mismatches)),
        wanted="the same bits in every copy, and those of the master weights",
        fix="start again: the run goes on from its newest checkpoint. The weights were compared before it was saved. "
        "If the same host is named twice, its memory or its links are faulty: leave it out",
    )
    return error.on_all_ranks().leaving_with(CORRUPTED)


def by_majority(of_ranks: Sequence[tuple[int, Fingerprints]]) -> tuple[dict[int, set[str]], bool]:
    """Find the tensors in which each rank differs from most of its peers, and whether every tensor has a majority.

    Args:
        of_ranks: for each rank, its shard and the fingerprints of its tensors. Ranks of one shard are peers.
    """
    wrong: dict[int, set[str]] = {rank: set() for rank in range(len(of_ranks))}
    certain = True
    for shard in {shard for shard, _ in of_ranks}:
        peers = [rank for rank, (of, _) in enumerate(of_ranks) if of == shard]
        for name in of_ranks[peers[0]][1]:
            numbers = {rank: of_ranks[rank][1][name] for rank in peers}
            (most, votes), *_ = Counter(numbers.values()).most_common(1)
            if 2 * votes <= len(peers):
                certain = False
                for rank in peers:
                    wrong[rank].add(name)
                continue
            for rank, number in numbers.items():
                if number != most:
                    wrong[rank].add(name)
    return wrong, certain


def _that_differ(of_ranks: Sequence[tuple[int, Fingerprints]]) -> set[str]:
    names = {name for _, own in of_ranks for name in own}
    return {
        name
        for name in names
        for shard in {shard for shard, _ in of_ranks}
        if len({own[name] for of, own in of_ranks if of == shard and name in own}) > 1
    }


def _of_shard(gathered: Sequence[tuple[int, Mapping[Piece, int]]], shard: int) -> dict[Piece, int]:
    return {piece: number for of, some in gathered if of == shard for piece, number in some.items()}


def _pieces_of(copies: Mapping[str, torch.Tensor], pieces: Sequence[Piece]) -> dict[Piece, int]:
    cut = [copies[name].view(-1)[offset : offset + length] for name, offset, length in pieces]
    return dict(zip(pieces, fingerprints(cut), strict=True))


def _unlike_their_masters(parts: Sequence[Part]) -> list[str]:
    return sorted({part.name for part in parts if not torch.equal(_bits(part.weight), _bits(part.expected))})


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """As integers of the same width: a NaN equals itself, and 0 is not -0."""
    return tensor.view(_INTEGERS[tensor.dtype.itemsize])


def _mismatches(topology: Topology, wrong: Mapping[int, set[str]], certain: bool) -> list[ReplicaMismatch]:
    if not any(wrong.values()):
        return []
    hosts = topology.broadcast(gather(topology, (socket.gethostname(), machine_name())))
    return [
        ReplicaMismatch(rank, hosts[rank][0], sorted(names), certain, hosts[rank][1])
        for rank, names in sorted(wrong.items())
        if names
    ]

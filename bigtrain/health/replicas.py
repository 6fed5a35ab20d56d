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
from operator import add, or_
from typing import Any

import torch

from bigtrain.base import CORRUPTED, BigtrainError, machine_name
from bigtrain.engine import Engine, Part, Topology
from bigtrain.health.fingerprint import fingerprint, fingerprints

Fingerprints = Mapping[str, int]
"""The fingerprint of each tensor, by name."""
_INTEGERS = {2: torch.int16, 4: torch.int32}
"""The integer type of as many bytes."""
SHOWN = 8
"""Ranks that the error names, at most."""
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
    """Compare this rank's weights with those of its peers. Every rank calls it, and gets the same result.

    Rank 0 compares. Each rank sends it one fingerprint, and those that are equal become one on the way.
    """
    copies, corrupted = engine.copies(), _unlike_their_masters(engine.parts())
    # With tensor parallelism ranks of different shards hold different parts of the matrices.
    shard = topology.shard_rank if topology.tensor_size > 1 else 0
    found = topology.reduce(
        ({(shard, fingerprint(copies.values()))}, bool(corrupted)),
        lambda lower, higher: (lower[0] | higher[0], lower[1] or higher[1]),
    )
    equal, any_corrupted = topology.broadcast(
        None if found is None else (len(found[0]) == len({shard for shard, _ in found[0]}), found[1])
    )
    if equal:
        return _mismatches(topology, corrupted) if any_corrupted else []

    own = b"".join(number.to_bytes(8, "little") for number in fingerprints(copies.values()))
    alike = topology.reduce({(shard, own): [topology.rank]}, _united)
    groups = [Peers.of(key, ranks, list(copies)) for key, ranks in alike.items()] if alike is not None else None
    doubtful = topology.broadcast(groups and that_differ(groups))
    masters = [part for part in engine.parts() if part.name in doubtful]
    pieces = [(part.name, part.offset, part.master.numel()) for part in masters]
    of_masters = zip(pieces, fingerprints(part.expected for part in masters), strict=True)
    expected = topology.broadcast(topology.reduce({(shard, piece): number for piece, number in of_masters}, or_))
    if not expected:
        wrong, certain = topology.broadcast(groups and by_majority(groups))
        return _mismatches(topology, sorted(wrong.get(topology.rank, ())), certain)
    mine = {piece: number for (of, piece), number in expected.items() if of == shard}
    held = _pieces_of(copies, list(mine))
    unlike = {piece[0] for piece, number in mine.items() if held[piece] != number}
    return _mismatches(topology, sorted(unlike.union(corrupted)))


def corruption(mismatches: Sequence[ReplicaMismatch]) -> BigtrainError:
    """Make the error with which every rank ends, with status 71. The next start goes on from the newest checkpoint."""
    more = [f"and {len(mismatches) - SHOWN:,} more ranks"] if len(mismatches) > SHOWN else []
    error = BigtrainError(
        "the weights are not the same on all ranks; nothing of this step was kept",
        found="\n          ".join([*map(str, mismatches[:SHOWN]), *more]),
        wanted="the same bits in every copy, and those of the master weights",
        fix="start again: the run goes on from its newest checkpoint. The weights were compared before it was saved. "
        "If the same host is named twice, its memory or its links are faulty: leave it out",
    )
    return error.on_all_ranks().leaving_with(CORRUPTED)


@dataclass(frozen=True)
class Peers:
    """Ranks of one shard whose weights have the same fingerprints."""

    shard: int
    ranks: list[int]
    fingerprints: Fingerprints

    @classmethod
    def of(cls, key: tuple[int, bytes], ranks: list[int], names: Sequence[str]) -> Peers:
        """Make them of a shard with the fingerprints of its tensors, in 8 bytes each, in the order of `names`."""
        shard, octets = key
        numbers = [int.from_bytes(octets[place : place + 8], "little") for place in range(0, len(octets), 8)]
        return cls(shard, ranks, dict(zip(names, numbers, strict=True)))


def by_majority(groups: Sequence[Peers]) -> tuple[dict[int, set[str]], bool]:
    """Find the tensors in which ranks differ from most of their peers, and whether every tensor has a majority."""
    wrong: dict[int, set[str]] = {}
    certain = True
    for peers in _by_shard(groups):
        total = sum(len(each.ranks) for each in peers)
        for name in peers[0].fingerprints:
            votes: Counter[int] = Counter()
            for each in peers:
                votes[each.fingerprints[name]] += len(each.ranks)
            most, least = votes.most_common(1)[0]
            majority = 2 * least > total
            certain = certain and majority
            for each in peers:
                if not majority or each.fingerprints[name] != most:
                    for rank in each.ranks:
                        wrong.setdefault(rank, set()).add(name)
    return wrong, certain


def that_differ(groups: Sequence[Peers]) -> set[str]:
    """Return the tensors that are not the same on all ranks of a shard."""
    return {
        name
        for peers in _by_shard(groups)
        for name in peers[0].fingerprints
        if len({each.fingerprints[name] for each in peers}) > 1
    }


def _by_shard(groups: Sequence[Peers]) -> list[list[Peers]]:
    shards: dict[int, list[Peers]] = {}
    for each in groups:
        shards.setdefault(each.shard, []).append(each)
    return list(shards.values())


def _united(lower: dict[Any, list[int]], higher: dict[Any, list[int]]) -> dict[Any, list[int]]:
    for key, ranks in higher.items():
        lower.setdefault(key, []).extend(ranks)
    return lower


def _pieces_of(copies: Mapping[str, torch.Tensor], pieces: Sequence[Piece]) -> dict[Piece, int]:
    cut = [copies[name].view(-1)[offset : offset + length] for name, offset, length in pieces]
    return dict(zip(pieces, fingerprints(cut), strict=True))


def _unlike_their_masters(parts: Sequence[Part]) -> list[str]:
    return sorted({part.name for part in parts if not torch.equal(_bits(part.weight), _bits(part.expected))})


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """As integers of the same width: a NaN equals itself, and 0 is not -0."""
    return tensor.view(_INTEGERS[tensor.dtype.itemsize])


def _mismatches(topology: Topology, wrong: Sequence[str], certain: bool = True) -> list[ReplicaMismatch]:
    """Those of all ranks, in rank order, given the tensors of this rank that are wrong."""
    host = socket.gethostname()
    own = [ReplicaMismatch(topology.rank, host, list(wrong), certain, machine_name())] if wrong else []
    found: list[ReplicaMismatch] = topology.broadcast(topology.reduce(own, add))
    return found

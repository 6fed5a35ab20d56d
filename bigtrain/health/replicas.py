"""Silent corruption: weights that must be the same on several ranks are compared, and the rank that differs is named.

A bit that a memory or a link has flipped raises no error. Where ranks hold copies of the same weights (ZeRO stages 0 to
2, and at stage 3 what is kept whole), a number for all of them is compared before the update, when they have just been
computed with; a rank whose copy differs is one whose gradient cannot be trusted. From stage 1 on each rank also
compares its part of the weights with the master that it was made from, and the master decides whose copy is the right
one; at stage 0, where each rank has masters of its own, the majority does, and of two ranks that differ both are named.

What cannot be seen: at stages 1 and 2 a copy is made anew by every update, so a flip between two checks has come and
gone, and with it one rank's gradients of that time; at stage 3 a weight is on one rank alone, so that a flip which its
master shares, or one in the low bits of the master, looks like training.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bigtrain.base.errors import BigtrainError
from bigtrain.base.exit_status import CORRUPTED
from bigtrain.engine.copies import Part
from bigtrain.engine.engine import Engine
from bigtrain.engine.topology import Topology
from bigtrain.health.fingerprint import fingerprint, fingerprints

Fingerprints = Mapping[str, int]
_WHOLE = {2: torch.int16, 4: torch.int32}
Piece = tuple[str, int, int]
"""Name, offset and length."""


@dataclass(frozen=True)
class Finding:
    """A rank with weights that are not what they have to be."""

    rank: int
    host: str
    tensors: list[str]
    certain: bool = True
    """Whether it is this one that is wrong, and not the one that it differs from."""

    def __str__(self) -> str:
        names = ", ".join(self.tensors[:4]) + (f" and {len(self.tensors) - 4} more" if len(self.tensors) > 4 else "")
        return f"rank {self.rank} on {self.host}{'' if self.certain else ', or the one it differs from'}: {names}"


def compare(engine: Engine, topology: Topology) -> list[Finding]:
    """Compare this rank's weights with those of its peers. Every rank calls it, and gets the same findings."""
    copies, rotten = engine.copies(), _unlike_their_masters(engine.parts())
    # Ranks that share matrices have different parts of them.
    shard = topology.shard_rank if topology.tensor_size > 1 else 0
    said = topology.all_gather((shard, fingerprint(copies.values()), rotten))
    if len({(shard, number) for shard, number, _ in said}) == len({shard for shard, _, _ in said}):
        wrong = {rank: set(tensors) for rank, (_, _, tensors) in enumerate(said)}
        return _findings(topology, wrong, certain=True)

    own = dict(zip(copies, fingerprints(copies.values()), strict=True))
    everybody: list[tuple[int, Fingerprints]] = topology.all_gather((shard, own))
    doubtful = _that_differ(everybody)
    masters = [part for part in engine.parts() if part.name in doubtful]
    if not any(topology.all_gather(bool(masters))):
        return _findings(topology, *by_majority(everybody))
    pieces = [(part.name, part.offset, part.master.numel()) for part in masters]
    told = dict(zip(pieces, fingerprints(part.expected for part in masters), strict=True))
    truth = _of_shard(topology.all_gather((shard, told)), shard)
    seen = _pieces_of(copies, list(truth))
    unlike = sorted({piece[0] for piece, number in truth.items() if seen[piece] != number})
    wrong = {rank: set(tensors) for rank, tensors in enumerate(topology.all_gather(unlike))}
    for rank, (_, _, tensors) in enumerate(said):
        wrong[rank] |= set(tensors)
    return _findings(topology, wrong, certain=True)


def corruption(findings: Sequence[Finding]) -> BigtrainError:
    """What every rank ends with because of such findings; another start goes on from the newest checkpoint."""
    error = BigtrainError(
        "the weights are not the same on all ranks; nothing of this step was kept",
        found="\n          ".join(map(str, findings)),
        wanted="the same bits in every copy, and those of the master weights",
        fix="start again: the run goes on from its newest checkpoint; before that was saved the weights were compared. "
        "If the same host is named twice, its memory or its links are faulty: leave it out",
    )
    return error.on_all_ranks().leaving_with(CORRUPTED)


def by_majority(everybody: Sequence[tuple[int, Fingerprints]]) -> tuple[dict[int, set[str]], bool]:
    """The tensors in which each rank differs from most of its peers, and whether there is a most for each.

    Args:
        everybody: of each rank, with whom it has to agree, and the fingerprints of its tensors.
    """
    wrong: dict[int, set[str]] = {rank: set() for rank in range(len(everybody))}
    certain = True
    for shard in {shard for shard, _ in everybody}:
        peers = [rank for rank, (of, _) in enumerate(everybody) if of == shard]
        for name in everybody[peers[0]][1]:
            numbers = {rank: everybody[rank][1][name] for rank in peers}
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


def _that_differ(everybody: Sequence[tuple[int, Fingerprints]]) -> set[str]:
    names = {name for _, own in everybody for name in own}
    return {
        name
        for name in names
        for shard in {shard for shard, _ in everybody}
        if len({own[name] for of, own in everybody if of == shard and name in own}) > 1
    }


def _of_shard(told: Sequence[tuple[int, Mapping[Piece, int]]], shard: int) -> dict[Piece, int]:
    return {piece: number for of, some in told if of == shard for piece, number in some.items()}


def _pieces_of(copies: Mapping[str, torch.Tensor], pieces: Sequence[Piece]) -> dict[Piece, int]:
    cut = [copies[name].view(-1)[offset : offset + length] for name, offset, length in pieces]
    return dict(zip(pieces, fingerprints(cut), strict=True))


def _unlike_their_masters(parts: Sequence[Part]) -> list[str]:
    return sorted({part.name for part in parts if not torch.equal(_bits(part.weight), _bits(part.expected))})


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """As whole numbers of the same width: a NaN equals itself, and 0 is not -0."""
    return tensor.view(_WHOLE[tensor.dtype.itemsize])


def _findings(topology: Topology, wrong: Mapping[int, set[str]], certain: bool) -> list[Finding]:
    if not any(wrong.values()):
        return []
    hosts = topology.all_gather(socket.gethostname())
    return [Finding(rank, hosts[rank], sorted(names), certain) for rank, names in sorted(wrong.items()) if names]

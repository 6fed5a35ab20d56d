"""Muon: orthogonalised momentum for matrices (Jordan et al., 2024), over owners that ZeRO has cut at any element.

torch.optim.Muon needs whole matrices. DeepSpeed 0.19.8 has a Muon that works on its partitions, but it clips before the
orthogonalisation at stage 1 in bf16 and after it at stages 2 and 3, which therefore report the norm of the update as
that of the gradient. Here the momentum lies in flat owners, elementwise, like any other moment, and saves and reshards
like one. Only the orthogonalisation, inside a step, brings the pieces of one matrix together on one rank, and sends the
pieces of the result back:

    owner --momentum, bfloat16--> pieces --all-to-all--> matrix --Newton-Schulz--> pieces --all-to-all--> owner

in rounds of at most one matrix for each rank, which `muon_rounds` plans.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, DEFAULT_NS_STEPS, EPS, _zeropower_via_newtonschulz
from torch.optim.adamw import adamw

from bigtrain.engine.fragments import OwnedRange
from bigtrain.engine.muon_rounds import Held, Round, plan_rounds, share_out


class Muon(Optimizer):
    """Muon for groups with algorithm muon, AdamW for the others.

    With gradient G, momentum B, learning rate r, decoupled weight decay d and m = `momentum`:

        B  = m * B + (1 - m) * G
        O  = orthogonalise(m * B + (1 - m) * G)                         (Nesterov's form)
        P -= r * (0.2 * sqrt(max(rows, columns)) * O + d * P)           (Liu et al., 2025, equation 4)

    The scale gives the update the root mean square of AdamW's, so that one learning rate suits both. This is
    torch.optim.Muon with adjust_lr_fn="match_rms_adamw". The state (step counters, `momentum_buffer`, AdamW's moments)
    is made by `create_moments`; before the first step `locate` has to be called. Parameters without a gradient are
    left alone.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float, betas: tuple[float, float], eps: float
    ) -> None:
        """The groups of algorithm muon have `matrices`: the shapes of their parameters, by name. A parameter of three
        dimensions is a stack of matrices, as experts have them, and each is orthogonalised by itself."""
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum, "betas": betas, "eps": eps})
        self._rounds: dict[Tensor, list[Round]] = {}

    def locate(self, owners: Sequence[Tensor], ranges: Sequence[OwnedRange], *, spread: bool) -> None:
        """Learn from all ranks who holds most of each matrix, and where those lie that this rank works on.

        Args:
            owners: what is updated here; the n-th holds pieces of the same matrices on all ranks.
            ranges: the pieces of this rank.
            spread: whether the ranks have different pieces. If not, each has everything and works alone.
        """
        stacks = {name: shape for group in self.param_groups for name, shape in group.get("matrices", {}).items()}
        matrices = [shape[-2:] for shape in stacks.values() for _ in range(math.prod(shape[:-2]))]
        numbers = {owner: number for number, owner in enumerate(owners)}
        here = {each.name: (numbers[each.owner], each.offset, each.length, each.start) for each in ranges}
        pieces = [piece for name, shape in stacks.items() for piece in _pieces(shape, *here.get(name, (-1, 0, 0, 0)))]
        own = torch.tensor(pieces, device=owners[0].device)  # [matrices, 4]
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if spread else (0, 1)
        largest = _of_all(own[:, 2], dist.ReduceOp.MAX, ranks)
        holders = _of_all(torch.where(own[:, 2] == largest, rank, ranks), dist.ReduceOp.MIN, ranks).tolist()
        of_owners: list[list[int]] = [[] for _ in owners]
        for matrix, number in enumerate(_of_all(own[:, 0], dist.ReduceOp.MAX, ranks).tolist()):
            if number >= 0:
                of_owners[number].append(matrix)
        held = [
            Held(matrix, matrices[matrix], int(length), holder)
            for matrix, (length, holder) in enumerate(zip(largest.tolist(), holders, strict=True))
        ]
        works = [share_out([held[matrix] for matrix in of_owner], ranks) for of_owner in of_owners]
        received = _exchange(own[:, 1:3], works, rank, ranks).cpu()  # [ranks, matrices of this rank, 2]
        here_on, begun = own[:, 1:].tolist(), 0
        for owner, work in zip(owners, works, strict=True):
            if any(work):
                mine = received[:, begun : begun + len(work[rank])]
                self._rounds[owner], begun = plan_rounds(work, here_on, mine, rank), begun + len(work[rank])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update what has a gradient. All ranks call it for the same owners in the same order."""
        assert closure is None
        for group in self.param_groups:
            owners = [owner for owner in group["params"] if owner.grad is not None]
            if group["algorithm"] == "adamw":
                self._adamw(owners, group)
                continue
            for owner in owners:
                state = self.state[owner]
                state["step"] += 1
                state["momentum_buffer"].lerp_(owner.grad, 1 - group["momentum"])
                owner.mul_(1 - group["lr"] * group["weight_decay"])
                for matrices in self._rounds[owner]:
                    self._update(owner, matrices, group)

    def _update(self, owner: Tensor, matrices: Round, group: dict[str, Any]) -> None:
        """One round: work on this rank's matrix, and update the owner's pieces of everyone's."""
        assert owner.grad is not None
        weights, gradient, momentum = (t.view(-1) for t in (owner, owner.grad, self.state[owner]["momentum_buffer"]))
        # Newton-Schulz begins with a cast to bfloat16, so nothing is lost by casting before sending.
        pieces = [gradient[part].lerp(momentum[part], group["momentum"]).bfloat16() for part in matrices.parts_of_owner]
        received = matrices.to_workers(torch.cat(pieces))
        result = received
        if matrices.shape is not None:
            whole = torch.empty(math.prod(matrices.shape), dtype=received.dtype, device=received.device)
            for part, piece in zip(matrices.parts_of_matrix, torch.split(received, matrices.received), strict=True):
                whole[part] = piece
            direction = _orthogonal(whole.view(matrices.shape)).reshape(-1)
            result = torch.cat([direction[part] for part in matrices.parts_of_matrix])
        updates = torch.split(matrices.to_owners(result), matrices.sent)
        for part, scale, update in zip(matrices.parts_of_owner, matrices.scales, updates, strict=True):
            weights[part].add_(update, alpha=-group["lr"] * scale)

    def _adamw(self, owners: list[Tensor], group: dict[str, Any]) -> None:
        if not owners:
            return
        states = [self.state[owner] for owner in owners]
        beta1, beta2 = group["betas"]
        adamw(
            owners,
            [owner.grad for owner in owners if owner.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _of_all(own: Tensor, operation: Any, ranks: int) -> Tensor:
    """One number for each matrix, of all ranks' numbers."""
    numbers = own.clone()
    if ranks > 1:
        dist.all_reduce(numbers, operation)
    return numbers


def _exchange(own: Tensor, works: Sequence[Sequence[Sequence[Held]]], rank: int, ranks: int) -> Tensor:
    """What the ranks hold of the matrices that this one works on: [ranks, matrices, 2], offset and length.

    Args:
        own: [matrices, 2], of this rank.
        works: for each owner and each rank, the matrices that the rank works on.
    """
    of_workers = [[each.matrix for work in works for each in work[worker]] for worker in range(ranks)]
    sent = own[[matrix for matrices in of_workers for matrix in matrices]].flatten()
    mine = len(of_workers[rank])
    received = sent.new_empty(ranks * mine * 2)
    if ranks > 1:
        dist.all_to_all_single(received, sent, [mine * 2] * ranks, [len(matrices) * 2 for matrices in of_workers])
    else:
        received = sent
    return received.view(ranks, mine, 2)


def _pieces(shape: tuple[int, ...], owner: int, offset: int, length: int, start: int) -> Iterator[tuple[int, ...]]:
    """A range of a stack of matrices as ranges of each: its owner, its offset and length in the matrix, and where it
    begins in the owner."""
    size = math.prod(shape[-2:])
    for begin in range(0, math.prod(shape), size):
        first, last = max(begin, offset), min(begin + size, offset + length)
        yield (owner, first - begin, last - first, start + first - offset) if first < last else (owner, 0, 0, 0)


def _orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T: torch.optim.Muon's own Newton-Schulz, in bfloat16."""
    return _zeropower_via_newtonschulz(matrix, (DEFAULT_A, DEFAULT_B, DEFAULT_C), DEFAULT_NS_STEPS, EPS)

"""Sequence parallelism (Ulysses: Jacobs et al., 2023): P ranks share each sequence, for contexts too long for one.

Each rank has T / P tokens of every row, and all heads; only attention needs other tokens. Around it one all-to-all
exchanges tokens for heads and another one back:

    [B, T/P, H, D] --gather_tokens--> [B, T, H/P, D] --attention--> [B, T, H/P, D] --gather_heads--> [B, T/P, H, D]

Inside attention a rank sees whole rows, so that documents bound it as ever. The gradient of the summed loss of all
ranks comes out right because the backward of an all-to-all is the one the other way round: parameters see each token
once, on one rank, as in data parallelism.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class SequenceParallel:
    """The ranks that share sequences with this one."""

    rank: int
    """This rank's number among them: which T / P tokens of a row are its own."""
    size: int
    group: dist.ProcessGroup

    def own_tokens(self, x: Tensor) -> Tensor:
        """This rank's part [B, T / P] of [B, T]."""
        return x.chunk(self.size, dim=1)[self.rank].contiguous()

    def own_heads(self, x: Tensor) -> Tensor:
        """This rank's heads [H / P, ...] of [H, ...], as `gather_tokens` deals them out."""
        return x.chunk(self.size, dim=0)[self.rank]

    def gather_tokens(self, x: Tensor) -> Tensor:
        """[B, T / P, H, D] of all heads to [B, T, H / P, D]: all tokens of this rank's heads."""
        exchanged: Tensor = _Exchange.apply(x, self._tokens, self._heads)  # type: ignore[no-untyped-call]
        return exchanged

    def gather_heads(self, x: Tensor) -> Tensor:
        """[B, T, H / P, D] back to [B, T / P, H, D]."""
        exchanged: Tensor = _Exchange.apply(x, self._heads, self._tokens)  # type: ignore[no-untyped-call]
        return exchanged

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        """The sum of the ranks' tensors of equal shape; not for what needs a gradient."""
        return _all_reduce(x, self.group)

    def _tokens(self, x: Tensor) -> Tensor:
        batch, tokens, heads, width = x.shape
        # What goes to rank p lies at index p of the first dimension: its heads of our tokens.
        mine = x.reshape(batch, tokens, self.size, heads // self.size, width).permute(2, 0, 1, 3, 4).contiguous()
        theirs = _all_to_all(mine, self.group)  # [P, B, T / P, H / P, D]: rank p's tokens of our heads
        return theirs.transpose(0, 1).reshape(batch, self.size * tokens, heads // self.size, width)

    def _heads(self, x: Tensor) -> Tensor:
        batch, tokens, heads, width = x.shape
        mine = x.reshape(batch, self.size, tokens // self.size, heads, width).transpose(0, 1).contiguous()
        theirs = _all_to_all(mine, self.group)  # [P, B, T / P, H / P, D]: our tokens of rank p's heads
        return theirs.permute(1, 2, 0, 3, 4).reshape(batch, tokens // self.size, self.size * heads, width)


class _Exchange(torch.autograd.Function):
    """An exchange whose backward is the other one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(grad), None, None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _all_to_all(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    received = torch.empty_like(x)
    dist.all_to_all_single(received, x, group=group)
    return received


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone()
    dist.all_reduce(total, group=group)
    return total

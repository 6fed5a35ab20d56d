"""Virtual tokens in front of every document of packed rows: their embeddings are learned, or keys and values of layers.

    [a a a | b b]  --placed-->  [p p a a a | p p b b]      two virtual tokens for each document

Attention then needs to know nothing of them: each document is longer by as many tokens, which its own tokens see as
they see any token before them. With keys and values alone, what virtual tokens would see is computed and left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class VirtualPlaces(NamedTuple):
    """Where packed tokens stand when each document has P virtual tokens in front of it."""

    own: Tensor
    """[N] int64, the place of each token among the N + P documents places."""
    order: Tensor
    """[N + P documents] int64, what stands at each place: the number of a token, or N + that of a virtual token."""
    cu_seqlens: Tensor
    """[documents + 1] int32, where the longer documents begin."""
    max_seqlen: int
    """The longest of them, or more."""

    @classmethod
    def of(cls, cu_seqlens: Tensor, max_seqlen: int, count: int) -> VirtualPlaces:
        """The places for `count` virtual tokens a document."""
        device, documents = cu_seqlens.device, len(cu_seqlens) - 1
        longer = cu_seqlens + count * torch.arange(documents + 1, device=device, dtype=cu_seqlens.dtype)
        numbers = torch.arange(documents, device=device).repeat_interleave(cu_seqlens.diff())
        own = torch.arange(len(numbers), device=device) + count * (numbers + 1)
        virtual = (longer[:-1, None] + torch.arange(count, device=device)).flatten().long()
        order = torch.empty(len(own) + len(virtual), dtype=torch.int64, device=device)
        order[torch.cat((own, virtual))] = torch.arange(len(order), device=device)
        return cls(own, order, longer, max_seqlen + count)

    def placed(self, tokens: Tensor, virtual: Tensor) -> Tensor:
        """[N + P documents, ...]: those of the tokens [N, ...], and of the virtual tokens [P, ...] of every document.

        Each place is read once, so that the gradient of a virtual token is a sum in one order.
        """
        documents = len(self.cu_seqlens) - 1
        of_documents = virtual.expand(documents, *virtual.shape).flatten(0, 1)
        return torch.cat((tokens, of_documents)).index_select(0, self.order)

    def taken(self, placed: Tensor) -> Tensor:
        """[N, ...]: those of the tokens alone."""
        return placed.index_select(0, self.own)


class VirtualKeys(nn.Module):
    """Keys and values of P virtual tokens that learn, for the K heads of a layer (Li and Liang, 2021)."""

    def __init__(self, count: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.prefix_key = nn.Parameter(torch.empty(count, heads * head_width))
        self.prefix_value = nn.Parameter(torch.empty(count, heads * head_width))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, places: VirtualPlaces
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, H, D], keys and values [N, K, D] of the tokens with those of the virtual tokens; the queries of
        these are zero."""
        count = len(self.prefix_key)
        keys, values = (
            torch.unflatten(own, -1, (self.heads, -1)).to(key.dtype) for own in (self.prefix_key, self.prefix_value)
        )
        zeros = query.new_zeros(count, *query.shape[1:])
        return places.placed(query, zeros), places.placed(key, keys), places.placed(value, values)


class PromptEmbedding(nn.Module):
    """The embeddings [P, C] of P virtual tokens that learn (Lester et al., 2021)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(torch.empty(count, width))

    def forward(self) -> Tensor:
        """[1, P, C]"""
        return self.prompt_embeddings[None]

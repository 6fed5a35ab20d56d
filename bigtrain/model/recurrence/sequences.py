"""Packed documents as steps of a recurrence.

    documents  a b c d | e f        flat order   a b c d e f
    steps      a e | b f | c | d    step order   a e b f c d

A step holds the tokens at one position of all documents, the longest document first, so that those which have ended are
missing at the end of a step. No state has a way from one document to another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bigtrain.model.layers.dropout import DropoutKeys


class Sequences(NamedTuple):
    """D documents of N tokens in all."""

    order: Tensor
    """[N], the flat position of each token of the step order."""
    inverse: Tensor
    """[N], the place in the step order of each flat token."""
    reverse: Tensor
    """[N], for each token of the step order the one that stands as far from the other end of its document."""
    sizes: Tensor
    """[steps] int64 on the CPU, the documents that have a token at each step."""
    documents: Tensor
    """[D], the longest document first."""
    ranks: Tensor
    """[D], the place of each document in `documents`."""
    last: Tensor
    """[D], the last token of each document, in the order of `documents`, by its place in the step order."""

    @classmethod
    def of(cls, cu_seqlens: Tensor) -> Sequences:
        """From the boundaries of documents [D + 1]."""
        lengths = cu_seqlens.diff().long()
        count, device = len(lengths), lengths.device
        each = torch.arange(count, device=device)
        documents = lengths.argsort(descending=True, stable=True)
        ranks = torch.empty_like(documents).index_copy_(0, documents, each)
        owner = each.repeat_interleave(lengths)
        place = torch.arange(len(owner), device=device) - cu_seqlens[:-1].long()[owner]
        order = (place * count + ranks[owner]).argsort()
        inverse = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=device))
        sizes = place.bincount()
        starts = sizes.cumsum(0) - sizes
        mirrored = starts[lengths[owner] - 1 - place] + ranks[owner]
        return cls(
            order, inverse, mirrored[order], sizes.cpu(), documents, ranks, starts[lengths[documents] - 1] + each
        )

    def in_steps(self, keys: DropoutKeys | None) -> DropoutKeys | None:
        """The keys of the dropout of tokens, [1, N] in step order; None without keys."""
        if keys is None:
            return None
        own = keys.own.flatten()[self.order][None]
        return DropoutKeys(own, own)

    @property
    def number(self) -> int:
        """Number of documents."""
        return len(self.documents)

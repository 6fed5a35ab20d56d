"""Attention from the states of one document to those of another, document by document."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bigtrain.config import ModelSettings
from bigtrain.model.cpu.cpu_products import CpuLinear

_CHUNK_NUMBERS = 4 << 20
"""So many numbers are held at once for additive scores: one for each feature of each pair of states."""


class DocumentAttention(nn.Module):
    """The mean of the encoder's states of a document, weighted by softmax of their scores for a state of the decoder.

    Scores are v tanh(W s + U h) (Bahdanau et al., 2015, appendix A.1.2) or s h (Luong et al., 2015, equation 8). The
    additive ones need memory for each feature of each pair, so they are computed twice instead of being kept.

    ZeRO 3 gathers a module's weights when it is called, on all ranks alike. So no module is called inside the loop over
    documents, whose number differs from rank to rank: v is a parameter of this module, which is called once.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.additive = settings.attention_score == "additive"
        if self.additive:
            width = settings.hidden_size
            self.query, self.key = CpuLinear(width, width), CpuLinear(width, width, bias=False)
            self.weight = nn.Parameter(torch.empty(1, width))  # v

    def forward(self, states: Tensor, cu_seqlens: Tensor, read: Tensor, read_cu_seqlens: Tensor) -> Tensor:
        """Contexts [N, H] for states [N, H] of the decoder, from states [M, H] of the encoder; the n-th document of one
        attends to the n-th of the other."""
        queries, keys = (self.query(states), self.key(read)) if self.additive else (states, read)
        scores: Callable[[Tensor, Tensor], Tensor] = self._additive if self.additive else _products
        contexts = []
        bounds = zip(pairwise(cu_seqlens.tolist()), pairwise(read_cu_seqlens.tolist()), strict=True)
        for (start, end), (first, last) in bounds:
            weights = scores(queries[start:end], keys[first:last]).softmax(dim=-1)
            contexts.append(weights.to(read.dtype) @ read[first:last])
        return torch.cat(contexts)

    def _additive(self, queries: Tensor, keys: Tensor) -> Tensor:
        rows = max(1, _CHUNK_NUMBERS // keys.numel())
        each = partial(checkpoint, self._additive_chunk, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([each(part, keys) for part in torch.split(queries, rows)])

    def _additive_chunk(self, queries: Tensor, keys: Tensor) -> Tensor:
        features = (queries[:, None] + keys).tanh()
        return F.linear(features, self.weight).squeeze(-1).to(torch.promote_types(queries.dtype, torch.float32))


def _products(queries: Tensor, keys: Tensor) -> Tensor:
    """Scores in float32 at least: a large one rounded to bfloat16 is off by percents of a weight."""
    wide = torch.promote_types(queries.dtype, torch.float32)
    return queries.to(wide) @ keys.to(wide).t()

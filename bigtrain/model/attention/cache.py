"""Keys and values of the tokens so far, so that generation computes each token once.

    prompts, packed [N, K, D]  --store-->   slots [B, K, M, D] of each layer
    one more token [B, 1, K, D] --attend-->  its slot, and attention over all that its row sees

The token at position p of a row lies in slot p mod M. A layer that sees everything has a slot for every position, and
more are added as rows grow; one with a sliding window has no more than its window, and a new token takes the place of
the one that has just gone out of sight. So what a slot holds follows from the row's length alone, rows of a batch may
have different lengths, and whatever a slot holds is visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigtrain.config import ModelSettings
from bigtrain.model.attention.attention_rule import AttentionRule
from bigtrain.model.cache import Cache
from bigtrain.model.layers.activations import soft_capped

_STEP = 64
"""Slots are added in multiples of this, and a quarter of what there is at least."""


class _View(NamedTuple):
    """What the tokens at hand see of the slots of a layer; the same for all layers with as many slots."""

    hidden: Tensor | None
    """[B, m] bool, slots that hold nothing yet; None where all hold something."""
    distance: Tensor
    """[B, m] how many places back a slot's token is; 0 where it holds none."""


class KeyValueCache(Cache):
    """The keys and values of a batch of rows, layer by layer, in the type and on the device that they come in."""

    def __init__(self, settings: ModelSettings, lengths: Sequence[int], device: torch.device) -> None:
        """An empty cache for prompts of these lengths, which the first forward pass brings packed, end to end."""
        super().__init__(lengths, device)
        self.windows = [settings.window_of(layer) for layer in range(settings.num_hidden_layers)]
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._views: dict[int, _View] = {}

    def holds(self, layer: int) -> bool:
        """Whether a layer's prompts have been stored."""
        return layer < len(self._keys)

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Take over the keys and values [N, K, D] of the packed prompts; layers come in order."""
        assert layer == len(self._keys)
        slots = self._slots_for(layer, max(self.lengths))
        rows = torch.arange(len(self.lengths), device=key.device).repeat_interleave(self.cu_seqlens.diff())
        positions = self.prompt_positions[0]
        kept = positions >= self.positions[rows] - slots
        for held, new in ((self._keys, key), (self._values, value)):
            # Zeros, for a weight of zero times what memory happens to hold may be no number.
            cache = new.new_zeros(len(self.lengths), new.shape[1], slots, new.shape[2])
            cache[rows[kept], :, positions[kept] % slots] = new[kept]
            held.append(cache)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """Add one token to each row, and let it attend.

        Args:
            layer: its keys and values are those of the layer's window.
            query: [B, 1, H, D].
            key: [B, 1, K, D].
            value: [B, 1, K, D].
            rule: of the layer.

        Returns:
            [B, 1, H, D].
        """
        self._grow(layer)
        keys, values = self._keys[layer], self._values[layer]
        slots, rows = keys.shape[2], torch.arange(len(self.lengths), device=key.device)
        keys[rows, :, self.positions % slots] = key[:, 0]
        values[rows, :, self.positions % slots] = value[:, 0]
        held = min(slots, self.longest)
        view = self._view(slots, held)
        return _attention(query[:, 0], keys[:, :, :held], values[:, :, :held], rule, view)[:, None]

    def advance(self) -> None:
        """The token at hand is in all layers: go on to the next."""
        super().advance()
        self._views.clear()

    def keep(self, rows: Sequence[int]) -> None:
        """Leave only these rows, by number and in this order."""
        super().keep(rows)
        index = torch.tensor(rows, dtype=torch.int64, device=self.positions.device)
        self._keys = [keys[index] for keys in self._keys]
        self._values = [values[index] for values in self._values]
        self._views.clear()

    def _slots_for(self, layer: int, tokens: int) -> int:
        window = self.windows[layer]
        slots = -(-tokens // _STEP) * _STEP
        return slots if window is None else min(window, slots)

    def _grow(self, layer: int) -> None:
        for held in (self._keys, self._values):
            cache = held[layer]
            slots = cache.shape[2]
            if self.longest > slots != self.windows[layer]:
                more = self._slots_for(layer, max(self.longest, slots + slots // 4))
                # Nothing has come round yet, so every position stays in its slot.
                held[layer] = torch.cat((cache, cache.new_zeros(*cache.shape[:2], more - slots, cache.shape[3])), dim=2)

    def _view(self, slots: int, held: int) -> _View:
        if slots not in self._views:
            slot, at = torch.arange(held, device=self.positions.device), self.positions[:, None]
            hidden = None if len(set(self.lengths)) == 1 else slot > at
            distance = (at - slot) % slots
            self._views[slots] = _View(hidden, distance if hidden is None else distance.masked_fill(hidden, 0))
        return self._views[slots]


def _attention(query: Tensor, keys: Tensor, values: Tensor, rule: AttentionRule, view: _View) -> Tensor:
    """What `attention_by_definition` says, for one query [B, H, D] a row over keys and values [B, K, m, D].

    Plain matrix products, the query heads that share a key head as rows of one matrix: with a single query there is
    nothing to gain from never holding the scores, and PyTorch's kernel takes up to five times as long on a CPU.
    """
    queries = query.reshape(-1, query.shape[1] // keys.shape[1], query.shape[2])  # [B K, G, D]
    scores = _products(queries, keys.flatten(0, 1).transpose(1, 2)).view(*query.shape[:2], -1) * rule.scale
    scores = soft_capped(scores, rule.softcap)
    if rule.distance_bias is not None:
        scores = scores + rule.distance_bias.to(scores.dtype)[:, view.distance].transpose(0, 1)
    if view.hidden is not None:
        scores = scores.masked_fill(view.hidden[:, None], float("-inf"))
    weights = scores.softmax(dim=-1).to(values.dtype).view(*queries.shape[:2], -1)
    return torch.bmm(weights, values.flatten(0, 1)).view(query.shape)


def _products(queries: Tensor, keys: Tensor) -> Tensor:
    """Batched matrix products in float32 at least: a large score rounded to bfloat16 is off by percents of a weight."""
    wide = torch.promote_types(queries.dtype, torch.float32)
    if queries.is_cuda and queries.dtype != wide:
        return torch.bmm(queries, keys, out_dtype=wide)
    return torch.bmm(queries.to(wide), keys.to(wide))

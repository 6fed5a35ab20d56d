"""Keys and values of the tokens so far, so that generation computes each token once.

    prompts, packed [N, K, D]  --store-->   slots [B, K, M, D] of each layer
    one more token [B, 1, K, D] --attend-->  its slot, and attention over all that its row sees

The token at position p of a row lies in slot p mod M. A layer that sees everything has a slot for every position, and
more are added as rows grow; one with a sliding window has no more than its window, and a new token takes the place of
the one that has just gone out of sight. So what a slot holds follows from the row's length alone, rows of a batch may
have different lengths, and whatever a slot holds is visible.

Of an encoder-decoder these are the keys and values of what its decoder writes. Beside them `ReadCache` holds those of
what its encoder has read, which stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigtrain.config import ModelSettings
from bigtrain.model.attention.attention_rule import AttentionRule
from bigtrain.model.cache import Cache, boundaries, packed_positions
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

    def __init__(
        self,
        settings: ModelSettings,
        lengths: Sequence[int],
        device: torch.device,
        read_lengths: Sequence[int] | None = None,
        virtual_tokens: int = 0,
    ) -> None:
        """An empty cache for prompts of these lengths, which the first forward pass brings packed, end to end. Of an
        encoder-decoder `read_lengths` are those of what its encoder has read, likewise. The keys and values of so many
        virtual tokens stand in front of those of each row."""
        super().__init__(lengths, device)
        self._virtual = virtual_tokens
        self.windows = [settings.window_of(layer) for layer in range(settings.decoder_layers)]
        self.read = None if read_lengths is None else ReadCache(read_lengths, device)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._views: dict[int, _View] = {}

    def holds(self, layer: int) -> bool:
        """Whether a layer's prompts have been stored."""
        return layer < len(self._keys)

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Take over the keys and values [N, K, D] of the packed prompts; layers come in order."""
        assert layer == len(self._keys)
        slots = self._slots_for(layer, max(self.lengths) + self._virtual)
        held = boundaries([length + self._virtual for length in self.lengths], key.device)
        self._keys.append(_in_slots(key, held, slots))
        self._values.append(_in_slots(value, held, slots))

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
        keys[rows, :, self._places % slots] = key[:, 0]
        values[rows, :, self._places % slots] = value[:, 0]
        held = min(slots, self._most)
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
        if self.read is not None:
            self.read.keep(rows)

    @property
    def _places(self) -> Tensor:
        """[B] where the token at hand stands, after the virtual ones of its row."""
        return self.positions + self._virtual

    @property
    def _most(self) -> int:
        """Keys of the longest row, that of the token at hand included."""
        return self.longest + self._virtual

    def _slots_for(self, layer: int, tokens: int) -> int:
        window = self.windows[layer]
        slots = -(-tokens // _STEP) * _STEP
        return slots if window is None else min(window, slots)

    def _grow(self, layer: int) -> None:
        for held in (self._keys, self._values):
            cache = held[layer]
            slots = cache.shape[2]
            if self._most > slots != self.windows[layer]:
                more = self._slots_for(layer, max(self._most, slots + slots // 4))
                # Nothing has come round yet, so every position stays in its slot.
                held[layer] = torch.cat((cache, cache.new_zeros(*cache.shape[:2], more - slots, cache.shape[3])), dim=2)

    def _view(self, slots: int, held: int) -> _View:
        if slots not in self._views:
            slot, at = torch.arange(held, device=self.positions.device), self._places[:, None]
            hidden = None if len(set(self.lengths)) == 1 else slot > at
            distance = (at - slot) % slots
            self._views[slots] = _View(hidden, distance if hidden is None else distance.masked_fill(hidden, 0))
        return self._views[slots]


class ReadCache:
    """The keys and values of what an encoder has read, layer by layer. A token that is written sees all of its row's,
    without regard to positions."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        """An empty cache for rows of these lengths, which the first forward pass brings packed, end to end."""
        self._cu_seqlens = boundaries(lengths, device)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._view = self._view_of(lengths)

    def holds(self, layer: int) -> bool:
        """Whether a layer's keys and values have been stored."""
        return layer < len(self._keys)

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Take over the keys and values [N, K, D] of all that was read; layers come in order."""
        assert layer == len(self._keys)
        slots = int(self._cu_seqlens.diff().max())
        self._keys.append(_in_slots(key, self._cu_seqlens, slots))
        self._values.append(_in_slots(value, self._cu_seqlens, slots))

    def attend(self, layer: int, query: Tensor, rule: AttentionRule) -> Tensor:
        """Let one token of each row attend: [B, 1, H, D] to [B, 1, H, D]."""
        return _attention(query[:, 0], self._keys[layer], self._values[layer], rule, self._view)[:, None]

    def keep(self, rows: Sequence[int]) -> None:
        """Leave only these rows, by number and in this order."""
        lengths = [self._cu_seqlens.diff().tolist()[row] for row in rows]
        index = torch.tensor(rows, dtype=torch.int64, device=self._cu_seqlens.device)
        longest = max(lengths, default=0)
        self._keys = [keys[index, :, :longest] for keys in self._keys]
        self._values = [values[index, :, :longest] for values in self._values]
        self._cu_seqlens = boundaries(lengths, self._cu_seqlens.device)
        self._view = self._view_of(lengths)

    def _view_of(self, lengths: Sequence[int]) -> _View:
        slot = torch.arange(max(lengths, default=0), device=self._cu_seqlens.device)[None]
        all_full = len(set(lengths)) <= 1
        hidden = None if all_full else slot >= torch.tensor(lengths, device=slot.device)[:, None]
        return _View(hidden, torch.zeros_like(slot))


def _in_slots(new: Tensor, cu_seqlens: Tensor, slots: int) -> Tensor:
    """Keys or values [N, K, D] of packed rows, in slots [B, K, M, D]: of each row the last M."""
    lengths = cu_seqlens.diff()
    rows = torch.arange(len(lengths), device=new.device).repeat_interleave(lengths)
    positions = packed_positions(cu_seqlens)[0]
    kept = positions >= lengths[rows] - slots
    # Zeros, for a weight of zero times what memory happens to hold may be no number.
    cache = new.new_zeros(len(lengths), new.shape[1], slots, new.shape[2])
    cache[rows[kept], :, positions[kept] % slots] = new[kept]
    return cache


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

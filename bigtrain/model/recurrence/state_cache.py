"""The states after the tokens so far, so that generation computes each token once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bigtrain.model.cache import Cache
from bigtrain.model.recurrence.recurrent_layer import State


class StateCache(Cache):
    """A state for each layer and row, however long the row is."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        super().__init__(lengths, device)
        self.states: list[State] = []
        """Of each layer; none before the prompts have been read."""

    def keep(self, rows: Sequence[int]) -> None:
        """See `Cache.keep`."""
        super().keep(rows)
        index = torch.tensor(rows, dtype=torch.int64, device=self.positions.device)
        self.states = [tuple(each[index] for each in state) for state in self.states]

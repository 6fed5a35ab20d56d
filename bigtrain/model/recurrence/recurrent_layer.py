"""Recurrent layers: a cell that goes over documents token by token, in one direction or both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.config import ModelSettings
from bigtrain.model.activation_checkpointing import recomputation
from bigtrain.model.cpu.cpu_products import CpuLinear
from bigtrain.model.execution import Execution
from bigtrain.model.recurrence.scan import GATES, gru_scan, lstm_scan
from bigtrain.model.recurrence.sequences import Sequences

State = tuple[Tensor, ...]
"""The states [D, H] of documents, in their order, in float32 at least; of an LSTM its cells [D, H] beside them."""


class Cell(nn.Module):
    """The part of a cell that reads the state before: weight [G H, H] and bias [G H], gates in PyTorch's order. It
    computes in float32 at least: a state goes through as many roundings as a document has tokens."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        self.weight = nn.Parameter(torch.empty(GATES[kind] * width, width))
        self.bias = nn.Parameter(torch.empty(GATES[kind] * width))

    def forward(self, below: Tensor, sequences: Sequences, start: State | None) -> tuple[Tensor, State]:
        """The gates' part of the inputs [N, G H], in step order, to states [N, H] and the last ones of each document.

        Gradients go through the states of `start` and of the result, but not through an LSTM's cells in the result.
        """
        wide = torch.promote_types(below.dtype, torch.float32)
        if start is None:
            zeros = below.new_zeros(sequences.number, self.width, dtype=wide)
            start = (zeros, zeros) if self.kind == "lstm" else (zeros,)
        else:
            start = tuple(each[sequences.documents].to(wide) for each in start)
        scan: Any = lstm_scan if self.kind == "lstm" else gru_scan
        states, cells, _ = scan(below.to(wide), self.weight.to(wide), self.bias.to(wide), *start, sequences.sizes)
        ends = (states, cells.detach()) if self.kind == "lstm" else (states,)
        last = sequences.last[sequences.ranks]
        return states.to(below.dtype), tuple(each[last] for each in ends)


class RecurrentLayer(nn.Module):
    """A layer from the first token of a document to its last."""

    def __init__(self, settings: ModelSettings, inputs: int, execution: Execution, width: int | None = None) -> None:
        """Args:
        settings: the kind of cell, and the width of its state.
        inputs: width of the inputs.
        execution: what is recomputed.
        width: of the state, where it is another than hidden_size.
        """
        super().__init__()
        self.checkpointed = recomputation(settings, execution)
        width = width or settings.hidden_size
        self.input_gates = CpuLinear(inputs, GATES[settings.cell] * width)
        self.state_gates = Cell(settings.cell, width)

    def forward(self, x: Tensor, sequences: Sequences, start: State | None = None) -> tuple[Tensor, State]:
        """Map [N, C], in step order, to states [N, H], and give the last states of each document."""
        return self.checkpointed(self._states, x, sequences, start)

    def _states(self, x: Tensor, sequences: Sequences, start: State | None) -> tuple[Tensor, State]:
        return self.state_gates(self.input_gates(x), sequences, start)


class BidirectionalLayer(nn.Module):
    """Two layers of half the width, one from each end of a document (Schuster and Paliwal, 1997)."""

    def __init__(self, settings: ModelSettings, inputs: int, execution: Execution) -> None:
        super().__init__()
        half = settings.hidden_size // 2
        self.ahead, self.back = (RecurrentLayer(settings, inputs, execution, half) for _ in range(2))

    def forward(self, x: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Map [N, C], in step order, to states [N, H], and give both directions' last states [D, H]."""
        ahead, (end, *_) = self.ahead(x, sequences)
        back, (start, *_) = self.back(x[sequences.reverse], sequences)
        return torch.cat((ahead, back[sequences.reverse]), dim=-1), torch.cat((end, start), dim=-1)

"""A teacher beside a model that learns from it: what their predictions and their hidden states differ by.

    inputs --> model   --> states of layers --> hidden --> logits
                               | mean square                  | divergence     at the labelled positions
    inputs --> teacher --> states of layers --> hidden --> logits

The teacher's parameters do not learn: the optimizer and checkpoints leave them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.base import IGNORE_INDEX
from bigtrain.config import DistillationSettings, ModelSettings
from bigtrain.model.cpu.cpu_products import CpuLinear
from bigtrain.model.loss.soft_labels import Spread, from_teacher

PREDICTIONS, STATES = "distillation_loss", "hidden_loss"
"""The names that the two have in metrics, each a mean over labels."""
Head = Callable[[Tensor], Tensor]
Reads = tuple[Tensor, Tensor, Tensor, int, Tensor | None]


class Distillation(nn.Module):
    """What a model learns from a teacher."""

    def __init__(self, settings: DistillationSettings, own: ModelSettings, teacher: Any) -> None:
        """Args:
        settings: the section.
        own: the shape of the model that learns.
        teacher: a `LanguageModel` of the same family.
        """
        super().__init__()
        self.settings, self.classes = settings, own.logits_of_task if own.task_head != "none" else own.vocab_size
        self.projections = nn.ModuleList()
        self.teacher: Any = teacher.requires_grad_(requires_grad=False).eval()
        self.pairs = settings.layer_pairs(own.num_hidden_layers, teacher.settings.num_hidden_layers)
        if own.hidden_size != teacher.settings.hidden_size:
            self.projections.extend(CpuLinear(own.hidden_size, teacher.settings.hidden_size) for _ in self.pairs)
        self._theirs = _KeptStates(teacher.layers, [layer for _, layer in self.pairs])

    def watch(self, layers: nn.ModuleList) -> None:
        """Keep the states after these layers, of the model that learns, from each forward pass to `losses`."""
        self._own = _KeptStates(layers, [layer for layer, _ in self.pairs])

    def train(self, mode: bool = True) -> Distillation:
        """As of any module; the teacher never trains."""
        super().train(mode)
        self.teacher.eval()
        return self

    def losses(self, head: Head, hidden: Tensor, labels: Tensor, inputs: Reads) -> dict[str, Tensor]:
        """Sums over the labelled positions: of the divergence, and of the mean squares of all pairs of layers.

        Args:
            head: of the model that learns.
            hidden: [B, T, C], its last states.
            labels: [B, T], IGNORE_INDEX where there is none.
            inputs: what the teacher reads: input_ids, position_ids, cu_seqlens, max_seqlen and token_type_ids.
        """
        places = (labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
        own = hidden.flatten(0, -2)[places]
        spread = Spread(self.settings.temperature, self.classes)
        with torch.no_grad():
            *read, types = inputs
            theirs = self.teacher.hidden(*read, token_type_ids=types).flatten(0, -2)[places]
        found = {}
        if self.settings.weight:
            found[PREDICTIONS] = from_teacher(head, own, self.teacher.head, theirs, spread)
        if self.pairs:
            found[STATES] = self._states(places)
        return found

    @property
    def coefficients(self) -> dict[str, float]:
        """What the losses are multiplied by in what is learned."""
        return {PREDICTIONS: self.settings.weight, STATES: self.settings.hidden_weight}

    def weighted(self, loss: Tensor) -> Tensor:
        """The loss of the labels, with the weight of its gradient."""
        weight = self.settings.label_weight
        return loss if weight == 1 else loss.detach() + weight * (loss - loss.detach())

    def _states(self, places: Tensor) -> Tensor:
        own, theirs = self._own.take(), self._theirs.take()
        losses = []
        for number, (layer, other) in enumerate(self.pairs):
            state = own[layer].flatten(0, -2)[places]
            if self.projections:
                state = self.projections[number](state)
            difference = state.float() - theirs[other].flatten(0, -2)[places].float()
            losses.append(difference.square().mean(-1).sum())
        return torch.stack(losses).sum()


class _KeptStates:
    """The states after some layers, from the last forward pass."""

    def __init__(self, layers: nn.ModuleList, which: Sequence[int]) -> None:
        self._states: dict[int, Tensor] = {}
        for number in set(which):
            layers[number].register_forward_hook(self._keeping(number))

    def _keeping(self, number: int) -> Callable[..., None]:
        def keep(layer: nn.Module, arguments: Any, output: Any) -> None:
            self._states[number] = output[0]

        return keep

    def take(self) -> dict[int, Tensor]:
        """The states by layer; they are no longer kept."""
        states, self._states = self._states, {}
        return states

"""What a model learns from another one, its teacher, beside its labels. The teacher is there, or its outputs were kept.

    inputs --> model   --> states of layers --> hidden --> logits
                               | mean square                  | divergence     at the labelled positions
    inputs --> teacher --> states of layers --> hidden --> logits
                                    inputs --> what was kept of them

A hook sees what the model reads, and the teacher reads the same: so every architecture can have one. The teacher's
parameters do not learn: the optimizer and checkpoints leave them out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.base import IGNORE_INDEX
from bigtrain.config import KEPT_CLASSES, KEPT_LOG_PROBS, DistillationSettings, ModelSettings
from bigtrain.model.cpu.cpu_products import CpuLinear
from bigtrain.model.loss.soft_labels import Spread, from_kept, from_teacher

PREDICTIONS, STATES = "distillation_loss", "hidden_loss"
"""The names that the two have in metrics, each a mean over labels."""
_NOT_READ = ("labels", "example_labels", "row_keys", "each_token")
"""Inputs of a model that say what it learns, and not what it reads."""
Head = Callable[[Tensor], Tensor]


class Distillation(nn.Module):
    """What a model learns from a teacher."""

    def __init__(self, settings: DistillationSettings, own: ModelSettings, teacher: Any = None) -> None:
        """Args:
        settings: the section.
        own: the shape of the model that learns.
        teacher: a `LanguageModel` of the same family. Default: its outputs come with the inputs.
        """
        super().__init__()
        self.settings, self.classes = settings, own.classes
        self.projections = nn.ModuleList()
        self.pairs: tuple[tuple[int, int], ...] = ()
        self.teacher: Any = None
        self._inputs: Mapping[str, Any] = {}
        if teacher is None:
            return
        self.teacher = teacher.requires_grad_(requires_grad=False).eval()
        self.pairs = settings.layer_pairs(own.decoder_layers, teacher.settings.decoder_layers)
        if own.hidden_size != teacher.settings.hidden_size:
            self.projections.extend(CpuLinear(own.hidden_size, teacher.settings.hidden_size) for _ in self.pairs)
        self._theirs = _KeptStates(teacher.layers, [layer for _, layer in self.pairs])

    def watch(self, model: nn.Module, layers: nn.ModuleList) -> None:
        """See the inputs of each forward pass of the model that learns, and the states after its layers, until
        `losses`."""
        model.register_forward_pre_hook(self._see_inputs, with_kwargs=True)
        self._own = _KeptStates(layers, [layer for layer, _ in self.pairs])

    def train(self, mode: bool = True) -> Distillation:
        """As of any module; the teacher never trains."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def losses(self, head: Head, hidden: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Sums over the labelled positions: of the divergence, and of the mean squares of all pairs of layers.

        Args:
            head: of the model that learns.
            hidden: [n, C], its last states at the labelled positions.
            labels: [B, T], IGNORE_INDEX where there is none.
        """
        positions = labelled_positions(labels)
        inputs, self._inputs = self._inputs, {}
        spread = Spread(self.settings.temperature, self.classes)
        if self.teacher is None:
            classes, log_probs = (inputs[name].flatten(0, 1)[positions] for name in (KEPT_CLASSES, KEPT_LOG_PROBS))
            return {PREDICTIONS: from_kept(head, hidden, classes.long(), log_probs, spread)}
        with torch.no_grad():
            read = {name: value for name, value in inputs.items() if name not in _NOT_READ}
            theirs = self.teacher.label_states(labels, **read)
        found = {}
        if self.settings.weight:
            found[PREDICTIONS] = from_teacher(head, hidden, self.teacher.head, theirs, spread)
        if self.pairs:
            found[STATES] = self._states(positions)
        return found

    @property
    def coefficients(self) -> dict[str, float]:
        """What the losses are multiplied by in what is learned."""
        return {PREDICTIONS: self.settings.weight, STATES: self.settings.hidden_weight}

    def weighted(self, loss: Tensor) -> Tensor:
        """The loss of the labels, with the weight of its gradient."""
        weight = self.settings.label_weight
        return loss if weight == 1 else loss.detach() + weight * (loss - loss.detach())

    def _see_inputs(self, model: nn.Module, arguments: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Keep the inputs of a pass that learns; the model itself reads nothing of what was kept of a teacher."""
        if model.training and torch.is_grad_enabled():
            self._inputs = inputs
        return arguments, {key: value for key, value in inputs.items() if key not in (KEPT_CLASSES, KEPT_LOG_PROBS)}

    def _states(self, positions: Tensor) -> Tensor:
        own, theirs = self._own.take(), self._theirs.take()
        losses = []
        for number, (layer, other) in enumerate(self.pairs):
            state = own[layer].flatten(0, -2)[positions]
            if self.projections:
                state = self.projections[number](state)
            difference = state.float() - theirs[other].flatten(0, -2)[positions].float()
            losses.append(difference.square().mean(-1).sum())
        return torch.stack(losses).sum()


def labelled_positions(labels: Tensor) -> Tensor:
    """[n] the positions among the flattened labels that have one."""
    return (labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)


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

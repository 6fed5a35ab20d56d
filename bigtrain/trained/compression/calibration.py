"""What the layers of a model read while it reads rows of its own training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bigtrain.base import BigtrainError
from bigtrain.config import Settings
from bigtrain.data import MicroBatch, RunData


@dataclass(frozen=True)
class Calibration:
    """Rows that the run was trained on."""

    batches: list[MicroBatch]
    addresses: list[list[int | str]]
    """Source, epoch and sequence of each row."""

    @classmethod
    def of(cls, settings: Settings, step: int, rows: int, seed: int) -> Calibration:
        """Draw different rows, at random, from those that the run has read until a step.

        Raises:
            BigtrainError: the data are not there, or not those of the run.
        """
        data = RunData.open(settings)
        consumed = data.plan.batches.consumed_after(step)
        if not consumed:
            raise BigtrainError(
                "the run has read no rows until this step, and there is nothing to calibrate with",
                found=f"step {step}",
                wanted="a step after the first",
                fix="prune by magnitude, and round to the nearest code",
            )
        drawn = np.sort(np.random.default_rng(seed).permutation(consumed)[:rows])
        found = data.plan.locate_many(drawn)
        names = [source.name for source in data.plan.sources]
        return cls(
            data.batches_of(drawn, settings.validation_batch_size),
            [[names[s], int(e), int(q)] for s, e, q in zip(found.source, found.epoch, found.sequence, strict=True)],
        )


@dataclass
class LayerInputs:
    """Sums over the tokens that a linear layer has read."""

    squares: Tensor
    """[in], of the squares of each feature."""
    hessian: Tensor | None = None
    """[in, in], of x x^T, where it is asked for."""
    tokens: int = 0

    def add(self, x: Tensor) -> None:
        """Count inputs [..., in]."""
        flat = x.flatten(0, -2).to(self.squares.dtype)
        self.squares += flat.square().sum(0)
        if self.hessian is not None:
            self.hessian.addmm_(flat.T, flat)
        self.tokens += len(flat)


class _AllRead(Exception):
    """The layers in question have read what they read in this forward pass."""


@dataclass
class InputReader:
    """Runs a model on batches and sees what its layers read."""

    model: nn.Module
    batches: Sequence[MicroBatch]
    device: torch.device
    _handles: list[Any] = field(default_factory=list)

    def order(self, layers: dict[str, nn.Linear]) -> list[str]:
        """The names of layers in the order in which the model first comes to them."""
        seen: dict[str, None] = {}
        with self._hooked({layer: lambda _, name=name: seen.setdefault(name) for name, layer in layers.items()}):
            self._read(self.batches[0])
        return list(seen)

    def inputs(
        self, layers: dict[str, nn.Linear], following: nn.Linear | None, hessians: bool
    ) -> dict[str, LayerInputs]:
        """What these layers read.

        Args:
            layers: by name.
            following: the first layer after them: a pass need go no further.
            hessians: whether the sums of x x^T are wanted, too.
        """
        found = {name: _empty(layer, hessians) for name, layer in layers.items()}
        hooks: dict[nn.Linear, Any] = {layer: found[name].add for name, layer in layers.items()}
        if following is not None:
            hooks[following] = _stop
        with self._hooked(hooks):
            for batch in self.batches:
                self._read(batch)
        return found

    @torch.no_grad()
    def _read(self, batch: MicroBatch) -> None:
        with suppress(_AllRead):
            self.model(**batch.to(self.device).model_inputs())

    @contextmanager
    def _hooked(self, hooks: dict[nn.Linear, Any]) -> Iterator[None]:
        handles = [
            layer.register_forward_pre_hook(lambda _, inputs, see=see: see(inputs[0])) for layer, see in hooks.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _empty(layer: nn.Linear, hessians: bool) -> LayerInputs:
    width = layer.in_features
    options: Any = {"dtype": torch.promote_types(layer.weight.dtype, torch.float32), "device": layer.weight.device}
    return LayerInputs(torch.zeros(width, **options), torch.zeros(width, width, **options) if hessians else None)


def _stop(_: Tensor) -> None:
    raise _AllRead

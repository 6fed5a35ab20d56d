"""The two ends of a model: token ids to vectors, and vectors to a loss or logits.

Each end is a module that owns its weight and uses it inside its own forward pass, because ZeRO-3 gathers a
partitioned weight when the module that holds it is called. Tied ends hold the same Parameter, and either call gathers
it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.base import IGNORE_INDEX
from bigtrain.config import ModelSettings
from bigtrain.model.cpu.cpu_products import CpuLinear
from bigtrain.model.layers.activations import ACTIVATIONS, soft_capped
from bigtrain.model.layers.norm import norm_layer
from bigtrain.model.loss.loss import linear_cross_entropy


class TokenEmbedding(nn.Module):
    """A row of the weight, [V, C], for each token id."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, T] ids to [B, T, C]."""
        if self.weight.device.type == "cpu":
            return _CpuEmbedding.apply(input_ids, self.weight)  # type: ignore[no-untyped-call]
        return F.embedding(input_ids, self.weight)


class InputEmbedding(TokenEmbedding):
    """Token embeddings, multiplied where the model does so."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings.vocab_size, settings.embedding_width)
        self.multiplier = settings.embedding_multiplier

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, T] ids to [B, T, C]."""
        embedded = super().forward(input_ids)
        if self.multiplier == "sqrt_hidden_size":
            # Gemma was trained with a root rounded to the precision of its weights.
            return embedded * torch.tensor(embedded.shape[-1] ** 0.5, dtype=embedded.dtype)
        return embedded if self.multiplier == 1 else embedded * self.multiplier


def token_types(settings: ModelSettings) -> TokenEmbedding | None:
    """The vectors of the kinds of segments, where there are any."""
    return TokenEmbedding(settings.type_vocab_size, settings.embedding_width) if settings.type_vocab_size else None


class OutputHead(nn.Module):
    """The projection onto the vocabulary, [V, C], followed by the loss; before it norm(act(dense(x))) where the model
    does so (Devlin et al., 2019, as released)."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width = settings.embedding_width
        self.weight = nn.Parameter(torch.empty(settings.vocab_size, width))
        self.bias = nn.Parameter(torch.empty(settings.vocab_size)) if settings.head_bias else None
        self.dense: nn.Module | None = None
        if settings.head_transform:
            self.dense = CpuLinear(settings.hidden_size, width, bias=settings.head_transform_bias)
            self.activation = ACTIVATIONS[settings.head_act or settings.hidden_act]
            self.norm = norm_layer(settings, width)
        self.scaling = settings.logits_divisor
        self.softcap, self.z_loss_coef = settings.final_logit_softcapping, settings.z_loss_coef
        self.label_smoothing = settings.label_smoothing

    def forward(self, hidden: Tensor, labels: Tensor | None = None, *, each_token: bool = False) -> Tensor:
        """[B, T, C] to logits [B, T, V]; with labels [B, T] to the summed loss of `linear_cross_entropy`, or to the
        losses [B, T] of each token, without a gradient."""
        if self.dense is not None:
            hidden = self.norm(self.activation(self.dense(hidden)))
        if labels is None:
            return shaped_logits(F.linear(hidden, self.weight, self.bias), self.scaling, self.softcap)
        if each_token:
            return self._token_losses(hidden, labels)
        return linear_cross_entropy(
            hidden.flatten(0, -2),
            self.weight,
            labels.flatten(),
            bias=self.bias,
            logits_scaling=self.scaling,
            softcap=self.softcap,
            z_loss_coef=self.z_loss_coef,
            label_smoothing=self.label_smoothing,
        )

    @torch.no_grad()
    def _token_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """-log p(label) in nats, float32; 0 where there is no label. Only the logits of one row are held at a time."""
        losses = []
        for row, own in zip(hidden, labels, strict=True):
            logits = shaped_logits(F.linear(row, self.weight, self.bias), self.scaling, self.softcap)
            losses.append(F.cross_entropy(logits.float(), own, ignore_index=IGNORE_INDEX, reduction="none"))
        return torch.stack(losses)


def shaped_logits(logits: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Logits divided by the scaling, then capped."""
    if scaling != 1:
        logits = logits / scaling
    return soft_capped(logits, softcap)


class _CpuEmbedding(torch.autograd.Function):
    """On a CPU PyTorch sums the gradient of a frequent token in its own precision: 2% off in bfloat16 at 900
    occurrences. Summed in float32 it is exact to rounding, and as fast."""

    @staticmethod
    def forward(ctx: Any, input_ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input_ids)
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
        return F.embedding(input_ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (input_ids,) = ctx.saved_tensors
        wide = torch.promote_types(grad.dtype, torch.float32)
        total = torch.zeros(ctx.shape, dtype=wide, device=grad.device)
        total.index_add_(0, input_ids.flatten(), grad.flatten(0, -2).to(wide))
        return None, total.to(ctx.dtype)

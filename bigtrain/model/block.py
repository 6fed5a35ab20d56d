"""One block: attention and a feed-forward half, each with its norms, added to the residual stream; in a decoder with an
encoder, attention to that between the two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.config import ModelSettings
from bigtrain.model.activation_checkpointing import recomputation
from bigtrain.model.attention.attention import CrossAttention, SelfAttention
from bigtrain.model.attention.relative_attention import RelativeAttention
from bigtrain.model.context import Context
from bigtrain.model.execution import Execution
from bigtrain.model.layers.dropout import Dropout, DropoutKeys
from bigtrain.model.layers.experts import MixtureOfExperts
from bigtrain.model.layers.feed_forward import FeedForward
from bigtrain.model.layers.norm import norm_layer
from bigtrain.model.layers.router import RouterReport


class Block(nn.Module):
    """x + attention(x), then x + feed_forward(x), with norms before, after, or both; or both halves of one x; or each
    sum normalised as a whole, norm(x + attention(x)).

    Names of norms are llama's where it has them: `post_attention_layernorm` stands before the feed-forward half.
    """

    def __init__(self, settings: ModelSettings, layer: int, execution: Execution) -> None:
        super().__init__()
        self.checkpointed = recomputation(settings, execution)
        self.offloaded = execution.activation_checkpointing == "offloaded"
        self.parallel, self.multiplier = settings.parallel_residual, settings.residual_multiplier

        self.norms_sums = settings.norm_position == "post_residual"

        def norm(*where: str) -> nn.Module:
            return norm_layer(settings) if settings.norm_position in (*where, "sandwich") else nn.Identity()

        self.input_layernorm = norm("pre") if layer or settings.first_attention_norm else nn.Identity()
        self.self_attn = (
            RelativeAttention(settings, execution)
            if settings.position_embedding == "transformer_xl"
            else SelfAttention(settings, layer, execution)
        )
        self.attention_output_norm = norm("post", "post_residual")
        self.cross_attn: CrossAttention | None = None
        if settings.architecture == "encoder_decoder":
            self.cross_attention_layernorm = norm("pre")
            self.cross_attn = CrossAttention(settings, layer, execution)
            self.cross_attention_output_norm = norm("post", "post_residual")
        self.post_attention_layernorm = norm("pre")
        self.mlp = (
            MixtureOfExperts(settings, execution.sequence_parallel)
            if settings.has_experts(layer)
            else FeedForward(settings, execution.linear)
        )
        self.mlp_output_norm = norm("post", "post_residual")
        rate = settings.hidden_dropout
        self.attention_dropout = Dropout(rate, "attention_output")
        self.cross_attention_dropout = Dropout(rate, "cross_attention_output")
        self.mlp_dropout = Dropout(rate, "feed_forward_output")

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, RouterReport | None]:
        """Map [B, T, C] to [B, T, C], with the report of the block's router where the context asks for one."""
        return self.checkpointed(self._residuals, x, context)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile in place; without the hooks that carry an offloaded input away, which are not for the compiler."""
        if self.offloaded:
            self._residuals = torch.compile(self._residuals, *args, **kwargs)  # type: ignore[method-assign]
        else:
            super().compile(*args, **kwargs)

    def _residuals(self, x: Tensor, context: Context) -> tuple[Tensor, RouterReport | None]:
        drop = context.dropout
        if self.norms_sums:
            x = self.attention_output_norm(x + self._branch(self.self_attn(x, context), self.attention_dropout, drop))
            if self.cross_attn is not None:
                seen = self._branch(self.cross_attn(x, context), self.cross_attention_dropout, drop)
                x = self.cross_attention_output_norm(x + seen)
            fed, report = self._fed(x, context)
            return self.mlp_output_norm(x + self._branch(fed, self.mlp_dropout, drop)), report
        attended = self.attention_output_norm(self.self_attn(self.input_layernorm(x), context))
        attended = self._branch(attended, self.attention_dropout, drop)
        if self.parallel:
            fed, report = self._feed_forward(x, context)
            return x + attended + fed, report
        x = x + attended
        if self.cross_attn is not None:
            seen = self.cross_attention_output_norm(self.cross_attn(self.cross_attention_layernorm(x), context))
            x = x + self._branch(seen, self.cross_attention_dropout, drop)
        fed, report = self._feed_forward(x, context)
        return x + fed, report

    def _feed_forward(self, x: Tensor, context: Context) -> tuple[Tensor, RouterReport | None]:
        x, report = self._fed(self.post_attention_layernorm(x), context)
        return self._branch(self.mlp_output_norm(x), self.mlp_dropout, context.dropout), report

    def _fed(self, x: Tensor, context: Context) -> tuple[Tensor, RouterReport | None]:
        if isinstance(self.mlp, MixtureOfExperts):
            return self.mlp(x, context.labelled)
        return self.mlp(x, context.dropout), None

    def _branch(self, x: Tensor, dropout: Dropout, keys: DropoutKeys | None) -> Tensor:
        """What is added to the residual stream, of the output of a half."""
        x = dropout(x, keys)
        return x if self.multiplier == 1 else x * self.multiplier

"""Multi-head self-attention: projections around one of the attention back-ends."""

from __future__ import annotations

from torch import Tensor, nn

from bigtrain.config.settings import ModelSettings
from bigtrain.model.attention_backends import attention_backend
from bigtrain.model.attention_rule import AttentionRule
from bigtrain.model.execution import Execution
from bigtrain.model.rotary import Rotary


class SelfAttention(nn.Module):
    """Causal attention with H query heads that share K key/value heads (Ainslie et al., 2023)."""

    def __init__(self, settings: ModelSettings, bias: bool, execution: Execution) -> None:
        super().__init__()
        self.implementation = execution.attn_implementation
        self.sequence_parallel = execution.sequence_parallel
        self.head_width = settings.head_width
        self.rule = AttentionRule(scale=self.head_width**-0.5)
        query_width = settings.num_attention_heads * settings.head_width
        key_width = settings.key_value_heads * settings.head_width
        self.q_proj = execution.linear(settings.hidden_size, query_width, bias=bias)
        self.k_proj = execution.linear(settings.hidden_size, key_width, bias=bias)
        self.v_proj = execution.linear(settings.hidden_size, key_width, bias=bias)
        self.o_proj = execution.linear(query_width, settings.hidden_size, bias=bias)

    def forward(self, x: Tensor, rotary: Rotary | None, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Map [B, T, C] to [B, T, C]; `cu_seqlens` bounds the documents among the B T tokens of whole rows."""
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_width)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if rotary is not None:
            query, key = rotary.rotate(query), rotary.rotate(key)
        if (ranks := self.sequence_parallel) is not None:
            query, key, value = (ranks.gather_tokens(heads) for heads in (query, key, value))
        rows = query.shape[:2]
        query, key, value = (heads.flatten(0, 1) for heads in (query, key, value))
        attend = attention_backend(self.implementation, query, self.rule)
        output = attend(query, key, value, cu_seqlens, max_seqlen, self.rule)
        output = output.view(*rows, *output.shape[1:])
        if ranks is not None:
            output = ranks.gather_heads(output)
        return self.o_proj(output.flatten(2))

"""Multi-head attention, to the same tokens or to an encoder's: projections around one of the attention back-ends."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from bigtrain.config import ModelSettings
from bigtrain.model.attention.attention_backends import attention_backend
from bigtrain.model.attention.attention_rule import AttentionRule
from bigtrain.model.attention.virtual_tokens import VirtualKeys
from bigtrain.model.context import Context
from bigtrain.model.execution import Execution
from bigtrain.model.layers.adapted import project
from bigtrain.model.layers.dropout import AttentionDropout, DropoutKeys, site_number
from bigtrain.model.layers.norm import norm_layer


class SelfAttention(nn.Module):
    """Attention with H query heads that share K key/value heads (Ainslie et al., 2023)."""

    def __init__(self, settings: ModelSettings, layer: int, execution: Execution) -> None:
        super().__init__()
        self.layer = layer
        self.implementation = execution.attn_implementation
        self.sequence_parallel = execution.sequence_parallel
        self.head_width, self.heads = settings.head_width, settings.num_attention_heads
        self.drop_rate, self.site = settings.attention_dropout, site_number("attention")
        self.scale, self.softcap = settings.attention_scale, settings.attn_logit_softcapping
        self.window, self.two_sided = settings.window_of(layer), settings.two_sided
        query_width = settings.num_attention_heads * settings.head_width
        key_width = settings.key_value_heads * settings.head_width
        self.q_proj = execution.linear(settings.hidden_size, query_width, bias=settings.attention_bias)
        self.k_proj = execution.linear(settings.hidden_size, key_width, bias=settings.attention_bias)
        self.v_proj = execution.linear(settings.hidden_size, key_width, bias=settings.attention_bias)
        self.o_proj = execution.linear(query_width, settings.hidden_size, bias=settings.attention_output_bias)
        self.norms_heads = settings.qk_norm == "head"
        normed = {
            "none": None,
            "head": (settings.head_width, settings.head_width),
            "full": (query_width, key_width),
        }[settings.qk_norm]
        self.q_norm = norm_layer(settings, normed[0]) if normed else None
        self.k_norm = norm_layer(settings, normed[1]) if normed else None
        self.prefix: VirtualKeys | None = None
        """Keys and values that an adapter puts in front of every document."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [B, T, C] to [B, T, C]."""
        query, key, value = self._project(x, context.dropout)
        rotary = context.rotary if self.window is None or context.local_rotary is None else context.local_rotary
        if rotary is not None:
            query, key = rotary.rotate(query), rotary.rotate(key)
        bias = context.distance_bias
        if (ranks := self.sequence_parallel) is not None:
            query, key, value = (ranks.gather_tokens(heads) for heads in (query, key, value))
            bias = None if bias is None else ranks.own_heads(bias)
        drop = None
        if context.dropout is not None and self.drop_rate:
            drop = AttentionDropout.of(context.dropout.at(self.site), self.drop_rate, self.heads, ranks)
        order = context.order
        two_sided = self.two_sided or order is not None
        rule = AttentionRule(self.scale, self.window, self.softcap, bias, two_sided, dropout=drop, order=order)
        if (cache := context.cache) is not None and cache.holds(self.layer):
            return self.o_proj(cache.attend(self.layer, query, key, value, rule).flatten(2))
        rows = query.shape[:2]
        query, key, value = (heads.flatten(0, 1) for heads in (query, key, value))
        bounds = context.cu_seqlens, context.max_seqlen
        places = None if self.prefix is None else context.virtual
        if self.prefix is not None and places is not None:
            query, key, value = self.prefix(query, key, value, places)
            bounds = places.cu_seqlens, places.max_seqlen
            if drop is not None:
                keys = places.placed(drop.keys, drop.keys.new_zeros(len(self.prefix.prefix_key), self.heads))
                rule = replace(rule, dropout=drop._replace(keys=keys))
        if cache is not None:
            cache.store(self.layer, key, value)
        attend = attention_backend(self.implementation, query, rule)
        output = attend(query, key, value, *bounds, rule)
        if places is not None:
            output = places.taken(output)
        output = output.view(*rows, *output.shape[1:])
        if ranks is not None:
            output = ranks.gather_heads(output)
        return project(self.o_proj, output.flatten(2), context.dropout)

    def _project(self, x: Tensor, keys: DropoutKeys | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, H, D], keys and values [B, T, K, D], normalised where the model does so."""
        query, key, value = project(self.q_proj, x, keys), project(self.k_proj, x, keys), project(self.v_proj, x, keys)
        if self.q_norm is not None and self.k_norm is not None and not self.norms_heads:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (torch.unflatten(flat, -1, (-1, self.head_width)) for flat in (query, key, value))
        if self.q_norm is not None and self.k_norm is not None and self.norms_heads:
            query, key = self.q_norm(query), self.k_norm(key)
        return query, key, value


class CrossAttention(nn.Module):
    """Attention of a decoder to the output of its encoder (Vaswani et al., 2017, section 3.2.3). A token of the n-th
    document sees all of the encoder's n-th document, without regard to positions."""

    def __init__(self, settings: ModelSettings, layer: int, execution: Execution) -> None:
        super().__init__()
        self.layer = layer
        self.implementation = execution.attn_implementation
        self.head_width, self.heads = settings.head_width, settings.num_attention_heads
        self.drop_rate, self.site = settings.attention_dropout, site_number("cross_attention")
        self.scale, self.softcap = settings.attention_scale, settings.attn_logit_softcapping
        width = settings.hidden_size
        query_width = settings.num_attention_heads * settings.head_width
        key_width = settings.key_value_heads * settings.head_width
        self.q_proj = execution.linear(width, query_width, bias=settings.attention_bias)
        self.k_proj = execution.linear(width, key_width, bias=settings.attention_bias)
        self.v_proj = execution.linear(width, key_width, bias=settings.attention_bias)
        self.o_proj = execution.linear(query_width, width, bias=settings.attention_output_bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [B, T, C] to [B, T, C], with what the encoder read: of the context, or of its cache."""
        drop = None
        if context.dropout is not None and self.drop_rate:
            drop = AttentionDropout.of(context.dropout.at(self.site), self.drop_rate, self.heads)
        rule = AttentionRule(self.scale, softcap=self.softcap, two_sided=True, dropout=drop)
        read = None if context.cache is None else context.cache.read
        query = self._heads(self.q_proj(x))
        if read is not None and read.holds(self.layer):
            return self.o_proj(read.attend(self.layer, query, rule).flatten(2))
        assert context.encoded is not None  # blocks with this run after an encoder
        states, keys = context.encoded
        key, value = self._heads(self.k_proj(states)), self._heads(self.v_proj(states))
        query, key, value = (heads.flatten(0, 1) for heads in (query, key, value))
        if read is not None:
            read.store(self.layer, key, value)
        rule = replace(rule, keys=keys)
        attend = attention_backend(self.implementation, query, rule)
        output = attend(query, key, value, context.cu_seqlens, context.max_seqlen, rule)
        return self.o_proj(output.reshape(*x.shape[:2], -1))

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:-1], -1, self.head_width)

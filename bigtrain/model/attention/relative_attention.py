"""Attention by content, distance and segment, of one or two streams (Dai et al., 2019; Yang et al., 2019).

    score(q, k, d) = scale * ((q + u).k + (q + v).r[d] + (q + w).s[whether both are of one segment])
    r[d]           = R [sin(d / wavelengths), cos(d / wavelengths)]      for d places back; negative ahead

u, v, w are biases of each head, s two vectors of each head. The content stream knows what stands at each place. The
query stream, at the places that are predicted, knows where they are and what the content stream has before them in the
order. Both have the same weights; keys and values are the content stream's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.config import ModelSettings
from bigtrain.model.attention.attention_backends import attention_backend
from bigtrain.model.attention.attention_rule import AttentionRule, RelativeKeys
from bigtrain.model.context import Context, QueryStream
from bigtrain.model.execution import Execution
from bigtrain.model.layers.dropout import AttentionDropout, site_number

SEGMENT_KINDS = 8
"""Numbers of segments are below this. It is a multiple of 8 because it widens heads: kernels like that."""


class RelativeAttention(nn.Module):
    """Attention with H heads of width D to the content stream."""

    def __init__(self, settings: ModelSettings, execution: Execution) -> None:
        super().__init__()
        self.implementation = execution.attn_implementation
        self.heads, self.head_width = settings.num_attention_heads, settings.head_width
        self.scale = settings.attention_scale
        width, inner = settings.hidden_size, settings.num_attention_heads * settings.head_width
        self.drop_rate, self.site = settings.attention_dropout, site_number("attention")
        self.q_proj = execution.linear(width, inner, bias=False)
        self.k_proj = execution.linear(width, inner, bias=False)
        self.v_proj = execution.linear(width, inner, bias=False)
        self.r_proj = execution.linear(width, inner, bias=False)
        self.o_proj = execution.linear(inner, width, bias=False)
        self.content_bias = nn.Parameter(torch.empty(inner))
        self.distance_bias = nn.Parameter(torch.empty(inner))
        self.segment_bias = nn.Parameter(torch.empty(inner))
        self.segments = nn.Parameter(torch.empty(2, inner))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [1, N + P, C] to the same: the N tokens of the content stream, and after them the query stream's P."""
        assert context.distances is not None  # models with these layers make it
        stream = context.query_stream
        count = 0 if stream is None else len(stream.places)
        length = x.shape[1] - count
        content, query = x[0, :length], self.q_proj(x[0])
        key, value = self._heads(self.k_proj(content)), self._heads(self.v_proj(content))
        by_content, by_distance = self._heads(query + self.content_bias), self._heads(query + self.distance_bias)
        if context.segments is not None:
            by_content, key = self._with_segments(query, by_content, key, context.segments, stream)
        else:  # a gradient of zero, so that all parameters have one on every rank
            by_content = by_content + 0 * (self.segment_bias + self.segments.sum(0)).view(self.heads, -1)
        distances = self._heads(self.r_proj(context.distances))
        drop = None
        if context.dropout is not None and self.drop_rate:
            drop = AttentionDropout.of(context.dropout.at(self.site), self.drop_rate, self.heads)
        seen = []
        for own, each in ((slice(length), None), (slice(length, None), stream)):
            if each is not None or own.start is None:
                products = RelativeKeys(by_distance[own], distances)
                part = None if drop is None else drop._replace(keys=drop.keys[own])
                seen.append(self._attend(by_content[own], products, key, value, context, each, part))
        return self.o_proj(torch.cat(seen).flatten(1))[None]

    def _attend(
        self, query: Tensor, relative: RelativeKeys, key: Tensor, value: Tensor, context: Context,
        stream: QueryStream | None, drop: AttentionDropout | None,
    ) -> Tensor:  # fmt: skip
        """What one stream sees, [n, H, D]."""
        rule = AttentionRule(
            self.scale,
            two_sided=True,
            order=context.order if stream is None else stream.order,
            queries=None if stream is None else stream.places,
            relative=relative,
            dropout=drop,
        )
        attend = attention_backend(self.implementation, query, rule)
        return attend(query, key, value, context.cu_seqlens, context.max_seqlen, rule)

    def _with_segments(
        self, query: Tensor, by_content: Tensor, key: Tensor, segments: Tensor, stream: QueryStream | None
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys with further dimensions, whose product is the difference that one segment makes.

        That of two segments is the same for all keys then, and a softmax does not see it.
        """
        same, other = self.segments.unbind()
        asked = self._heads(query + self.segment_bias)
        difference = (asked * (same - other).view(self.heads, -1)).sum(-1, keepdim=True)
        kinds = F.one_hot(segments, SEGMENT_KINDS).to(query.dtype)[:, None]
        of_queries = kinds if stream is None else torch.cat((kinds, kinds[stream.places]))
        wider = torch.cat((by_content, difference * of_queries), dim=-1)
        return wider, torch.cat((key, kinds.expand(-1, self.heads, -1)), dim=-1)

    def _heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, self.head_width))

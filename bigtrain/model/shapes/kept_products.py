"""Selective recomputation under a budget of memory: the matrix products of a block that it keeps."""

from __future__ import annotations

from bigtrain.config import ModelSettings

ProductShape = tuple[int, int]
"""K and N of a product [M, K] x [K, N]."""


def kept_products(settings: ModelSettings, budget: float) -> frozenset[ProductShape] | None:
    """Which matrix products of a block are kept under a budget; None: all.

    Attention is always kept: nothing saves as much work for its size where sequences are long. The products follow in
    the order of what their recomputation costs for each byte, which is K; of equal ones the smaller first.

    Args:
        settings: the shape.
        budget: the share, in bytes, of the results of all products of a block.
    """
    if budget >= 1:
        return None
    width, inner = settings.hidden_size, settings.intermediate_size
    queries, keys = (heads * settings.head_width for heads in (settings.num_attention_heads, settings.key_value_heads))
    products: list[ProductShape] = [(width, queries), (width, keys), (width, keys), (queries, width)]
    if settings.architecture == "encoder_decoder":  # cross-attention
        products *= 2
    feed_forward = [(inner, width)] + [(width, inner)] * (2 if settings.gated_mlp else 1)
    if settings.num_experts:
        inner = settings.expert_width
        feed_forward = [(inner, width), (width, inner), (width, inner)] * settings.num_experts_per_tok
    products += feed_forward
    room = budget * sum(columns for _, columns in products)
    kept: set[ProductShape] = set()
    for shape in sorted(set(products), key=lambda product: (-product[0], product[1])):
        size = shape[1] * products.count(shape)
        if size > room:
            break
        room -= size
        kept.add(shape)
    return frozenset(kept)

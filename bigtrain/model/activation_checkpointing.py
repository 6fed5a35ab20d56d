"""Activation checkpointing: what a block keeps for its backward pass, and what it computes a second time.

none       keep everything
selective  keep the results of matrix products, attention and recurrences, or those of them that a budget of memory has
           room for; recompute what is cheap
full       keep the block's input only
offloaded  keep the block's input only, in the host's memory
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import bigtrain.model.attention.attention_backends  # registers the operators named below
import bigtrain.model.cpu.cpu_products
import bigtrain.model.layers.experts
import bigtrain.model.recurrence.scan  # noqa: F401
from bigtrain.config import ModelSettings
from bigtrain.model.execution import Execution

Recomputation = Callable[..., Any]
"""Calls `function(*args)` and decides what is kept of it."""

_WHOLE = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
    torch.ops.bigtrain.blockwise_attention.default,
    torch.ops.bigtrain.cpu_attention.default,
    torch.ops.bigtrain.lstm_scan.default,
    torch.ops.bigtrain.gru_scan.default,
    # Flex is called compiled, whether its block is or not.
    torch.ops.higher_order.flex_attention,
    torch.ops.higher_order.inductor_compiled_code,
}
"""Attention and recurrences: always kept."""
_PRODUCTS = {
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.addmm.default: 1,
    torch.ops.aten._scaled_mm.default: 0,
    torch.ops.bigtrain.grouped_product.default: 0,
    torch.ops.bigtrain.wide_mm.default: 0,
}
"""Matrix products [M, K] x [K, N], with the place of the left matrix among their arguments; of experts x [E, N, K]."""

Shape = tuple[int, int]
"""K and N of a product."""


def recomputation(settings: ModelSettings, execution: Execution) -> Recomputation:
    """What a block of this model runs under."""
    match execution.activation_checkpointing:
        case "selective":
            kept = kept_products(settings, execution.activation_memory_budget)
            policy = partial(_keep_costly, kept)
            return partial(_recompute, context_fn=partial(create_selective_checkpoint_contexts, policy))
        case "full":
            return _recompute
        case "offloaded":
            return _offload
    return _call


def kept_products(settings: ModelSettings, budget: float) -> frozenset[Shape] | None:
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
    products: list[Shape] = [(width, queries), (width, keys), (width, keys), (queries, width)]
    if settings.architecture == "encoder_decoder":  # cross-attention
        products *= 2
    feed_forward = [(inner, width)] + [(width, inner)] * (2 if settings.gated_mlp else 1)
    if settings.num_experts:
        inner = settings.expert_width
        feed_forward = [(inner, width), (width, inner), (width, inner)] * settings.num_experts_per_tok
    products += feed_forward
    room = budget * sum(columns for _, columns in products)
    kept: set[Shape] = set()
    for shape in sorted(set(products), key=lambda product: (-product[0], product[1])):
        size = shape[1] * products.count(shape)
        if size > room:
            break
        room -= size
        kept.add(shape)
    return frozenset(kept)


def _keep_costly(
    kept: frozenset[Shape] | None, _context: Any, operator: Any, *args: Any, **_kwargs: Any
) -> CheckpointPolicy:
    if operator in _WHOLE:
        return CheckpointPolicy.MUST_SAVE
    if (left := _PRODUCTS.get(operator)) is not None and (kept is None or _shape(*args[left : left + 2]) in kept):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _shape(left: Tensor, right: Tensor) -> Shape:
    inner, sizes = left.shape[1], right.shape[-2:]
    return inner, sizes[0] * sizes[1] // inner


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


# Nothing in a block draws random numbers, so their state needs no saving.
_recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def _offload(function: Callable[..., Any], x: Tensor, *args: Any) -> Any:
    with save_on_cpu(pin_memory=x.is_cuda):  # what is recomputed inside has hooks of its own: only x goes
        return _recompute(function, x, *args)

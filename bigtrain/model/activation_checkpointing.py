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
from bigtrain.model.shapes.kept_products import ProductShape, kept_products

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


def _keep_costly(
    kept: frozenset[ProductShape] | None, _context: Any, operator: Any, *args: Any, **_kwargs: Any
) -> CheckpointPolicy:
    if operator in _WHOLE:
        return CheckpointPolicy.MUST_SAVE
    if (left := _PRODUCTS.get(operator)) is not None and (kept is None or _shape(*args[left : left + 2]) in kept):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _shape(left: Tensor, right: Tensor) -> ProductShape:
    inner, sizes = left.shape[1], right.shape[-2:]
    return inner, sizes[0] * sizes[1] // inner


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


# Nothing in a block draws random numbers, so their state needs no saving.
_recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def _offload(function: Callable[..., Any], x: Tensor, *args: Any) -> Any:
    with save_on_cpu(pin_memory=x.is_cuda):  # what is recomputed inside has hooks of its own: only x goes
        return _recompute(function, x, *args)

"""Activation checkpointing: what a block keeps for its backward pass, and what it computes a second time.

none       keep everything
selective  keep the results of matrix products and attention, recompute what is cheap
full       keep the block's input only
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import bigtrain.model.attention_backends  # noqa: F401  registers the operators named below

_COSTLY = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
    torch.ops.bigtrain.blockwise_attention.default,
}


def _keep_costly(_context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _COSTLY else CheckpointPolicy.PREFER_RECOMPUTE


def _call(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return function(*args)


# Nothing in a block draws random numbers, so their state needs no saving.
_recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)

ACTIVATION_CHECKPOINTING: dict[str, Callable[..., Tensor]] = {
    "none": _call,
    "selective": partial(_recompute, context_fn=partial(create_selective_checkpoint_contexts, _keep_costly)),
    "full": _recompute,
}
"""Name to a function that calls `function(*args)` and decides what is kept of it."""

"""Importing DeepSpeed, with what has to be said to it once a process."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from torch import Tensor


@functools.cache
def import_deepspeed() -> Any:
    """The package, quiet and without compilers."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    # Stage 3 calls collectives under names that PyTorch 2.13 has renamed, once a module and micro-batch.
    warnings.filterwarnings("ignore", r"`torch.distributed.\w+_tensor` is deprecated", FutureWarning)
    # bf16 at stage 1 calls it time and again at start: a full garbage collection and a table on stdout each.
    deepspeed.runtime.bf16_optimizer.see_memory_usage = lambda *_, **__: None
    # A C++ shared-memory all-reduce that is compiled at first start and then unused for the group we bring.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.runtime.zero.partition_parameters.zero3_linear_wrap = _linear
    if get_accelerator().device_name() == "cpu":
        # It says whether float16 is fast. PyTorch computes it on any CPU, which is enough to try a configuration.
        get_accelerator().is_fp16_supported = lambda: True
    return deepspeed


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What stage 3 puts in the place of torch.nn.functional.linear, with the bias added after it.

    DeepSpeed's adds it in place, to a matrix product that selective recomputation has kept: computed a second time, the
    bias would be added twice, and gradients be wrong.
    """
    from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3

    product: Tensor = LinearFunctionForZeroStage3.apply(input, weight, None)
    return product if bias is None else product + bias

"""DeepSpeed's configuration, with every default that matters written explicitly."""

from __future__ import annotations

from typing import Any

import torch

from bigtrain.base import BigtrainError
from bigtrain.config import Settings

# Keys that would compete with what bigtrain does itself, beside the keys that it sets below.
_RESERVED = {
    "train_batch_size": "train.global_batch_size",
    "optimizer": "the section optimizer",
    "scheduler": "the section schedule",
    "amp": "engine.precision",
    "torch_autocast": "engine.precision",
}


def deepspeed_config(settings: Settings) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`, with the user's raw extras merged in.

    Raises:
        BigtrainError: the extras hold a key that bigtrain sets.
    """
    engine = settings.engine
    stage, precision = engine.zero_stage, engine.precision
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": settings.train.micro_batch_size,
        # The engine scales each loss by its share of the global batch; DeepSpeed must not divide by a count of its
        # own, nor decide by counting which micro-batch is the last: `step` is the boundary.
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # Default "mean" divides stage 2's gradients while they are still bfloat16. Stage 3 knows no sum (it divides in
        # float32, and the engine multiplies by the world size).
        "gradient_allreduce_op": "sum" if stage < 3 else "mean",
        # Default: bfloat16 for a bfloat16 model, so that the sum over a thousand ranks has 8 bits.
        "communication_data_type": "fp32",
        "seq_parallel_communication_data_type": "fp32",
        # Default: the model's type; accumulation over micro-batches would be in bfloat16.
        "data_types": {"grad_accum_dtype": "fp32"},
        # Default 0: no clipping. At stage 0 DeepSpeed clips but keeps the norm to itself, so the engine does it.
        "gradient_clipping": settings.optimizer.max_grad_norm if stage > 0 else 0.0,
        "bf16": {
            "enabled": precision == "bf16",
            # A step with a NaN or infinite gradient is not applied. Without it stage 2 applies NaN to the weights.
            "check_grad_overflow": True,
            "immediate_grad_update": False,
        },
        "fp16": {
            "enabled": precision == "fp16",
            "loss_scale": engine.loss_scale,
            "initial_scale_power": 16,
            "loss_scale_window": 1000,
            "hysteresis": 2,
            "min_loss_scale": 1,
        },
        "zero_optimization": {
            "stage": stage,
            # Stage 1 reduces once a step, after the last backward pass; with overlap_comm it never would, because
            # only `step` says which was the last.
            "overlap_comm": stage >= 2,
            "contiguous_gradients": True,
            # Stages 1 and 2 never scatter: their "reduce_scatter" is an all-reduce with two more copies.
            "reduce_scatter": stage == 3,
            # Defaults 5e8: buffers of 2 GB in float32. 200 MB saturate a network as well.
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
            **_offload("offload_optimizer", engine.offload_optimizer),
            **_offload("offload_param", engine.offload_param),
            "zero_hpz_partition_size": engine.zero_hpz_partition_size,
            "zero_quantized_weights": engine.zero_quantized_weights,
            "zero_quantized_gradients": engine.zero_quantized_gradients,
        },
        # Default: DeepSpeed's own Adam, which has to be compiled. PyTorch's fused one is vectorised on a CPU as well.
        "zero_force_ds_cpu_optimizer": False,
        "tensor_parallel": {"autotp_size": engine.tensor_parallel_size if engine.tensor_parallel_size > 1 else 0},
        # Default: synchronises the device twice a step. bigtrain has its own meter.
        "timers": {"throughput": {"enabled": False}},
        "wall_clock_breakdown": False,
        "zero_allow_untested_optimizer": False,
    }
    return _merged(config, settings.engine.deepspeed, "engine.deepspeed")


def _offload(what: str, device: str) -> dict[str, Any]:
    if device == "none":
        return {}
    # Pinned memory makes copies to a GPU asynchronous; without one there is nothing to pin for.
    return {what: {"device": device, "pin_memory": torch.cuda.is_available()}}


def _merged(config: dict[str, Any], extras: dict[str, Any], where: str) -> dict[str, Any]:
    merged = dict(config)
    for key, value in extras.items():
        ours = config.get(key, {})
        if isinstance(ours, dict) and isinstance(value, dict) and key not in _RESERVED:
            merged[key] = _merged(ours, value, f"{where}.{key}")
        elif key in config or key in _RESERVED:
            instead = _RESERVED.get(key, "the settings of the sections engine, train and optimizer")
            raise BigtrainError(
                f"{where}.{key} is set by bigtrain itself",
                found=value,
                wanted=config.get(key),
                fix=f"remove the key; use {instead}",
            )
        else:
            merged[key] = value
    return merged

"""The dry run: one full micro-batch of the worst case before step 1, so that what does not fit is known at once.

Worst case: every row is one document, as long as rows are, so that attention has the most to do, and every token has a
label. Where gradients are accumulated a second micro-batch follows, because then its activations lie beside the first
one's gradients. Forward, backward and the reduction over the ranks go through DeepSpeed as in a step; not the update,
whose temporary memory is that of one gradient, when the activations are gone.

It leaves no trace. Its gradients are NaN, and a step whose gradient is not finite is one that no ZeRO stage applies:
the same path that protects a run from a bad batch throws them away (`Engine.rehearse`). A dry run on the bare module,
before DeepSpeed has it, would not lie beside the optimizer's state, nor work at stage 3, where no rank has the
weights.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from bigtrain.base.format import gibibytes
from bigtrain.config import Settings
from bigtrain.engine.engine import Engine
from bigtrain.engine.topology import Topology
from bigtrain.health.out_of_memory import enough_memory
from bigtrain.model import Decoder

logger = logging.getLogger(__name__)


def dry_run(engine: Engine, settings: Settings, topology: Topology) -> None:
    """Try a step of the worst case, if `engine.dry_run` asks for it. Every rank calls it.

    Raises:
        BigtrainError: it does not fit into memory; says which setting to change.
    """
    keeps_errors = "zeropp_loco_param" in settings.engine.deepspeed.get("zero_optimization", {})
    if not settings.engine.dry_run or keeps_errors:  # of quantised gradients: there a NaN would stay
        return
    rows, tokens = settings.train.micro_batch_size, settings.data.sequence_length
    what = f"a micro-batch of {rows} x {tokens:,} tokens"
    accumulated = settings.train.global_batch_size // (topology.data_size * rows)
    inputs = worst_case(settings, topology.device)
    with enough_memory(settings, topology, what):
        engine.rehearse([inputs] * min(2, accumulated))
    assert isinstance(engine.module, Decoder)
    engine.module.auxiliary.take()  # what was counted on the way is of no step
    if topology.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(topology.device)
        total = torch.cuda.get_device_properties(topology.device).total_memory
        logger.info(f"{what} fits: {gibibytes(peak)} of {gibibytes(total)} at the peak")


def worst_case(settings: Settings, device: torch.device) -> dict[str, Any]:
    """What the model takes: random tokens in documents as long as a row, each with a label."""
    rows, tokens = settings.train.micro_batch_size, settings.data.sequence_length
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(settings.model.vocab_size, (rows, tokens + 1), generator=generator).to(device)
    return {
        "input_ids": ids[:, :-1].contiguous(),
        "labels": ids[:, 1:].contiguous(),
        "position_ids": torch.arange(tokens, device=device).expand(rows, tokens).contiguous(),
        "cu_seqlens": torch.arange(rows + 1, device=device, dtype=torch.int32) * tokens,
        "max_seqlen": tokens,
    }

"""The dry run: one full micro-batch of the worst case before step 1, so that lack of memory shows at once.

In the worst case every row is one document, so that attention has the most work, and every token has a label. Where
gradients are accumulated a second micro-batch follows: its activations are in memory beside the gradients of the first.
Forward, backward and the reduction over the ranks go through DeepSpeed as in a step. The update is left out: it needs
the memory of one gradient, when the activations are freed.

It changes nothing. Its gradients are NaN, and no ZeRO stage applies a gradient that is not finite: the path that
protects a run from a bad batch discards them (`Engine.rehearse`). A dry run of the module without DeepSpeed would not
have the optimizer's state in memory, and would not work at stage 3, where no rank has all weights.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch

from bigtrain.base import IGNORE_INDEX, gibibytes
from bigtrain.config import KEPT_CLASSES, KEPT_LOG_PROBS, Settings
from bigtrain.engine import Engine, Topology
from bigtrain.health import enough_memory
from bigtrain.model import LanguageModel
from bigtrain.objective import row_lengths

logger = logging.getLogger(__name__)


def dry_run(engine: Engine, settings: Settings, topology: Topology) -> None:
    """Try a step of the worst case, if `engine.dry_run` asks for it. Every rank calls it.

    Raises:
        BigtrainError: it does not fit into memory; says which setting to change.
    """
    keeps_errors = "zeropp_loco_param" in settings.engine.deepspeed.get("zero_optimization", {})
    if not settings.engine.dry_run or keeps_errors:  # errors of quantised gradients: a NaN would stay in them
        return
    tried: set[tuple[int, int]] = set()
    for stage in settings.stages:  # also those that are over: a model that is compiled meets all lengths in their order
        staged = settings.at_step(stage.first_step)
        rows, tokens = staged.train.micro_batch_size, staged.data.sequence_length
        if (rows, tokens) not in tried:
            tried.add((rows, tokens))
            _try(engine, staged, topology, f"a micro-batch of {rows} x {tokens:,} tokens")


def _try(engine: Engine, settings: Settings, topology: Topology, what: str) -> None:
    """Try a step of one stage. Raises BigtrainError."""
    accumulated = settings.train.global_batch_size // (topology.data_size * settings.train.micro_batch_size)
    inputs = worst_case(settings, topology.device)
    with enough_memory(settings, topology, what):
        engine.rehearse([inputs] * min(2, accumulated))
    assert isinstance(engine.module, LanguageModel)
    engine.module.auxiliary.take()  # these counts belong to no step
    if topology.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(topology.device)
        total = torch.cuda.get_device_properties(topology.device).total_memory
        logger.info(f"{what} fits: {gibibytes(peak)} of {gibibytes(total)} at the peak")


def worst_case(settings: Settings, device: torch.device) -> dict[str, Any]:
    """The model's inputs: random tokens in documents as long as a row, each token with a label where the objective may
    give it one."""
    rows = settings.train.micro_batch_size
    length, encoder_length = row_lengths(
        settings.objective, settings.data.sequence_length, reads_pairs=settings.model.reads_pairs
    )
    generator = torch.Generator().manual_seed(0)

    def documents(tokens: int, extra: int = 0) -> tuple[torch.Tensor, dict[str, Any]]:
        ids = torch.randint(settings.model.vocab_size, (rows, tokens + extra), generator=generator).to(device)
        return ids, {
            "input_ids": ids[:, :tokens].contiguous(),
            "position_ids": torch.arange(tokens, device=device).expand(rows, tokens).contiguous(),
            "cu_seqlens": torch.arange(rows + 1, device=device, dtype=torch.int32) * tokens,
            "max_seqlen": tokens,
        }

    ids, inputs = documents(length, extra=1)
    inputs["labels"] = ids[:, 1:].contiguous()
    plain, classes = settings.model.task_head == "none", settings.model.num_labels
    if not plain:  # each token with a class, or with the start and end of answers
        inputs["labels"] = inputs["labels"] % classes if classes else inputs["labels"] % 3 + 1
    if settings.objective.orders:
        inputs["order_ranks"] = places = inputs["position_ids"]
    if settings.model.architecture == "two_stream" and plain:  # a label costs a place of the second stream
        every = min(choice.partial_prediction for choice in settings.objective.mixed or (settings.objective,))
        chosen = places % every == every - 1
        inputs |= {"labels": inputs["input_ids"].where(chosen, IGNORE_INDEX), "order_ranks": places.where(chosen, 0)}
    if settings.drops:
        inputs["row_keys"] = torch.arange(rows, device=device)
    if settings.distillation.kept_outputs is not None:
        kept = settings.distillation.classes_kept(settings.model.classes)
        likeliest = torch.arange(kept, device=device, dtype=torch.int32).expand(rows, length, kept)
        log_probs = torch.full((rows, length, kept), -math.log(2 * kept), device=device)
        inputs |= {KEPT_CLASSES: likeliest, KEPT_LOG_PROBS: log_probs}
    if encoder_length is not None:
        inputs |= {f"encoder_{name}": value for name, value in documents(encoder_length)[1].items()}
    return inputs

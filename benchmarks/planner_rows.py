"""Rows of published measurements as cases that the planner can predict: a workload, a layout, a device, a network.

    a row of throughput.csv or memory.csv  ->  Case, or Unpredicted with the input that is missing

Nothing depends on where a row is from. What a framework does is looked up by the mechanisms that its name states
(`IMPLEMENTATIONS`): who shards weights, whether norms are fused, in what gradients are summed. The columns are those
of `shared/published/SOURCES.md`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from bigtrain.base import BigtrainError
from bigtrain.estimate import (
    AttentionKernel,
    Constants,
    Device,
    Elementwise,
    Interconnect,
    Layout,
    StateBytes,
    Workload,
    device,
    forecast_step,
    interconnect,
    transformer,
)

Row = Mapping[str, str]


class Unpredicted(Exception):
    """A row that lacks an input, or has none that the planner knows."""


@dataclass(frozen=True)
class Implementation:
    """What a framework does, as far as it matters for time and memory."""

    elementwise: Elementwise = "eager"
    attention: AttentionKernel = "flash2"
    """Without a stated attention kernel."""
    sharded_master: bool = False
    """FSDP: the float32 shards are the only copy of the weights that rests."""
    gradient_bytes: float = 2.0
    reduced_bytes: float = 2.0
    """In which gradients are summed."""
    overlaps: bool = True
    """Whether gradients are summed during the backward pass."""
    overlaps_tensor: bool = False
    """Whether the backward pass sums over tensor-parallel ranks while it computes gradients of weights."""
    shares_tokens: bool = False
    """Whether tensor parallelism divides tokens outside of matrices."""
    dropout: bool = False
    scatters: bool = False
    """Whether gradients below stage 3 are scattered, not summed on all ranks."""
    logits_bytes: float = 20.0
    """Bytes for each logit at the peak. An eager loss in float32 has logits, exponentials, logarithms and gradients in
    float32, and two of them in 16 bits; PyTorch's own one needs 14, a fused one 8 to 10."""
    logits_divided: bool = False
    """Whether tensor parallelism divides the logits."""
    splits_local_batch: bool = False
    """Whether a stated micro-batch is split further for the pipeline."""
    step_copies: float = 0.0
    """Bytes for each parameter that the optimizer's step holds beside the states."""


IMPLEMENTATIONS: tuple[tuple[str, Implementation], ...] = (
    # Megatron Core with Transformer Engine: fused norms and cross-entropy, cuDNN attention, sequence parallelism
    (
        r"megatron-bridge|nemo|megatron-core|megatron-lm tests|maxtext|primus|^megatron-lm$|megatron-fsdp|megascale",
        Implementation(
            "fused",
            "flash3",
            gradient_bytes=4.0,
            overlaps_tensor=True,
            shares_tokens=True,
            scatters=True,
            logits_bytes=8.0,
            logits_divided=True,
        ),
    ),
    # Megatron-LM and its descendants before flash attention: fused softmax, dropout, gradients summed after the step
    (
        r"megatron|gpt-neox|metaseq",
        Implementation(
            "fused",
            "fused_softmax",
            gradient_bytes=4.0,
            reduced_bytes=4.0,
            overlaps=False,
            overlaps_tensor=True,
            dropout=True,
            logits_bytes=10.0,
            logits_divided=True,
            step_copies=4.0,
        ),
    ),
    # PyTorch's FSDP: only float32 shards rest; gathers and sums are hidden under blocks
    (
        r"torchtitan",
        Implementation(
            sharded_master=True,
            reduced_bytes=4.0,
            shares_tokens=True,
            splits_local_batch=True,
            logits_bytes=14.0,
            logits_divided=True,
        ),
    ),
    (
        r"fsdp|torchtune|litgpt|thunder|llm-foundry|olmo",
        Implementation(sharded_master=True, shares_tokens=True, logits_bytes=14.0),
    ),
    # Hugging Face's models, alone or in DeepSpeed
    (r"hf trainer|hugging ?face", Implementation(attention="unfused", overlaps=False, dropout=True)),
    (
        r"nanotron|picotron",
        Implementation(
            gradient_bytes=6.0, reduced_bytes=4.0, shares_tokens=True, logits_bytes=10.0, logits_divided=True
        ),
    ),
    (r"nanogpt|ddp", Implementation("compiled", gradient_bytes=4.0, reduced_bytes=4.0)),
    (r"flash-attention", Implementation("fused", dropout=True)),
)
"""By what a framework's name contains; the first that fits. Others are eager PyTorch."""


@dataclass(frozen=True)
class Case:
    """One row that can be predicted."""

    row: Row
    work: Workload
    layout: Layout
    device: Device
    connected: Interconnect
    complete: bool
    """Whether it is dense, steady, and nothing was assumed: the rows that count."""

    @property
    def source(self) -> str:
        return self.row["source_id"]


def read_rows(file: Path) -> list[Row]:
    """The rows of a CSV file. A cell that is not there is empty."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        return [{key: (value or "").strip() for key, value in row.items() if key} for row in csv.DictReader(stream)]


BEYOND_ANY_MACHINE = 1e18


def number(row: Row, column: str) -> float | None:
    """A cell as a positive number; None where it is empty or none."""
    try:
        value = float(row.get(column, ""))
    except ValueError:
        return None
    return value if 0 < value < BEYOND_ANY_MACHINE else None


def count(row: Row, column: str, otherwise: int = 1) -> int:
    """A cell as a whole number of at least one; `otherwise` where it is empty or none."""
    value = number(row, column)
    return otherwise if value is None else max(1, round(value))


def case_of(row: Row) -> Case:
    """Return a row as a case.

    Raises:
        Unpredicted: an input is missing.
    """
    if "moe" in row.get("arch", "") or (number(row, "ep") or 1) > 1:
        raise Unpredicted("experts without their number and widths")
    of = _device(row)
    does = _implementation(row)
    layout = _layout(row, does)
    node = count(row, "gpus_per_node", otherwise=0)
    connected = interconnect(of)
    linked = of.linked_devices if of.linked_devices > 8 else (node or connected.node_size)
    connected = replace(connected, node_size=linked, network_gbs=_network_gbs(row, linked) or connected.network_gbs)
    work = _workload(row, does, of, layout)
    complete = row.get("scope") == "core" and not row.get("missing_inputs")
    return Case(row, work, layout, of, connected, complete)


def _text(row: Row, *columns: str) -> str:
    return " ".join(row.get(column, "") for column in columns).lower()


def _needed(row: Row, column: str) -> float:
    if (value := number(row, column)) is None:
        raise Unpredicted(f"no {column}")
    return value


def _device(row: Row) -> Device:
    kind, memory = row.get("gpu_kind", ""), number(row, "gpu_memory_gib")
    if not kind:
        raise Unpredicted("no gpu_kind")
    names = [f"{kind}-{memory:g}", kind] if memory else [kind]
    for name in names:
        try:
            return device(name)
        except BigtrainError:
            continue
    raise Unpredicted("unknown gpu_kind")


def _implementation(row: Row) -> Implementation:
    name = row.get("framework", "").lower()
    found = next((does for pattern, does in IMPLEMENTATIONS if re.search(pattern, name)), Implementation())
    strategy = _text(row, "strategy")
    if re.search(r"fsdp|full_shard|shard_grad_op", strategy):
        found = replace(found, sharded_master=True, overlaps=True)
    noted = re.search(r"(?<![a-z/])compiled?(?![a-z/])", _text(row, "strategy", "note"))
    if (noted or "compile" in name) and "no compile" not in name:
        found = replace(found, elementwise="compiled", logits_bytes=min(found.logits_bytes, 10.0))
    elif "thunder" in name:
        found = replace(found, elementwise="fused")
    elif "rms kernel" in _text(row, "attention_kernel"):
        found = replace(found, elementwise="fused_norms")
    if re.search(r"sequence parallel", _text(row, "strategy", "recompute")):
        found = replace(found, shares_tokens=True)
    if "overlapped" in strategy:
        found = replace(found, overlaps=True)
    if re.search(r"async\w* ?(tp|tensor)", _text(row, "framework", "strategy", "note")):
        found = replace(found, overlaps_tensor=True)
    return found


def _network_gbs(row: Row, node: int) -> float | None:
    """GB/s of the network for each device, from the text of `interconnect`; None where it says nothing."""
    text = row.get("interconnect", "").lower()
    if many := re.search(r"(\d+)\s*x\s*(?:[a-z\- ]*)(\d+)\s*gb", text):
        return float(many[1]) * float(many[2]) / 8 / node
    if whole := re.search(r"(\d+)\s*gb(?:ps|/s)[a-z ]*per node", text):
        return float(whole[1]) / 8 / node
    if each := re.search(r"(\d+)\s*gb", text):
        return float(each[1]) / 8
    return None


def _layout(row: Row, does: Implementation) -> Layout:
    gpus = _needed(row, "gpus")
    tensor, pipeline = count(row, "tp"), count(row, "pp")
    context = count(row, "cp")
    data = max(1, round(gpus / (tensor * pipeline * context)))
    micro = number(row, "micro_batch")
    sequences = number(row, "global_batch_sequences")
    if sequences is None and number(row, "global_batch_tokens") and number(row, "sequence_length"):
        sequences = _needed(row, "global_batch_tokens") / _needed(row, "sequence_length")
    steps = number(row, "grad_accum")
    if micro is None:
        micro = max(1.0, (sequences or data) / data / steps) if steps else 1.0
    if sequences is None:
        sequences = data * micro * (steps or pipeline)
    if does.splits_local_batch and pipeline > 1:
        micro = 1.0
    accumulation = max(1, round(sequences / (data * micro)))
    strategy = _text(row, "strategy")
    group = None
    if re.search(r"hybrid|hsdp", strategy) and number(row, "gpus_per_node"):
        group = count(row, "gpus_per_node")
    if inside := re.search(r"inside (\d+) gpus", strategy):
        group = int(inside[1])
    if group is not None and (data * context) % group:
        group = None
    stage = row.get("zero_stage_equiv", "")
    return Layout(
        data=data,
        tensor=tensor,
        context=context,
        context_exchange="ring",
        pipeline=pipeline,
        virtual_stages=count(row, "vp") if pipeline > 1 else 1,
        tensor_shares_tokens=does.shares_tokens,
        zero_stage=int(stage) if stage in ("0", "1", "2", "3") else 1,
        zero_group=group,
        micro_batch_size=max(1, round(micro)),
        accumulation_steps=accumulation,
        gathers_ends_once=does.sharded_master,
        **_recomputation(row),
        overlaps_tensor=does.overlaps_tensor,
        overlaps_gradients=does.overlaps,
        scatters_gradients=does.scatters or does.sharded_master,
        offload_optimizer="offload" in _text(row, "scope") or "optimizer" in _text(row, "offload"),
    )


def _recomputation(row: Row) -> dict[str, Any]:
    text = row.get("recompute", "").lower()
    if text.startswith("full"):
        return {"recomputation": "full"}
    if "every 2nd" in text or "every k-th" in text:
        return {"recomputation": "full", "recomputed_blocks": 0.5 if "2nd" in text else 1 / 3}
    if "per-op" in text or "config default" in text:  # every other matrix product is kept
        return {"recomputation": "selective", "kept_products": 0.5}
    return {"recomputation": "scores" if text.startswith("selective") else "none"}


def _compute(row: Row) -> Literal["bf16", "fp16", "fp32", "fp8", "fp4"]:
    text = _text(row, "precision")
    for name, found in (("nvfp4", "fp4"), ("fp4", "fp4"), ("fp8", "fp8"), ("bf16", "bf16"), ("fp16", "fp16")):
        if name in text:
            return cast(Any, found)
    return "fp32" if "fp32" in text or "float32" in text else "bf16"


def _states(row: Row, does: Implementation) -> StateBytes:
    precision, optimizer = _text(row, "precision"), _text(row, "optimizer")
    if "fp32" in precision.split(" ")[:1]:
        return StateBytes(weights=4, gradients=4, master=0, moments=8, gathered=4, reduced=4)
    low = re.search(r"params, grads, optimizer|parameters and optimizer states in bf16|bf16-true", precision)
    if low or re.search(r"adamw (\(fused\) )?bf16", optimizer):
        moments = 2.0 if "8-bit" in optimizer else 4.0
        wide = "fp32 gradient reduction" in precision
        return StateBytes(weights=2, gradients=2, master=0, moments=moments, reduced=4 if wide else 2)
    if does.sharded_master:
        reduced = 4.0 if "amp" in precision else does.reduced_bytes
        return StateBytes(weights=0, gradients=4, master=4, moments=8, reduced=reduced)
    return StateBytes(
        weights=2,
        gradients=does.gradient_bytes,
        master=4,
        moments=8,
        reduced=min(does.reduced_bytes, does.gradient_bytes),
        step_copies=does.step_copies,
    )


def _attention(row: Row, does: Implementation, of: Device) -> str:
    text = row.get("attention_kernel", "").lower()
    if not text:
        return "unfused" if of.generation == "volta" and does.attention.startswith("flash") else does.attention
    if "te default" in text or "flash-3" in text or "flash_attention3" in text or "cudnn" in text:
        return "flash3"
    if re.search(r"v1|-1|flash$", text):
        return "flash1"  # `flash` without a number is older than the second one
    if "flash" in text or "sdpa" in text:
        return "flash2"
    return "unfused" if text == "torch" else "fused_softmax"


def _workload(row: Row, does: Implementation, of: Device, layout: Layout) -> Workload:
    layers, hidden = round(_needed(row, "layers")) or 1, round(_needed(row, "hidden")) or 1
    length = round(_needed(row, "sequence_length")) or 1
    heads = count(row, "heads", max(1, round(hidden / 128)))
    kv_heads = count(row, "kv_heads", heads)
    if hidden < heads:
        raise Unpredicted("more heads than channels")
    feed_forward = count(row, "ffn", 4 * hidden)
    vocabulary = count(row, "vocab", 51200)
    kernel = _attention(row, does, of)
    sizes: dict[str, Any] = {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "key_value_heads": kv_heads,
        "feed_forward": feed_forward,
        "vocabulary": vocabulary,
        "sequence_length": length,
        "states": _states(row, does),
        "tied": row.get("tied_embeddings") == "1",
        "dropout": does.dropout,
        "compute": _compute(row),
        "attention_kernel": kernel,
        "elementwise": does.elementwise,
        "logits_bytes": does.logits_bytes,
        "logits_divided": does.logits_divided,
    }
    choices = [transformer(**sizes, gated=gated, rms_norms=gated, rotary=gated) for gated in (True, False)]
    stated = number(row, "parameters")
    if stated is None:
        return choices[0 if feed_forward != 4 * hidden else 1]
    return min(choices, key=lambda work: abs(work.parameters - stated))


@dataclass(frozen=True)
class Measured:
    """A case and the tokens per second and device that its row states."""

    case: Case
    tokens_per_second: float


def predicted(case: Case, constants: Constants) -> float:
    """Tokens per second and device."""
    layout, work = case.layout, case.work
    step = forecast_step(work, layout, case.device, case.connected, constants)
    return layout.global_batch_size * work.sequence_length / step.total / layout.devices


def measured_tokens_per_second(case: Case) -> float:
    """Tokens per second and device that a row states, or that follow from its FLOP/s by the definition it states.

    Raises:
        Unpredicted: it states none.
    """
    row, work = case.row, case.work
    if stated := number(row, "tokens_per_s_per_gpu"):
        return stated
    counted = work.flops_per_token()
    kind = _text(row, "tflops_kind", "mfu_definition")
    if "halved" in kind:
        counted = (counted + work.flops_per_token(causal=True)) / 2 if "not halved" in kind else _causal(work)
    hardware = counted * (4 / 3 if case.layout.recomputation == "full" else 1.0)
    if tflops := number(row, "tflops_per_gpu"):
        return tflops * 1e12 / (hardware if "hardware" in row.get("tflops_kind", "").lower() else counted)
    peak = number(row, "mfu_peak_tflops") or case.device.peak(work.compute) / 1e12
    if mfu := number(row, "mfu_pct"):
        return mfu / 100 * peak * 1e12 / counted
    if hfu := number(row, "hfu_pct"):
        return hfu / 100 * peak * 1e12 / hardware
    raise Unpredicted("no tokens/s, FLOP/s or MFU")


def _causal(work: Workload) -> float:
    return work.flops_per_token(causal=True)

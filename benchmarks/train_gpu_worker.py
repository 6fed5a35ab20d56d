"""One measurement of `train_gpu.py`, in a process of its own under torchrun."""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import traceback
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from train_gpu_cases import CASES, WARMUP_STEPS, Case, model_settings, settings_for, work_of
from train_gpu_data import Data
from train_gpu_loss import LOSS, measure_loss

if TYPE_CHECKING:
    import torch

    from bigtrain.config import ModelSettings, Settings
    from bigtrain.data import MicroBatch
    from bigtrain.engine.topology import Topology

MACHINE = "machine"
"""The name of the measurement of the machine itself."""


def outcome_of(args: argparse.Namespace) -> dict[str, Any]:
    """What this process measures; anything that goes wrong is an outcome too."""
    from bigtrain.engine.topology import start

    try:
        topology = start(timeout_minutes=5)
        if args.worker == MACHINE:
            found = measure_machine(topology)
        elif args.worker == LOSS:
            found = measure_loss(topology.device, args.tiny)
        else:
            found = measure_case(args, topology)
        topology.shutdown()
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {"failure": "out of memory" if is_out_of_memory(error) else message}
    return found


def is_out_of_memory(error: Exception) -> bool:
    """Allocations fail in PyTorch's allocator, in CUDA itself, in cuBLAS, or on a CPU in malloc."""
    signs = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, MemoryError | RuntimeError) and any(sign in str(error) for sign in signs)


def measure_machine(topology: Topology) -> dict[str, Any]:
    """What the device can do at best: a matrix product and a copy, both on random data."""
    import torch

    from bigtrain.observe.peak_flops import datasheet_flops, measure_matmul_peak

    device = topology.device
    on_gpu = device.type == "cuda"
    source = torch.randint(256, (1 << (32 if on_gpu else 26),), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    fastest = math.inf
    for _ in range(10):
        synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        fastest = min(fastest, time.perf_counter() - started)
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else psutil.virtual_memory().total
    return {
        "device": name,
        "memory_gib": memory / 2**30,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "datasheet_bf16_flops": datasheet_flops(name, "bf16"),
        "matmul_bf16_flops": measure_matmul_peak(device, torch.bfloat16, seconds=2.0),
        "copy_bytes_per_second": 2 * source.numel() / fastest,  # read and written
    }


def measure_case(args: argparse.Namespace, topology: Topology) -> dict[str, Any]:
    import torch

    from bigtrain.model import count_parameters, flops_per_token

    case: Case = CASES[args.worker]
    model, work = model_settings(case.model, args.tiny), work_of(case.model, args.tiny)
    compiled = case.compile and (args.compile or not args.tiny)
    data = Data(work, model.vocab_size, case.whole_rows)
    started = time.perf_counter()
    losses, costliest = None, None
    if case.contestant == "bigtrain":
        settings = settings_for(case, model, work, args.micro_batch_size, compiled)
        attention = attention_taken(settings, topology.device)
        seconds, losses, costliest = train_bigtrain(settings, data, topology)
    else:
        train = train_plain if case.contestant == "plain" else train_trainer
        attention, seconds = "sdpa", train(model, data, args.micro_batch_size, compiled, topology)
    on_gpu = topology.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else psutil.Process().memory_info().rss
    dense = flops_per_token(model, 0)
    per_token_seen = flops_per_token(model, 1) - dense
    return {
        "model_settings": model.model_dump(),
        "parameters": count_parameters(model),
        "work": vars(work),
        "compiled": compiled,
        "compiled_graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "attention": attention,
        "tokens_per_step": work.rows * work.length,
        "step_seconds": seconds[WARMUP_STEPS:],
        "warmup_seconds": seconds[:WARMUP_STEPS],
        "total_seconds": time.perf_counter() - started,
        "losses": losses,
        "costliest": costliest,
        "peak_memory_gib": peak / 2**30,
        "reserved_memory_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None,
        "flops_per_token": flops_per_token(model, work.length),
        "exact_flops_per_token": dense + per_token_seen * data.tokens_seen_on_average(),
    }


def train_bigtrain(
    settings: Settings, data: Data, topology: Topology
) -> tuple[list[float], list[float], list[dict[str, Any]]]:
    """Seconds and mean loss of each step, computed as `TrainingRun.optimize` does; and what one more of them costs."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from bigtrain.engine.engine import Engine
    from bigtrain.train.build import new_model

    engine = Engine(new_model(settings, topology, fill=True), settings, topology)

    def step(batch: list[MicroBatch]) -> float:
        label_tokens = sum(micro_batch.label_tokens for micro_batch in batch)
        loss_sum = torch.zeros((), dtype=torch.float64, device=topology.device)
        for micro_batch in batch:
            inputs = micro_batch.to(topology.device).model_inputs()
            loss_sum += engine.forward_backward(inputs, scale=1 / label_tokens)
        update = engine.step(settings.optimizer.learning_rate)
        loss = loss_sum.item() / label_tokens
        if not (update.applied and math.isfinite(loss)):
            raise FloatingPointError(f"loss {loss}, gradient norm {update.grad_norm}")
        return loss

    seconds, losses = [], []
    for batch in data.packed(settings.train.micro_batch_size):
        synchronize(topology.device)
        started = time.perf_counter()
        losses.append(step(batch))
        synchronize(topology.device)
        seconds.append(time.perf_counter() - started)
    on_gpu = topology.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        step(batch)
        synchronize(topology.device)
    return seconds, losses, costliest_kernels(profiler.key_averages(), on_gpu)


def costliest_kernels(events: Any, on_gpu: bool, count: int = 15) -> list[dict[str, Any]]:
    """Where the time of a profiled step went: names, seconds and share of the sum, the costliest first."""
    seconds = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 for event in events
    }
    total = sum(seconds.values())
    ranked = sorted(seconds.items(), key=lambda item: -item[1])[:count]
    return [{"kernel": name[:120], "seconds": spent, "share": spent / total} for name, spent in ranked]


def train_plain(
    model: ModelSettings, data: Data, micro_batch_size: int, compiled: bool, topology: Topology
) -> list[float]:
    """Seconds of each step of the plain PyTorch loop: float32 weights under bf16 autocast."""
    import plain_llama
    import torch

    torch.manual_seed(0)
    plain = plain_llama.PlainLlama(
        model.vocab_size,
        model.hidden_size,
        model.num_hidden_layers,
        model.num_attention_heads,
        model.key_value_heads,
        model.intermediate_size,
    )
    if not model.tie_word_embeddings:
        plain.head.weight = torch.nn.Parameter(plain.embed.weight.detach().clone())
    plain.to(topology.device)
    if compiled:
        plain.compile()
    tokens = torch.from_numpy(data.window.astype(np.int64))
    return plain_llama.train(plain, tokens, micro_batch_size, device=topology.device.type)


def train_trainer(
    model: ModelSettings, data: Data, micro_batch_size: int, compiled: bool, topology: Topology
) -> list[float]:
    """Seconds of each step of the transformers Trainer: bf16, fused AdamW, compiled, transformers' own Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            synchronize(topology.device)
            self.times.append(time.perf_counter())

    clock = Clock()
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "head_dim")
    config = LlamaConfig(
        **{name: getattr(model, name) for name in names},
        num_key_value_heads=model.key_value_heads,
        max_position_embeddings=model.max_position_embeddings,
        tie_word_embeddings=model.tie_word_embeddings,
        use_cache=False,
    )
    rows = torch.from_numpy(data.window.astype(np.int64)).flatten(0, 1)[:, :-1]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(data.window),
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=data.window.shape[1] // micro_batch_size,
            bf16=True,
            use_cpu=topology.device.type == "cpu",
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            torch_compile=compiled,
            save_strategy="no",
            report_to=[],
            logging_strategy="no",
            disable_tqdm=True,
        )
        dataset = [{"input_ids": row, "labels": row} for row in rows]
        Trainer(model=LlamaForCausalLM(config), args=arguments, train_dataset=dataset, callbacks=[clock]).train()
    synchronize(topology.device)
    clock.times.append(time.perf_counter())
    return [after - before for before, after in pairwise(clock.times)]


def attention_taken(settings: Settings, device: torch.device) -> str:
    """The back-end that the model's own rule picks for its queries."""
    import torch

    from bigtrain.model.attention.attention_backends import attention_backend
    from bigtrain.model.attention.attention_rule import AttentionRule

    shape = (1, settings.model.num_attention_heads, settings.model.head_width)
    query = torch.empty(shape, dtype=torch.bfloat16, device=device)
    return attention_backend(settings.engine.attn_implementation, query, AttentionRule(scale=1.0)).__name__


def synchronize(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)

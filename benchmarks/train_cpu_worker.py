"""One peer of benchmarks/train_cpu.py, in processes of its own: `train_cpu_worker.py JOB` writes its step seconds.

A job is a JSON file with the shape of the model (Hugging Face's names), where the token ids lie, and how to train. It
runs in the peer's own environment, which knows no bigtrain; several processes of it stand under torchrun.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import plain_llama
import torch
from torch import Tensor, nn

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def nanogpt(job: dict[str, Any], batches: Tensor) -> list[float]:
    """The loop of nanoGPT's train.py around a Llama: autocast, DistributedDataParallel, compiled if the job says so."""
    shape = job["shape"]
    model: nn.Module = plain_llama.PlainLlama(
        shape["vocab_size"],
        shape["hidden_size"],
        shape["num_hidden_layers"],
        shape["num_attention_heads"],
        shape["num_key_value_heads"],
        shape["intermediate_size"],
    )
    if job["compile"]:
        model.compile()
    if WORLD_SIZE > 1:
        torch.distributed.init_process_group("gloo")
    return plain_llama.train(
        model, batches, job["micro_batch_size"], rank=RANK, world_size=WORLD_SIZE, bf16=job["precision"] == "bf16"
    )


def trainer(job: dict[str, Any], batches: Tensor) -> list[float]:
    """The transformers Trainer with the settings a user would take on a CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    deepspeed = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": job["precision"] == "bf16"},
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(batches),
            per_device_train_batch_size=job["micro_batch_size"],
            gradient_accumulation_steps=batches.shape[1] // job["micro_batch_size"] // WORLD_SIZE,
            bf16=job["precision"] == "bf16",
            use_cpu=True,
            ddp_backend="gloo" if WORLD_SIZE > 1 else None,
            deepspeed=deepspeed if job["deepspeed"] else None,
            torch_compile=job["compile"],
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            save_strategy="no",
            report_to=[],
            logging_strategy="no",
            disable_tqdm=True,
        )
        dataset = [{"input_ids": row[:-1], "labels": row[:-1]} for row in batches.flatten(0, 1)]
        model = LlamaForCausalLM(LlamaConfig(**job["shape"], use_cache=False))
        Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=[clock]).train()
    clock.times.append(time.perf_counter())
    return [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]


def litgpt(job: dict[str, Any], batches: Tensor) -> list[float]:
    """litgpt's model and its pretrain's loop under Fabric, compiled if the job says so (pretrain always compiles)."""
    import lightning
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    shape = job["shape"]
    precision = "bf16-mixed" if job["precision"] == "bf16" else "32-true"
    fabric = lightning.Fabric(accelerator="cpu", devices=WORLD_SIZE, precision=precision)
    fabric.launch()
    with fabric.init_module():
        model = GPT(
            Config(
                block_size=shape["max_position_embeddings"],
                vocab_size=shape["vocab_size"],
                padded_vocab_size=shape["vocab_size"],
                n_layer=shape["num_hidden_layers"],
                n_head=shape["num_attention_heads"],
                n_query_groups=shape["num_key_value_heads"],
                n_embd=shape["hidden_size"],
                intermediate_size=shape["intermediate_size"],
                rotary_percentage=1.0,
                parallel_residual=False,
                bias=False,
                norm_class_name="RMSNorm",
                mlp_class_name="LLaMAMLP",
            )
        )
    model.transformer.wte.weight = model.lm_head.weight
    nn.init.normal_(model.lm_head.weight, std=0.02)
    compiled = torch.compile(model) if job["compile"] else model
    wrapped = fabric.setup(compiled)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    optimizer = fabric.setup_optimizers(optimizer)
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        parts = batch[RANK::WORLD_SIZE].split(job["micro_batch_size"])
        for number, part in enumerate(parts):
            with fabric.no_backward_sync(wrapped, enabled=number < len(parts) - 1):
                loss = chunked_cross_entropy(wrapped(part[:, :-1].contiguous()), part[:, 1:].contiguous())
                fabric.backward(loss / len(parts))
        fabric.clip_gradients(wrapped, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    peers = {"nanogpt": nanogpt, "trainer": trainer, "litgpt": litgpt}
    # Peers know no numbers but int64.
    batches = torch.load(job["batches"], weights_only=True).long()
    seconds = peers[job["peer"]](job, batches)
    if RANK == 0:
        Path(job["out"]).write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()

"""The peer of benchmarks/adapters.py, in a process of its own: `adapters_worker.py JOB` writes its step seconds.

A job is a JSON file that says where base and token ids lie, and how to train.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch


def train(job: dict[str, Any]) -> list[float]:
    """The transformers Trainer around a LoRA of peft, with the settings a user would take on a CPU."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    batches = torch.load(job["batches"], weights_only=True).long()
    dtype = torch.bfloat16 if job["form"] == "bf16-weights" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(job["base"], dtype=dtype, use_cache=False)
    # All linear layers of the blocks; a tied head is none of them.
    config = LoraConfig(r=job["r"], lora_alpha=job["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(batches),
            per_device_train_batch_size=job["micro_batch_size"],
            gradient_accumulation_steps=batches.shape[1] // job["micro_batch_size"],
            bf16=job["form"].startswith("bf16"),
            use_cpu=True,
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            save_strategy="no",
            report_to=[],
            logging_strategy="no",
            disable_tqdm=True,
        )
        dataset = [{"input_ids": row[:-1], "labels": row[:-1]} for row in batches.flatten(0, 1)]
        Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=[clock]).train()
    clock.times.append(time.perf_counter())
    return [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    Path(job["out"]).write_text(json.dumps(train(job)))


if __name__ == "__main__":
    main()

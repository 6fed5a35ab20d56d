"""One contestant of the masked language model in benchmarks/objectives.py; prints its tokens per second."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from objectives import WARMUP_STEPS, settings

from bigtrain.config import Settings
from bigtrain.data import RunData
from bigtrain.data.batch.batch import MicroBatch

STEPS, LENGTH, BATCH = 12, 512, 16


def batches_of(given: Settings) -> Iterator[MicroBatch]:
    data = RunData.open(given)
    with closing(data.loader(BATCH, 0, rank=0, world_size=1)) as loader:
        for batch in loader:
            yield batch.micro_batches[0]


def bigtrain_steps(given: Settings) -> Iterator[None]:
    from bigtrain.engine import Engine
    from bigtrain.train.build import new_model, ranks

    with ranks(given.engine) as topology:
        engine = Engine(new_model(given, topology, fill=True), given, topology)
        for batch in batches_of(given):
            engine.forward_backward(batch.to("cpu").model_inputs(), 1 / batch.label_tokens)
            engine.step(1e-4)
            yield


def trainer_steps(given: Settings, folder: Path) -> Iterator[None]:
    """The Trainer's own loop over the same masked tokens, unpacked as a user of it has them: rows of 512 tokens."""
    import transformers

    shape = given.model
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            intermediate_size=shape.intermediate_size,
            max_position_embeddings=shape.max_position_embeddings,
            hidden_dropout_prob=shape.hidden_dropout,
            attention_probs_dropout_prob=shape.attention_dropout,
        )
    )

    class Rows(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            for batch in batches_of(given):
                for ids, labels in zip(batch.input_ids.long(), batch.labels.long(), strict=True):
                    yield {"input_ids": ids, "labels": labels}

    moments: list[float] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            moments.append(time.perf_counter())

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        bf16=given.engine.precision == "bf16",
        use_cpu=True,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
    )
    transformers.Trainer(model, arguments, train_dataset=Rows(), callbacks=[Clock()]).train()
    print(BATCH * LENGTH * (STEPS - WARMUP_STEPS) / (moments[-1] - moments[WARMUP_STEPS - 1]))
    yield


def main() -> None:
    name, data, dtype = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    given = settings(data, {"name": "masked"}, LENGTH, BATCH)
    precision = "bf16" if "bfloat16" in dtype else "fp32"
    given = given.model_copy(update={"engine": given.engine.model_copy(update={"precision": precision})})
    if name.endswith(", dropout"):
        rates = dict.fromkeys(("embedding_dropout", "attention_dropout", "hidden_dropout"), 0.1)
        given = given.model_copy(update={"model": given.model.model_copy(update=rates)})
    if not name.startswith("bigtrain"):
        next(trainer_steps(given, data.parent / "trainer"))
        return
    steps = bigtrain_steps(given)
    for _ in range(WARMUP_STEPS):
        next(steps)
    started = time.perf_counter()
    for _ in range(STEPS - WARMUP_STEPS):
        next(steps)
    print(BATCH * LENGTH * (STEPS - WARMUP_STEPS) / (time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    main()

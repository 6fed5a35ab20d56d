"""Fine-tuning an encoder of 29 million parameters to classify texts, beside the transformers Trainer: tokens a second.

    PYTHONPATH=. python benchmarks/fine_tuning.py [--repeats 3] [--steps 12]

The texts are the documentation strings of Python's standard library, labelled by their module's first letter. Both have
the same texts in the same batches: those of the rows that bigtrain packs. The Trainer pads each batch to its longest
text, as its users do; padding is not counted. bf16 where the CPU has instructions for it, one process with all cores,
whole optimizer steps without the first three. The contestants take turns, each time in a process of its own. Memory is
the largest resident set of that process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from record import spread, write_result

from bigtrain.base import IGNORE_INDEX
from bigtrain.config import Settings
from bigtrain.data import RunData
from bigtrain.data.batch.batch import MicroBatch
from bigtrain.data.build.corpus import read_documents
from bigtrain.model import product_dtype

LENGTH, ROWS, WARMUP_STEPS = 256, 16, 3
CONTESTANTS = ("bigtrain", "transformers Trainer")
LABELS = 2
Text = tuple[torch.Tensor, int]
"""Tokens and class."""


def main() -> None:
    """Run all contestants, or the one that the first argument names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    parser.add_argument("--contestant", nargs=2, metavar=("NAME", "FOLDER"), help="run one; for this program itself")
    args = parser.parse_args()
    if args.contestant:
        name, folder = args.contestant
        run = of_bigtrain if name == CONTESTANTS[0] else of_trainer
        rate = run(settings(Path(folder)), args.steps)
        print(json.dumps([rate, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
        return
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
        peaks: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
        for _ in range(args.repeats):
            for name in CONTESTANTS:
                command = [sys.executable, __file__, "--steps", str(args.steps), "--contestant", name, folder]
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    check=True,
                    env={**os.environ, "PYTHONPATH": ".:benchmarks"},
                )
                rate, peak = json.loads(done.stdout.splitlines()[-1])
                rates[name].append(rate)
                peaks[name].append(peak)
    ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
    result = {
        "tokens per second": {name: spread(found) for name, found in rates.items()},
        "times as fast as the Trainer": spread(ratios),
        "peak memory, bytes": {name: spread(found) for name, found in peaks.items()},
    }
    print(write_result("fine_tuning", result, args.out).read_text())


def settings(folder: Path) -> Settings:
    """The run; its data lie in the folder."""
    precision = "bf16" if product_dtype(torch.bfloat16, torch.device("cpu")) == torch.bfloat16 else "fp32"
    return Settings.model_validate(
        {
            "run_dir": str(folder / "run"),
            "model": {
                "family": "bert",
                "hidden_size": 512,
                "num_hidden_layers": 6,
                "num_attention_heads": 8,
                "intermediate_size": 2048,
                "vocab_size": 16384,
                "max_position_embeddings": LENGTH,
                "task_head": "sequence_classification",
                "num_labels": LABELS,
            },
            "objective": {"name": "classification"},
            "data": {
                "dir": str(folder / "data"),
                "sequence_length": LENGTH,
                "packing": "best_fit",
                "tokenizer": {"vocab_size": 16384},
                "sources": [
                    {"name": "texts", "kind": "jsonl", "path": str(folder / "texts.jsonl"), "label_field": "label"}
                ],
            },
            "train": {"steps": 1000, "global_batch_size": ROWS, "micro_batch_size": ROWS},
            "engine": {"zero_stage": 1, "precision": precision},
        }
    )


def build(folder: Path) -> None:
    """Write the texts, and build the data."""
    every = settings(folder).data.sources[0]
    source = every.model_copy(
        update={"kind": "python_stdlib", "path": None, "content": "documentation", "label_field": None}
    )
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as file:
        for document in read_documents(source):
            file.write(json.dumps({"text": document.text[:2000], "label": str(document.file[:1].lower() < "i")}) + "\n")
    config = folder / "config.yaml"
    config.write_text(json.dumps(settings(folder).model_dump(mode="json", exclude_none=True)))
    subprocess.run([sys.executable, "-m", "bigtrain", "data", "build", str(config)], check=True, stdout=sys.stderr)


def batches_of(given: Settings) -> Iterator[MicroBatch]:
    """The batches of the run, in order."""
    data = RunData.open(given)
    with closing(data.loader(ROWS, 0, rank=0, world_size=1)) as loader:
        for batch in loader:
            yield batch.micro_batches[0]


def texts_of(batch: MicroBatch) -> list[Text]:
    """The texts of a batch, by themselves."""
    ids, labels = batch.input_ids.flatten().long(), batch.labels.flatten().long()
    return [
        (ids[first:end], int(labels[first]))
        for first, end in pairwise(batch.cu_seqlens.tolist())
        if labels[first] != IGNORE_INDEX
    ]


def of_bigtrain(given: Settings, steps: int) -> float:
    """Tokens a second of the engine's own steps."""
    from bigtrain.engine import Engine
    from bigtrain.train.build import new_model, ranks

    tokens, moments = [], []
    with ranks(given.engine) as topology:
        engine = Engine(new_model(given, topology, fill=True), given, topology)
        for batch, _ in zip(batches_of(given), range(steps), strict=False):
            engine.forward_backward(batch.to("cpu").model_inputs(), 1 / batch.label_tokens)
            engine.step(1e-4)
            tokens.append(batch.input_tokens)
            moments.append(time.perf_counter())
    return sum(tokens[WARMUP_STEPS:]) / (moments[-1] - moments[WARMUP_STEPS - 1])


def of_trainer(given: Settings, steps: int) -> float:
    """The same of the Trainer's loop over the same texts."""
    import transformers

    shape = given.model
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            intermediate_size=shape.intermediate_size,
            max_position_embeddings=shape.max_position_embeddings,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=LABELS,
        )
    )
    tokens: list[int] = []
    moments: list[float] = []

    class Batches(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
        """Each item is a whole batch, padded."""

        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            for batch in batches_of(given):
                texts = texts_of(batch)
                longest = max(len(ids) for ids, _ in texts)
                ids = torch.zeros(len(texts), longest, dtype=torch.long)
                seen = torch.zeros_like(ids)
                for row, (text, _) in enumerate(texts):
                    ids[row, : len(text)], seen[row, : len(text)] = text, 1
                tokens.append(int(seen.sum()))
                yield {"input_ids": ids, "attention_mask": seen, "labels": torch.tensor([label for _, label in texts])}

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """Notes when steps end."""

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            """See the class."""
            moments.append(time.perf_counter())

    arguments = transformers.TrainingArguments(
        output_dir=str(given.run_dir.parent / "trainer"),
        per_device_train_batch_size=1,
        max_steps=steps,
        bf16=given.engine.precision == "bf16",
        use_cpu=True,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
    )
    transformers.Trainer(
        model, arguments, train_dataset=Batches(), callbacks=[Clock()], data_collator=lambda items: items[0]
    ).train()
    return sum(tokens[WARMUP_STEPS:steps]) / (moments[-1] - moments[WARMUP_STEPS - 1])


if __name__ == "__main__":
    main()

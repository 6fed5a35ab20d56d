"""Small real datasets for the tests of the data room."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigtrain.config.batch_schedule import BatchSchedule
from bigtrain.config.data_settings import DataSettings, TokenizerSettings, ValidationSettings
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data.batch.packing import Packing, open_packings
from bigtrain.data.build.build import build_datasets
from bigtrain.data.build.execute import Inline
from bigtrain.data.build.pack.build_pack import build_packs
from bigtrain.data.build.tokenization import token_dtype
from bigtrain.data.format import shards as shards_format
from bigtrain.data.format.manifest import DatasetManifest
from bigtrain.data.format.shards import ShardWriter, TokenizedDocuments
from bigtrain.data.order.mixture import MixturePhase
from bigtrain.data.order.plan import Plan, PlannedSource
from bigtrain.data.store.store import Dataset

END = 0
VOCABULARY = 512
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "brew",
    "tea",
]


def write_dataset(
    directory: Path, shards: Sequence[Sequence[Sequence[int]]], *, vocab_size: int = 1000, source: str = "made"
) -> Dataset:
    """A dataset with these documents (lists of ids; the end-of-text token is added) in these shards."""
    records = []
    position = 0
    for index, documents in enumerate(shards):
        writer = ShardWriter(directory, index)
        for document in documents:
            ids = np.array([*document, END], token_dtype(vocab_size))
            identity = position.to_bytes(16, "big")
            writer.append(TokenizedDocuments(ids, [len(ids)], [identity], [f"file-{position % 3}"], [position]))
            position += 1
        record = writer.finish()
        if record is not None:
            records.append(record)
    DatasetManifest(
        source=source,
        split="train",
        dtype=token_dtype(vocab_size).str,
        vocab_size=vocab_size,
        special_ids={"end_of_text": END},
        tokenizer="0" * 32,
        parents={},
        shards=records,
        block_bytes=shards_format.BLOCK_BYTES,  # a test may have made it smaller
    ).write(directory)
    return Dataset(directory)


def random_dataset(directory: Path, tokens: int, *, seed: int = 0, source: str = "made", longest: int = 60) -> Dataset:
    """A dataset of about so many tokens in documents of 1 to `longest` tokens, in three shards."""
    rng = np.random.default_rng(seed)
    shards: list[list[list[int]]] = [[], [], []]
    made = 0
    while made < tokens:
        document = rng.integers(1, 1000, rng.integers(0, longest)).tolist()
        shards[3 * made // tokens].append(document)
        made += len(document) + 1
    return write_dataset(directory, shards, source=source)


def sentences(count: int, seed: int) -> list[str]:
    """Texts of 5 to 200 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(5, 200))) + f" {i}.\n" for i in range(count)]


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def data_settings(directory: Path, *sources: SourceSettings, **changes: object) -> DataSettings:
    """Settings for a small build."""
    values: dict[str, object] = {
        "dir": directory,
        "sources": list(sources),
        "sequence_length": 32,
        "tokenizer": TokenizerSettings(vocab_size=300),
        "validation": ValidationSettings(fraction=0.1),
        "workers": 1,
        **changes,
    }
    return DataSettings.model_validate(values)


def jsonl_source(path: Path, name: str = "lines", **changes: object) -> SourceSettings:
    return SourceSettings.model_validate({"name": name, "kind": "jsonl", "path": str(path), **changes})


def make(settings: DataSettings, vocab_size: int = VOCABULARY, on: str = "inline") -> list[str]:
    """Build, and return what it reported. Inline: starting processes takes longer than a small build."""
    lines: list[str] = []
    build_datasets(settings, vocab_size=vocab_size, report=lines.append, on=on)
    return lines


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def plan_over(
    datasets: Sequence[Dataset],
    weights: Sequence[int],
    *,
    length: int,
    batch: int = 16,
    seed: int = 0,
    packing: str = "concat",
    **changes: Any,
) -> tuple[Plan, list[Packing]]:
    """A plan over datasets with steps of `batch` samples, and how the datasets are packed."""
    settings = data_settings(
        Path("unused"), SourceSettings(name="any", kind="python_stdlib"), sequence_length=length, packing=packing
    )
    packings = open_packings(settings, list(datasets))
    sources = [
        PlannedSource(d.name, d.dataset_id, d.tokens, p.rows, p.pack_id)
        for d, p in zip(datasets, packings, strict=True)
    ]
    values = {
        "phases": [MixturePhase(0, tuple(weights))],
        "seed": seed,
        "sequence_length": length,
        "batches": BatchSchedule([], batch),
        "packing": packing,
    }
    return Plan(sources, **{**values, **changes}), packings


def build_packs_of(directory: Path, packing: str, length: int) -> None:
    """Make the index that a packing needs."""
    if packing != "concat":
        with Inline() as executor:
            build_packs(directory, packing, length, executor, lambda line: None)

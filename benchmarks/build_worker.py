"""One measurement of `build.py` in a process of its own; prints seconds, or bytes, in its last line.

python benchmarks/build_worker.py STAGE WORK TARGET CORES ON
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 4096


def settings_of(work: Path, target: Path, cores: int, **changes: Any) -> Any:
    """The settings of a build of the texts, with the tokenizer of all contestants if it is there."""
    from bigtrain.config import DataSettings, SourceSettings, TokenizerSettings

    tokenizer = work / "tokenizer.json"
    return DataSettings(
        dir=target,
        tokenizer=TokenizerSettings(
            path=tokenizer if tokenizer.exists() else None, vocab_size=VOCABULARY, train_bytes=5_000_000
        ),
        sources=[SourceSettings(name="source", kind="jsonl", path=str(work / "texts"))],
        sequence_length=2048,
        workers=cores,
        **changes,
    )


def tokenize(work: Path, target: Path, cores: int, on: str) -> float:
    """Seconds of `data build`."""
    if on == "ray-data":
        return ray_data(work, target, cores)
    from bigtrain.data import build_datasets

    started = time.perf_counter()
    build_datasets(settings_of(work, target, cores), vocab_size=VOCABULARY, report=lambda _: None, on=on)
    return time.perf_counter() - started


def duplicates(work: Path, target: Path, cores: int, on: str) -> float:
    """Seconds until all near-duplicates are marked."""
    from bigtrain.data.build.corpus import open_corpus
    from bigtrain.data.build.dedup import without_duplicates
    from bigtrain.data.build.execute import FailurePolicy, open_executor
    from bigtrain.data.build.filters import Filters
    from bigtrain.data.format.work_folder import WorkFolder

    settings = settings_of(work, target, cores, dedup="near")
    target.mkdir()
    started = time.perf_counter()
    with open_executor(on, cores, WorkFolder.at(target / ".build"), FailurePolicy(), lambda _: None) as executor:
        corpora = {source.name: open_corpus(source) for source in settings.sources}
        filters = {source.name: Filters(source.clean, None) for source in settings.sources}
        found = without_duplicates(corpora, settings, filters, executor, lambda _: None)
    seconds = time.perf_counter() - started
    print(found["source"].summary)
    return seconds


def ray_data(work: Path, target: Path, cores: int) -> float:
    """Seconds of Ray Data's map over the same tokenizer: lines in, Parquet with the ids out."""
    import ray
    from tokenizers import Tokenizer

    class Tokenize:
        def __init__(self, file: str) -> None:
            self._tokenizer = Tokenizer.from_file(file)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            encoded = self._tokenizer.encode_batch_fast(list(batch["text"]), add_special_tokens=False)
            return {"ids": [np.array(one.ids, np.uint16) for one in encoded]}

    ray.init(address="auto", logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    started = time.perf_counter()
    texts = ray.data.read_json(sorted(map(str, (work / "texts").glob("*.jsonl"))))
    blocks = texts.repartition(8 * cores)
    ids = blocks.map_batches(
        Tokenize, fn_constructor_args=(str(work / "tokenizer.json"),), batch_size=100, concurrency=cores, num_cpus=1
    )
    ids.write_parquet(str(target))
    return time.perf_counter() - started


def memory(work: Path, target: Path, keys: int, on: str) -> float:
    """Bytes that the peak of this process grows by while it matches a partition of so many keys."""
    from bigtrain.data.build.dedup.document_keys import tables_of_keys
    from bigtrain.data.build.dedup.matches import MatchKeys
    from bigtrain.data.build.dedup.numbering import DocumentNumbering
    from bigtrain.data.build.dedup.sorted_tables import FileSeries, encode
    from bigtrain.data.format.work_folder import WorkFolder

    folder, rng, files = WorkFolder.at(target), np.random.default_rng(0), 16
    names = [f"keys-{number}" for number in range(files)]
    for name in names:
        hashes = rng.integers(1, 1 << 63, (keys // files, 2)).astype(np.uint64) * np.uint64(2)
        hashes[::5] = hashes[0]
        folder.write(name, encode(tables_of_keys(hashes, np.empty((len(hashes), 0), np.uint64)), {}), durable=False)
    DocumentNumbering.of(names, [keys // files] * files).write(folder, "numbering")
    before = peak()
    MatchKeys(FileSeries(folder, "matches", 1), "numbering", 0)(0)
    return peak() - before


def peak() -> float:
    """Bytes of memory that this process holds or held at most (VmHWM)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


STAGES = {"tokenizer": tokenize, "tokenize": tokenize, "duplicates": duplicates, "memory": memory}

if __name__ == "__main__":
    stage, data, made, count, runs_on = sys.argv[1:]
    print(STAGES[stage](Path(data), Path(made), int(count), runs_on))

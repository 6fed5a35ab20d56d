"""Memory and time of planning, loading and asking at 10^6 and at 10^9 samples.

    python benchmarks/data_memory.py [--samples 1000000 1000000000] [--index] [--work DIR]

Each size is a dataset of its own of so many different samples: 2,048 tokens each, as many documents as samples, shards
of 10^8 tokens as a build makes them. Its token files are sparse (all tokens are zero and take no room on the disk), and
FAMILIES different document files stand under the names of all shards by hard links, so that 10^9 documents take a few
hundred megabytes. Nothing in bigtrain knows: sizes, manifest, hashes and columns are what they are.

For each size a fresh process opens the dataset, plans 10^5 samples spread over the whole range, and takes batches from
ten places of it; then `bigtrain data where` and `when` are asked through the command line, and with `--index` the index
by id is made (16 bytes of disk a document). Memory is what the process holds itself (RssAnon) and the peak of all that
the kernel counts for it (VmHWM: with the mapped files, which can be dropped at any time).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import yaml
from record import write_result

ROOT = Path(__file__).parents[1]
CLI = [sys.executable, "-m", "bigtrain"]
LENGTH, BATCH = 2048, 8
SHARD_SAMPLES = 48_828  # 10^8 tokens
FAMILIES = 64
PLANNED, PLACES, BATCHES = 100_000, 10, 40
FIND = ("made", "find-me.txt", 7)
"""Source, file and position of the one document that is asked for; its id and file are nobody else's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[10**6, 10**9])
    parser.add_argument("--index", action="store_true", help="make the index by id too")
    parser.add_argument("--work", type=Path, default=None, help="folder for the datasets; removed behind")
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure-index", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure or args.measure_index:
        print(json.dumps(measure(args.measure) if args.measure else measure_index(args.measure_index)))
        return
    result: dict[str, Any] = {"what": __doc__}
    for samples in args.samples:
        with tempfile.TemporaryDirectory(dir=args.work, prefix="bigtrain-memory-") as folder:
            started = time.perf_counter()
            run = make_run(Path(folder), samples)
            print(f"{samples:,} samples written in {time.perf_counter() - started:.0f} s", flush=True)
            dataset = Path(folder) / "data" / FIND[0] / "train"
            row = own_process("--measure", dataset)
            row["commands"] = ask(run, dataset)
            if args.index:
                row["index"] = own_process("--measure-index", dataset)
                row["commands with the index"] = ask(run, dataset)
            result[f"{samples} samples"] = row
            print(json.dumps(row, indent=1), flush=True)
            print(write_result("data_memory", result, args.out), flush=True)


def own_process(option: str, dataset: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, option, str(dataset)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def make_run(work: Path, samples: int) -> Path:
    """A built data folder and a run directory that asks for it; the training split is then made large."""
    from bigtrain.config import dump_settings, load_settings

    (work / "text.jsonl").write_text("".join(json.dumps({"text": f"{n} " * 50}) + "\n" for n in range(100)))
    config = work / "config.yaml"
    settings = {
        "run_dir": str(work / "run"),
        "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
                  "vocab_size": 512, "max_position_embeddings": LENGTH},
        "data": {"dir": str(work / "data"), "sequence_length": LENGTH, "tokenizer": {"vocab_size": 512},
                 "sources": [{"name": FIND[0], "kind": "jsonl", "path": str(work / "text.jsonl")}],
                 "validation": {"fraction": 0.1}},
        "train": {"steps": samples // BATCH, "global_batch_size": BATCH, "micro_batch_size": BATCH},
    }  # fmt: skip
    config.write_text(yaml.safe_dump(settings))
    subprocess.run([*CLI, "data", "build", str(config)], check=True, capture_output=True, cwd=ROOT)
    (work / "run").mkdir()
    (work / "run" / "config.yaml").write_text(dump_settings(load_settings(config)))
    enlarge(work / "data" / FIND[0] / "train", samples)
    return work / "run"


def enlarge(dataset: Path, samples: int) -> None:
    """Replace a dataset by one of so many samples."""
    from bigtrain.data.format.file_record import BLOCK_BYTES, FileRecord
    from bigtrain.data.format.manifest import DatasetManifest, ShardRecord

    small = DatasetManifest.read(dataset)
    for path in dataset.iterdir():
        path.unlink()
    tokens = LENGTH * SHARD_SAMPLES
    zeros = [xxhash.xxh3_128_hexdigest(bytes(size)) for size in (BLOCK_BYTES, 2 * tokens % BLOCK_BYTES)]
    tok_blocks = [zeros[0]] * (2 * tokens // BLOCK_BYTES) + zeros[1:]
    families = [write_documents(dataset / f"family-{n}", n, tokens) for n in range(FAMILIES)]
    single = write_documents(dataset / "single", FAMILIES, tokens, file=FIND[1])
    shards = []
    count = max(1, samples // SHARD_SAMPLES)
    for index in range(count):
        with (dataset / f"{index:05d}.tok").open("wb") as tok:
            tok.truncate(2 * tokens)
        path, size, blocks = single if index == count * 2 // 3 else families[index % FAMILIES]
        os.link(path, dataset / f"{index:05d}.doc")
        files = [FileRecord(f"{index:05d}.tok", 2 * tokens, tok_blocks), FileRecord(f"{index:05d}.doc", size, blocks)]
        shards.append(ShardRecord(tokens, SHARD_SAMPLES, files))
    for path, *_ in (*families, single):
        path.unlink()
    replace(small, dtype="<u2", shards=shards, format=None).write(dataset)


def write_documents(path: Path, family: int, tokens: int, file: str | None = None) -> tuple[Path, int, Sequence[str]]:
    """The `.doc` file of SHARD_SAMPLES documents of about a sample's length; its size and block hashes."""
    from bigtrain.data.format.shards import BlockHasher, ShardWriter, TokenizedDocuments

    rng = np.random.default_rng(family)
    ends = np.sort(rng.choice(np.arange(1, tokens), SHARD_SAMPLES - 1, replace=False))
    lengths = np.diff(np.concatenate(([0], ends, [tokens]))).tolist()
    ids = [hashlib.blake2b(f"{family} {n}".encode(), digest_size=16).digest() for n in range(SHARD_SAMPLES)]
    writer = ShardWriter(path.with_name(f"{path.name}-folder"), 0)
    files = [file or f"file-{family}"] * SHARD_SAMPLES
    # without the tokens themselves: of what is written here, only the columns are kept
    writer.append(TokenizedDocuments(np.empty(0, "<u2"), lengths, ids, files, list(range(SHARD_SAMPLES))))
    record = writer.finish()
    assert record is not None
    folder = path.with_name(f"{path.name}-folder")
    (folder / "00000.doc").rename(path)
    (folder / "00000.tok").unlink()
    folder.rmdir()
    hasher = BlockHasher()
    hasher.update(memoryview(path.read_bytes()))
    return path, record.files[1].size, record.files[1].blocks


def measure(folder: Path) -> dict[str, Any]:
    """Open, plan and load in this process; what it holds after each of them."""
    import torch  # noqa: F401  what the loader imports when it makes its first tensor

    from bigtrain.config import BatchSchedule
    from bigtrain.data import Dataset, Loader, Plan
    from bigtrain.data.batch.packing import ConcatPacking
    from bigtrain.data.order.mixture import MixturePhase
    from bigtrain.data.order.plan import PlannedSource

    held, seconds = {"after imports": memory()}, {}

    def note(what: str, started: float) -> None:
        held[f"after {what}"], seconds[what] = memory(), time.perf_counter() - started

    started = time.perf_counter()
    dataset = Dataset(folder)
    note("opening the manifest", started)
    started = time.perf_counter()
    packing = ConcatPacking(dataset, LENGTH)
    source = PlannedSource(dataset.name, dataset.dataset_id, dataset.tokens, packing.rows)
    plan = Plan([source], [MixturePhase(0, (1,))], seed=0, sequence_length=LENGTH, batches=BatchSchedule([], BATCH))
    note("the plan", started)
    started = time.perf_counter()
    spread_out = np.linspace(0, packing.rows - 1, PLANNED).astype(np.int64)
    for start in range(0, PLANNED, 1024):
        plan.locate_many(spread_out[start : start + 1024])
    note(f"planning {PLANNED} samples", started)
    taking = time.perf_counter()
    first_batches = []
    for place in range(PLACES):
        first = packing.rows * place // PLACES // BATCH * BATCH
        started = time.perf_counter()
        with Loader(plan, [packing], first_sample=first, micro_batch_size=BATCH) as loader:
            next(loader)
            first_batches.append(1e3 * (time.perf_counter() - started))
            for _ in range(BATCHES - 1):
                next(loader)
    note(f"{PLACES * BATCHES} batches of {BATCH} from {PLACES} places", taking)
    return {
        "documents": dataset.manifest.documents,
        "tokens": dataset.tokens,
        "shards": len(dataset.shards),
        "seconds": seconds,
        "milliseconds to the first batch": first_batches,
        "megabytes": held,
        "megabytes by opening, planning and loading": held[list(held)[-1]]["own"] - held["after imports"]["own"],
        "open files": len(list(Path("/proc/self/fd").iterdir())),
    }


def measure_index(folder: Path) -> dict[str, Any]:
    """Make the index by id in this process."""
    from bigtrain.data import Dataset
    from bigtrain.data.store.document_index import write_index

    dataset = Dataset(folder)
    before, peak, started = memory(), [0.0], time.perf_counter()
    watch(peak)
    size = write_index(dataset).stat().st_size
    return {
        "seconds": time.perf_counter() - started,
        "gigabytes": size / 1e9,
        "megabytes before": before,
        "peak of own megabytes": peak[0],
    }


def watch(peak: list[float]) -> None:
    """Keep the largest RssAnon from now on in `peak`."""
    import threading

    def look() -> None:
        while True:
            peak[0] = max(peak[0], memory()["own"])
            time.sleep(0.05)

    threading.Thread(target=look, daemon=True).start()


def memory() -> dict[str, float]:
    """Megabytes: what the process holds itself, and the peak with mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = {key: value for key, _, value in (line.partition(":") for line in lines)}
    return {
        "own": int(status["RssAnon"].split()[0]) / 1024,
        "peak with mapped files": int(status["VmHWM"].split()[0]) / 1024,
    }


def ask(run: Path, dataset: Path) -> dict[str, Any]:
    """Seconds of the commands, start of the program included, each asked three times: the first time is the slowest."""
    source, file, position = FIND
    identity = hashlib.blake2b(f"{FAMILIES} {position}".encode(), digest_size=16).hexdigest()
    steps = yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"]
    questions = {
        "where --step": ("where", str(run), "--step", str(random.Random(0).randrange(1, steps))),
        "when --document SOURCE:FILE:POSITION": ("when", str(run), "--document", f"{source}:{file}:{position}"),
        "when --document ID": ("when", str(run), "--document", identity),
    }
    answers: dict[str, Any] = {}
    for name, arguments in questions.items():
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            done = subprocess.run([*CLI, "data", *arguments, "--json"], capture_output=True, text=True, cwd=ROOT)
            seconds.append(time.perf_counter() - started)
        if done.returncode:
            answers[name] = {"failed": done.stderr.strip().splitlines()[-1]}
            continue
        found = json.loads(done.stdout)
        if arguments[0] == "when":
            assert (found["document"]["id"], found["appearances"] != []) == (identity, True)
        answers[name] = {"seconds": seconds}
    return answers


if __name__ == "__main__":
    main()

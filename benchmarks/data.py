"""The data path, side by side: loader throughput against peers, resume time, planning, and build speed.

    python benchmarks/data.py [--data datasets/quickstart] [--repeats 5] [--peers DIR]

Loader: the same token stream, samples of 2,048 tokens, batches of 8, from the page cache, in one process without
workers; tokens per second of processor time of the whole process (a "core", helper threads counted) and of the clock.
bigtrain alone also gives labels, positions and document boundaries, and hashes each sample. Peers that are not
installed here get an environment of their own under --peers, made on first use (torch held below 2.14). The contestants
take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigtrain.data import Packing, Plan

LENGTH, BATCH = 2048, 8
CONTESTANTS = ("bigtrain", "memmap", "datasets", "litdata", "mosaicml-streaming")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("datasets/quickstart"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "bigtrain-peers")
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        print(json.dumps(measure(LOADERS[args.contestant](args.work, args.data), args.seconds)))
    else:
        compare(args)


def measure(batches: Iterator[int], seconds: float) -> dict[str, float]:
    """Tokens per second of processor time and of the clock, after a warm-up."""
    for _ in range(64):
        next(batches)
    tokens, wall, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        for _ in range(16):
            tokens += next(batches)
    return {
        "per_core": tokens / (time.process_time() - processor),
        "per_second": tokens / (time.perf_counter() - wall),
    }


def plan_over(data: Path) -> tuple[Plan, Packing]:
    """The plan of a run over the source code, and the source."""
    from bigtrain.config import BatchSchedule
    from bigtrain.data import Dataset, Plan
    from bigtrain.data.batch.packing import ConcatPacking
    from bigtrain.data.order.mixture import MixturePhase
    from bigtrain.data.order.plan import PlannedSource

    dataset = Dataset(data / "source" / "train")
    packing = ConcatPacking(dataset, LENGTH)
    source = PlannedSource(dataset.name, dataset.dataset_id, dataset.tokens, packing.rows)
    plan = Plan([source], [MixturePhase(0, (1,))], seed=0, sequence_length=LENGTH, batches=BatchSchedule([], BATCH))
    return plan, packing


def bigtrain_loader(work: Path, data: Path) -> Iterator[int]:
    from bigtrain.data import Loader

    plan, packing = plan_over(data)
    with Loader(plan, [packing], micro_batch_size=BATCH) as loader:
        for batch in loader:
            yield batch.micro_batches[0].input_ids.numel()


def memmap_loader(work: Path, data: Path) -> Iterator[int]:
    """nanoGPT's get_batch: random offsets into one array."""
    import numpy as np
    import torch

    tokens = np.memmap(work / "tokens.bin", dtype=np.uint16, mode="r")
    while True:
        starts = torch.randint(len(tokens) - LENGTH - 1, (BATCH,)).tolist()
        x = torch.stack([torch.from_numpy(tokens[i : i + LENGTH].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + LENGTH].astype(np.int64)) for i in starts])
        assert y.shape == x.shape
        yield x.numel()


def datasets_loader(work: Path, data: Path) -> Iterator[int]:
    from datasets import load_from_disk
    from torch.utils.data import DataLoader

    dataset = load_from_disk(str(work / "datasets")).with_format("torch")
    while True:
        for batch in DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True):
            yield batch["input_ids"].numel()


def litdata_loader(work: Path, data: Path) -> Iterator[int]:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    dataset = StreamingDataset(str(work / "litdata"), item_loader=TokensLoader(block_size=LENGTH), shuffle=True)
    while True:
        for batch in StreamingDataLoader(dataset, batch_size=BATCH, drop_last=True):
            yield batch.numel()


def mosaic_loader(work: Path, data: Path) -> Iterator[int]:
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    dataset = StreamingDataset(local=str(work / "mosaic"), shuffle=True, batch_size=BATCH)
    while True:
        for batch in DataLoader(dataset, batch_size=BATCH, drop_last=True):
            yield batch["tokens"].numel()


LOADERS: dict[str, Callable[[Path, Path], Iterator[int]]] = {
    "bigtrain": bigtrain_loader,
    "memmap": memmap_loader,
    "datasets": datasets_loader,
    "litdata": litdata_loader,
    "mosaicml-streaming": mosaic_loader,
}

WRITE_LITDATA = """
import sys, numpy, torch
from litdata import TokensLoader, optimize
rows = numpy.fromfile(sys.argv[1], numpy.uint16)
def samples(start):
    for i in range(start, min(start + 1_000_000, len(rows)), {length}):
        yield torch.from_numpy(rows[i:i + {length}].astype(numpy.int64))
if __name__ == "__main__":
    optimize(samples, list(range(0, len(rows), 1_000_000)), sys.argv[2], item_loader=TokensLoader(block_size={length}),
             chunk_bytes="64MB", num_workers=1)
"""
WRITE_MOSAIC = """
import sys, numpy
from streaming import MDSWriter
rows = numpy.fromfile(sys.argv[1], numpy.uint16)
with MDSWriter(out=sys.argv[2], columns={{"tokens": "ndarray:uint16"}}) as out:
    for i in range(0, len(rows) - {length}, {length}):
        out.write({{"tokens": rows[i:i + {length}]}})
"""


def compare(args: argparse.Namespace) -> None:
    from build_speed import build_speed
    from record import spread, write_result

    rates: dict[str, list[dict[str, float]]] = {}
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pythons = prepare(args.data, work, args.peers, failures)
        for repeat in range(args.repeats):
            for name, python in pythons.items():
                command = [str(python), __file__, "--contestant", name, "--work", folder, "--data", str(args.data)]
                done = subprocess.run([*command, "--seconds", str(args.seconds)], capture_output=True, text=True)
                if done.returncode:
                    failures[name] = done.stderr.strip().splitlines()[-1]
                    continue
                rates.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
                now = rates[name][-1]
                print(
                    f"repeat {repeat + 1}/{args.repeats}  {name:20} {now['per_core'] / 1e6:8.1f} M tokens/s a core, "
                    f"{now['per_second'] / 1e6:8.1f} M tokens/s",
                    flush=True,
                )
    rows: dict[str, Any] = {}
    print(f"\n{'loader':20} {'M tokens/s a core':>18} {'M tokens/s':>11}  bigtrain is faster by (a core; range)")
    for name, values in rates.items():
        ratios = [a["per_core"] / b["per_core"] for a, b in zip(rates["bigtrain"], values, strict=False)]
        rows[name] = {key: spread([value[key] for value in values]) for key in ("per_core", "per_second")}
        rows[name]["bigtrain_is_faster_by"] = spread(ratios)
        print(
            f"{name:20} {rows[name]['per_core']['median'] / 1e6:18.1f} "
            f"{rows[name]['per_second']['median'] / 1e6:11.1f}  "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    build = build_speed(min(args.repeats, 3), args.peers, failures)
    result = {"loader": rows, "not_measured": failures, **closed_form(args.data), "build": build}
    print(json.dumps({key: result[key] for key in ("resume", "planning", "build")}, indent=1))
    for name, why in failures.items():
        print(f"{name:20} not measured: {why}")
    print(write_result("data", result, args.out))


def prepare(data: Path, work: Path, peers: Path, failures: dict[str, str]) -> dict[str, Path]:
    """Write the same tokens in every contestant's format; the Python that each runs under."""
    import numpy as np
    from datasets import Dataset as HubDataset
    from peers import environment, reason

    shards = sorted((data / "source" / "train").glob("*.tok"))
    tokens = np.concatenate([np.fromfile(shard, np.uint16) for shard in shards])
    tokens.tofile(work / "tokens.bin")
    rows = tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)
    HubDataset.from_dict({"input_ids": rows.astype(np.int32)}).save_to_disk(str(work / "datasets"))
    pythons = {name: Path(sys.executable) for name in ("bigtrain", "memmap", "datasets")}
    for name, script in (("litdata", WRITE_LITDATA), ("mosaicml-streaming", WRITE_MOSAIC)):
        try:
            python = environment(peers, name)
            (work / "write.py").write_text(script.format(length=LENGTH))
            target = work / ("litdata" if name == "litdata" else "mosaic")
            command = [str(python), str(work / "write.py"), str(work / "tokens.bin"), str(target)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            pythons[name] = python
        except subprocess.SubprocessError as error:
            failures[name] = reason(error)
    return pythons


def closed_form(data: Path) -> dict[str, Any]:
    """Time to the first batch after a resume, and of planning, at sample numbers far apart."""
    import numpy as np
    from record import spread

    from bigtrain.data import Loader

    plan, packing = plan_over(data)
    resume, planning = {}, {}
    for first in (10**6, 10**8, 10**9):
        seconds = []
        for _ in range(9):
            started = time.perf_counter()
            with Loader(plan, [packing], first_sample=first, micro_batch_size=BATCH) as loader:
                next(loader)
                seconds.append(1e3 * (time.perf_counter() - started))
        resume[f"milliseconds at sample {first}"] = spread(seconds)
        seconds = []
        for _ in range(9):
            started = time.perf_counter()
            plan.locate_many(np.arange(first, first + 1024))
            seconds.append(1e6 * (time.perf_counter() - started) / 1024)
        planning[f"microseconds a sample at sample {first}"] = spread(seconds)
    return {"resume": resume, "planning": planning}


if __name__ == "__main__":
    main()

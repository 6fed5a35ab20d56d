"""CPU seconds and memory of a start's data, of a rank that only hears of them, and of the records of a long run.

    python benchmarks/scale_records.py data FOLDER [SOURCES SHARDS]      made once in FOLDER
    python benchmarks/scale_records.py records FOLDER [STARTS STEPS]     of a run of so many starts, made once in FOLDER
    python benchmarks/scale_records.py report FOLDER                     of that run

Each figure is of one process, which prints it as a line of JSON; run it again for a repeat.
"""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigtrain.data.format.file_record import BLOCK_BYTES, FileRecord
from bigtrain.data.format.manifest import DatasetManifest, ShardRecord
from bigtrain.data.format.summary import DatasetSummary
from bigtrain.data.store.store import Dataset
from bigtrain.report import write_report
from bigtrain.rundir import RunDirectory, account_of

TOKENS, DOC_BYTES = 750_000_000, 24_000_000
"""Of a shard: 3 GB of u32 ids."""


def peak_mib() -> float:
    """The peak of this process. `getrusage` would give that of its parent too, at the time of the start."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measured(name: str, action: Callable[[], Any]) -> Any:
    """Print the CPU seconds of an action, the growth of the peak and the peak of the process; return its result."""
    before, start = peak_mib(), time.process_time()
    result = action()
    seconds = time.process_time() - start
    peak = peak_mib()
    found = {"cpu_seconds": round(seconds, 3), "peak_grew_mib": round(peak - before, 1), "peak_mib": round(peak, 1)}
    print(json.dumps({"what": name, **found}), flush=True)
    return result


def data(folder: Path, sources: int = 50, shards: int = 400) -> None:
    """What the rank that opens a source does, and what the others do with the message about all of them."""
    folders = [folder / f"s{number:02d}" for number in range(sources)]
    draw = random.Random(0)
    for each in (each for each in folders if not (each / "manifest.json").exists()):
        each.mkdir(parents=True)
        records = [
            ShardRecord(
                TOKENS, 750_000, [_file(draw, f"{n:05d}.tok", 4 * TOKENS), _file(draw, f"{n:05d}.doc", DOC_BYTES)]
            )
            for n in range(shards)
        ]
        DatasetManifest(each.name, "train", "<u4", 70_016, {"end_of_text": 0}, "0" * 32, {}, records).write(each)
    summaries = [
        measured("one rank opens the first source", lambda: DatasetSummary.of(DatasetManifest.read(folders[0])))
    ]
    summaries += [DatasetSummary.of(DatasetManifest.read(each)) for each in folders[1:]]
    message = pickle.dumps(summaries)
    print(json.dumps({"what": "the message to all ranks", "bytes": len(message), "shards": sources * shards}))

    def hear() -> list[Dataset]:
        told = pickle.loads(message)
        return [Dataset(each, None, summary) for each, summary in zip(folders, told, strict=True)]

    measured("a rank hears of all sources", hear)


def _file(draw: random.Random, name: str, size: int) -> FileRecord:
    hashes = draw.randbytes(16 * -(-size // BLOCK_BYTES)).hex()
    return FileRecord(name, size, [hashes[at : at + 32] for at in range(0, len(hashes), 32)])


def records(folder: Path, starts: int = 100, steps: int = 10_000) -> None:
    """The ledger at the end of a start, without and with the lines of earlier ones, and the report."""
    run = folder / "run"
    if not run.exists():
        write_run(run, starts, steps)
    directory = RunDirectory.of_existing_run(run)
    directory.ledger.unlink(missing_ok=True)
    measured("ledger, from all records", lambda: account_of(directory, keep=True))
    measured("ledger, from the lines of closed starts", lambda: account_of(directory))
    # In a process of its own, as `bigtrain report` is.
    subprocess.run([sys.executable, __file__, "report", str(folder)], check=True)


def report(folder: Path) -> None:
    """The report of a run that `records` has made."""
    measured("report", lambda: write_report(folder / "run"))


def write_run(run: Path, starts: int, steps: int) -> None:
    """Write the records of a run whose starts are alike: each but the last trains a fiftieth of its steps in vain."""
    from tests.report.helpers import Pen  # imports torch, which a report does without

    pen = Pen(run)
    pen.begin(0)
    pen.train(steps + steps // 50)
    for name in ("events", "metrics"):
        path = run / f"{name}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        with path.open("a") as file:
            for start in range(1, starts):
                for record in records:
                    moved = {
                        key: record[key] + start * by for key, by in (("step", steps), ("start", 1), ("time", pen.now))
                    }
                    if record.get("event") == "start":
                        moved |= {"event": "resume", "from_checkpoint": f"step-{start * steps:08d}"}
                    if "counted_seconds" in record:
                        moved["counted_seconds"] = record["counted_seconds"] + start * pen.counted
                    file.write(json.dumps({**record, **moved}) + "\n")


if __name__ == "__main__":
    what, where, *sizes = sys.argv[1:]
    {"data": data, "records": records, "report": report}[what](Path(where), *map(int, sizes))

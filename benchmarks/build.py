"""How fast text becomes shards, and near-duplicates are found, by each executor and by other tools.

    python benchmarks/build.py [--megabytes 120] [--repeats 5] [--cores 2] [--peers DIR] [--out DIR]
    python benchmarks/build.py --table          # what a build of 15T tokens takes, from the recorded numbers

The text is the standard library's source code, in copies of which some words are others, as JSON lines in a file for
each core. All contestants use the same tokenizer, and take turns; each runs in a process of its own, whose start is not
counted. A Ray cluster runs already when its contestants start.

tokenize   bigtrain inline, with processes, on Ray: documents with ids, a validation split, shards, hashes, fsync
           datatrove's local executor: ids and their ends          Ray Data: map over the same tokenizer, Parquet
duplicates bigtrain: MinHash keys, the shuffle, marks; nothing is tokenized
           datatrove: its MinHash steps up to the ids of what is to be removed, with as many buckets and hashes
memory     the peak of one task that matches keys, by the size of its partition
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers import environment, reason, version
from record import RESULTS, spread, write_result

WORKER = Path(__file__).with_name("build_worker.py")
PEER = Path(__file__).with_name("build_peer.py")
PARTITIONS = (1 << 18, 1 << 20, 1 << 22)
VOCABULARY = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=120, help="of text")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "bigtrain-peers")
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    parser.add_argument("--table", action="store_true", help="print the table of 15T tokens from the recorded numbers")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads((RESULTS / "build.json").read_text())))
        return
    result = compare(args)
    print(write_result("build", result, args.out))
    print(table(result))


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """MB/s of all contestants, ratios of them, and the memory of a task."""
    from ray.cluster_utils import Cluster

    rates: dict[str, dict[str, list[float]]] = {"tokenize": {}, "duplicates": {}}
    failures: dict[str, str] = {}
    peer: dict[str, str] = {}
    try:
        python = environment(args.peers, "datatrove")
        peer["datatrove"] = version(python, "datatrove")
    except subprocess.SubprocessError as error:
        failures["datatrove"] = reason(error)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        megabytes = write_texts(work / "texts", args.megabytes, args.cores)
        ours("tokenizer", work, work / "first", args.cores, "processes", None)
        (work / "first" / "tokenizer.json").rename(work / "tokenizer.json")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": args.cores, "include_dashboard": False})
        try:
            for repeat in range(args.repeats):
                for stage, contestants in stages(args.cores).items():
                    for name, (program, on, cores) in contestants.items():
                        if (program if program == "datatrove" else name) in failures:
                            continue
                        target = work / f"{stage}-{len(rates[stage])}-{repeat}-{on}-{cores}"
                        try:
                            if program == "datatrove":
                                seconds = theirs(python, stage, work, target, cores)
                            else:
                                seconds = ours(stage, work, target, cores, on, cluster.address)
                        except subprocess.SubprocessError as error:
                            failures[program if program == "datatrove" else name] = reason(error)
                            continue
                        rates[stage].setdefault(name, []).append(megabytes / seconds)
                        print(
                            f"{repeat + 1}/{args.repeats} {stage:10} {name:24} {megabytes / seconds:7.2f} MB/s",
                            flush=True,
                        )
                        subprocess.run(["rm", "-rf", str(target)], check=True)
        finally:
            cluster.shutdown()  # type: ignore[no-untyped-call]
        memory = {str(keys): measure_memory(work, keys) for keys in PARTITIONS}
    return {
        "what": __doc__,
        "megabytes": megabytes,
        **peer,
        "not_measured": failures,
        "megabytes_per_second": {
            stage: {name: spread(values) for name, values in found.items()} for stage, found in rates.items()
        },
        "ratios": {stage: ratios(found, args.cores) for stage, found in rates.items()},
        "peak_bytes_a_key": memory,
    }


def stages(cores: int) -> dict[str, dict[str, tuple[str, str, int]]]:
    """For each stage the contestants: the program, what it runs on, and how many cores it has."""
    bigtrain = {
        "bigtrain, inline": ("bigtrain", "inline", 1),
        "bigtrain, 1 process": ("bigtrain", "processes", 1),
        f"bigtrain, {cores} processes": ("bigtrain", "processes", cores),
        f"bigtrain, Ray, {cores} cores": ("bigtrain", "ray", cores),
    }
    datatrove = {f"datatrove, {count} process(es)": ("datatrove", "processes", count) for count in (1, cores)}
    ray_data = {f"Ray Data, {cores} cores": ("ray-data", "ray-data", cores)}
    return {"tokenize": bigtrain | datatrove | ray_data, "duplicates": bigtrain | datatrove}


def ratios(rates: dict[str, list[float]], cores: int) -> dict[str, Any]:
    """How much faster one contestant was than another one, repeat by repeat."""
    pairs = {
        "one process over inline": ("bigtrain, 1 process", "bigtrain, inline"),
        f"{cores} processes over one": (f"bigtrain, {cores} processes", "bigtrain, 1 process"),
        f"Ray over {cores} processes": (f"bigtrain, Ray, {cores} cores", f"bigtrain, {cores} processes"),
        "bigtrain over datatrove, 1 process": ("bigtrain, 1 process", "datatrove, 1 process(es)"),
        f"bigtrain over datatrove, {cores} processes": (
            f"bigtrain, {cores} processes",
            f"datatrove, {cores} process(es)",
        ),
        "bigtrain on Ray over Ray Data": (f"bigtrain, Ray, {cores} cores", f"Ray Data, {cores} cores"),
    }
    return {
        name: spread([a / b for a, b in zip(rates[one], rates[other], strict=False)])
        for name, (one, other) in pairs.items()
        if one in rates and other in rates
    }


def write_texts(folder: Path, megabytes: float, files: int) -> float:
    """JSON lines of about so many megabytes of text, in so many files. Returns the megabytes."""
    from bigtrain.config import SourceSettings
    from bigtrain.data.build.corpus import read_documents

    texts = [d.text for d in read_documents(SourceSettings(name="source", kind="python_stdlib")) if d.text]
    chance = random.Random(0)
    folder.mkdir()
    written, copy = 0, 0
    streams = [(folder / f"{part:02d}.jsonl").open("w") for part in range(files)]
    while written < megabytes * 1e6:
        for number, text in enumerate(texts):
            if copy:
                share = chance.random() * 0.2
                text = "".join(
                    f"w{chance.randrange(10**6)} " if chance.random() < share else word for word in words(text)
                )
            streams[number % files].write(json.dumps({"text": text}) + "\n")
            written += len(text.encode())
            if written >= megabytes * 1e6:
                break
        copy += 1
    for stream in streams:
        stream.close()
    return written / 1e6


def words(text: str) -> list[str]:
    """The words of a text, each with the blank after it."""
    return [f"{word} " for word in text.split(" ")]


def ours(stage: str, work: Path, target: Path, cores: int, on: str, address: str | None) -> float:
    """Seconds of a stage of bigtrain, or of Ray Data, in a process of its own."""
    command = [sys.executable, WORKER, stage, work, target, str(cores), on]
    around = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    around |= {"RAY_ADDRESS": address} if address and on.startswith("ray") else {}
    return last_number(command, around)


def theirs(python: Path, stage: str, work: Path, target: Path, cores: int) -> float:
    """Seconds of a stage of datatrove, in a process of its own, each of its processes with one thread."""
    around = {**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return last_number([python, PEER, stage, work, target, str(cores)], around)


def measure_memory(work: Path, keys: int) -> float:
    """Bytes of the peak of a process that matches a partition of so many keys, for each key."""
    return (
        last_number([sys.executable, WORKER, "memory", work, work / f"memory-{keys}", str(keys), "inline"], None) / keys
    )


def last_number(command: list[Any], around: dict[str, str] | None) -> float:
    """The number in the last line that a command prints."""
    done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True, env=around, timeout=3600)
    return float(done.stdout.splitlines()[-1])


TOKENS = 15e12
BYTES_PER_TOKEN, TOKENS_PER_DOCUMENT = 3.0, 600
"""As FineWeb: 15T tokens in 45 TB of text and some 25 billion documents (Penedo et al. 2024)."""
KEY_BYTES, PAIRS_PER_DOCUMENT, PAIR_BYTES, ROUNDS = 20 + 14 * 12, 2, 32, 6
"""Of a document: keys of its text and 14 bands, the pairs that join it with others, and the rounds that they take."""
CORES, NETWORK, DISK = 96, 25e9 / 8, 2e9
"""Assumed of a machine: cores, and bytes per second of its network (25 Gbit/s) and of its share of the file system."""


def table(result: dict[str, Any]) -> str:
    """Hours of each stage of a build of 15T tokens, by the number of machines, as Markdown."""
    rates = result["megabytes_per_second"]
    per_core = {stage: rates[stage]["bigtrain, 1 process"]["median"] * 1e6 for stage in rates}
    text, documents = TOKENS * BYTES_PER_TOKEN, TOKENS / TOKENS_PER_DOCUMENT
    pairs = documents * PAIRS_PER_DOCUMENT * PAIR_BYTES * 2 * ROUNDS
    work = {  # processor seconds of one core, bytes over the network, bytes at the file system
        "keys": (text / per_core["duplicates"], text, documents * KEY_BYTES),
        "shuffle": (0.0, documents * KEY_BYTES + pairs, documents * KEY_BYTES + 2 * pairs),
        "tokens and shards": (text / per_core["tokenize"], text + 2 * TOKENS, 4 * 2 * TOKENS),
    }
    lines = ["| machines | " + " | ".join(work) + " | all | bottleneck |", "| ---: " * (len(work) + 2) + "| --- |"]
    for machines in (1, 8, 32, 128):
        hours, slowest = [], ("", 0.0)
        for stage, (seconds, network, disk) in work.items():
            parts = {"cores": seconds / CORES, "network": network / NETWORK, "disk": disk / DISK}
            name = max(parts, key=lambda part: parts[part])
            hours.append(parts[name] / machines / 3600)
            slowest = max(slowest, (f"{stage}: {name}", hours[-1]), key=lambda found: found[1])
        cells = [f"{value:,.1f}" for value in (*hours, sum(hours))]
        lines.append(f"| {machines} | " + " | ".join(cells) + f" | {slowest[0]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

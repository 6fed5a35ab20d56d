"""How fast text becomes token shards: bigtrain, datatrove, and a plain `tokenizers` loop that writes nothing.

The text is the standard library's source code, one JSON line a file. Both programs read that file and use the same
tokenizer. What each does beside tokenizing:

    plain loop   nothing: the texts are in memory, the ids are dropped
    bigtrain     parses the JSON, gives every document an id (a hash), splits off validation, writes shards with
                 document columns and block hashes, fsyncs them, and counts for the funnel
    datatrove    parses the JSON, writes the ids with an index of the documents' ends, and its logs, statistics and
                 completion marks; shuffling documents inside the file is switched off
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import environment, reason, version
from record import spread

VOCABULARY = 4096
PROCESSES = (1, 2)

DATATROVE = """
import sys, time
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
texts, tokenizer, target, processes = *sys.argv[1:4], int(sys.argv[4])
if __name__ == "__main__":
    pipeline = [
        JsonlReader(texts),
        DocumentTokenizer(target, tokenizer, eos_token="<|endoftext|>", batch_size=100, shuffle_documents=False),
    ]
    started = time.perf_counter()
    LocalPipelineExecutor(pipeline, tasks=processes, workers=processes, logging_dir=target + "/logs").run()
    print(time.perf_counter() - started)
"""


def build_speed(repeats: int, peers: Path, failures: dict[str, str]) -> dict[str, Any]:
    """MB/s of every contestant, taking turns, and ratios of them; a peer that does not run is named in `failures`."""
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        texts = write_texts(work)
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        build_with_bigtrain(work, "tokenizer", 2, None)
        tokenizer = work / "tokenizer"
        peer: dict[str, Any] = {}
        try:
            python = environment(peers, "datatrove")
            peer["datatrove"] = version(python, "datatrove")
        except subprocess.SubprocessError as error:
            failures["datatrove"] = reason(error)
        for repeat in range(repeats):
            seconds = {"plain tokenizers loop": plain_loop(tokenizer, texts)}
            for count in PROCESSES:
                seconds[f"bigtrain, {count}"] = build_with_bigtrain(work, f"{repeat}-{count}", count, tokenizer)
                if "datatrove" not in failures:
                    target = work / f"datatrove-{repeat}-{count}"
                    try:
                        seconds[f"datatrove, {count}"] = build_with_datatrove(python, work, target, count)
                    except subprocess.SubprocessError as error:
                        failures["datatrove"] = reason(error)
            for name, value in seconds.items():
                rates.setdefault(name, []).append(megabytes / value)
            print(
                f"build {repeat + 1}/{repeats}  "
                + ", ".join(f"{name} {values[-1]:.1f} MB/s" for name, values in rates.items()),
                flush=True,
            )
        if "datatrove" not in failures:
            peer["tokens of both"] = same_tokens(work / "0-1", work / "datatrove-0-1")
    ratios = {
        "bigtrain over the plain loop, 1 process": ("bigtrain, 1", "plain tokenizers loop"),
        "bigtrain, 2 processes over 1": ("bigtrain, 2", "bigtrain, 1"),
    }
    if "datatrove" not in failures:
        for count in PROCESSES:
            ratios[f"bigtrain over datatrove, {count} process(es)"] = (f"bigtrain, {count}", f"datatrove, {count}")
    return {
        "what": __doc__,
        "megabytes": megabytes,
        **peer,
        "megabytes_per_second": {name: spread(values) for name, values in rates.items()},
        "ratios": {
            name: spread([a / b for a, b in zip(rates[ours], rates[theirs], strict=True)])
            for name, (ours, theirs) in ratios.items()
        },
    }


def write_texts(work: Path) -> list[str]:
    """The texts, and the same as JSON lines, in two files so that two processes of a peer have one each."""
    from bigtrain.config import SourceSettings
    from bigtrain.data.build.corpus import read_documents

    texts = [d.text for d in read_documents(SourceSettings(name="source", kind="python_stdlib")) if d.text]
    (work / "texts").mkdir()
    half, written = sum(map(len, texts)) / 2, 0
    files = [(work / "texts" / f"{part}.jsonl").open("w") for part in range(2)]
    for text in texts:
        files[written >= half].write(json.dumps({"text": text}) + "\n")
        written += len(text)
    for file in files:
        file.close()
    return texts


def plain_loop(tokenizer_folder: Path, texts: list[str]) -> float:
    """Seconds to encode the texts one after the other."""
    from bigtrain.data.format.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder)
    started = time.perf_counter()
    for text in texts:
        tokenizer.encode(text)
    return time.perf_counter() - started


def build_with_bigtrain(work: Path, name: str, processes: int, tokenizer: Path | None) -> float:
    """Seconds of a build into `work/name`."""
    from bigtrain.config import DataSettings, SourceSettings, TokenizerSettings
    from bigtrain.data import build_datasets

    settings = DataSettings(
        dir=work / name,
        tokenizer=TokenizerSettings(path=tokenizer, vocab_size=VOCABULARY, train_bytes=5_000_000),
        sources=[SourceSettings(name="source", kind="jsonl", path=str(work / "texts"))],
        sequence_length=2048,
        workers=processes,
    )
    started = time.perf_counter()
    build_datasets(settings, vocab_size=VOCABULARY, report=lambda _: None)
    return time.perf_counter() - started


def build_with_datatrove(python: Path, work: Path, target: Path, processes: int) -> float:
    """Seconds of its pipeline, without the start of the program, each process with one thread."""
    script = work / "datatrove_pipeline.py"
    script.write_text(DATATROVE)
    command = [python, script, work / "texts", work / "tokenizer" / "tokenizer.json", target, str(processes)]
    one_thread = {**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True, env=one_thread, timeout=600)
    return float(done.stdout.splitlines()[-1])


def same_tokens(ours: Path, theirs: Path) -> int:
    """How many tokens both wrote. Raises RuntimeError where the numbers differ: they did not do the same work."""
    from bigtrain.data.format.manifest import DatasetManifest

    mine = sum(DatasetManifest.read(ours / "source" / split).tokens for split in ("train", "validation"))
    others = sum(path.stat().st_size for path in theirs.glob("*.ds")) // 2
    if mine != others:
        raise RuntimeError(f"bigtrain wrote {mine:,} tokens, datatrove {others:,}")
    return mine


if __name__ == "__main__":
    failed: dict[str, str] = {}
    print(json.dumps(build_speed(1, Path(tempfile.gettempdir()) / "bigtrain-peers", failed), indent=1), failed)

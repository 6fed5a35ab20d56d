"""One measurement of datatrove for `build.py`, in datatrove's own environment; prints seconds in its last line.

python benchmarks/build_peer.py STAGE WORK TARGET PROCESSES
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer

CONFIG = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)


def tokenize(work: Path, target: Path, processes: int) -> None:
    """Ids with an index of the documents' ends. Shuffling documents inside a file is switched off."""
    tokenizer = DocumentTokenizer(
        str(target),
        str(work / "tokenizer.json"),
        eos_token="<|endoftext|>",
        batch_size=100,
        shuffle_documents=False,
    )
    run([JsonlReader(str(work / "texts")), tokenizer], target, "tokenize", processes, processes)


def duplicates(work: Path, target: Path, processes: int) -> None:
    """Signatures, buckets and clusters, up to the ids of the documents to remove."""
    texts, minhash = str(work / "texts"), str(target)
    run(
        [JsonlReader(texts), MinhashDedupSignature(f"{minhash}/signatures", config=CONFIG)],
        target,
        "1",
        processes,
        processes,
    )
    buckets = MinhashDedupBuckets(f"{minhash}/signatures", f"{minhash}/buckets", config=CONFIG)
    run([buckets], target, "2", CONFIG.num_buckets, processes)
    run([MinhashDedupCluster(f"{minhash}/buckets", f"{minhash}/removed", config=CONFIG)], target, "3", 1, 1)


def run(pipeline: list[PipelineStep], target: Path, name: str, tasks: int, workers: int) -> None:
    """Run a pipeline to its end."""
    LocalPipelineExecutor(pipeline, tasks=tasks, workers=workers, logging_dir=str(target / "logs" / name)).run()


if __name__ == "__main__":
    stage, work, target, count = sys.argv[1:]
    started = time.perf_counter()
    {"tokenize": tokenize, "duplicates": duplicates}[stage](Path(work), Path(target), int(count))
    print(time.perf_counter() - started)

"""What the watch over a large job costs its first rank, with bigtrain's own functions: CPU seconds, questions, bytes.

    PYTHONPATH=. python benchmarks/scale_health.py [RANKS ...]        default: 1024 4096 16384

It prints a JSON object a line, one for each size and part:

- stragglers: one comparison of all ranks, as after every `guard.straggler_every_steps`.
- messages: one round of rank 0's watchdog, which receives the messages of all ranks from a real store on loopback, and
  again with a store whose every question takes 150 us more; with the questions that it asks.
- summaries: the same for the summaries of all ranks' thread dumps.
- preflight: the assessment of every check on rank 0, the lines that it prints, and the bytes of doctor.json.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from bigtrain.cli.doctor_command import lines
from bigtrain.health.stragglers import RankComparison
from bigtrain.health.watchdog import Bounds, HeartbeatThread
from tests.scale.growth import cpu_seconds
from tests.scale.other_ranks import POSITION, WAITS
from tests.scale.test_preflight import A_HOST, assess_all, job, measurements
from tests.scale.test_watchdog import SLOW_STORE, RemoteStore

SIZES = (1024, 4096, 16384)


def stragglers(ranks: int) -> dict[str, Any]:
    """Measure one comparison of all ranks."""
    draw, comparison = random.Random(ranks), RankComparison(0.2)
    seconds, hosts = [draw.uniform(0.9, 1.1) for _ in range(ranks)], ["host"] * ranks
    return {"cpu_seconds": cpu_seconds(lambda: comparison.add(seconds, hosts))}


def watchdog(ranks: int, server: TCPStore) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure rank 0's rounds, of messages and of summaries, on loopback and with a slow store."""
    bounds, prefix = Bounds(300, 1800, ranks), f"watch/{ranks}"
    connection = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
    for rank in range(ranks):
        other = HeartbeatThread(rank, bounds, prefix)
        other._store = connection
        other.message = {"number": 7, "position": POSITION, "overdue": True, "late": False, "host": f"node-{rank // 8}"}
        other.send_summary(WAITS)
        other.exchange()
    for seconds in (0.0, SLOW_STORE):
        leader = HeartbeatThread(0, bounds, prefix)
        leader._store = store = RemoteStore(connection, seconds)
        leader.listening = True
        yield "messages", {"question_seconds": seconds, **_round(leader.exchange, store)}
        assert len(leader.received) == ranks - 1
        leader._collects = True
        yield "summaries", {"question_seconds": seconds, **_round(leader.exchange, store)}
        assert len(leader.summaries()) == ranks


def _round(work: Callable[[], object], store: RemoteStore) -> dict[str, Any]:
    store.questions = 0
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    taken = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    return {**taken, "questions": store.questions}


def preflight(ranks: int) -> dict[str, Any]:
    """Measure what rank 0 does with the measurements of all ranks."""
    os.environ["LOCAL_WORLD_SIZE"] = str(A_HOST)
    with tempfile.TemporaryDirectory() as folder:
        context = job(ranks, Path(folder))
        measured = measurements(context)
        start = time.process_time()
        checks = assess_all(context, measured)
        seconds = time.process_time() - start
    report = checks.report()
    record = {**report.as_dict(), "measured": context.measured}
    size = len(json.dumps({"last": record, "past": context.history.past}, indent=1))
    return {"cpu_seconds": seconds, "lines": len(list(lines(report))), "doctor_json_bytes": size}


def main(sizes: list[int]) -> None:
    """Measure all sizes."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    for ranks in sizes:
        results = [("stragglers", stragglers(ranks)), *watchdog(ranks, server), ("preflight", preflight(ranks))]
        for part, result in results:
            rounded = {key: float(f"{value:.3g}") for key, value in result.items()}
            print(json.dumps({"part": part, "ranks": ranks, **rounded}), flush=True)


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]] or list(SIZES))

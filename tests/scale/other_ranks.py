"""All ranks of runs but rank 0, as far as its watchdog can see them: the real heartbeat threads, one after the other.

    python -m tests.scale.other_ranks PORT

Each line of stdin is a run, in JSON: `prefix`, `bounds` (step, slow, ranks), `culprit`, `silent` (ranks that send one
message only), `unknown` (ranks that send no summary). All ranks are overdue at the same position; all but the culprit
are inside a collective. A run is over when its hang has been declared and the summaries are sent.
"""

import json
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore

from bigtrain.health.heartbeat import LoopPhase, Position
from bigtrain.health.thread_dump import ThreadDump
from bigtrain.health.watchdog import Bounds, HeartbeatThread

POSITION = Position(0, 1001, LoopPhase.FORWARD_BACKWARD, 3)
WAITS = ThreadDump("", "bigtrain/engine/engine.py:150 in step", waits_for_ranks=True, waits_for_disk=False)
STALLED = ThreadDump("", "bigtrain/data/batch/loader.py:99 in __next__", waits_for_ranks=False, waits_for_disk=False)


def play(port: int, run: dict[str, Any]) -> None:
    """Renew all messages every interval; once the hang is declared, send the summaries."""
    bounds, silent = Bounds(**run["bounds"]), set(run["silent"])
    store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
    ranks = {rank: HeartbeatThread(rank, bounds, run["prefix"]) for rank in range(1, bounds.ranks)}
    number = 0
    while True:
        started, number = time.monotonic(), number + 1
        for rank, thread in ranks.items():
            if number == 1 or rank not in silent:
                host = {"host": f"node-{rank // 8:04d}", "pid": 1000 + rank, "machine": ""}
                thread.message = {"number": number, "position": POSITION, "overdue": True, "late": False, **host}
                thread._store = store
                thread.exchange()
        while time.monotonic() < started + bounds.interval:
            if store.check([f"{run['prefix']}/hang"]):
                for rank in ranks.keys() - set(run["unknown"]) - silent:
                    ranks[rank].send_summary(STALLED if rank == run["culprit"] else WAITS)
                    ranks[rank].exchange()
                return
            time.sleep(0.05)


if __name__ == "__main__":
    for line in sys.stdin:
        threading.Thread(target=play, args=(int(sys.argv[1]), json.loads(line)), daemon=True).start()

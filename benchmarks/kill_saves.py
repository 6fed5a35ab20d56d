"""Kill -9 in every phase of saving: what was committed is loaded, what is torn never, and the curve stays the same.

    python benchmarks/kill_saves.py [--savers 215] [--training 70] [--launched 15] [--seed 0] [--small]

Three parts. `savers`: ranks that do nothing but change a state and save it, with the saver that training uses.
`training`: `bigtrain train`; the ranks of both are forked, so that a kill, a restart and a resume take seconds.
`launched`: `bigtrain train` under its launcher, which may be the victim too. All save after every step and begin the
next save while the last is being written. Phases are aimed at by watching the directory from outside, and in `savers`
at the points in the code that bigtrain/base/faults.py names as well; `found_in` says, by what a kill left behind, where
it struck. After each kill the newest committed checkpoint must be good, and be what the next start takes; at the end
every step, done again or not, and every tensor must be what they are in a run that nobody killed.

Status 1 when anything is wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import forked  # first: it forbids threads
from kill_saves_light import killed_savers
from kill_saves_training import killed_trainings
from record import write_result

assert forked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--savers", type=int, default=215, help="kills of ranks that only save")
    parser.add_argument("--training", type=int, default=70, help="kills of training runs")
    parser.add_argument("--launched", type=int, default=15, help="kills of training runs under their launcher")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and of whom to kill")
    parser.add_argument("--small", action="store_true", help="small states and short runs, as the test suite has")
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    args = parser.parse_args()
    result: dict[str, Any] = {"seed": args.seed}
    for part, kills, work_through in (
        ("savers", args.savers, killed_savers),
        ("training", args.training, killed_trainings),
        ("launched", args.launched, partial(killed_trainings, launched=True)),
    ):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=f"bigtrain-kill-{part}-") as folder:
            moments = random.Random(f"{args.seed} {part}")
            for so_far in work_through(Path(folder), kills, moments, small=args.small):
                result[part] = {**so_far, "seconds": round(time.perf_counter() - started)}
                path = write_result("kill_saves", result, args.out)
                print(f"{part}: {so_far['kills']} of {kills} kills, {so_far['wrong']} wrong; {path}", flush=True)
    return int(any(result.get(part, {}).get("wrong") for part in ("savers", "training", "launched")))


if __name__ == "__main__":
    sys.exit(main())

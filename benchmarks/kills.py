"""Kill -9 at random instants of building data and of training: nothing may be lost, repeated or different.

    python benchmarks/kills.py [--build 200] [--training 200] [--seed 0] [--small] [key=value ...]

The commands are those of a user (`bigtrain data build`, `launch/local.sh`); a command that was killed is started again
until it ends by itself, then the next folder or run begins. The instants are those of a Poisson process, so start-up,
saving and the end are hit in proportion to the time they take. More keys of the `data` section, such as
`packing=best_fit` or `dedup=near`, go to both parts. The result is written after every build and every run that was
finished: cut short, it holds what was done.

Status 1 when anything differs from what an undisturbed build or run has.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from kill_build import killed_builds
from kill_training import killed_trainings
from record import write_result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=int, default=200, help="kills of builds")
    parser.add_argument("--training", type=int, default=200, help="kills of training runs")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and of whom to kill")
    parser.add_argument("--small", action="store_true", help="a small corpus and short runs, as the test suite has")
    parser.add_argument("--out", type=Path, default=None, help="folder for the result")
    parser.add_argument("data", nargs="*", metavar="key=value", help="more keys of the data section")
    args = parser.parse_args()
    data = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in args.data)}
    result: dict[str, Any] = {"seed": args.seed}
    for part, kills, work_through in (
        ("build", args.build, killed_builds),
        ("training", args.training, killed_trainings),
    ):
        with tempfile.TemporaryDirectory(prefix=f"bigtrain-kills-{part}-") as folder:
            moments = random.Random(f"{args.seed} {part}")
            for so_far in work_through(Path(folder), kills, moments, data, small=args.small):
                result[part] = so_far
                path = write_result("kills", result, args.out)
                print(f"{part}: {so_far['kills']} of {kills} kills, {so_far['wrong']} wrong; {path}", flush=True)
    return int(any(result.get(part, {}).get("wrong") for part in ("build", "training")))


if __name__ == "__main__":
    sys.exit(main())

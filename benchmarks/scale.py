"""What 1,024, 4,096 and 16,384 ranks cost, by bigtrain's own functions: the audit's table, measured again.

    python benchmarks/scale.py [--parts agreement watch meeting data records checkpoint]

`before` are the figures of the audit of November 2026 (commit 3932aee), on two shared cores as well; those that it
extrapolated say by which law. Seconds are CPU seconds of one process unless they say `wall`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import write_result

ROOT = Path(__file__).parents[1]
BEFORE: dict[str, dict[str, Any]] = {
    "load: manifests gathered on each rank": {
        "1024": "0.13 GB, 5.4 s", "4096": "1.8 GB, 65.6 s, peak 9.6 GB", "16384": "26.9 GB, 1,050 s, by N^2",
    },
    "load at ZeRO 3: pieces parsed on each rank": {"16384": "35.5 million, 376 to 458 s and 16 GB, by N"},
    "commit: gathered on each rank": {"4096": "6.9 s", "16384": "532 MB, 20.5 s, +3.5 GB"},
    "straggler check, on each rank": {"1024": "0.05 s", "4096": "1.42 s", "16384": "30.1 s"},
    "hang: innocent ranks accused": {"4096": "0 to 1,960", "16384": "2,408 to 11,459"},
    "preflight: assessment of local disks": {"16384": "130 s, by N^2"},
    "launchers that meet": {"256": "with torch's handler 128 of 128", "1024": "967 dropped", "2048": "never complete"},
    "rewind: gathered on each rank": {"16384": "+1.3 GB, 2.9 s, then 26,000 opened files"},
    "local tier in another layout: gathered on each rank": {"4096": "1.7 GB", "16384": "27 GB, by N^2"},
    "data of 15T tokens opened, on each rank": {"any": "10.6 s, +274 MB, 40,000 stats"},
    "ledger at the end of a start, 10^6 steps": {"any": "41 s, +3.0 GB"},
    "report, 10^6 steps": {"any": "149 s, 4.2 GB"},
}  # fmt: skip
PARTS = {
    "agreement": ["benchmarks/scale_agreement.py"],
    "watch": ["benchmarks/scale_health.py"],
    "meeting": ["benchmarks/scale_meeting.py"],
    "data": ["benchmarks/scale_records.py", "data"],
    "records": ["benchmarks/scale_records.py", "records"],
    "checkpoint": ["benchmarks/scale_checkpoint.py"],
}
"""What measures each part: it prints a line of JSON for each figure. `data` and `records` take a folder."""


def measure(part: str) -> list[dict[str, Any]]:
    """The figures of one part, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RES_OPTIONS": "timeout:1 attempts:3"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *PARTS[part], *([folder] if part in ("data", "records") else [])]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for line in lines:
        print(part, json.dumps(line), flush=True)
    return lines


def main() -> None:
    """Measure the parts and keep them, with those of the last time that were not asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    kept = Path(__file__).parent / "results" / "scale.json"
    after = json.loads(kept.read_text())["after"] if kept.exists() else {}
    after |= {part: measure(part) for part in parser.parse_args().parts}
    write_result("scale", {"before": BEFORE, "after": after})


if __name__ == "__main__":
    main()

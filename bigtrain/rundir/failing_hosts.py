"""RUN/failing-hosts.jsonl: machines that a preflight or a run has found failing, with the reason.

A line for each machine and reason. `launch/slurm.sbatch --exclude-failing` reads it and keeps these nodes out of the
requeued job. Only machines that are at fault with certainty belong here: a job that is kept off a good node waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from bigtrain.base import BigtrainError
from bigtrain.rundir.json_lines import JsonLines

FAILING_HOSTS = "failing-hosts.jsonl"


def record_failing_hosts(
    run_dir: Path, machines: Iterable[str], found_by: Literal["doctor", "hang", "corruption"], reason: str
) -> None:
    """Append a line for each machine. An error of the disk is ignored: what found the machine reports it as well.

    Args:
        run_dir: the run directory.
        machines: names by which the scheduler knows them; see `bigtrain.base.machine_name`.
        found_by: what has found it.
        reason: for people.
    """
    with suppress(OSError, BigtrainError):
        run_dir.mkdir(parents=True, exist_ok=True)
        if not (each_once := dict.fromkeys(machines)):
            return
        lines = JsonLines(run_dir / FAILING_HOSTS)
        for machine in each_once:  # `host` comes first: the launch script looks for it there
            lines.append({"host": machine, "found_by": found_by, "reason": reason})
        lines.close()

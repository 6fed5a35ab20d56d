"""Many runs as one array of jobs on Slurm: each element of it is a job of launch/slurm.sbatch with its own run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bigtrain.base import BigtrainError, write_atomically
from bigtrain.submit.job import argument_of, run_program, scripts
from bigtrain.submit.slurm import number_in, run_slurm

SCRIPT = "array.sbatch"


@dataclass(frozen=True)
class ArrayOptions:
    """What sbatch has to know of each job of an array; None leaves it to the cluster."""

    processes: int
    """Ranks of a run, on one node."""
    gpus: int | None = None
    time: str | None = None
    """The walltime of a run."""
    partition: str | None = None
    account: str | None = None
    extra: Sequence[str] = field(default_factory=tuple)
    """More options of sbatch."""


def array_script(configs: Sequence[Path], run_dirs: Sequence[Path], processes: int) -> str:
    """The script of an array: element n trains the n-th configuration, with everything that launch/slurm.sbatch does.

    Args:
        configs: of the runs.
        run_dirs: of the same runs.
        processes: ranks of each run.
    """
    launch = scripts()

    def listed(paths: Sequence[Path]) -> str:
        return "\n".join(f"  {shlex.quote(argument_of(path))}" for path in paths)

    return f"""#!/usr/bin/env bash
# Written by bigtrain ladder. Each element of the array is one run, which resumes when it is requeued.
set -euo pipefail
configs=(
{listed(configs)}
)
runs=(
{listed(run_dirs)}
)
launch={shlex.quote(str(launch))}
exec "$launch/slurm.sbatch" --launch "$launch" --run "${{runs[SLURM_ARRAY_TASK_ID]}}" --processes {processes} \\
  --no-doctor "${{configs[SLURM_ARRAY_TASK_ID]}}"
"""


def submit_array(folder: Path, configs: Sequence[Path], run_dirs: Sequence[Path], options: ArrayOptions) -> str:
    """Write the script of an array into a folder, and hand it to Slurm. Returns the number of the array.

    Raises:
        BigtrainError: there is no Slurm here, or it refuses.
    """
    script = folder / SCRIPT
    write_atomically(script, array_script(configs, run_dirs, options.processes))
    (folder / "logs").mkdir(parents=True, exist_ok=True)  # Slurm makes no folders
    given = {
        "partition": options.partition,
        "account": options.account,
        "time": options.time,
        "gpus-per-node": options.gpus,
    }
    literal = str(folder).replace("%", "%%")
    return number_in(
        run_slurm([
            "sbatch",
            "--parsable",
            "--job-name=bigtrain-ladder",
            f"--array=0-{len(configs) - 1}",
            "--nodes=1",
            "--ntasks-per-node=1",
            *[f"--{name}={value}" for name, value in given.items() if value is not None],
            "--signal=B:USR1@180",
            f"--output={literal}/logs/slurm-%A-%a.out",
            "--open-mode=append",
            "--requeue",
            *options.extra,
            str(script),
        ])
    )  # fmt: skip


def queued_jobs(numbers: Sequence[str]) -> set[str]:
    """Which of some arrays Slurm still has in its queue.

    Raises:
        BigtrainError: there is no Slurm here.
    """
    missing = BigtrainError(
        "there is no Slurm on this machine", found="no program squeue", wanted="a login node of the cluster"
    )
    if not numbers:
        return set()
    status, said, complaint = run_program(["squeue", "--me", "--noheader", "--format=%F"], missing=missing)
    if status:
        raise BigtrainError("Slurm does not say which jobs it has", found=complaint.strip(), fix="try again later")
    return set(numbers) & set(said.split())

"""A job for Slurm: the command line of sbatch for launch/slurm.sbatch, which says what happens on the nodes.

A build of data is a job of launch/build-data.sbatch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigtrain.base import BigtrainError
from bigtrain.submit.job import Job, argument_of, run_program, scripts

EARLIER_SECONDS = 60
"""By so much Slurm may send its signal earlier than asked (sbatch --signal)."""
BEFORE = "JOB_BEFORE"
"""In commands that are only shown: the number that Slurm has given to the job before."""


@dataclass(frozen=True)
class SlurmOptions:
    """What sbatch has to know beside the job itself; None leaves it to the cluster."""

    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    time: str | None = None
    """The walltime, in one of Slurm's forms: minutes, hours:minutes:seconds, days-hours, ..."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    exclude: str | None = None
    """Nodes to stay away from, as Slurm lists them: n[1-3],n7."""
    exclude_failing: bool = False
    """Keep nodes out of the requeued job that the preflight or the run has found failing."""
    signal_lead: int = 180
    """Seconds before the end of the walltime at which the run is asked to stop: a step and a save have to fit."""
    chain: int = 1
    """Jobs, each of which waits for the end of the one before."""
    array: int | None = None
    """The same as one array of jobs."""
    max_restarts: int | None = None
    max_requeues: int | None = None
    """How often a job goes back into the queue. Default: 100, and 0 in a chain, where the next job goes on."""
    container: str | None = None
    mounts: str | None = None
    stage_env: str | None = None
    """A folder of each node's own, into which the environment is unpacked before the ranks start."""
    doctor: bool = True
    comment: str | None = None
    """What the queue shows of the job."""
    extra: Sequence[str] = ()
    """More options of sbatch."""


def commands(job: Job, options: SlurmOptions) -> list[list[str]]:
    """The sbatch commands, one a job of the chain.

    Raises:
        BigtrainError: the options contradict each other, or the launch scripts are not there.
    """
    _require_sense(job, options)
    if job.builds_data:
        return [[*_sbatch(job, options), *_build_script(job, options)]]
    first = [*_sbatch(job, options), *_script(job, options)]
    later = [*_sbatch(job, options), f"--dependency=afterany:{BEFORE}", *_script(job, options)]
    return [first, *[later] * (options.chain - 1)]


def submit(job: Job, commands: Sequence[Sequence[str]]) -> list[str]:
    """Hand the commands to Slurm. Returns the numbers of the jobs.

    Raises:
        BigtrainError: there is no Slurm here, or it refuses.
    """
    (job.settings.run_dir / "logs").mkdir(parents=True, exist_ok=True)  # Slurm makes no folders
    numbers: list[str] = []
    for command in commands:
        follows = f"--dependency=afterany:{BEFORE}"
        said = run_slurm(
            [follows.replace(BEFORE, numbers[-1]) if part == follows and numbers else part for part in command]
        )
        numbers.append(number_in(said))
    return numbers


def seconds(walltime: str) -> int | None:
    """A walltime as Slurm writes it, in seconds; None where it is none."""
    days, dash, clock = walltime.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        if dash:  # days-hours[:minutes[:seconds]]
            hours, minutes, rest, *_ = [*parts, 0, 0]
            return ((int(days) * 24 + hours) * 60 + minutes) * 60 + rest
    except ValueError:
        return None
    match parts:
        case [minutes]:
            return minutes * 60
        case [minutes, rest]:
            return minutes * 60 + rest
        case [hours, minutes, rest]:
            return (hours * 60 + minutes) * 60 + rest
        case _:
            return None


def _sbatch(job: Job, options: SlurmOptions) -> list[str]:
    given = {
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "time": options.time,
        "exclude": options.exclude,
        "gpus-per-node": options.gpus_per_node,
        "cpus-per-task": options.cpus_per_node,
        "comment": options.comment,
        "array": f"1-{options.array}%1" if options.array else None,
    }
    whole_nodes = [] if options.cpus_per_node else ["--exclusive", "--mem=0"]
    return [
        "sbatch",
        "--parsable",
        f"--job-name={''.join(each if each.isprintable() else '_' for each in job.name)}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        *whole_nodes,
        *[f"--{name}={value}" for name, value in given.items() if value is not None],
        f"--signal=B:USR1@{options.signal_lead}",
        f"--output={_literal(job.settings.run_dir)}/logs/{log_name(job, '%j')}",
        "--open-mode=append",
        "--requeue",
        # else Slurm ends the job with the first node that fails
        *(["--no-kill"] if job.min_nodes is not None or job.builds_data else []),
        *options.extra,
    ]


def _script(job: Job, options: SlurmOptions) -> list[str]:
    given = {
        "processes": job.processes_per_node,
        "min-nodes": job.min_nodes,
        "max-restarts": options.max_restarts,
        "max-requeues": _requeues(options),
        "container": options.container,
        "mounts": options.mounts,
        "stage-env": options.stage_env,
    }
    folder = scripts()
    return [
        str(folder / "slurm.sbatch"),
        *("--launch", str(folder), "--run", argument_of(job.settings.run_dir)),
        *[part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))],
        *(["--exclude-failing"] if options.exclude_failing else []),
        *([] if options.doctor else ["--no-doctor"]),
        job.config_argument,
        *job.overrides,
    ]


def _build_script(job: Job, options: SlurmOptions) -> list[str]:
    given = {"max-requeues": options.max_requeues, "container": options.container, "mounts": options.mounts}
    folder = scripts()
    return [
        str(folder / "build-data.sbatch"),
        *("--launch", str(folder)),
        *[part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))],
        job.config_argument,
        *job.overrides,
    ]


def log_name(job: Job, number: str) -> str:
    """The file of a job's output in the logs of the run directory."""
    return f"{'data' if job.builds_data else 'slurm'}-{number}.out"


def _requeues(options: SlurmOptions) -> int | None:
    chained = options.chain > 1 or options.array is not None
    return 0 if chained and options.max_requeues is None else options.max_requeues


def _require_sense(job: Job, options: SlurmOptions) -> None:
    if options.chain > 1 and options.array is not None:
        raise BigtrainError(
            "--chain and --array say the same in two ways",
            found=f"--chain {options.chain} and --array {options.array}",
            fix="give one of them",
        )
    if options.exclude_failing and _requeues(options) == 0:
        raise BigtrainError(
            "failing nodes are kept out of a job that goes back into the queue, and this one never does",
            found="--exclude-failing, and no requeue: --max-requeues 0, or a chain or array without --max-requeues",
            fix="give --max-requeues, or leave out --exclude-failing and name the nodes with --exclude",
        )
    if not job.builds_data and job.settings.train.stop_after is not None and _requeues(options) != 0:
        raise BigtrainError(
            "a job that has stopped after train.stop_after would go back into the queue again and again",
            found=f"train.stop_after {job.settings.train.stop_after}",
            fix="add --max-requeues 0, or remove train.stop_after",
        )
    if options.stage_env is not None and (options.container is not None or not options.stage_env.startswith("/")):
        raise BigtrainError(
            "--stage-env cannot be used like this",
            found=f"--stage-env {options.stage_env}" + (" and --container" if options.container is not None else ""),
            wanted="the full path of a folder that each node has, and no image: its environment is on the node already",
            fix="--stage-env /dev/shm, or a folder on a disk of the node",
        )
    if options.time is None:
        return
    walltime = seconds(options.time)
    if walltime is None:
        raise BigtrainError(
            "--time is no walltime",
            found=options.time,
            wanted="minutes, minutes:seconds, hours:minutes:seconds, days-hours or days-hours:minutes:seconds",
        )
    if walltime <= options.signal_lead + EARLIER_SECONDS:
        raise BigtrainError(
            "the run would be asked to stop as soon as it has started",
            found=f"a walltime of {walltime} s, and a signal {options.signal_lead} s before its end, by Slurm's "
            f"rounding up to {EARLIER_SECONDS} s earlier",
            wanted=f"more than {options.signal_lead + EARLIER_SECONDS} s",
            fix="give a longer --time or a shorter --signal-lead",
        )


def run_slurm(command: Sequence[str]) -> str:
    """What a program of Slurm prints. Raises BigtrainError: there is no Slurm here, or it refuses."""
    missing = BigtrainError(
        "there is no Slurm on this machine",
        found="no program sbatch",
        wanted="a login node of the cluster",
        fix="submit from there; --dry-run prints the command anywhere",
    )
    status, said, complaint = run_program(command, missing=missing)
    if status:
        raise BigtrainError("Slurm has refused the job", found=complaint.strip(), fix="see sinfo and sacctmgr")
    return said


def number_in(said: str) -> str:
    """The number of the job in what `sbatch --parsable` prints: NUMBER or NUMBER;CLUSTER, after what a site adds."""
    for line in reversed(said.splitlines()):
        if found := re.fullmatch(r"\s*([0-9]+)(;\S*)?\s*", line, re.ASCII):
            return found.group(1)
    raise BigtrainError(
        "sbatch does not say which number the job has",
        found=said.strip() or "nothing",
        wanted="NUMBER, or NUMBER;CLUSTER",
        fix="see squeue --me: the job may be there",
    )


def _literal(path: Path) -> str:
    """A path in which sbatch replaces nothing: it takes %j and the like for patterns."""
    return str(path).replace("%", "%%")

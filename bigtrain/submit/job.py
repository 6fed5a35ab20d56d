"""What is to be started on a cluster, and whether it can work, before it waits in a queue for nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bigtrain
from bigtrain.base import BigtrainError
from bigtrain.config import Settings, divide_work, load_settings
from bigtrain.data import RunData
from bigtrain.estimate import Machines, PlannedRun, Wish, plan

SCRIPTS = "BIGTRAIN_LAUNCH"
"""Environment variable: where the launch scripts lie on the nodes, when not in the package."""


@dataclass(frozen=True)
class Job:
    """A configuration, and the machines it is meant for."""

    config: Path
    overrides: Sequence[str]
    settings: Settings
    nodes: int
    processes_per_node: int
    min_nodes: int | None = None
    """Go on with so few when nodes are lost."""
    builds_data: bool = False
    """Build the data of the configuration, on Ray, instead of training on them."""

    @classmethod
    def of_build(cls, config: Path, overrides: Sequence[str], *, nodes: int) -> Job:
        """A job that builds data. Raises BigtrainError: something in the configuration is wrong."""
        return cls(config, overrides, load_settings(config, overrides), nodes, 1, builds_data=True)

    @classmethod
    def of(
        cls,
        config: Path,
        overrides: Sequence[str],
        *,
        nodes: int,
        processes_per_node: int,
        min_nodes: int | None = None,
    ) -> Job:
        """Read the configuration.

        Raises:
            BigtrainError: something in it is wrong, or its batches do not divide over the processes, with as many nodes
                as there are or with as few as may do.
        """
        job = cls(config, overrides, load_settings(config, overrides), nodes, processes_per_node, min_nodes)
        if min_nodes is not None and min_nodes > nodes:
            raise BigtrainError(
                "there cannot be more nodes than there are",
                found=f"--min-nodes {min_nodes} and --nodes {nodes}",
                wanted="--min-nodes of at most --nodes",
            )
        for count in range(nodes, (min_nodes or nodes) - 1, -1):
            job.require_fit(count)
        return job

    def require_fit(self, nodes: int) -> None:
        """Raises BigtrainError: the batches of the configuration do not divide over so many nodes."""
        engine, train = self.settings.engine, self.settings.train
        try:
            divide_work(
                self.settings.batches,
                train.micro_batch_size,
                nodes * self.processes_per_node,
                tensor_parallel_size=engine.tensor_parallel_size,
                sequence_parallel_size=engine.sequence_parallel_size,
            )
        except BigtrainError as error:
            error.found = f"{error.found}: {nodes} nodes of {self.processes_per_node} processes"
            if nodes < self.nodes:
                error.fix = f"{error.fix}; or raise --min-nodes: {nodes} nodes are what is left when some are lost"
            raise

    @property
    def name(self) -> str:
        """A name for people, after the run directory or the data."""
        if self.builds_data:
            return f"{self.settings.data.dir.name}-data"
        return self.settings.run_dir.name or "bigtrain"

    @property
    def config_argument(self) -> str:
        """The configuration as an argument that no script takes for an option."""
        return argument_of(self.config)

    def forecast(self, gpu: str) -> PlannedRun:
        """What the planner expects of the job.

        Args:
            gpu: the kind of GPU of the nodes.

        Raises:
            BigtrainError: there is no such GPU.
        """
        machines = Machines.of(gpu, self.nodes * self.processes_per_node, nodes=self.nodes)
        return plan(self.settings, machines, Wish())

    def require_memory(self, expected: PlannedRun) -> None:
        """Raises BigtrainError: by the forecast the job does not fit into the GPUs' memory."""
        if expected.fits:
            return
        remedies = " ".join(expected.remedies) or "more GPUs, or GPUs with more memory"
        raise BigtrainError(
            "the job does not fit into the memory of its GPUs",
            found=f"{expected.peak_gib:.1f} GiB on the rank that needs most",
            wanted=f"at most {expected.peak_gib + expected.left_gib:.1f} GiB of a {expected.gpu}",
            fix=f"cheapest first: {remedies}; or submit it all the same with --no-fit",
        )

    def require_data(self) -> None:
        """Raises BigtrainError: the data are not there, or not those of the configuration, or too few."""
        RunData.open(self.settings)


def comment_on(expected: PlannedRun) -> str:
    """A forecast as the comment of a job, in one line."""
    return (
        f"bigtrain expects {expected.peak_gib:.1f} GiB a GPU, {expected.seconds:.3g} s a step, "
        f"{expected.tokens_per_second_per_gpu:,.0f} tokens/s a GPU, {expected.hours:,.1f} h in all"
    )


def argument_of(path: Path) -> str:
    """A path as an argument of a command: one that starts with a dash would be taken for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def run_program(command: Sequence[str], *, stdin: str | None = None, missing: BigtrainError) -> tuple[int, str, str]:
    """Run a program of the cluster. Returns its status, what it printed, and its complaints.

    Args:
        command: the program and its arguments.
        stdin: what it reads.
        missing: raised where the program is not there.

    Raises:
        BigtrainError: `missing`, or the program cannot be started.
    """
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, encoding="utf-8", errors="backslashreplace", check=False
        )
    except FileNotFoundError:
        raise missing from None
    except (OSError, ValueError) as error:
        raise BigtrainError(
            f"{command[0]} cannot be started",
            found=str(error),
            wanted="a program that this user may run, and arguments without a NUL, of less than 2 MB",
            fix="look at --dry-run",
        ) from None
    return done.returncode, done.stdout, done.stderr


def scripts() -> Path:
    """The folder of the launch scripts: `bigtrain/launch`, in a checkout a link to `launch`.

    Raises:
        BigtrainError: they are not there.
    """
    folder = Path(os.environ.get(SCRIPTS) or Path(bigtrain.__file__).parent / "launch")
    if not (folder / "node.sh").is_file():
        raise BigtrainError(
            "the launch scripts are not there",
            found=f"no node.sh in {folder}",
            wanted="the folder launch of bigtrain, on a file system that all nodes see",
            fix=f"set {SCRIPTS} to it, or install bigtrain again",
        )
    return folder.resolve()

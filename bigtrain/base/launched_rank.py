"""Which rank this process is, by the variables of whatever started it: torchrun, DeepSpeed, Kubeflow, MPI or Slurm.

RANK and WORLD_SIZE come first. Without them MPI's variables count, then those of a Slurm step. A process that learns
of more ranks than it would join refuses to start: each of them would train alone, on the same batches.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from bigtrain.base.environment import number_of, text_of
from bigtrain.base.errors import BigtrainError
from bigtrain.base.launcher_protocol import STORE

MOST_RANKS = 999_999
_MPI = {
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MVAPICH": (
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    "MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
"""Each MPI's variables: rank, number of ranks, rank on this machine, ranks on this machine."""
_MPI_JOBS = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid")
"""Variables with a name that all ranks of one mpirun have in common."""


@dataclass(frozen=True)
class LaunchedRank:
    """One process among those of a job. Where its machine's other ranks are not known, the ranks find out together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = 0
    local_world_size: int | None = 1
    address: str | None = None
    """Where the ranks meet: the host on which rank 0 listens."""
    port: int | None = None
    source: str = "nothing"
    """What said so."""

    @property
    def alone(self) -> bool:
        """Whether it is the only rank."""
        return self.world_size == 1


def launched_rank(environment: Mapping[str, str] | None = None) -> LaunchedRank:
    """Return which rank this process is.

    Raises:
        BigtrainError: a value is not a number, some are missing, or they contradict each other.
    """
    given: Mapping[str, str] = os.environ if environment is None else environment
    rank, world = _number("RANK", given), _number("WORLD_SIZE", given, 1)
    local, local_world = _number("LOCAL_RANK", given), _number("LOCAL_WORLD_SIZE", given, 1)
    if rank is None and world is None and (local or (local_world or 1) > 1):
        raise _incomplete("LOCAL_RANK or LOCAL_WORLD_SIZE is set, but RANK and WORLD_SIZE are not", given)
    if (rank is None and (world or 1) > 1) or (world is None and rank):
        raise _incomplete("of RANK and WORLD_SIZE only one is set, so this process cannot know its place", given)
    if (rank or 0) >= (world or 1):
        raise _incomplete("RANK is not smaller than WORLD_SIZE", given)
    if (local or 0) >= (local_world or MOST_RANKS) or (local_world or 1) > (world or 1):
        raise _incomplete("LOCAL_RANK and LOCAL_WORLD_SIZE do not fit each other, or WORLD_SIZE", given)
    if rank is not None and world is not None and (world > 1 or text_of("TORCHELASTIC_RUN_ID", given)):
        alone = world == 1
        address, port = _meeting_place(given, None if alone else "WORLD_SIZE is larger than 1")
        if alone:
            local, local_world = local or 0, 1
        return LaunchedRank(rank, world, local, local_world, address, port, "RANK and WORLD_SIZE")
    step = _of_mpi(given) or _of_slurm(given)
    if step is not None and world is not None:
        raise BigtrainError(
            f"{step.source} has started {step.world_size} ranks, but WORLD_SIZE says that this one is alone",
            found=_values(("RANK", "WORLD_SIZE"), given),
            wanted="one of the two: each rank would train alone, on the same batches",
            fix="unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE",
        )
    if step is not None:
        return step
    _refuse_kubeflow(given)
    return LaunchedRank(local_rank=local or 0)


def adopt_rank() -> LaunchedRank:
    """Find out which rank this process is, and set the variables that libraries read: RANK, WORLD_SIZE and others.

    For a process alone nothing is set: libraries that are used later in it would take it for a rank of a job.

    Raises:
        BigtrainError: as `launched_rank`.
    """
    found = launched_rank()
    values = {
        "RANK": found.rank,
        "WORLD_SIZE": found.world_size,
        "LOCAL_RANK": found.local_rank,
        "LOCAL_WORLD_SIZE": found.local_world_size,
        "MASTER_ADDR": found.address,
        "MASTER_PORT": found.port,
    }
    if not found.alone:
        os.environ.update({name: str(value) for name, value in values.items() if value is not None})
    return found


def _number(name: str, given: Mapping[str, str], least: int = 0) -> int | None:
    return number_of(name, least, MOST_RANKS, given)


def _values(names: tuple[str, ...], given: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={given[name]}" if text_of(name, given) else f"no {name}" for name in names)


def _incomplete(what: str, given: Mapping[str, str]) -> BigtrainError:
    return BigtrainError(
        what,
        found=_values(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), given),
        wanted="RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, from one launcher; or none of them, for a process alone",
        fix="launch/local.sh CONFIG starts all ranks of a machine; if left over: unset RANK WORLD_SIZE LOCAL_RANK",
    )


def _meeting_place(given: Mapping[str, str], needed: str | None) -> tuple[str | None, int | None]:
    """MASTER_ADDR and MASTER_PORT. Where `needed` says why, both have to be there."""
    if store_address(given) is not None:
        needed = None
    address, port = text_of("MASTER_ADDR", given), number_of("MASTER_PORT", 0, 65535, given)
    if needed is not None and (address is None or not port):
        raise BigtrainError(
            f"{needed}, and nothing says where the ranks meet",
            found=_values(("MASTER_ADDR", "MASTER_PORT"), given),
            wanted="the name or address of the machine with rank 0, and a free port there",
            fix="export MASTER_ADDR=FIRST_HOST MASTER_PORT=29400 for all ranks; if left over: unset WORLD_SIZE RANK",
        )
    return address, port


def store_address(given: Mapping[str, str] | None = None) -> tuple[str, int] | None:
    """Return host and port of the store that the launcher holds for this start; None where there is none.

    Raises:
        BigtrainError: what the variable says is no host:port.
    """
    text = text_of(STORE, given)
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 0 < int(port) < 65536:
        raise BigtrainError(
            f"the environment variable {STORE} has a value that cannot be used",
            found=f"{STORE}={text}",
            wanted="HOST:PORT, as bigtrain's launcher sets it for its ranks",
            fix=f"it is left over from a launcher: unset {STORE}",
        )
    return host, int(port)


def _of_mpi(given: Mapping[str, str]) -> LaunchedRank | None:
    """The rank that an MPI's mpirun gave; None where there is none, or where it is alone."""
    for source, (rank_name, size_name, local_name, local_size_name) in _MPI.items():
        rank, world = _number(rank_name, given), _number(size_name, given, 1)
        if rank is None or world is None or world == 1:
            continue
        if rank >= world:
            raise _contradiction(source, (rank_name, size_name), given)
        slurm = _number("SLURM_PROCID", given), _number("SLURM_STEP_NUM_TASKS", given, 1)
        if slurm == (rank, world):  # srun --mpi=pmi2 sets both kinds, and Slurm knows where the ranks can meet
            return None
        local, local_world = _number(local_name, given), _number(local_size_name, given, 1)
        address, port = _meeting_place(given, None)
        names = [name for name in _MPI_JOBS if text_of(name, given)]
        if address is None and local_world == world:
            address = "127.0.0.1"
        if not port and names:
            port = _port_of("/".join(str(text_of(name, given)) for name in names))
        if address is None or not port:
            raise BigtrainError(
                f"{source} has started {world} ranks, and nothing says where they meet",
                found=_values(("MASTER_ADDR", "MASTER_PORT"), given),
                wanted="the name of the machine with rank 0, and a free port there",
                fix="mpirun -x MASTER_ADDR=FIRST_HOST -x MASTER_PORT=29400 ...; with MPICH: -genv NAME VALUE",
            )
        return LaunchedRank(rank, world, local, local_world, address, port, source)
    return None


def _of_slurm(given: Mapping[str, str]) -> LaunchedRank | None:
    """The rank that srun gave; None outside a step, or where it is alone."""
    rank, tasks = _number("SLURM_PROCID", given), _number("SLURM_NTASKS", given, 1)
    world = _number("SLURM_STEP_NUM_TASKS", given, 1)
    if world is None and text_of("SLURM_STEP_ID", given):
        world = tasks
    if rank is None or (world or tasks or 1) == 1:
        return None
    if world is None:
        raise BigtrainError(
            f"this process is in a job of {tasks} tasks, but not in a step: it would train alone",
            found=_values(("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"), given),
            wanted="as many processes as there are tasks, started by srun",
            fix="srun python -m bigtrain train CONFIG, or `bigtrain submit slurm CONFIG`; alone: unset SLURM_PROCID",
        )
    if rank >= world:
        raise _contradiction("Slurm", ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), given)
    nodes = _number("SLURM_STEP_NUM_NODES", given, 1) or _number("SLURM_NNODES", given, 1)
    address, port = _meeting_place(given, None)
    if address is None:
        address = "127.0.0.1" if nodes == 1 else _first_node(given)
    if not port:
        port = _port_of(f"{given.get('SLURM_JOB_ID', '')}.{given.get('SLURM_STEP_ID', '')}")
    local = _number("SLURM_LOCALID", given)
    return LaunchedRank(rank, world, local, world if nodes == 1 else None, address, port, "Slurm")


def _contradiction(source: str, names: tuple[str, ...], given: Mapping[str, str]) -> BigtrainError:
    return BigtrainError(
        f"the variables of {source} contradict each other: the rank is not smaller than the number of ranks",
        found=_values(names, given),
        wanted="those of one launcher",
        fix=f"if they are left over from an earlier job: unset {' '.join(names)}",
    )


def _first_node(given: Mapping[str, str]) -> str:
    """The first node of a step, by a name that resolves here, else by the address that Slurm has for it."""
    variables = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    nodes = next((text for name in variables if (text := text_of(name, given))), "")
    # n[01-04,9],m3: what is before the first bracket, and the first number in it
    first = re.match(r"([A-Za-z0-9][A-Za-z0-9_.-]*)(?:\[(\d+)[^\]]*\]([A-Za-z0-9_.-]*))?(?:,|$)", nodes, re.ASCII)
    if first is not None:
        name = "".join(part or "" for part in first.groups())
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            name = _address_in_slurm(name) or ""
        if name:
            return name
    raise BigtrainError(
        "Slurm has started ranks on several nodes, and the first node's name does not resolve",
        found=_values(variables, given),
        wanted="a name or address of the node with rank 0",
        fix="export MASTER_ADDR=FIRST_NODE before srun, or use `bigtrain submit slurm CONFIG`",
    )


def _address_in_slurm(name: str) -> str | None:
    try:
        shown = subprocess.run(["scontrol", "show", "node", name], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bNodeAddr=(\S+)", shown.stdout.decode(errors="replace"))
    return found.group(1) if found else None


def _port_of(job: str) -> int:
    """A port that all ranks of a job derive from its name; below those that Linux takes for outgoing connections."""
    return 10_000 + int.from_bytes(hashlib.sha256(job.encode()).digest()[:4]) % 20_000


def _refuse_kubeflow(given: Mapping[str, str]) -> None:
    """Kubeflow sets torchrun's PET_* variables. A process that torchrun did not start would train alone."""
    nodes = text_of("PET_NNODES", given)
    if nodes is not None and nodes not in ("1", "1:1"):
        raise BigtrainError(
            "this pod is one of several, but the command was not started by a launcher: it would train alone",
            found=f"PET_NNODES={nodes}",
            wanted="launch/node.sh, which reads Kubeflow's variables",
            fix="launch/node.sh train CONFIG; if the variable is left over: unset PET_NNODES",
        )

"""How many files a process may have open: each connection to a store is one, and the usual soft limit is 1,024."""

from __future__ import annotations

import resource
import socket

from bigtrain.base.errors import BigtrainError

CONNECTIONS_A_RANK = 2
"""Of each rank to the store: one of its process group, one of its heartbeat thread. A thread that waits for an answer
holds its connection, so heartbeats over the other one would wait with it."""
BESIDE = 512
"""Files that a process has open beside connections to other ranks and nodes, at most."""
ENOUGH = 2**20
"""A soft limit beyond this helps nobody, and some programs walk through all numbers below it."""


def raise_open_files() -> int:
    """Raise the soft limit of open files of this process, and of those that it starts, to the hard one; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return ENOUGH if soft == resource.RLIM_INFINITY else soft


def open_files_wanted(ranks: int, nodes: int = 1) -> int:
    """How many files the process that holds the store in which so many ranks on so many nodes meet may have open."""
    return CONNECTIONS_A_RANK * ranks + nodes + BESIDE


def require_open_files(ranks: int, nodes: int = 1) -> None:
    """Make sure that this process can hold the store in which so many ranks on so many nodes meet.

    Raises:
        BigtrainError: the hard limit of open files is too low. Connections beyond it would be reset without a reason.
    """
    limit, wanted = raise_open_files(), open_files_wanted(ranks, nodes)
    if limit < wanted:
        raise BigtrainError(
            f"{socket.gethostname()} cannot hold the connections of {ranks:,} ranks",
            found=f"a hard limit of {limit:,} open files (RLIMIT_NOFILE)",
            wanted=f"{wanted:,}: {CONNECTIONS_A_RANK} connections of each rank, one of each node, and {BESIDE} files",
            fix=f"ulimit -Hn {wanted} before the start, as root; nofile in /etc/security/limits.conf; under Slurm "
            "LimitNOFILE of slurmd, or of containerd on Kubernetes; docker run --ulimit",
        )

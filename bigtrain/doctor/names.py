"""The check that hosts reach each other by the names that they announce."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

from bigtrain.doctor.check import CheckContext, Measured
from bigtrain.doctor.finding import CheckFinding


def measure_names(context: CheckContext) -> dict[str, Any]:
    """Return the addresses of this host's own name and of the first node's, and the interface that is set."""
    return {
        "own": _addresses(socket.gethostname()),
        "master": os.environ.get("MASTER_ADDR"),
        "first": _addresses(os.environ["MASTER_ADDR"]) if "MASTER_ADDR" in os.environ else [],
        "interface": os.environ.get("GLOO_SOCKET_IFNAME"),
    }


def _addresses(name: str) -> list[str]:
    try:
        return sorted({str(each[4][0]) for each in socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)})
    except OSError:
        return []


def assess_names(measured: Measured, context: CheckContext) -> Iterator[CheckFinding]:
    """Check that each of several hosts announces an address that the others reach.

    gloo announces the address of GLOO_SOCKET_IFNAME where it is set, else that of the host's name.
    """
    several = len(context.meeting.hosts) > 1
    lost = [rank for rank, each in measured.items() if each["master"] and not each["first"]]
    if lost:
        yield CheckFinding(
            "names",
            "warning",
            f"{context.meeting.label(lost)} cannot resolve the name of the first node, {measured[lost[0]]['master']}",
            "an address",
            "add it to DNS or /etc/hosts, or give the launcher its address",
        )
    nowhere = [
        rank
        for rank, each in measured.items()
        if several and not each["interface"] and all(_is_loopback(address) for address in each["own"])
    ]
    if nowhere:
        own = measured[nowhere[0]]["own"]
        resolves = f"resolves to {', '.join(own)}" if own else "cannot be resolved"
        yield CheckFinding(
            "names",
            "failed",
            f"{context.meeting.label(nowhere)}: the host's own name {resolves}, so gloo would announce an address "
            "where the other hosts cannot reach it",
            "a name that resolves to the host's address in the cluster, or GLOO_SOCKET_IFNAME",
            "export GLOO_SOCKET_IFNAME with the name of the cluster's interface (ip -brief address)",
        )
    interfaces = sorted({each["interface"] for each in measured.values() if each["interface"]})
    by = f", gloo by interface {', '.join(interfaces)}" if interfaces else ""
    yield CheckFinding("names", "ok", f"{len(measured)} host(s) can be reached by name{by}")


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"

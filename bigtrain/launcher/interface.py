"""The network interface that a job talks through: its ports are open there and nowhere else.

Left alone, the stores of torch's rendezvous listen on every address of a machine, to anyone and without a password,
and hold pickles that the launchers load. Here they listen on one address: loopback for a job of one machine, else the
address by which this machine reaches the first one. gloo and NCCL are told the same interface; they bind to it by
themselves. Machines where that choice is wrong name theirs in BIGTRAIN_INTERFACE, which the launch scripts pass on.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import psutil
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from bigtrain.base.errors import BigtrainError

CHOICE = "BIGTRAIN_INTERFACE"
"""Environment variable: the name of an interface, `any` for all of them, or nothing: choose."""
ANY = "any"
TOLD = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
BACKLOG = 4096  # connections that a store has not answered yet: all ranks of a job come at once
_UNROUTED = "192.0.2.1"  # of TEST-NET-1 (RFC 5737): the way to it is the default route


@dataclass(frozen=True)
class Interface:
    """An interface of this machine, and its address there."""

    name: str
    address: str

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can be reached through it."""
        return ipaddress.ip_address(self.address).is_loopback


def stay_on_one_interface(arguments: Namespace) -> None:
    """Let what torchrun starts with these arguments listen on one interface; what the user has set himself stays.

    Raises:
        BigtrainError: the interface that BIGTRAIN_INTERFACE names is not there.
    """
    interface = chosen(arguments)
    if interface is None:
        return
    for name in TOLD:
        os.environ.setdefault(name, interface.name)
    if arguments.local_addr is None:
        arguments.local_addr = interface.address
    listen_on(interface.address)


def chosen(arguments: Namespace) -> Interface | None:
    """The interface for torchrun's arguments; None where all of them have to do.

    Raises:
        BigtrainError: the interface that BIGTRAIN_INTERFACE names is not there.
    """
    choice = os.environ.get(CHOICE, "")
    if choice == ANY:
        return None
    if choice:
        return named(choice)
    if arguments.standalone or not (arguments.rdzv_endpoint or arguments.master_addr):
        return of_address("127.0.0.1")
    host = arguments.master_addr
    if arguments.rdzv_endpoint:
        host, _ = parse_rendezvous_endpoint(arguments.rdzv_endpoint, default_port=0)
    interface = towards(host)
    if interface is not None and (not interface.is_loopback or _says_loopback(host)):
        return interface
    # /etc/hosts gives many a machine a loopback address under its own name, but the others know it by another one; and
    # a pod may be there before its name is.
    outward = towards(_UNROUTED)
    if outward is None:
        print(
            f"warning: which interface leads to {host} is not known, so the job's ports are open on all of them; "
            f"{CHOICE}=NAME keeps them to one",
            file=sys.stderr,
        )
    return outward


def named(name: str) -> Interface:
    """The interface of this name. Raises BigtrainError: it is not there, or has no address."""
    addresses = psutil.net_if_addrs()
    for family in (socket.AF_INET, socket.AF_INET6):
        for found in addresses.get(name, ()):
            if found.family is family:
                return Interface(name, found.address.partition("%")[0])
    raise BigtrainError(
        f"{socket.gethostname()} has no network interface {name} with an address",
        found=", ".join(sorted(addresses)),
        wanted=f"the interface that {CHOICE} names",
        fix=f"set {CHOICE} to one of those that are there, or leave it empty: the one towards the first node is taken",
    )


def towards(host: str) -> Interface | None:
    """The interface by which a host is reached, nothing is sent for it; None where it is not known."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            ours = of_address(probe.getsockname()[0])
    except OSError:
        return None
    if ours is not None and ours.is_loopback:  # which has many addresses and is listed with one
        return Interface(ours.name, str(address[0]))
    return ours


def of_address(address: str) -> Interface | None:
    """The interface of this machine that has this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == address for found in addresses):
            return Interface(name, address)
    return None


def listen_on(address: str) -> None:
    """Have the stores that torchrun opens from here on listen on this address alone."""

    def store(host: str, port: int, *, is_master: bool, **others: Any) -> TCPStore:
        if not is_master:
            return TCPStore(host, port, is_master=False, **others)
        return bound_store(address, port, **others)

    def shared_store(_handler: DynamicRendezvousHandler, host: str, port: int) -> TCPStore:
        return store(host, port, is_master=True, multi_tenant=True)

    c10d_rendezvous_backend.TCPStore = store  # type: ignore[attr-defined, assignment]
    DynamicRendezvousHandler._create_tcp_store_server = shared_store  # type: ignore[assignment, method-assign]


def bound_store(address: str, port: int, **others: Any) -> TCPStore:
    """A TCPStore that is its own server, on one address.

    Raises:
        RuntimeError: the port is taken, as TCPStore says it; torchrun then looks for the store that has it.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise RuntimeError(f"cannot listen on {address}, port {port}: {error.strerror}") from error
    port = listener.getsockname()[1]
    return TCPStore(address, port, is_master=True, master_listen_fd=listener.detach(), **others)


def _says_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

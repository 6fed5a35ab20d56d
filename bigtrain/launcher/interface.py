"""The network interface of a job: its ports are open there, and on no other interface.

By default torch's stores listen on every address of a machine, without a password. Here they listen on one address:
loopback for a job of one machine, else the address by which this machine reaches the first one. gloo and NCCL get the
same interface by their environment variables. Where that choice is wrong, set BIGTRAIN_INTERFACE, which the launch
scripts pass on.
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
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from bigtrain.base import BigtrainError, text_of

CHOICE = "BIGTRAIN_INTERFACE"
"""Environment variable: the name of an interface, `any` for all of them, or empty for the choice above."""
ANY = "any"
LIBRARY_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Environment variables by which gloo and NCCL choose their interface."""
BACKLOG = 4096  # connections that wait to be accepted: all ranks of a job connect at once
_UNROUTED = "192.0.2.1"  # of TEST-NET-1 (RFC 5737): packets to it take the default route


@dataclass(frozen=True)
class Interface:
    """A network interface of this machine, and the machine's address on it."""

    name: str
    address: str

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can be reached through it."""
        return ipaddress.ip_address(self.address).is_loopback


def stay_on_one_interface(arguments: Namespace) -> None:
    """Have torchrun and its workers listen on one interface. What the user has set stays.

    Args:
        arguments: torchrun's, parsed; `local_addr` is set where it is None, and `rdzv_conf` names the address for
            bigtrain's rendezvous.

    Raises:
        BigtrainError: the interface that BIGTRAIN_INTERFACE names is not there.
    """
    interface = chosen(arguments)
    if interface is None:
        return
    for name in LIBRARY_VARIABLES:
        if text_of(name) is None:
            os.environ[name] = interface.name
    if arguments.local_addr is None:
        arguments.local_addr = interface.address
    arguments.rdzv_conf = ",".join(part for part in (arguments.rdzv_conf, f"listen={interface.address}") if part)


def chosen(arguments: Namespace) -> Interface | None:
    """Return the interface for torchrun's arguments; None where the ports are open on all of them.

    Raises:
        BigtrainError: the interface that BIGTRAIN_INTERFACE names is not there.
    """
    choice = text_of(CHOICE) or ""
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
    if interface is not None and (not interface.is_loopback or _names_loopback(host)):
        return interface
    # /etc/hosts often gives a machine a loopback address for its own name, but other machines know another one. And a
    # pod may start before its name can be resolved.
    outward = towards(_UNROUTED)
    if outward is None:
        print(
            f"warning: the interface towards {host} is not known, so the job's ports are open on all interfaces; "
            f"{CHOICE}=NAME limits them to one",
            file=sys.stderr,
        )
    return outward


def named(name: str) -> Interface:
    """Return the interface of this name. Raises BigtrainError if there is none, or it has no address."""
    addresses = psutil.net_if_addrs()
    for family in (socket.AF_INET, socket.AF_INET6):
        for found in addresses.get(name, ()):
            if found.family is family:
                return Interface(name, found.address.partition("%")[0])
    raise BigtrainError(
        f"{socket.gethostname()} has no network interface {name} with an address",
        found=", ".join(sorted(addresses)),
        wanted=f"the interface that {CHOICE} names",
        fix=f"set {CHOICE} to one of the interfaces found, or leave it empty to use the one towards the first node",
    )


def towards(host: str) -> Interface | None:
    """Return the interface by which a host is reached, without sending anything; None where it is not known."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            ours = of_address(probe.getsockname()[0])
    except OSError:
        return None
    if ours is not None and ours.is_loopback:  # loopback has many addresses, of which psutil lists one
        return Interface(ours.name, str(address[0]))
    return ours


def of_address(address: str) -> Interface | None:
    """Return the interface of this machine that has this address; None where none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == address for found in addresses):
            return Interface(name, address)
    return None


def bound_store(address: str, port: int, **others: Any) -> TCPStore:
    """Open a TCPStore with its server on one address.

    Raises:
        RuntimeError: the port is taken; TCPStore raises the same.
    """
    try:
        listener = socket.create_server((address, port), family=_family(address), backlog=BACKLOG)
    except OSError as error:
        raise RuntimeError(f"cannot listen on {address}, port {port}: {error.strerror}") from error
    port = listener.getsockname()[1]
    return TCPStore(address, port, is_master=True, master_listen_fd=listener.detach(), **others)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _names_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

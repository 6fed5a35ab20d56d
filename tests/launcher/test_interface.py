"""A job's ports are open on one interface only, and on loopback where the job has one machine."""

import os
import socket
import subprocess
import sys
from argparse import Namespace
from datetime import timedelta

import psutil
import pytest

from bigtrain.base.errors import BigtrainError
from bigtrain.launcher import interface


def arguments(endpoint: str = "", standalone: bool = False) -> Namespace:
    return Namespace(rdzv_endpoint=endpoint, standalone=standalone, master_addr=None, local_addr=None, rdzv_conf="")


WORKER = """
import json, os, psutil, torch, torch.distributed as dist
from bigtrain.engine.topology import start
start(timeout_minutes=1)
dist.all_reduce(torch.ones(1))
launcher = psutil.Process(os.getppid())
listening = [
    connection.laddr.ip
    for process in (launcher, *launcher.children(recursive=True))
    for connection in process.net_connections(kind="tcp")
    if connection.status == psutil.CONN_LISTEN
]
if dist.get_rank() == 0:
    open("listening.json", "w").write(json.dumps(sorted(set(listening))))
    open("count", "w").write(str(len(listening)))
dist.barrier()
"""


def test_launcher_and_ranks_of_one_machine_listen_on_loopback_only(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "bigtrain.cli.torchrun", "--standalone", "--nproc-per-node=2", "worker.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "listening.json").read_text() == '["127.0.0.1"]'
    assert int((tmp_path / "count").read_text()) >= 4, "two stores of the launcher and a gloo device a rank were there"


def test_a_store_is_reached_at_its_address_and_nowhere_else():
    store = interface.bound_store("127.0.0.2", 0, multi_tenant=True, timeout=timedelta(seconds=20))
    store.set("key", "value")
    assert store.get("key") == b"value"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.3", store.port), timeout=5)
    with pytest.raises(RuntimeError, match="cannot listen"):
        interface.bound_store("127.0.0.2", store.port)


def test_the_interface_towards_the_first_node_is_taken_unless_named(monkeypatch):
    """It is the one by which this machine reaches the first node, unless BIGTRAIN_INTERFACE names another one."""
    monkeypatch.delenv(interface.CHOICE, raising=False)
    loopback = interface.of_address("127.0.0.1")
    assert loopback and loopback.is_loopback
    assert interface.chosen(arguments(standalone=True)) == loopback
    assert interface.chosen(arguments("localhost:0")) == loopback
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family is socket.AF_INET:
                found = interface.chosen(arguments(f"{address.address}:29400"))
                assert found == interface.Interface(name, address.address)
    assert interface.chosen(arguments("127.0.0.7:0")) == interface.Interface(loopback.name, "127.0.0.7")
    monkeypatch.setenv(interface.CHOICE, loopback.name)
    assert interface.chosen(arguments("192.0.2.7:29400")) == loopback
    monkeypatch.setenv(interface.CHOICE, interface.ANY)
    assert interface.chosen(arguments("192.0.2.7:29400")) is None


def test_a_name_that_means_loopback_only_here_keeps_other_nodes_in(monkeypatch):
    """Where the first node's name resolves to loopback on that node only, the others still reach it."""
    monkeypatch.delenv(interface.CHOICE, raising=False)
    loopback, outward = interface.Interface("lo", "127.0.1.1"), interface.Interface("eth0", "192.0.2.9")
    ways = {"node1": loopback, interface._UNROUTED: outward}
    monkeypatch.setattr(interface, "towards", ways.get)
    assert interface.chosen(arguments("node1:29400")) == outward


def test_an_unknown_interface_is_an_error_that_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv(interface.CHOICE, "ib7")
    with pytest.raises(BigtrainError) as caught:
        interface.chosen(arguments("192.0.2.7:29400"))
    assert "ib7" in str(caught.value) and interface.of_address("127.0.0.1").name in str(caught.value)


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.delenv(interface.CHOICE, raising=False)
    monkeypatch.setattr(os, "environ", {**os.environ, "GLOO_SOCKET_IFNAME": "mine"})
    os.environ.pop("NCCL_SOCKET_IFNAME", None)
    parsed = arguments("localhost:0")
    interface.stay_on_one_interface(parsed)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
    assert os.environ["NCCL_SOCKET_IFNAME"] == interface.of_address("127.0.0.1").name
    assert parsed.local_addr == "127.0.0.1" and parsed.rdzv_conf == "listen=127.0.0.1"

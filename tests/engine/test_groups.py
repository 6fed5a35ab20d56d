"""Ranks connect to those that they speak to, and make one group each."""

import json
import subprocess
import sys
import time

from tests import forkserver

WORKER = """
import json, psutil, sys, torch, torch.distributed as dist
from bigtrain.base import gather
from bigtrain.engine import topology

made = []
new_group = dist.new_group
dist.new_group = lambda *a, **k: made.append(1) or new_group(*a, **k)

def connections(store):
    found = psutil.Process().net_connections(kind="tcp")
    others = [each for each in found if each.status == psutil.CONN_ESTABLISHED]
    return sum(store.port not in (each.laddr.port, each.raddr.port) for each in others)

top = topology.start(timeout_minutes=1, tensor_parallel_size=2)
store = topology.connect(top.timeout)
store.set(f"counted-{top.rank}", str(connections(store)))
before = [int(each) for each in store.multi_get([f"counted-{rank}" for rank in range(top.world_size)])]
sum_of_group = torch.tensor([float(top.rank)])
dist.all_reduce(sum_of_group, group=top.sharing.group)
background = top.background()
everyone = background.broadcast(gather(background, (top.rank, sum_of_group.item(), len(made))))
result = {"before": before, "everyone": everyone, "ranks": dist.get_process_group_ranks(top.sharing.group)}
with open(f"{sys.argv[1]}/rank-{top.rank}.json", "w") as file:
    json.dump(result, file)
top.barrier()
"""


def test_four_ranks_connect_when_they_speak_and_sum_within_their_groups(tmp_path):
    """gloo has no connection between ranks before the first collective; each rank makes only its own subgroup."""
    (tmp_path / "worker.py").write_text(WORKER)
    done = forkserver.torchrun(4, str(tmp_path / "worker.py"), tmp_path)
    assert done.returncode == 0, done.stdout
    found = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(4)]
    assert [each["before"] for each in found] == [[0, 0, 0, 0]] * 4
    assert [each["ranks"] for each in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    # the rank, the sum over its group, and how many groups it has made: its own and that of the background
    assert [each["everyone"] for each in found] == [[[0, 1.0, 2], [1, 1.0, 2], [2, 5.0, 2], [3, 5.0, 2]]] * 4


ORPHAN = """
import os, signal, sys, time
from pathlib import Path
from bigtrain.base import gather
from bigtrain.engine import topology

top = topology.start(timeout_minutes=1)
background = top.background()
launcher = os.getppid()
Path(sys.argv[1], f"ready-{top.rank}").touch()
if top.rank == 0:
    while len(list(Path(sys.argv[1]).glob("ready-*"))) < top.world_size:
        time.sleep(0.01)
    os.kill(launcher, signal.SIGKILL)
while os.getppid() == launcher:
    time.sleep(0.01)
found = background.broadcast(gather(background, top.rank))
with open(f"{sys.argv[1]}/rank-{top.rank}", "w") as file:
    file.write(str(found))
"""


def test_ranks_whose_launcher_was_killed_can_still_save(tmp_path):
    """gloo asks the store, which ends with the launcher, for a peer; those of a save have spoken before. The launcher
    dies when all of them have: a rank that is still connecting would wait for the store in vain."""
    (tmp_path / "worker.py").write_text(ORPHAN)
    command = [sys.executable, "-m", "bigtrain.cli.torchrun", "--standalone", "--nproc-per-node=3"]
    subprocess.run([*command, tmp_path / "worker.py", tmp_path], stderr=subprocess.PIPE, timeout=120)
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("rank-*"))) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(3)] == ["[0, 1, 2]"] * 3

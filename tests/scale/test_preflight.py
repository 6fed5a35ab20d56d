"""Promises of the preflight at the size of a large job: the leader's work grows with the ranks, its report does not.

Every check's own `assess` gets the measurements of all ranks, of which most are like those of this machine.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributed import HashStore

from bigtrain.cli.doctor_command import lines
from bigtrain.config import load_settings
from bigtrain.doctor import agreement, devices, host, network, shape
from bigtrain.doctor import names as names_check
from bigtrain.doctor.check import CheckContext
from bigtrain.doctor.checks import CHECKS
from bigtrain.doctor.examine import Preflight, condensed
from bigtrain.doctor.finding import CheckFinding
from bigtrain.doctor.meeting import Attendee, Meeting, longer
from tests.scale.growth import assert_grows, cpu_seconds
from tests.system.run_sandbox import small_settings

A_HOST = 8
SIZES = [1024, 2048, 4096]


@pytest.fixture(autouse=True)
def ranks_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(A_HOST))


def job(ranks: int, directory: Path, *overrides: str) -> CheckContext:
    """What rank 0 knows when all ranks have come."""
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(small_settings(directory)))
    settings = load_settings(config, [f"checkpoint.local_dir={directory}/local", *overrides])
    store = HashStore()
    all_ranks = [Attendee(rank, f"node-{rank // A_HOST}", rank % A_HOST, rank // A_HOST) for rank in range(ranks)]
    for each in all_ranks:
        store.set(f"here/{each.rank}", json.dumps(vars(each)))
    return CheckContext(Meeting(store, all_ranks[0], ranks, []), settings, torch.device("cpu"))


GPU = ["0", "G", "Disabled", "0", "No", "No", "No", "Not Active", "40"]


def measurements(context: CheckContext) -> dict[str, dict[int, Any]]:
    """Of each check. Every host lacks something; the ranks of one host have another version and setting."""
    meeting, draw = context.meeting, random.Random(0)
    hosts = [ranks[0] for ranks in meeting.hosts.values()]
    link = {"backend": "gloo", "world_size": meeting.world_size, "latency_seconds": 1e-4, "bytes": 1 << 20}
    link |= {"all_reduce_seconds": 1e-3}
    other = {**agreement.measure_versions(context), "torch": "0.1"}
    space = {"where": "/local", "free": 1 << 20, "total": 1 << 40, "files": -1}
    odd = meeting.beside(meeting.world_size - 1)

    def disk(rank: int) -> dict[str, Any]:
        local = {**space, "free": (1 << 20) + rank, "bytes_per_second": 1e9, "bytes": 1 << 28}
        return {"checkpoint.local_dir": local} | (
            {"steps": 0, "run_dir": space | {"free": 1 << 50}} if not rank else {}
        )

    versions, variables = agreement.measure_versions(context), agreement.measure_environment(context)
    device, limits, memory = (
        devices.measure_device(context),
        host.measure_limits(context),
        shape.measure_memory(context),
    )
    names, gpu = names_check.measure_names(context), dict(zip(host.GPU_FIELDS, GPU, strict=True))
    everywhere = range(meeting.world_size)
    of_plan = {"plan_id": "p", "problems": ["a block"], "blocks": 1, "of_blocks": 2, "tokens": 9, "sources": 1}
    product = {"type": "cuda", "name": "G", "kind": "bf16", "load": 0.1}
    return {
        "versions": {rank: other if rank in odd else versions for rank in everywhere},
        "environment": dict.fromkeys(everywhere, variables),
        "configuration": {rank: {"differs": {"train.seed": [1, rank]} if rank in odd else {}} for rank in everywhere},
        "devices": {rank: device | {"devices": 16} for rank in everywhere},
        "gpus": {rank: {"gpus": [gpu] * 8, "xid": []} for rank in hosts},
        "limits": dict.fromkeys(hosts, limits),
        "memory": dict.fromkeys(everywhere, memory),
        "names": dict.fromkeys(hosts, names),
        "disks": {rank: disk(rank) for rank in hosts},
        "sharing": {rank: {"run_dir": bool(rank % 3)} for rank in hosts},
        "data": dict.fromkeys(hosts, of_plan),
        "clocks": {rank: {"ahead": float(rank), "error": 0.1} for rank in hosts},
        "matmul": {rank: {**product, "flops": draw.uniform(1e14, 9e14)} for rank in everywhere},
        "network": {rank: {**link, "links": {str(rank + 1): draw.uniform(1e-2, 1)}} for rank in everywhere[:-1]},
    }


def assess_all(context: CheckContext, measured: dict[str, dict[int, Any]]) -> Preflight:
    preflight = Preflight(context)
    preflight.check_attendance()
    for name, values in measured.items():
        preflight._assess(name, CHECKS[name], values)
    return preflight


def test_the_leader_s_work_grows_with_the_ranks_in_every_check(tmp_path):
    """A host was looked for among all hosts for each host before: 130 s at 2,048 hosts."""
    contexts = {ranks: job(ranks, tmp_path) for ranks in SIZES}
    measured = {ranks: measurements(context) for ranks, context in contexts.items()}
    for name in measured[SIZES[0]]:

        def seconds(ranks: int, name: str = name) -> float:
            preflight = Preflight(contexts[ranks])
            return cpu_seconds(lambda: preflight._assess(name, CHECKS[name], measured[ranks][name])) + 1e-3

        assert_grows(SIZES, seconds, at_most=1, slack=0.5)


def test_what_the_preflight_says_is_as_long_for_512_hosts_as_for_128(tmp_path):
    """Hosts that are alike share a line, and of many that differ the first are shown and the others counted."""
    printed = {}
    for ranks in SIZES:
        context = job(ranks, tmp_path)
        preflight = assess_all(context, measurements(context))
        bugs = [finding for finding in preflight.findings if "bug in bigtrain" in str(finding.fix)]
        assert not bugs
        report = preflight.report()
        printed[ranks] = list(lines(report))
        record = json.dumps({**report.as_dict(), "measured": context.measured, "past": context.history.past})
        assert len(record) < 400 * ranks
    text = " ".join("\n".join(printed[4096]).split())
    assert "512 hosts (node-0, node-1," in text and "persistence mode is off" in text
    assert "and 504 more hosts uses 8 of the 16 GPUs" in text
    assert ", the least of which has: 1.0 MiB free of" in text
    assert "more like these" in text
    lengths = [len(each) for each in printed.values()]
    assert max(lengths) < 1.4 * min(lengths) and max(lengths) < 600, lengths


def test_findings_alike_are_condensed_and_none_of_their_machines_is_lost():
    found = [CheckFinding("matmul", "failed", f"rank {r}", fix="look", hosts=(f"h{r // 2}",)) for r in range(40)]
    others = [CheckFinding("matmul", "warning", "slower", fix="drain")]
    shown = condensed(found + others)
    assert [each.found for each in shown[:8]] == [f"rank {r}" for r in range(8)]
    assert shown[8].found == "and 32 more like these" and shown[9:] == others
    assert {h for each in shown for h in each.hosts} == {f"h{n}" for n in range(20)}


def test_time_limits_of_what_hosts_share_grow_with_the_hosts():
    assert longer(60, 1) == 60 and 62 < longer(60, 8) < 64
    assert longer(60, 2048) > 900  # imports from a shared file system took 12 minutes
    assert longer(network.JOIN_SECONDS, 2048) > 150  # NCCL took 2.5 minutes on as many GPUs
    private = {name for name, check in CHECKS.items() if not check.shared and check.takes_part != "leader"}
    assert private == {"environment", "devices", "gpus", "limits", "memory", "names", "disks", "matmul"}


@pytest.mark.parametrize(
    ("ranks", "overrides", "measured"),
    [(4096, (), False), (4096, ("optimizer.name=muon",), True), (2 * A_HOST, (), True)],
)
def test_an_all_to_all_of_many_hosts_is_measured_only_for_muon(ranks, overrides, measured, tmp_path):
    assert network.needs_all_to_all(job(ranks, tmp_path, *overrides)) == measured


def test_one_rank_of_a_host_reads_bigtrain_s_source(tmp_path, monkeypatch):
    context = job(16, tmp_path)
    assert "code" in agreement.measure_versions(context)
    first = context.meeting.me
    context.meeting.me = Attendee(1, first.host, 1, 0)
    monkeypatch.setattr(agreement, "_code", lambda: pytest.fail("read"))
    second = agreement.measure_versions(context)
    measured = {0: {**second, "code": "today"}, 1: second, 8: {**second, "code": "yesterday"}, 9: second}
    assert [f.status for f in agreement.assess_versions({0: measured[0], 1: second}, context)] == ["ok"]
    outlier, _ = agreement.assess_versions(measured, context)
    assert outlier.status == "failed" and "rank 8 (node-1)" in outlier.found

"""Promises of the preflight: whatever would stop a run is a failed check with a fix, in bounded time."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.distributed import HashStore

from bigtrain.base import BigtrainError
from bigtrain.cli.doctor_command import lines
from bigtrain.config import Settings, load_settings
from bigtrain.doctor import DoctorReport, clocks, devices, doctor, fast_doctor, host, names, network, shape
from bigtrain.doctor.check import Check, CheckContext
from bigtrain.doctor.checks import CHECKS
from bigtrain.doctor.history import MeasurementHistory
from bigtrain.doctor.meeting import Attendee, Meeting
from bigtrain.model import count_parameters
from bigtrain.model.cpu import cpu_kernels
from tests import forkserver
from tests.system.run_sandbox import RunSandbox, small_settings

WORKER = Path(__file__).with_name("worker.py")
MEASURES = {"matmul", "network"}
"""The checks that take a while, or that leave a process group open."""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> RunSandbox:
    directory = tmp_path_factory.mktemp("doctor")
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(small_settings(directory)))
    sandbox = RunSandbox(directory, config)
    assert sandbox.bigtrain("data", "build", config).returncode == 0
    return sandbox


def check_this_machine(sandbox: RunSandbox, *overrides: str, skip: set[str] = MEASURES) -> DoctorReport:
    (sandbox.directory / "alone" / "doctor.json").unlink(missing_ok=True)
    threads = torch.get_num_threads()
    report = doctor(sandbox.config, [f"run_dir={sandbox.directory}/alone", *overrides], skip=skip)
    torch.set_num_threads(threads)
    return report


def finding_of(report: DoctorReport | dict, check: str) -> dict:
    """The first finding of a check that is not ok, or else its first one."""
    checks = report["checks"] if isinstance(report, dict) else report.as_dict()["checks"]
    found = [each for each in checks if each["check"] == check]
    bad = [each for each in found if each["status"] != "ok"]
    return (bad or found)[0]


def assert_only_wrong(report: DoctorReport | dict, **statuses: str) -> None:
    checks = report["checks"] if isinstance(report, dict) else report.as_dict()["checks"]
    assert {c["check"]: c["status"] for c in checks if c["status"] != "ok"} == statuses, checks


# Whole machines


@pytest.mark.long
def test_two_healthy_ranks_pass_and_are_compared_with_the_next_time(built: RunSandbox) -> None:
    """Nothing fails on two ranks. What was measured is what the next preflight expects."""
    arguments = ["-m", "bigtrain", "doctor", built.config, "--json"]
    done = forkserver.torchrun(2, *arguments, cwd=built.directory)
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout[done.stdout.index("{") :])
    noise = {c["check"] for c in report["checks"] if c["status"] == "warning"}  # of a machine that others use too
    assert report["ok"] and report["world_size"] == 2 and noise <= {"matmul", "network"}
    assert {c["check"] for c in report["checks"]} == {"ranks", *CHECKS}
    record = json.loads((built.run / "doctor.json").read_text())
    measured = record["last"]["measured"]
    assert len(measured["matmul_flops"]) == 2 and min(measured["matmul_flops"].values()) > 1e6
    assert measured["network"]["all_reduce_bytes_per_second"] > 0
    assert not [path for path in built.run.iterdir() if "bigtrain-doctor" in path.name]

    slower = {name: [1000 * values[-1]] for name, values in record["past"].items()}
    (built.run / "doctor.json").write_text(json.dumps({"last": {}, "past": slower}))
    again = forkserver.torchrun(2, *arguments, cwd=built.directory)
    assert again.returncode == 0, again.stdout  # a warning is no failure
    report = json.loads(again.stdout[again.stdout.index("{") :])
    for check in ("matmul", "network", "disks"):
        assert "less than" in finding_of(report, check)["found"], report
    assert built.train(2, "train.stop_after=1")[0] == 75  # doctor.json does not make it a foreign directory


def test_an_outlier_is_named_with_its_host_in_every_check_it_fails(
    built: RunSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that differs from the others is named, with its host, in every check that finds a difference."""
    run = tmp_path / "run"
    run.mkdir()
    changes = ["host=host-b", "clock=100", "variable=NCCL_DEBUG", "code=yesterday", "setting=train.seed=9"]
    changes += ["setting=checkpoint.keep=7"]
    if as_root := os.getuid() == 0:
        changes.append(f"over={run}")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("BIGTRAIN_FAULT", "slow,rank=1,at=matmul,delay=0.5")
    # Some CPUs take seconds for a product in bfloat16, beside which the delay would be nothing.
    overrides = [f"run_dir={run}", "tracking.wandb=auto", "engine.precision=fp32", "--json"]
    done = forkserver.torchrun(2, WORKER, built.config, *overrides, "--outlier", *changes, cwd=built.directory)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stdout
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert_only_wrong(
        report,
        versions="failed",
        environment="warning",
        configuration="failed",
        names="failed",  # this name cannot be resolved
        data="failed",  # another seed is another plan
        tracker="warning",
        clocks="warning",
        matmul="warning",
        **({"sharing": "failed"} if as_root else {}),
    )
    for check in ("versions", "environment", "configuration", "names", "data", "clocks", "matmul"):
        assert "1 (host-b)" in finding_of(report, check)["found"], finding_of(report, check)
    assert "another state of bigtrain's own source" in finding_of(report, "versions")["found"]
    assert "NCCL_DEBUG is unusual" in finding_of(report, "environment")["found"]
    differing = [c["found"] for c in report["checks"] if c["check"] == "configuration"]
    assert len(differing) == 2 and "train.seed is 9 on rank 1 (host-b), and 3 on rank 0" in differing[0]
    assert "is ahead of" in finding_of(report, "clocks")["found"] and "1m40s" in finding_of(report, "clocks")["found"]
    assert "127.0.0.1:9 cannot be reached" in finding_of(report, "tracker")["found"]
    if as_root:
        assert f"does not see in run_dir {run}" in finding_of(report, "sharing")["found"]
    assert all(c["fix"] for c in report["checks"] if c["status"] != "ok"), report


@pytest.mark.long
def test_a_rank_that_does_not_come_and_one_that_falls_silent_are_named(
    built: RunSandbox,
) -> None:
    started = time.monotonic()
    arguments = [WORKER, built.config, f"run_dir={built.directory}/other", "--skip", "matmul", "--json"]
    late = forkserver.torchrun(2, *arguments, "--patience", 3, "--outlier", "late=600", cwd=built.directory)
    assert late.returncode == 1, late.stdout
    report = json.loads(late.stdout[late.stdout.index("{") :])
    assert_only_wrong(report, ranks="failed", clocks="warning", network="warning")
    assert (
        "rank 1 (" in finding_of(report, "ranks")["found"]
        and "did not come within 3 s" in finding_of(report, "ranks")["found"]
    )
    silent = forkserver.torchrun(2, *arguments, "--outlier", "silent=versions", cwd=built.directory)
    assert silent.returncode == 1, silent.stdout
    report = json.loads(silent.stdout[silent.stdout.index("{") :])
    assert_only_wrong(report, versions="failed", clocks="warning", network="warning")
    assert (
        "rank 1 (" in finding_of(report, "versions")["found"]
        and "did not answer" in finding_of(report, "versions")["found"]
    )
    assert time.monotonic() - started < 300


# This machine alone


def test_what_a_configuration_lacks_is_a_failed_check_with_a_fix(built: RunSandbox, tmp_path: Path) -> None:
    assert_only_wrong(check_this_machine(built, f"data.dir={tmp_path}/none"), data="failed")
    assert_only_wrong(check_this_machine(built, "train.micro_batch_size=8", "train.global_batch_size=8"))
    wrong = check_this_machine(built, "train.steps=many")
    assert_only_wrong(wrong, configuration="failed")
    assert "train.steps" in finding_of(wrong, "configuration")["found"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    report = check_this_machine(built, f"run_dir={foreign}")
    assert_only_wrong(report, disks="failed")
    assert "thesis.tex" in finding_of(report, "disks")["found"] and [p.name for p in foreign.iterdir()] == [
        "thesis.tex"
    ]
    blocked = tmp_path / "file"
    blocked.touch()
    report = check_this_machine(built, f"checkpoint.dir={blocked}/below")
    assert {finding_of(report, "disks")["status"], finding_of(report, "sharing")["status"]} == {"failed"}
    assert "Not a directory" in finding_of(report, "disks")["found"]
    text = "\n".join(lines(report))
    assert "failed   disks" in text and "fix:" in text and "0 failed" not in text


def test_a_rank_whose_cpu_kernels_find_no_compiler_is_named_with_a_fix(
    built: RunSandbox, kernels_forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cpu_kernels.is_for_this_cpu():
        pytest.skip("this CPU has no AVX512-BF16")
    monkeypatch.setenv("CXX", "no-such-compiler")
    report = check_this_machine(built)
    assert_only_wrong(report, devices="warning")
    warning = finding_of(report, "devices")
    assert "rank 0" in warning["found"] and "CXX" in warning["wanted"] and "g++" in warning["fix"]


def test_a_corrupted_block_is_found_without_reading_all(built: RunSandbox, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(built.directory / "data", data)
    shard = next((data / "email" / "train").glob("*.tok"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    report = check_this_machine(built, f"data.dir={data}")
    assert_only_wrong(report, data="failed")
    assert str(shard) in finding_of(report, "data")["found"] and "verify" in finding_of(report, "data")["fix"]


@pytest.mark.parametrize("small_disk", ["4m"], indirect=True)
def test_a_disk_without_room_for_the_checkpoints_is_found_before_the_first(built: RunSandbox, small_disk: Path) -> None:
    report = check_this_machine(built, f"checkpoint.dir={small_disk}", "checkpoint.keep=4")
    assert_only_wrong(report, disks="failed")
    assert (
        "free of 4.0 MiB" in finding_of(report, "disks")["found"]
        and "MiB for the checkpoints" in finding_of(report, "disks")["wanted"]
    )
    assert_only_wrong(check_this_machine(built, f"checkpoint.dir={small_disk}", "checkpoint.keep=1"))
    assert not list(small_disk.iterdir())


@pytest.mark.long
def test_a_disk_that_does_not_answer_is_a_failed_check_and_no_hang(
    built: RunSandbox, tmp_path: Path, require_command
) -> None:
    for program in ("mkfs.ext4", "fsfreeze"):
        require_command(program)
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    image.write_bytes(bytes(8 << 20))
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a file system of one's own needs root and a loop device")
    try:
        subprocess.run(["fsfreeze", "-f", str(disk)], check=True)
        started = time.monotonic()
        report = check_this_machine(built, f"checkpoint.dir={disk}", skip=MEASURES | {"data"})
        assert time.monotonic() - started < 100  # the probes have 58 s in sum
        assert_only_wrong(report, disks="failed", sharing="failed")
        assert "does not answer" in finding_of(report, "disks")["found"]
    finally:
        subprocess.run(["fsfreeze", "-u", str(disk)], check=True)
        for _ in range(50):  # until the probes that it held have gone
            if subprocess.run(["umount", str(disk)], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)


def test_a_check_that_breaks_is_a_failed_check_and_the_others_go_on(
    built: RunSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise KeyError("an unexpected error")

    monkeypatch.setitem(CHECKS, "limits", replace(CHECKS["limits"], measure=broken))
    monkeypatch.setitem(CHECKS, "names", replace(CHECKS["names"], assess=lambda *_: broken(None)))
    slow = Check("never ends", lambda _: time.sleep(600), lambda *_: (), seconds=0.2)
    monkeypatch.setitem(CHECKS, "slow", slow)
    report = check_this_machine(built)
    assert_only_wrong(report, limits="failed", names="failed", slow="failed")
    assert (
        "KeyError" in finding_of(report, "limits")["found"] and "not done after" in finding_of(report, "slow")["found"]
    )


# The fast checks


def test_the_fast_checks_find_what_one_process_can_without_pytorch(built: RunSandbox, tmp_path: Path) -> None:
    """They write no record, and import neither PyTorch nor anything of other ranks."""
    run = tmp_path / "run"
    program = (
        "import sys; from pathlib import Path; from bigtrain.doctor import fast_doctor;"
        "report = fast_doctor(Path(sys.argv[1]), sys.argv[2:], ranks=2);"
        "assert report.ok and 'torch' not in sys.modules, report;"
        "print(*(finding.check for finding in report.findings))"
    )
    command = [sys.executable, "-c", program, str(built.config), f"run_dir={run}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["configuration", "batch", "limits", "names", "disks"]
    assert not list(run.iterdir())


def test_a_fast_check_that_fails_is_the_finding_of_the_whole_preflight(built: RunSandbox, tmp_path: Path) -> None:
    assert_only_wrong(fast_doctor(built.config, [f"run_dir={tmp_path}/new"], ranks=2))
    assert_only_wrong(fast_doctor(built.config, ["train.steps=many"], ranks=2), configuration="failed")
    assert_only_wrong(fast_doctor(built.config, [f"run_dir={tmp_path}/new"], ranks=1000), batch="failed")
    foreign, blocked = tmp_path / "foreign", tmp_path / "file"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    blocked.touch()
    for override in (f"run_dir={foreign}", f"checkpoint.dir={blocked}/below"):
        fast = fast_doctor(built.config, [f"run_dir={tmp_path}/new", override], ranks=2)
        assert_only_wrong(fast, disks="failed")
        assert finding_of(fast, "disks") == finding_of(check_this_machine(built, override), "disks")
        printed = "\n".join(lines(fast, quiet=True))
        assert "failed   disks" in printed and "fix:" in printed and "  ok  " not in printed
    with pytest.raises(BigtrainError, match="there is no check matmul"):
        fast_doctor(built.config, skip=["matmul"])


# Assessments of given measurements


def context_on(
    hosts: list[str], settings: Settings | None = None, past: dict[str, list[float]] | None = None
) -> CheckContext:
    """Ranks on these hosts, as rank 0 knows them."""
    store = HashStore()
    local: dict[str, int] = {}
    attendees = []
    for rank, name in enumerate(hosts):
        local[name] = local.get(name, -1) + 1
        attendees.append(Attendee(rank, name, local[name], sorted(set(hosts)).index(name)))
        store.set(f"here/{rank}", json.dumps(vars(attendees[-1])))
    return CheckContext(
        Meeting(store, attendees[0], len(hosts), []), settings, torch.device("cpu"), MeasurementHistory(past)
    )


def gpu(flops: float, name: str = "NVIDIA H200") -> dict:
    return {"flops": flops, "type": "cuda", "name": name, "kind": "bf16", "load": 0.1}


def test_a_finding_names_machines_only_where_they_are_at_fault() -> None:
    """By the scheduler's names; what concerns all machines, or a version, is no fault of a machine."""
    meeting = context_on(["a", "a", "b", "b"]).meeting
    assert meeting.machines([3, 2]) == ("b",) and meeting.machines([1], some=True) == ("a",)
    assert meeting.machines([0, 2], some=True) == () and meeting.machines([0, 2]) == ("a", "b")
    named = context_on(["a", "a", "b", "b"]).meeting
    named.attendees |= {rank: replace(named.attendees[rank], machine="node-7") for rank in (2, 3)}
    assert named.machines([2]) == ("node-7",)


def test_a_slow_gpu_is_named_and_a_very_slow_one_is_a_failure() -> None:
    context = context_on(["a"] * 4 + ["b"] * 4)
    measured = {rank: gpu(600e12 + rank * 1e12) for rank in range(8)}
    assert [f.status for f in devices.assess_matmul(measured, context)] == ["ok"]
    measured[6] = gpu(500e12)
    slow, _ = devices.assess_matmul(measured, context)
    assert slow.status == "warning" and slow.found.startswith("rank 6 (b) is slow: 500 TFLOP/s")
    measured[6] = gpu(300e12)
    failed = next(iter(devices.assess_matmul(measured, context)))
    assert failed.status == "failed" and failed.hosts == ("b",)
    all_slow = {rank: gpu(300e12) for rank in range(8)}
    of_sheet, *_ = devices.assess_matmul(all_slow, context_on(["a"] * 8))
    assert of_sheet.status == "warning" and "30% of the datasheet's 990 TFLOP/s" in of_sheet.found


def test_a_device_slower_than_before_is_named_although_all_are() -> None:
    past = {f"matmul bf16 a {local}": [600e12] * 5 for local in range(2)}
    found = list(devices.assess_matmul({0: gpu(470e12, "X"), 1: gpu(490e12, "X")}, context_on(["a", "a"], past=past)))
    assert [(f.status, f.found[:10]) for f in found] == [("warning", "rank 0 (a)"), ("ok", found[-1].found[:10])]
    assert "22% less than the 600 TFLOP/s of earlier" in found[0].found


def test_two_ranks_on_one_gpu_one_without_any_and_idle_gpus_are_found() -> None:
    one = {"type": "cuda", "name": "G", "free": 90, "total": 100, "devices": 4, "local_ranks": 2}
    measured = {
        0: {**one, "uuid": "x"},
        1: {**one, "uuid": "x", "free": 10},
        2: {"type": "cpu", "name": "8 cores", "threads": 4, "local_ranks": 1},
    }
    found = [f.found for f in devices.assess_devices(measured, context_on(["a", "a", "b"])) if f.status != "ok"]
    for text in (
        "ranks 0-1 (a) use the same GPU",
        "rank 2 (b) sees no GPU",
        "uses 2 of the 4 GPUs",
        "rank 1 (a): another",
    ):
        assert any(text in each for each in found), found


def test_gpus_with_errors_are_named_with_a_fix() -> None:
    healthy = dict(zip(host.GPU_FIELDS, ["0", "G", "Enabled", "0", "No", "No", "No", "Not Active", "40"], strict=True))
    sick = dict(zip(host.GPU_FIELDS, ["3", "G", "Disabled", "2", "[N/A]", "Yes", "Yes", "Active", "91"], strict=True))
    context = context_on(["a", "b", "c"])
    measured = {0: {"gpus": [healthy], "xid": []}, 1: None, 2: {"gpus": [healthy, sick], "xid": ["NVRM: Xid 79"]}}
    found = [(f.status, f.found) for f in host.assess_gpus(measured, context) if f.status != "ok"]
    assert all(text.startswith("c: ") for _, text in found)
    assert [status for status, _ in found] == ["failed", "failed", "warning", "warning", "warning"], found
    assert "2 uncorrected memory errors" in found[0][1] and "Xid 79" in found[-1][1]
    assert [f.status for f in host.assess_gpus({0: measured[0]}, context)] == ["ok"]


def test_a_slow_link_between_two_hosts_and_a_wrong_sum_are_found() -> None:
    context = context_on(["a", "b", "c", "d", "e"])
    each = {"backend": "gloo", "world_size": 5, "latency_seconds": 1e-4, "bytes": 1 << 20, "all_reduce_seconds": 1e-3}
    each |= {"exchange_bytes": 1 << 20, "all_to_all_seconds": 1e-3}
    measured = {rank: {**each, "links": {str(rank + 1): 0.01}} for rank in range(4)} | {4: {**each, "links": {}}}
    assert [f.status for f in network.assess_network(measured, context)] == ["ok"]
    measured[2]["links"] = {"3": 0.05}
    measured[1]["wrong"] = "4.0 or 5.0 as the sum of 5 ones"
    wrong, slow, _ = network.assess_network(measured, context)
    assert wrong.status == "failed" and "rank 1 (b) got 4.0" in wrong.found
    assert "between ranks 2 (c), 3 (d) is slow" in slow.found


def test_a_clock_that_is_off_by_less_than_the_measuring_error_is_ok() -> None:
    context = context_on(["a", "b", "c"])
    measured = {0: {"ahead": 0.0, "error": 0.0}, 1: {"ahead": 3.0, "error": 2.5}, 2: {"ahead": -900.0, "error": 0.1}}
    off, _ = clocks.assess_clocks(measured, context)
    assert off.status == "failed" and "rank 2 (c) lags that of rank 0 (a) by 15m00s" in off.found


def test_a_name_that_means_loopback_is_fatal_among_several_hosts_only() -> None:
    """A host name that resolves to loopback is ok on one host, and a failed check on several."""
    each = {"own": ["127.0.1.1"], "master": "a", "first": ["10.0.0.1"], "interface": None}
    assert [f.status for f in names.assess_names({0: each}, context_on(["a"]))] == ["ok"]
    among = context_on(["a", "b"])
    failed, _ = names.assess_names({0: {**each, "own": ["10.0.0.1"]}, 1: each}, among)
    assert failed.status == "failed" and "rank 1 (b)" in failed.found and "GLOO_SOCKET_IFNAME" in str(failed.fix)
    assert [f.status for f in names.assess_names({0: each, 1: each} and {1: {**each, "interface": "eth1"}}, among)] == [
        "ok"
    ]


def test_the_memory_estimate_follows_the_stage_and_names_short_hosts(built: RunSandbox) -> None:
    """The estimate depends on the ZeRO stage, and a host with too little memory is named.

    Stage 1 has the last micro-batch's gradients in bfloat16 beside the sum. All parameters are so small that stage 3
    has them whole beside the parts.
    """

    def settings(stage: int) -> Settings:
        return load_settings(built.config, [f"engine.zero_stage={stage}", "train.global_batch_size=16"])

    needs = [shape.rank_memory(settings(stage), 8).states for stage in (1, 2, 3)]
    parameters = count_parameters(settings(1).model)
    wanted = [2 + (2 + 4) + 1.5, 2 + 0.5 + 1.5, (0.25 + 2) + 0.5 + 1.5]
    assert [need / parameters for need in needs] == pytest.approx(wanted)
    context = context_on(["a", "b"], settings(2))
    short, _ = shape.assess_memory({0: {"host": 1 << 40}, 1: {"host": parameters}}, context)
    assert short.status == "failed" and "rank 1 (b)" in short.found


def test_the_memory_estimate_is_that_of_the_stage_that_needs_most(built: RunSandbox) -> None:
    """A stage of one long sample in a micro-batch needs more than one of a short one, and the batch check sees it."""
    long = [
        "model.max_position_embeddings=512", "train.micro_batch_size=1", "train.global_batch_size=16",
        'data.phases=[{"from_tokens": 4096, "sequence_length": 512}]',
    ]  # fmt: skip
    staged = load_settings(built.config, long)
    assert shape.rank_memory(staged, 2) == shape.rank_memory(staged.at_step(12), 2)
    assert shape.rank_memory(staged, 2).device > shape.rank_memory(staged.at_step(1), 2).device
    with pytest.raises(
        BigtrainError, match=r"data\.phases\.0\.sequence_length makes global batches that do not divide"
    ):
        shape.measure_batch(context_on(["a", "b", "c", "d"], staged))

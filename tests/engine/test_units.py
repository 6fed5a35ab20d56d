"""Configuration, schedule, optimizer groups and topology: what needs no DeepSpeed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config.settings import ScheduleSettings, Settings
from bigtrain.engine.deepspeed_config import deepspeed_config
from bigtrain.engine.optimizer import build_optimizer
from bigtrain.engine.requirements import check_machine
from bigtrain.engine.schedule import learning_rate
from bigtrain.engine.topology import Topology, _threads
from tests import forkserver
from tests.engine.helpers import TinyDecoder, settings

PEAK = 3e-4


def with_extras(extras: dict[str, Any]) -> Settings:
    chosen = settings({"stage": 2})
    return chosen.model_copy(update={"engine": chosen.engine.model_copy(update={"deepspeed": extras})})


def test_extras_are_merged_into_deepspeeds_configuration() -> None:
    extras = {"zero_optimization": {"sub_group_size": 1000}, "comms_logger": {"enabled": True}}
    config = deepspeed_config(with_extras(extras))
    assert config["zero_optimization"]["sub_group_size"] == 1000
    assert config["zero_optimization"]["stage"] == 2
    assert config["comms_logger"] == {"enabled": True}


@pytest.mark.parametrize(
    ("extras", "named"),
    [
        ({"gradient_clipping": 5}, "engine.deepspeed.gradient_clipping"),
        ({"zero_optimization": {"stage": 3}}, "engine.deepspeed.zero_optimization.stage"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "engine.deepspeed.data_types.grad_accum_dtype"),
        ({"zero_optimization": 3}, "engine.deepspeed.zero_optimization"),
        ({"optimizer": {"type": "Adam"}}, "engine.deepspeed.optimizer"),
        ({"train_batch_size": 8}, "engine.deepspeed.train_batch_size"),
    ],
)
def test_a_key_that_bigtrain_sets_is_refused_by_name(extras: dict[str, Any], named: str) -> None:
    with pytest.raises(BigtrainError, match=named):
        deepspeed_config(with_extras(extras))


shared = {"warmup_steps": st.integers(0, 60), "min_lr_ratio": st.floats(0, 1)}
schedules = st.builds(
    ScheduleSettings, name=st.sampled_from(["constant", "linear", "cosine", "inverse_sqrt"]), **shared
) | st.builds(ScheduleSettings, name=st.just("wsd"), decay_steps=st.none() | st.integers(1, 200), **shared)


@given(schedule=schedules, total=st.integers(61, 300))
def test_schedules_rise_to_the_peak_and_never_again(schedule: ScheduleSettings, total: int) -> None:
    rates = [learning_rate(step, total, schedule, PEAK) for step in range(1, total + 50)]
    peak = max(schedule.warmup_steps, 1) - 1
    assert all(0 <= rate <= PEAK * (1 + 1e-12) for rate in rates)
    assert all(a < b for a, b in pairwise(rates[: peak + 1]))
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(rates[peak:]))
    assert set(rates[total - 1 :]) == {rates[total - 1]}  # what comes after the end is the end
    if schedule.warmup_steps:
        assert rates[peak] == pytest.approx(PEAK) and rates[0] == pytest.approx(PEAK / schedule.warmup_steps)


@given(schedule=schedules, total=st.integers(62, 300), resumes=st.sets(st.integers(1, 300)))
def test_decays_end_on_the_last_step_at_the_minimum_ratio(
    schedule: ScheduleSettings, total: int, resumes: set[int]
) -> None:
    """The rate is a function of the position alone: a process that starts in the middle has nothing to remember."""
    bounds = [0, *sorted(step for step in resumes if step < total), total]
    rates = [
        learning_rate(step, total, schedule, PEAK)
        for start, end in pairwise(bounds)
        for step in range(start + 1, end + 1)
    ]
    assert rates == [learning_rate(step, total, schedule, PEAK) for step in range(1, total + 1)]
    if schedule.name in ("linear", "cosine", "wsd"):
        assert rates[-1] == PEAK * schedule.min_lr_ratio
    elif schedule.name == "constant":
        assert rates[-1] == PEAK


@given(schedule=schedules, total=st.integers(61, 300), tokens=st.integers(1, 10**9))
def test_by_token_and_by_step_are_the_same_where_all_batches_are_equal(
    schedule: ScheduleSettings, total: int, tokens: int
) -> None:
    assume(schedule.name != "inverse_sqrt" or schedule.warmup)  # else its reference is the first step, or token
    by_token = ScheduleSettings(
        by="token",
        name=schedule.name,
        warmup_tokens=schedule.warmup * tokens,
        decay_tokens=schedule.decay and schedule.decay * tokens,
        min_lr_ratio=schedule.min_lr_ratio,
    )
    for step in range(1, total + 1):
        rate = learning_rate(step * tokens, total * tokens, by_token, PEAK)
        assert rate == pytest.approx(learning_rate(step, total, schedule, PEAK), rel=1e-12, abs=1e-18)


@given(ratio=st.floats(0, 1), warmup=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 32)), max_size=3))
def test_by_token_half_way_is_where_half_of_the_tokens_are(ratio: float, warmup: list[tuple[int, int]]) -> None:
    """A run with a batch-size warm-up stands where a run of equal batches stands after as many tokens."""
    case = settings({"stage": 1}).model_dump()
    case["train"] |= {"steps": 200, "global_batch_size": 32, "micro_batch_size": 1}
    case["train"]["batch_size_warmup"] = [{"steps": steps, "global_batch_size": size} for steps, size in warmup]
    case["schedule"] = {"by": "token", "name": "cosine", "min_lr_ratio": ratio}
    chosen = Settings.model_validate(case)
    positions = [chosen.schedule_position(step) for step in range(201)]
    assert positions[0] == 0 and positions[-1] == chosen.schedule_length
    assert [b - a for a, b in pairwise(positions)] == [
        len(chosen.train.batches.samples_of(step)) * chosen.data.sequence_length for step in range(1, 201)
    ]
    rates = [learning_rate(at, chosen.schedule_length, chosen.schedule, PEAK) for at in positions]
    assert rates[-1] == PEAK * ratio
    assert all(b <= a for a, b in pairwise(rates))


@given(schedule=schedules)
def test_schedules_have_no_jumps(schedule: ScheduleSettings) -> None:
    """Ten thousand steps: neighbours differ by no more than the steepest of warm-up and decay explains."""
    total = 10_000
    warmup = schedule.warmup_steps
    decay = schedule.decay_steps or total / 5
    steepest = PEAK * max(1 / max(warmup, 1), 1 / decay, 2 / (total - warmup))
    rates = [learning_rate(step, total, schedule, PEAK) for step in range(total)]
    assert max(abs(a - b) for a, b in pairwise(rates)) <= steepest * (1 + 1e-9)


def test_wsd_is_stable_until_its_decay_begins() -> None:
    schedule = ScheduleSettings(name="wsd", warmup_steps=10, decay_steps=20, min_lr_ratio=0.0)
    assert {learning_rate(step, 100, schedule, PEAK) for step in range(10, 81)} == {PEAK}
    assert learning_rate(90, 100, schedule, PEAK) == pytest.approx(PEAK / 2)


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_decay_and_vectors_do_not(tied: bool) -> None:
    model = TinyDecoder(tied=tied)
    optimizer = build_optimizer(model, settings({"stage": 1}).optimizer)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decay, rest = ({names[p] for p in group["params"]} for group in optimizer.param_groups)
    assert decay | rest == set(names.values()) and not decay & rest
    assert "embed.weight" in decay and ("head.weight" in decay) is not tied
    assert all(name.endswith(("norm.weight", ".bias")) for name in rest)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize(("capability", "works"), [((8, 0), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)])
def test_a_gpu_without_8_bit_products_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], works: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")
    chosen = settings({"stage": 1, "precision": "bf16"})
    chosen = chosen.model_copy(update={"engine": chosen.engine.model_copy(update={"float8": True})})
    topology = Topology(0, 1, 0, 1, torch.device("cuda", 0), timedelta(minutes=1))
    if works:
        check_machine(chosen, topology)
        return
    with pytest.raises(BigtrainError, match=r"engine\.float8") as error:
        check_machine(chosen, topology)
    assert "8.0" in str(error.value.found) and error.value.shared


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "3", "TORCHELASTIC_RUN_ID": "x"}, 3),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, 4),
        ({}, 4),
    ],
)
def test_threads_are_what_the_user_asked_for_or_a_fair_share(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], threads: int
) -> None:
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert _threads(local_world_size=2) == threads


ALONE = """
import json, sys
from bigtrain.base import gather
from bigtrain.engine.topology import start
t = start(timeout_minutes=1)
t.barrier()
collectives = [t.sum_across_ranks([2**53 + 1, 2]), gather(t, "x"), t.broadcast({"a": 1})]
out = [t.rank, t.world_size, t.device.type, *collectives]
t.shutdown()
print(json.dumps([out, "mpi4py" in sys.modules, "deepspeed" in sys.modules]))
"""


@pytest.mark.slow
def test_a_plain_python_process_is_a_world_of_one() -> None:
    finished = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    device = "cuda" if torch.cuda.is_available() else "cpu"
    expected = [[0, 1, device, [2**53 + 1, 2], ["x"], {"a": 1}], False, False]
    assert json.loads(finished.stdout) == expected


MANY = """
import json, sys
from pathlib import Path
from bigtrain.base import BigtrainError, collectively, gather
from bigtrain.engine.topology import leave, start
t = start(timeout_minutes=1)
def fail():
    if t.rank in (3, 9):
        raise BigtrainError("no disk")
try:
    collectively(t, "not done", fail)
except BigtrainError as error:
    message = str(error)
beside = t.background()
out = [gather(t, t.rank), gather(beside, -t.rank), beside.broadcast(t.rank), t.broadcast("x" * 2**20) == "x" * 2**20]
out += [t.scatter(list(range(10)) if t.rank == 0 else None), message]
Path(sys.argv[1], f"{t.rank}.json").write_text(json.dumps(out))
t.barrier()
leave(0)
"""


@pytest.mark.slow
def test_values_go_along_the_tree_between_ten_processes(tmp_path: Path) -> None:
    """Ten ranks are two levels of the tree."""
    script = tmp_path / "many.py"
    script.write_text(MANY)
    finished = forkserver.torchrun(10, script, tmp_path)
    assert finished.returncode == 0, finished.stdout
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(10)]
    assert found[0][:2] == [list(range(10)), [-rank for rank in range(10)]]
    assert all(of_rank[:2] == [None, None] for of_rank in found[1:])
    assert [of_rank[2:5] for of_rank in found] == [[0, True, rank] for rank in range(10)]
    assert {of_rank[5] for of_rank in found} == {found[0][5]} and "and 1 more: no disk" in found[0][5]


PLACED = """
import json, os
from bigtrain.engine.topology import leave, start
t = start(timeout_minutes=float(os.environ["WAITS"]))
print(json.dumps([t.rank, t.world_size, t.local_rank, t.local_world_size]), flush=True)
t.barrier()
leave(0)
"""


def started_alone(script: Path, ranks: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> list[forkserver.Started]:
    """Ranks of a world of three, each with what any launcher says and no more."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in ranks:
        values = {"RANK": rank, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))
        started.append(forkserver.Started(None, (script,)))
    return started


@pytest.mark.slow
def test_ranks_without_a_local_rank_find_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "placed.py"
    script.write_text(PLACED)
    monkeypatch.setenv("WAITS", "1")
    finished = [process.finish() for process in started_alone(script, range(3), monkeypatch)]
    assert [json.loads(done.stdout) for done in finished] == [[rank, 3, rank, 3] for rank in range(3)]


@pytest.mark.slow
def test_rank_0_names_those_that_have_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "placed.py"
    script.write_text(PLACED)
    monkeypatch.setenv("WAITS", "0.1")
    first, last = (process.finish() for process in started_alone(script, [0, 2], monkeypatch))
    assert "rank(s) 1 did not come within 6 s" in first.stdout + first.stderr
    assert "1 of 3 ranks did not come within 6 s" in last.stdout + last.stderr

"""What verify-resume decides: whom to start and kill, in what other shape to resume, and what counts as the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.base.faults import POINTS, Fault
from bigtrain.config import Settings
from bigtrain.trials.trial import Launcher, Trial, tried_settings
from bigtrain.trials.verify_resume import (
    OF_RANK_0,
    SAVE_POINTS,
    _near_curve,
    _orders,
    _reshaped,
    _same_curve,
    _same_tensors,
)


def settings(**engine: Any) -> Settings:
    checkpoint = engine.pop("checkpoint", {})
    return Settings.model_validate(
        {
            "run_dir": "runs/x",
            "model": {
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 128,
                "vocab_size": 8192,
                "max_position_embeddings": 128,
            },
            "data": {"dir": "datasets/x", "sequence_length": 128, "sources": [{"name": "c", "kind": "python_stdlib"}]},
            "train": {"steps": 100, "global_batch_size": 8},
            "engine": engine,
            "checkpoint": checkpoint,
        }
    )


def trial(processes: int | None, **engine: Any) -> Trial:
    tried = tried_settings(settings(**engine), Path("runs/x/verify-resume/undisturbed"), 12, 4)
    return Trial(tried, Launcher("launch {n}" if processes else "launch", processes), processes, Path("x.log"))


def test_torchrun_on_this_machine_is_the_default() -> None:
    command = Launcher.of(None, 3).command(3, ["train", Path("c.yaml")])
    assert command[1:5] == ["-m", "bigtrain.cli.torchrun", "--standalone", "--nproc-per-node"]
    assert command[5:] == ["3", "-m", "bigtrain", "train", "c.yaml"]
    assert (Launcher.of(None, None).processes or 0) > 0


def test_a_launcher_of_one_s_own_may_take_the_number_of_processes() -> None:
    launcher = Launcher.of("srun -n {n} --export 'ALL,X=a b' python", 16)
    assert launcher.command(8, ["train"]) == [
        *("srun", "-n", "8", "--export", "ALL,X=a b", "python"),
        *("-m", "bigtrain", "train"),
    ]
    assert Launcher.of("python", None).command(None, ["train"]) == ["python", "-m", "bigtrain", "train"]


@pytest.mark.parametrize(("template", "processes"), [("srun python", 16), ("srun -n {n} python", None)])
def test_a_number_of_processes_that_goes_nowhere_or_is_missing_is_refused(template: str, processes: int | None) -> None:
    with pytest.raises(BigtrainError, match="number of processes"):
        Launcher.of(template, processes)


@given(seed=st.integers(), world=st.integers(1, 64), every=st.integers(1, 50))
def test_victims_and_instants_are_ones_that_exist(seed: int, world: int, every: int) -> None:
    expected = [{"step_seconds": 0.5}] * (3 * every)
    (_, in_step), (_, in_save) = _orders(expected, every, world, random.Random(seed))
    assert in_step.at == "step" and every < in_step.count <= 2 * every and 0 <= in_step.delay <= 0.5
    for kill in (in_step, in_save):
        assert 0 <= int(kill.rank) < world and Fault.parse(str(kill)) == kill
    assert in_save.at in SAVE_POINTS and (in_save.at not in OF_RANK_0 or in_save.rank == "0")


@pytest.mark.parametrize("text", ["kill,rank=0,at=nowhere", "kill,at=step", "rank=0,at=step"])
def test_a_trial_s_orders_are_ones_that_processes_understand(text: str) -> None:
    with pytest.raises(ValueError, match=r"point|rank|fault"):
        Fault.parse(text)
    assert set(SAVE_POINTS) < set(POINTS)


def test_a_trial_is_the_user_s_run_but_for_place_length_and_saving() -> None:
    ours = settings(zero_stage=2, checkpoint={"every_minutes": 3, "keep": 1, "asynchronous": False})
    tried = tried_settings(ours, Path("runs/x/verify-resume/a"), 12, 4)
    assert (tried.model, tried.data, tried.optimizer, tried.schedule, tried.engine) == (
        *(ours.model, ours.data, ours.optimizer, ours.schedule, ours.engine),
    )
    assert tried.train == ours.train.model_copy(update={"stop_after": 12})
    assert (tried.checkpoint.every_steps, tried.checkpoint.keep, tried.checkpoint.asynchronous) == (4, None, False)
    remote = settings(checkpoint={"dir": "s3://bucket/runs/"})
    assert tried_settings(remote, Path("x/verify-resume/a"), 12, 4).checkpoint.dir == "s3://bucket/runs/verify-resume/a"


@pytest.mark.parametrize(
    ("processes", "engine", "shape"),
    [
        (8, {"zero_stage": 2}, "ZeRO 3 and 4 process(es)"),
        (8, {"zero_stage": 3}, "ZeRO 2 and 4 process(es)"),
        (3, {"zero_stage": 2}, "ZeRO 3"),
        (None, {"zero_stage": 2}, "ZeRO 3"),
        (2, {"zero_stage": 1, "sequence_parallel_size": 2}, "ZeRO 3"),
        (8, {"zero_stage": 1, "tensor_parallel_size": 2}, "ZeRO 2 and 4 process(es)"),
        (2, {"zero_stage": 3, "offload_param": "cpu"}, "ZeRO 3 and 1 process(es)"),
    ],
)
def test_the_other_shape_is_one_that_these_settings_allow(
    processes: int | None, engine: dict[str, Any], shape: str
) -> None:
    other, described = _reshaped(trial(processes, **engine))
    assert other is not None and described == shape


def test_one_shape_that_is_possible_has_no_other() -> None:
    assert _reshaped(trial(3, zero_stage=3, offload_param="cpu"))[0] is None


def metrics(steps: int, **of_last: Any) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {
            "step": s,
            "loss": 1 / s,
            "grad_norm": 1.0,
            "learning_rate": 0.1,
            "batch_digest": str(s),
            "consumed_samples": s,
        }
        for s in range(1, steps + 1)
    ]
    lines[-1] |= of_last
    return lines


def test_one_bit_of_a_loss_is_a_difference() -> None:
    assert _same_curve(metrics(5), metrics(5))[0]
    ok, found = _same_curve(metrics(5), metrics(5, loss=0.2 + 2**-55))
    assert not ok and "step 5 differs first: loss" in found
    assert not _same_curve(metrics(5), metrics(4))[0] and not _same_curve(metrics(5), metrics(5, batch_digest="x"))[0]


def test_another_shape_may_round_but_not_take_other_batches() -> None:
    assert _near_curve(metrics(5), metrics(5, loss=0.2 * (1 + 1e-6)), 2, 1e-4)[0]
    assert not _near_curve(metrics(5), metrics(5, loss=0.2 * (1 + 1e-3)), 2, 1e-4)[0]
    assert not _near_curve(metrics(5), metrics(5, batch_digest="x"), 2, 1e-4)[0]
    assert not _near_curve(metrics(5), metrics(4), 2, 1e-4)[0]


def test_tensors_are_the_same_by_name_kind_and_hash() -> None:
    stored = {("w", "master"): "a", ("w", "exp_avg"): "b"}
    assert _same_tensors(stored, dict(stored))[0]
    ok, found = _same_tensors(stored, {**stored, ("w", "exp_avg"): "c"})
    assert not ok and "exp_avg of w" in found
    assert not _same_tensors(stored, {("w", "master"): "a"})[0]

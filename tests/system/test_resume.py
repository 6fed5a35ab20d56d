"""Stopped, killed, lengthened or changed: what a run is after a resume, and how to prove it on one's own machine."""

import json
import math
import shlex
import subprocess
import sys

import pytest
import yaml

from bigtrain.config import ScheduleSettings
from bigtrain.engine.schedule import learning_rate
from tests import forkserver
from tests.cli.schema import check
from tests.matrix import thinned
from tests.refusals import assert_refused
from tests.system.run_sandbox import ROOT, STATUS_STOPPED, RunSandbox, as_json, curve

PEAK = 3e-3
COSINE = ("schedule.name=cosine", "schedule.decay_steps=null", "schedule.min_lr_ratio=0.1")


def other_run(sandbox: RunSandbox, name: str, **sections) -> RunSandbox:
    """The same data and settings in another run directory."""
    settings = yaml.safe_load(sandbox.config.read_text())
    settings["run_dir"] = str(sandbox.directory / name)
    for section, values in sections.items():
        settings[section] = {**settings.get(section, {}), **values}
    config = sandbox.directory / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings))
    return RunSandbox(sandbox.directory, config)


def steps_of(sandbox: RunSandbox, name: str) -> list[dict]:
    return sandbox.metrics(sandbox.directory / name)


SCHEDULES = {"cosine": COSINE, "wsd": ("schedule.min_lr_ratio=0.1",)}


@pytest.mark.parametrize("name", thinned(SCHEDULES, keep=["cosine"]))  # wsd is lengthened below
def test_schedules_end_where_they_should_after_any_number_of_stops(sandbox, name):
    schedule = SCHEDULES[name]
    whole, cut = other_run(sandbox, "whole"), other_run(sandbox, "cut")
    assert whole.train(1, *schedule)[0] == 0
    for stop in (3, 10):
        assert cut.train(1, *schedule, f"train.stop_after={stop}")[0] == STATUS_STOPPED
        assert steps_of(sandbox, "cut")[-1]["step"] == stop
    status, output = cut.train(1, *schedule)
    assert status == 0, output
    assert curve(steps_of(sandbox, "cut")) == curve(steps_of(sandbox, "whole"))
    rates = [m["learning_rate"] for m in steps_of(sandbox, "cut")]
    assert math.isclose(rates[-1], 0.1 * PEAK) and max(rates) == PEAK
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_a_wsd_run_that_is_lengthened_on_its_plateau_is_the_longer_run(sandbox):
    long, short = other_run(sandbox, "long", train={"steps": 18}), other_run(sandbox, "short")
    assert long.train(1)[0] == 0
    assert short.train(1, "train.stop_after=7")[0] == STATUS_STOPPED
    before = (sandbox.directory / "short/metrics.jsonl").read_bytes()
    result = short.train(1, "train.steps=18")
    assert_refused(result, "train.steps: 18", "train.steps: 12", fix="checkpoint.allow_change=[train.steps]")
    assert (sandbox.directory / "short/metrics.jsonl").read_bytes() == before

    status, output = short.train(1, "train.steps=18", "checkpoint.allow_change=[train.steps]")
    assert status == 0 and "train.steps changes from 12 to 18" in output
    assert curve(steps_of(sandbox, "short")) == curve(steps_of(sandbox, "long"))
    (change,) = [e for e in sandbox.events(sandbox.directory / "short") if e["event"] == "change"]
    assert (change["step"], change["key"], change["from"], change["to"]) == (7, "train.steps", 12, 18)
    # The checkpoints know the new length: no leave is needed any more.
    status, output = short.train(1, "train.steps=18")
    assert status == 0 and "all steps done" in output


def test_a_finished_cosine_run_is_lengthened_along_the_new_curve(sandbox):
    run = other_run(sandbox, "run")
    assert run.train(1, *COSINE)[0] == 0
    first = curve(steps_of(sandbox, "run"))
    status, output = run.train(
        1, *COSINE, "train.tokens=9216", "train.steps=null", "checkpoint.allow_change=[train.tokens]"
    )
    assert status == 0, output
    metrics = steps_of(sandbox, "run")
    assert [m["step"] for m in metrics] == list(range(1, 19)) and curve(metrics)[:12] == first
    schedule = ScheduleSettings(name="cosine", warmup_steps=2, min_lr_ratio=0.1)
    expected = [learning_rate(step, 18, schedule, PEAK) for step in range(13, 19)]
    assert [m["learning_rate"] for m in metrics[12:]] == expected
    assert metrics[-1]["consumed_samples"] == 18 * 8


def test_a_schedule_that_would_end_in_the_past_is_refused(sandbox):
    run = other_run(sandbox, "run")
    assert run.train(1, "train.stop_after=9")[0] == STATUS_STOPPED
    result = run.train(1, "train.steps=8", "checkpoint.allow_change=[train.steps]")
    assert_refused(result, found="train.steps 8", wanted="at least 9")


def test_what_may_change_does_and_what_may_not_is_refused_beside_it(sandbox):
    run = other_run(sandbox, "run")
    assert run.train(1, "train.stop_after=4")[0] == STATUS_STOPPED
    changed = ("optimizer.max_grad_norm=0.5", "optimizer.weight_decay=0.2", "engine.zero_stage=3")
    status, output = run.train(1, *changed, "checkpoint.allow_change=[optimizer.max_grad_norm]")
    wanted = "checkpoint.allow_change=[optimizer.max_grad_norm, optimizer.weight_decay]"
    assert_refused((status, output), "optimizer.weight_decay: 0.2", fix=wanted)
    assert "zero_stage" not in output
    allow = "checkpoint.allow_change=[optimizer.max_grad_norm, optimizer.weight_decay]"
    status, output = run.train(1, *changed, allow, "train.stop_after=6")
    assert status == STATUS_STOPPED, output
    changes = [e for e in sandbox.events(sandbox.directory / "run") if e["event"] == "change"]
    assert {e["key"]: (e["from"], e["to"]) for e in changes} == {
        "optimizer.max_grad_norm": (1.0, 0.5),
        "optimizer.weight_decay": (0.1, 0.2),
    }


def test_the_save_interval_is_chosen_where_it_is_left_open(sandbox):
    run = other_run(sandbox, "run", checkpoint={"every_steps": None, "every_minutes": "auto"})
    status, output = run.train(1)
    assert status == 0 and "saving every" in output and "is expected (0 so far)" in output


def verify_resume(sandbox: RunSandbox, *arguments: str) -> tuple[int, dict]:
    done = sandbox.bigtrain("verify-resume", sandbox.config, "--json", *arguments, timeout=280)
    assert done.returncode in (0, 1) and done.stdout, done.stdout + done.stderr
    report = json.loads(done.stdout)
    check("verify-resume", report)
    return done.returncode, report


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["forked", pytest.param("torchrun", marks=pytest.mark.long)])
def test_verify_resume_finds_every_promise_kept(sandbox, launcher):
    with_launcher = ("--launcher", forkserver.launcher("{n}")) if launcher == "forked" else ()
    status, report = verify_resume(sandbox, *with_launcher, "-n", "2", "--steps", "6")
    assert status == 0 and report["ok"], report
    assert [check["check"].split(" of ")[0] for check in report["checks"]] == [
        "an undisturbed run",
        "kill -9 in a step",
        "kill -9 in a save",
        "every step",
        "every tensor",
        "every tensor loaded with ZeRO 3 and 1 process(es)",
        "every step with ZeRO 3 and 1 process(es)",
    ]
    assert list(sandbox.run.iterdir()) == []  # nothing of it is left


TAMPER = """
import os, sys
from pathlib import Path
from bigtrain.checkpoint import Checkpoint, StorageTiers, list_checkpoints
from bigtrain.checkpoint.checkpoint import checksum_of
run = Path(sys.argv[1])
found = list_checkpoints(StorageTiers.of(run).durable)
if found and not (run / "tampered").exists():
    checkpoint, manifest = found[-1], found[-1].manifest
    (name,) = manifest.files
    path = Path(checkpoint.location) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)
    with checkpoint.open(name) as reader:
        manifest.files[name] = checksum_of(reader)  # as if it had been saved so
    (path.parent / "manifest.json").write_text(manifest.to_json())
    (run / "tampered").touch()
os.execvp(LAUNCHER[0], [*LAUNCHER, *sys.argv[2:]])
"""


@pytest.mark.slow
def test_verify_resume_notices_a_checkpoint_that_somebody_has_changed(sandbox):
    """The negative control: one bit of one tensor, under a manifest that vouches for it."""
    script = sandbox.directory / "tamper.py"
    script.write_text(f"LAUNCHER = {shlex.split(forkserver.launcher('1'))}\n{TAMPER}")
    launcher = f"{sys.executable} {script} {sandbox.run}/verify-resume/disturbed"
    status, report = verify_resume(
        sandbox, "checkpoint.asynchronous=false", "--launcher", launcher, "--steps", "6", "--keep"
    )
    assert (sandbox.run / "verify-resume/disturbed/tampered").exists()
    assert status == 1 and not report["ok"]
    failed = [check["check"] for check in report["checks"] if not check["ok"]]
    assert "every tensor of the checkpoint of step 6" in failed


@pytest.mark.slow
def test_verify_resume_says_so_when_nobody_could_be_killed(sandbox):
    launcher = f"env -u BIGTRAIN_FAULT {forkserver.launcher('1')}"
    done = sandbox.bigtrain("verify-resume", sandbox.config, "--launcher", launcher, "--steps", "3")
    assert_refused(done, "the rank that was to be killed was not", "BIGTRAIN_FAULT")


@pytest.mark.long
def test_saves_that_are_killed_in_every_phase_leave_what_was_committed(tmp_path):
    """A short version of benchmarks/kill_saves.py, whose result of 300 kills is kept; CI has the fault table."""
    command = [sys.executable, ROOT / "benchmarks/kill_saves.py", "--small", f"--out={tmp_path}"]
    parts = ["--savers=10", "--training=3", "--launched=0"]
    done = subprocess.run([*command, *parts], capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "kill_saves.json").read_text())
    for part, kills in (("savers", 10), ("training", 3)):
        assert (result[part]["kills"], result[part]["wrong"]) == (kills, 0)
        assert result[part]["resumes_compared"] >= kills and result[part]["tensors_compared_at_the_end"] > 0


@pytest.mark.slow
def test_the_biases_of_routers_go_on_where_they_were(sandbox):
    """They decide which experts work, and are no parameters: a resume that lost them would take another course."""
    experts = (
        "model.num_experts=4", "model.router_bias_update_rate=0.002", "model.router_aux_loss_coef=0.01",
        "model.router_z_loss_coef=0.001", "model.num_nextn_predict_layers=1",
    )  # fmt: skip
    whole, cut = other_run(sandbox, "whole"), other_run(sandbox, "cut")
    assert whole.train(1, *experts)[0] == 0
    assert cut.train(1, *experts, "train.stop_after=6")[0] == STATUS_STOPPED
    status, output = cut.train(1, *experts)
    assert status == 0, output
    beside_loss = ("router_aux_loss", "router_z_loss", "mtp_loss", "router_imbalance")
    whole_curve, cut_curve = steps_of(sandbox, "whole"), steps_of(sandbox, "cut")
    assert curve(cut_curve) == curve(whole_curve)
    assert [[m[key] for key in beside_loss] for m in cut_curve] == [
        [m[key] for key in beside_loss] for m in whole_curve
    ]
    moves = [moves_at(sandbox, name, 12) for name in ("whole", "cut")]
    assert moves[0] == moves[1] and len(moves[0]) == 3
    assert all(max(map(abs, of_router)) > 1 for of_router in moves[0].values()), moves

    evaluated = as_json(sandbox.bigtrain("eval", str(sandbox.directory / "cut"), "--json"))["validation"]
    noted = [e for e in sandbox.events(sandbox.directory / "cut") if e["event"] == "evaluate"][-1]["validation"]
    for ours, theirs in zip(evaluated, noted, strict=True):
        assert math.isclose(ours["loss"], theirs["loss"], rel_tol=1e-6)


def moves_at(sandbox: RunSandbox, run: str, step: int) -> dict[str, list[int]]:
    manifest = sandbox.directory / run / f"checkpoints/step-{step:08d}/manifest.json"
    return json.loads(manifest.read_text())["state"]["router_moves"]

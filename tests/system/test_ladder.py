"""A short ladder in real processes: its rungs are runs, and one that was killed finds the same law."""

import json
import shutil

import pytest
import yaml

from bigtrain.base.faults import FAULT, Fault
from tests import forkserver
from tests.cli.schema import check
from tests.refusals import assert_refused
from tests.system.run_sandbox import RunSandbox

MODEL = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": 2}
LADDER = ("--budget", "1e15", "--tokens", "5e3,7e3,1e4", "--sizes", "3", "--sweep-sizes", "0", "-n", "1")
FORKED = ("--launcher", forkserver.launcher("{n}"))


@pytest.fixture
def target(sandbox) -> RunSandbox:
    """A target with eight heads, on the data that all tests share."""
    settings = yaml.safe_load(sandbox.config.read_text())
    settings["model"] |= MODEL
    settings["train"] = {"tokens": 40_000, "global_batch_size": 16, "micro_batch_size": 8, "seed": 3}
    settings["schedule"] = {"name": "wsd", "warmup_steps": 4}
    sandbox.config.write_text(yaml.safe_dump(settings))
    return sandbox


def ladder(target, *arguments, launcher=FORKED):
    return target.bigtrain("ladder", target.config, *LADDER, *launcher, *arguments, timeout=280)


def found(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_killed_ladder_goes_on_to_the_same_law(target):
    """Every rung is a normal run. A ladder whose last rung is killed in a step does not train the others again, resumes
    that one from its checkpoint, and finds the same losses and the same law, to the last digit."""
    undisturbed = found(ladder(target, "--json"))
    folder = target.directory / "run-ladder"
    check("ladder", undisturbed)
    rungs = undisturbed["rungs"]
    assert len(rungs) == 9 and len({rung["parameters"] for rung in rungs}) == 3
    assert all(rung["loss"] > 0 for rung in rungs)
    listed = json.loads(target.bigtrain("runs", folder, "--json").stdout)
    assert len(listed) == 9 and {run["state"] for run in listed} == {"finished"}

    last = folder / rungs[-1]["run"].rpartition("/")[2]
    shutil.rmtree(last)
    others = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.jsonl")}
    kill = ("--launcher", f"env {FAULT}={Fault('kill', '0', 'step', count=10)} {FORKED[1]}")
    assert_refused(ladder(target, launcher=kill), f"{last.name} failed", fix="start the ladder again")
    again = found(ladder(target, "--json"))
    assert [event["event"] for event in target.events(last)].count("resume") == 1
    assert {path: path.stat().st_mtime_ns for path in others} == others
    for key in ("law", "intervals", "target", "optimal"):
        assert again[key] == undisturbed[key], key
    assert [rung["loss"] for rung in again["rungs"]] == [rung["loss"] for rung in rungs]
    assert "<svg" in (folder / "ladder.html").read_text()

    other = ladder(target, "optimizer.weight_decay=0.2")
    assert_refused(other, "holds a run of another ladder", found="optimizer.weight_decay: 0.1, wanted 0.2")


def test_data_that_cannot_carry_a_ladder_are_refused(target):
    """Text that would repeat too often, with the source and how often; and data without a held-out row. Nothing is
    trained."""
    many = ladder(target, "--tokens", "1e6,2e6,9e6")
    assert_refused(many, "the data are too few for a rung", found="times", wanted="at most 4 times")
    other = (f"data.dir={target.directory}/without", "data.validation.fraction=0")
    built = target.bigtrain("data", "build", target.config, *other)
    assert built.returncode == 0, built.stderr
    assert_refused(ladder(target, *other), "there is no held-out text", fix="data.validation.fraction")
    assert not (target.directory / "run-ladder").exists()


def test_a_dry_run_lists_the_runs_and_trains_none(target):
    """The names of the runs that would be trained next, as JSON too."""
    listed = found(ladder(target, "--dry-run", "--json"))
    check("ladder", listed)
    assert len(listed["pending"]) == 9 and not (target.directory / "run-ladder" / listed["pending"][0]).exists()

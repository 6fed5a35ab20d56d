"""A run whose tracker is a black hole, and which is killed before its first checkpoint, loses nothing and tells all."""

import json
import shutil
import time

import pytest

from bigtrain.rundir import account_of
from bigtrain.rundir.directory import RunDirectory
from bigtrain.rundir.ledger import CLASSES
from tests.observe.wandb_server import WandbServer, history, read_wandb
from tests.system.run_sandbox import as_json, curve

KEY = "0123456789abcdef0123456789abcdef01234567"
PATIENCE = 15


@pytest.mark.long
def test_a_tracker_that_never_answers_changes_no_bit(sandbox, monkeypatch, tmp_path):
    """A black hole for a tracker and samples change no bit and the ledger knows every second."""
    steps = ("train.steps=8", "schedule.decay_steps=2", "evaluate.every_steps=4")
    status, output = sandbox.train(1, *steps, f"run_dir={tmp_path}/plain")
    assert status == 0, output

    server = WandbServer("hole")
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracked = ("tracking.wandb=online", f"tracking.patience_seconds={PATIENCE}", "evaluate.samples=3")
    began = time.monotonic()
    with monkeypatch.context() as fault:
        fault.setenv("BIGTRAIN_FAULT", "kill,rank=0,at=step,count=3")
        status, output = sandbox.train(1, *steps, *tracked)
        assert status == 137, output
    status, output = sandbox.train(1, *steps, *tracked)
    took = time.monotonic() - began
    server.close()
    assert status == 0, output
    assert "tracked offline" in output and "goodput" in output
    assert curve(sandbox.metrics()) == curve(sandbox.metrics(tmp_path / "plain"))

    starts = [event for event in sandbox.events() if event["event"] == "start"]
    assert len(starts) == 2 and len({event["wandb_run_id"] for event in starts}) == 1  # though it had no checkpoint
    assert all(sum(event["phases"].values()) <= event["uptime"] + 0.01 for event in starts)
    folder = sorted((sandbox.run / "wandb").glob(f"offline-run-*-{starts[0]['wandb_run_id']}"))[-1]
    rows = history(folder)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    assert any("samples.path" in row for row in rows)
    texts = [event["samples"] for event in sandbox.events() if event["event"] == "evaluate"]
    assert len(texts) == 2 and all(len(drawn) == 3 for drawn in texts)
    assert texts[0] != texts[1] and [s["prompt"] for s in texts[0]] == [s["prompt"] for s in texts[1]]

    ledger = account_of(RunDirectory(sandbox.run))
    assert sum(ledger.micros.values()) == round(ledger.wall_seconds * 1e6) and ledger.wall_seconds <= took
    assert (ledger.starts, ledger.crashes, ledger.steps_counted, ledger.steps_recomputed) == (2, 1, 8, 2)
    for name in ("training", "recomputed", "start_up", "data_build", "evaluation", "checkpoint", "restart"):
        assert ledger.seconds[name] > 0, name
    assert ledger.seconds["other"] < 0.1 * ledger.wall_seconds + 1
    document = as_json(sandbox.bigtrain("report", sandbox.run, "--samples", "2", "--json"))
    assert document["goodput"]["seconds"].keys() == CLASSES.keys()
    assert document["goodput"]["seconds"] == pytest.approx(ledger.seconds)
    page = (sandbox.run / "report.html").read_text()
    assert "Goodput" in page and "Step 8" in page
    (row,) = as_json(sandbox.bigtrain("runs", sandbox.run, "--json"))
    assert (row["state"], row["step"], row["total_steps"]) == ("finished", 8, 8)
    assert row["goodput"] == pytest.approx(document["goodput"]["goodput"], abs=0.02)
    for path in sandbox.run.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    json.dumps(document)


@pytest.mark.slow
def test_a_branch_is_a_run_of_its_own_that_names_its_parent(sandbox):
    """In W&B and in its own records: by a checkpoint in a new folder, and by a copy of the whole folder. A run that was
    moved is the same run."""
    offline = ("tracking.wandb=offline", "evaluate.every_steps=null", "train.stop_after=4")
    assert sandbox.train(1, *offline)[0] == 75
    (origin,) = wandb_ids(sandbox.run)
    by_checkpoint, by_copy = sandbox.directory / "by_checkpoint", sandbox.directory / "by_copy"
    shutil.copytree(sandbox.run / "checkpoints", by_checkpoint / "checkpoints")
    shutil.copy(sandbox.run / "config.yaml", by_checkpoint)
    shutil.copytree(sandbox.run, by_copy, ignore=shutil.ignore_patterns("wandb"))
    further = (*offline[:-1], "train.stop_after=8")
    for branch in (by_checkpoint, by_copy):
        status, output = sandbox.train(1, *further, f"run_dir={branch}")
        assert status == 75 and f"a branch of the run in {sandbox.run}" in output, output
        assert wandb_ids(branch)[-1] != origin
        (resumed,) = [event for event in sandbox.events(branch) if event["event"] == "resume"]
        assert resumed["parent"] == {"run_dir": str(sandbox.run), "step": 4, "wandb_run_id": origin}
        assert config_sent_to_wandb(branch)["parent"] == resumed["parent"]
    moved = sandbox.directory / "moved"
    shutil.move(by_copy, moved)
    status, output = sandbox.train(1, *offline[:-1], f"run_dir={moved}")
    assert status == 0 and "a branch" not in output, output
    assert wandb_ids(moved)[-1] == wandb_ids(moved)[-2] != origin


def wandb_ids(run):
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["wandb_run_id"] for event in events if event["event"] in ("start", "resume")]


def config_sent_to_wandb(run):
    """What was set by the run in the config of its W&B run."""
    (folder,) = (run / "wandb").glob("offline-run-*")
    updates = [record.config.update for record in read_wandb(folder) if record.WhichOneof("record_type") == "config"]
    return {item.key: json.loads(item.value_json) for update in updates for item in update}

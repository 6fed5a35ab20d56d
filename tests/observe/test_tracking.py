"""W&B never slows or stops a run, whatever its server does, and has everything in the end, except secrets."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bigtrain.config import Settings
from bigtrain.observe import wandb_thread
from bigtrain.observe.tracking import FINAL_ALERT_SECONDS, Tracker, wandb_mode
from bigtrain.rundir import remembered_run_id
from tests.observe.wandb_server import WandbServer, history, read_wandb
from tests.train.test_continuation import TREE, settings

KEY = "0123456789abcdef0123456789abcdef01234567"
PATIENCE = 3.0
NEVER = 600.0
"""Patience of tests that look at what happens meanwhile: a call that waited for it would take minutes."""
AT_ONCE = 60.0
"""Seconds that a call which does not wait may take on a very busy machine; a third of NEVER is what a wait takes."""

Serve = Callable[[str], WandbServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    servers = []

    def start(how: str) -> WandbServer:
        servers.append(WandbServer(how))
        monkeypatch.setenv("WANDB_BASE_URL", servers[-1].url)
        return servers[-1]

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    # W&B's process may need a minute to end on a busy machine. Each test says itself what it must not wait for.
    monkeypatch.setattr(wandb_thread, "GRACE_SECONDS", 120.0)
    yield start
    for server in servers:
        server.close()
    import wandb

    wandb.teardown(exit_code=0)


def tracked(run_dir: Path, mode: str, patience: float = PATIENCE, **sections: Any) -> Settings:
    run_dir.mkdir(exist_ok=True)
    made = settings(tracking={"wandb": mode, "patience_seconds": patience}, **sections)
    return made.model_copy(update={"run_dir": run_dir})


def log_all(tracker: Tracker, steps: int = 200) -> None:
    """What a run sends until its end."""
    for step in range(1, steps + 1):
        tracker.log({"step": step, "loss": 1 / step}, step)
    tracker.table("samples", ("step", "text"), [(steps, "Once upon a time")], steps)
    tracker.alert("hang at step 3", "rank 1 on node7 is silent", "ERROR")
    tracker.alert_and_wait("hang", "no step in 301 s: rank 1 on node7")


def a_run(made: Settings, run_id: str | None = None, steps: int = 200) -> Tracker:
    """Track some steps to the end."""
    tracker = Tracker.start(made, run_id)
    log_all(tracker, steps)
    tracker.finish({"goodput": 0.97}, exit_code=0)
    return tracker


def folders(run_dir: Path) -> list[Path]:
    return sorted(path for path in (run_dir / "wandb").glob("*run-*") if path.is_dir())


def ended(folder: Path) -> Path:
    """The folder once W&B's own process has written all of it, which it does after the end of the run."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        with contextlib.suppress(AssertionError):
            if any(record.WhichOneof("record_type") == "exit" for record in read_wandb(folder)):
                return folder
        time.sleep(0.1)
    raise AssertionError(f"{folder} has no end")


def test_an_offline_run_is_whole_and_one_over_all_restarts(tmp_path: Path, serve: Serve) -> None:
    made = tracked(tmp_path / "run", "offline")
    first = a_run(made)
    time.sleep(1.1)  # W&B names folders by the second
    again = a_run(made, first.run_id)
    assert first.run_id == again.run_id
    both = folders(made.run_dir)
    assert len(both) == 2 and all(folder.name.endswith(str(first.run_id)) for folder in both)
    for folder in both:
        rows = history(ended(folder))
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, 201))
        assert any("samples.path" in row for row in rows)
        records = list(read_wandb(folder))
        summaries = [
            item for r in records for item in r.summary.update if item.key == "goodput" or "goodput" in item.nested_key
        ]
        assert summaries and [r.alert.title for r in records if r.alert.title] == ["hang at step 3", "hang"]
        assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [0]


def test_no_call_waits_for_a_server_that_never_answers(tmp_path: Path, serve: Serve) -> None:
    """All calls return while W&B still waits for its server, and so does the end of a run that has failed."""
    server = serve("hole")
    started = time.monotonic()
    tracker = Tracker.start(tracked(tmp_path / "run", "online", NEVER), None)
    thread = tracker._thread
    assert thread is not None
    log_all(tracker)
    assert thread._queue.unfinished_tasks == 203, "W&B's thread has not waited"
    wandb_thread.GRACE_SECONDS = 0.1
    tracker.finish({"goodput": 0.97}, exit_code=1)
    assert thread.is_alive() and time.monotonic() - started < FINAL_ALERT_SECONDS + AT_ONCE
    wandb_thread.GRACE_SECONDS = 120.0
    server.how = "reset"
    thread.join(AT_ONCE)
    assert not thread.is_alive()


@pytest.mark.parametrize("how", ["hole", "error", "reset"])
def test_a_server_that_is_down_at_the_start_costs_the_training_nothing(
    how: str, tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    serve(how)
    made = tracked(tmp_path / "run", "online")
    with caplog.at_level(logging.WARNING):
        a_run(made)
    (warning,) = [record.message for record in caplog.records if "W&B" in record.message]
    assert "tracked offline" in warning and "wandb sync" in warning
    (folder,) = folders(made.run_dir)
    assert [row["step"] for row in history(ended(folder)) if "loss" in row] == list(range(1, 201))


@pytest.mark.long
@pytest.mark.parametrize("how", ["hole", "error"])
def test_a_server_that_goes_down_later_costs_the_training_nothing(
    how: str, tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve("answers")
    made = tracked(tmp_path / "run", "online", 20)
    tracker = Tracker.start(made, None)
    tracker.log({"step": 1, "loss": 1.0}, 1)
    tracker.flush(60)
    server.how = how
    with caplog.at_level(logging.WARNING):
        for step in range(2, 201):
            tracker.log({"step": step, "loss": 1 / step}, step)
        tracker.finish({"goodput": 0.97}, exit_code=0)
    assert len([record for record in caplog.records if "wandb sync" in record.message]) == 1
    (folder,) = folders(made.run_dir)
    assert [row["step"] for row in history(ended(folder)) if "loss" in row] == list(range(1, 201))


def test_a_queue_that_is_not_emptied_is_bounded(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve("hole")
    monkeypatch.setattr(wandb_thread, "QUEUE_LENGTH", 50)
    with caplog.at_level(logging.WARNING):
        tracker = Tracker.start(tracked(tmp_path / "run", "online", NEVER), None)
        log_all(tracker)
        server.how = "reset"
        tracker.finish({}, exit_code=0)
    assert len([record for record in caplog.records if "misses some steps" in record.message]) == 1


def test_no_secret_is_in_anything_that_is_written_for_wandb(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setattr("sys.argv", ["bigtrain", "train", f"data.remote=https://host/?token={secret}"])
    source = {"name": "code", "kind": "jsonl", "path": f"https://host/a.jsonl?X-Amz-Signature={secret}"}
    made = tracked(tmp_path / "run", "offline", data={**TREE["data"], "sources": [source]})
    assert secret in str(made.data)
    a_run(made, steps=3)
    files = [path for path in made.run_dir.rglob("*") if path.is_file()]
    assert len(files) > 2
    for path in files:
        content = path.read_bytes()
        assert secret.encode() not in content and KEY.encode() not in content, path


def test_a_foreign_run_id_that_is_a_path_makes_no_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """W&B names a folder after the id, which may come from a run or checkpoint of a stranger."""
    made = tracked(tmp_path / "run", "offline")
    for run_id in ("/../../../outside", "..", "a\\b", "a\0b"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            tracker = Tracker.start(made, run_id)
            tracker.log({"step": 1}, 1)
            tracker.finish({}, exit_code=0)
        assert "has a path in place of the name" in caplog.text and repr(run_id) in caplog.text
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["run", "wandb"]  # W&B's folder is tried first


def test_the_last_start_s_run_is_remembered_even_without_a_checkpoint() -> None:
    events = [{"event": "start", "wandb_run_id": "a1"}, {"event": "save"}, {"event": "start", "wandb_run_id": None}]
    assert remembered_run_id(events) == "a1" and remembered_run_id([]) is None


def test_without_a_key_a_run_is_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_mode("auto") == "online"

"""Torn, corrupted and half-written checkpoints are never loaded, and a save that fails harms no other."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.base.faults import FAULT, Fault
from bigtrain.checkpoint import Checkpoint, StorageTiers, load_weights, newest_verified, prune, verify
from tests import forkserver
from tests.checkpoint.helpers import save_step, tensors
from tests.matrix import one_of_each, thinned
from tests.ranks import on_ranks


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 10, 20 and 30."""
    run = tmp_path_factory.mktemp("good")
    for step in (10, 20, 30):
        save_step(run, step, seed=step)
    return run


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "run"))


def newest(run: Path) -> int | None:
    found = newest_verified(StorageTiers.of(run)).newest
    return found and found.step


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def same_size_other_manifest(path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace('"consumed_samples": 240', '"consumed_samples": 249'))
    assert path.read_text() != text


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("state-00001-of-00002.safetensors", truncate, "state-00001-of-00002.safetensors: .* bytes, wanted"),
    ("state-00000-of-00002.safetensors", Path.unlink, "state-00000-of-00002.safetensors: missing"),
    ("manifest.json", Path.unlink, "no manifest.json"),
    ("manifest.json", truncate, "manifest.json cannot be read|is damaged"),
    ("manifest.json", same_size_other_manifest, "manifest.json is damaged"),
    ("manifest.json", lambda path: path.write_text("[]"), "manifest.json cannot be read"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES)
def test_a_damaged_checkpoint_is_named_and_fallen_back_from(
    run: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(run / "checkpoints/step-00000030" / name)
    found = newest_verified(StorageTiers.of(run))
    assert found.newest is not None and found.newest.step == 20
    (rejected,) = found.rejected
    assert rejected.checkpoint.step == 30
    assert [problem for problem in rejected.problems if re.search(message, problem)]


@pytest.mark.parametrize("name", ["../step-00000020/state-00000-of-00002.safetensors", "..", "", "a\\b", "a\0b", "{}"])
def test_a_manifest_with_a_path_for_a_file_is_damaged(run: Path, name: str) -> None:
    """Its hash is right and the path leads to a good file: it is refused all the same, and fallen back from."""
    path = run / "checkpoints/step-00000030"
    name = name.replace("{}", str(path / "state-00000-of-00002.safetensors"))
    (first, seal), second = Checkpoint.at(path).manifest.files.items()
    manifest = replace(Checkpoint.at(path).manifest, files=dict([(name, seal), second]))
    (path / "manifest.json").write_text(manifest.to_json())
    for ranks in (1, 2):
        for found in on_ranks(ranks, lambda ranks: newest_verified(StorageTiers.of(run), ranks=ranks)):
            assert found.newest.step == 20
            (problem,) = found.rejected[0].problems
            assert "manifest.json has a path in place of the name of a file" in problem and repr(name) in problem
    with pytest.raises(BigtrainError, match="has a path"):
        load_weights(Checkpoint.at(path))
    (path / "manifest.json").write_text(replace(manifest, files=dict([(first, seal), second])).to_json())
    assert newest(run) == 30


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found(good: Path, data: st.DataObject) -> None:
    path = good / "checkpoints/step-00000010"
    file = path / data.draw(st.sampled_from(sorted(entry.name for entry in path.iterdir())))
    before = file.read_bytes()
    place, bit = data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(0, 7))
    try:
        file.write_bytes(before[:place] + bytes([before[place] ^ 1 << bit]) + before[place + 1 :])
        assert any(file.name in problem for problem in verify(Checkpoint.at(path)))
    finally:
        file.write_bytes(before)
    assert verify(Checkpoint.at(path)) == []


def test_no_checkpoint_and_only_bad_checkpoints_have_different_errors(run: Path, tmp_path: Path) -> None:
    nothing = newest_verified(StorageTiers.of(tmp_path / "elsewhere"))
    assert (nothing.newest, nothing.rejected) == (None, [])
    for checkpoint in StorageTiers.of(run).all():
        truncate(checkpoint.path / "state-00000-of-00002.safetensors")
    found = newest_verified(StorageTiers.of(run))
    assert found.newest is None and [bad.checkpoint.step for bad in found.rejected] == [30, 20, 10]


def test_every_rank_finds_the_same(run: Path) -> None:
    truncate(run / "checkpoints/step-00000030/state-00001-of-00002.safetensors")
    searches = on_ranks(3, lambda ranks: newest_verified(StorageTiers.of(run), ranks=ranks))
    assert searches[0] == searches[1] == searches[2] and searches[0].newest.step == 20


def test_leftovers_are_ignored_and_cleared_by_the_next_save(run: Path) -> None:
    stale = run / "checkpoints/.step-00000040.staging"
    shutil.copytree(run / "checkpoints/step-00000030", stale)
    assert newest(run) == 30
    save_step(run, 50)
    assert newest(run) == 50 and not stale.exists()


def test_a_bad_checkpoint_is_replaced_when_its_step_is_saved_again(run: Path) -> None:
    truncate(run / "checkpoints/step-00000030/manifest.json")
    save_step(run, 30, seed=5)
    assert newest(run) == 30
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step-000000{n}0" for n in (1, 2, 3)]


def test_a_file_in_place_of_the_directory_is_an_error_on_every_rank(tmp_path: Path) -> None:
    """A foreign file in place of the checkpoint directory is a clear error on every rank."""
    (tmp_path / "checkpoints").write_text("not a directory")
    errors = save_step(tmp_path, 1)
    assert all(isinstance(error, BigtrainError) and "could not be written" in str(error) for error in errors)


def test_pruning_keeps_the_newest_good_ones(run: Path) -> None:
    assert prune(StorageTiers.of(run).durable, keep=3) == []
    assert [checkpoint.step for checkpoint in prune(StorageTiers.of(run).durable, keep=2)] == [10]
    assert [checkpoint.step for checkpoint in StorageTiers.of(run).all()] == [20, 30]


def test_pruning_never_removes_the_newest_good_one(run: Path) -> None:
    for step in (20, 30):
        data = run / f"checkpoints/step-000000{step}/state-00000-of-00002.safetensors"
        data.write_bytes(data.read_bytes()[:-1] + b"?")
    prune(StorageTiers.of(run).durable, keep=1)
    assert newest(run) == 10
    truncate(run / "checkpoints/step-00000010/manifest.json")
    assert prune(StorageTiers.of(run).durable, keep=1) == []


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
def test_a_full_disk_is_an_error_on_every_rank_and_keeps_checkpoints(small_disk: Path) -> None:
    """A full disk is an error on every rank, and earlier checkpoints stay."""
    for step in range(1, 100):
        outcome = save_step(small_disk, step, seed=step)
        if isinstance(outcome[0], Exception):
            break
    assert step > 1
    assert all(isinstance(error, BigtrainError) and "No space left on device" in str(error) for error in outcome)
    assert newest(small_disk) == step - 1 and len(load_weights(StorageTiers.of(small_disk).all()[-1])) == 3
    assert not list((small_disk / "checkpoints").glob(".*"))


@pytest.fixture
def strace() -> str:
    """The path of strace, which can make system calls fail."""
    path = shutil.which("strace")
    if path is None:
        if os.environ.get("BIGTRAIN_REQUIRE"):
            pytest.fail("needs the program strace")
        pytest.skip("needs the program strace")
    return path


ONE_SAVE = """
import sys
from pathlib import Path
from tests.checkpoint.helpers import cut, even, save_fragments, tensors
from bigtrain.base import ALONE
save_fragments(Path(sys.argv[1]), 40, cut(tensors(), even(1), 0), ALONE)
"""


def run_under(command: list[str], script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A script in a process whose system calls fail as `command` says."""
    return subprocess.run(
        [*command, sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )


WRITTEN = [
    ("write", "state-00000-of-00001.safetensors"),
    ("fsync", "manifest.json"),
    ("fsync", "state-00000-of-00001.safetensors"),
    ("/rename", ""),
]


@pytest.mark.parametrize(
    ("call", "file"),
    thinned(WRITTEN, keep=one_of_each(WRITTEN, lambda case: {"call": case[0]})),
)
def test_an_error_of_the_disk_while_writing_is_clear_and_harms_nothing(
    run: Path, strace: str, call: str, file: str
) -> None:
    """An input/output error while a checkpoint is written is a clear error, and earlier checkpoints stay."""
    staging = run / "checkpoints/.step-00000040.staging"
    inject = [strace, "-f", "-qq", "-o", "/dev/null", "-P", str(staging / file if file else staging)]
    done = run_under([*inject, "-e", f"inject={call}:error=EIO"], ONE_SAVE, run)
    assert done.returncode == 1 and "Input/output error" in done.stderr, done.stderr
    assert "BigtrainError: the checkpoint of step 40 could not be written to" in done.stderr
    assert newest(run) == 30 and not staging.exists()


VERIFY = """
import sys
from pathlib import Path
from bigtrain.checkpoint import StorageTiers, newest_verified
found = newest_verified(StorageTiers.of(Path(sys.argv[1])))
print(found.newest.step, [r.problems for r in found.rejected])
"""


READ = ["state-00001-of-00002.safetensors", "manifest.json"]


@pytest.mark.parametrize("file", thinned(READ, keep=READ[:1]))
def test_an_input_output_error_while_reading_is_named_and_fallen_back_from(run: Path, strace: str, file: str) -> None:
    path = run / "checkpoints/step-00000030" / file
    command = [strace, "-f", "-qq", "-o", "/dev/null", "-P", str(path), "-e", "inject=/^preadv:error=EIO"]
    done = run_under(command, VERIFY, run)
    assert done.stdout.startswith("20 ") and file in done.stdout and "Input/output error" in done.stdout, done.stderr


def test_a_read_only_directory_is_a_clear_error_on_every_rank(run: Path) -> None:
    mount = ["mount", "--bind", str(run), str(run)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(run)], check=True)
        errors = save_step(run, 40)
        assert all(isinstance(error, BigtrainError) and "Read-only file system" in str(error) for error in errors)
        assert str(run / "checkpoints/step-00000040") in str(errors[0])
        assert newest(run) == 30
    finally:
        subprocess.run(["umount", str(run)], check=True)


def test_order_comes_from_the_step_though_the_clock_was_set_back(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Then(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Then:
            return cls(1999, 1, 1, tzinfo=tz)

    monkeypatch.setattr(sys.modules["bigtrain.checkpoint.manifest"], "datetime", Then)
    monkeypatch.setattr(time, "time_ns", lambda: 915_148_800 * 10**9)
    monkeypatch.setattr(time, "time", lambda: 915_148_800.0)
    save_step(run, 40)
    save_step(run, 50)
    for path in (run / "checkpoints/step-00000050").rglob("*"):
        os.utime(path, (0, 0))
    truncate(run / "checkpoints/step-00000040/manifest.json")
    save_step(run, 40)  # what is replaced steps aside under a name with the time in it
    found = newest_verified(StorageTiers.of(run)).newest
    assert found is not None and found.step == 50 and found.manifest.created.startswith("1999")
    assert [c.step for c in prune(StorageTiers.of(run).durable, keep=1)] == [10, 20, 30, 40]
    assert newest(run) == 50


def test_two_saves_in_a_row_of_one_step_leave_the_second(run: Path) -> None:
    save_step(run, 30, seed=1)
    save_step(run, 30, seed=2)
    found = newest_verified(StorageTiers.of(run)).newest
    assert found is not None
    assert (
        load_weights(found)["norm.weight"]
        .view(torch.int32)
        .equal(tensors(2)["norm.weight", "master"].view(torch.int32))
    )


def test_every_so_many_steps_are_kept_for_ever(run: Path) -> None:
    for step in (40, 50, 60):
        save_step(run, step)
    places = StorageTiers.of(run)
    assert [c.step for c in prune(places.durable, 1, 20, dry_run=True)] == [10, 30, 50]
    assert len(places.all()) == 6
    for ranks in (1, 2):
        removed = on_ranks(ranks, lambda r: [c.step for c in prune(places.durable, 1, 20, ranks=r)])
        assert removed == [[10, 30, 50] if ranks == 1 else []] * ranks
    assert [c.step for c in places.all()] == [20, 40, 60]


LIMITED = """
import json, resource, sys
from pathlib import Path
from tests.checkpoint.helpers import cut, even, save_fragments, tensors
from bigtrain.checkpoint import StorageTiers, newest_verified
from bigtrain.base import gather
from bigtrain.engine.topology import leave, start
topology, run = start(timeout_minutes=1), Path(sys.argv[1])
own = cut(tensors(), even(2), topology.rank)
save_fragments(run, 1, own, topology)
if topology.rank == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    save_fragments(run, 2, own, topology)
    message = ""
except Exception as error:
    message = f"{type(error).__name__} {error}"
resource.setrlimit(resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE))
messages = gather(topology, message)
if topology.rank == 0:
    found = newest_verified(StorageTiers.of(run))
    Path(sys.argv[2]).write_text(json.dumps([messages, found.newest.step, len(found.rejected)]))
topology.barrier()
topology.shutdown()
leave(0)
"""


@pytest.mark.slow
def test_one_process_that_cannot_write_stops_all_with_its_cause(tmp_path: Path) -> None:
    """Real processes; the file size limit strikes rank 1 only."""
    script, result = Path(tmp_path / "limited.py"), tmp_path / "result.json"
    script.write_text(LIMITED)
    finished = forkserver.torchrun(2, script, tmp_path, result)
    assert finished.returncode == 0, finished.stdout
    messages, step, rejected = json.loads(result.read_text())
    assert messages[0] == messages[1] and "rank 1 on" in messages[0] and "File too large" in messages[0]
    assert "rank 0 on" not in messages[0] and (step, rejected) == (1, 0)


ENDLESS = """
import sys
from pathlib import Path
from tests.checkpoint.helpers import cut, described, even, tensors
from bigtrain.base import ALONE
from bigtrain.checkpoint import StorageTiers, Saver, newest_verified
from bigtrain.config.settings import CheckpointSettings
settings = CheckpointSettings(asynchronous=sys.argv[2] == "background", keep=2)
places = StorageTiers.of(Path(sys.argv[1]))
found = newest_verified(places).newest
saver = Saver(places, ALONE, settings)
for step in range(found.step + 1 if found else 1, 10**6):
    saver.save(**described(step, cut(tensors(step), even(1), 0), ALONE))
    for commit in saver.finished():
        print(commit.checkpoint.step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["background", "waiting"])
def test_kill_9_at_any_instant_leaves_the_last_commit_loadable(tmp_path: Path, how: str) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, tmp_path, how]
    for attempt in range(2):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            last = int(process.stdout.readline())
            time.sleep(random.Random(attempt).uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            last = max([last, *map(int, process.stdout.read().split())])
        found = newest_verified(StorageTiers.of(tmp_path))
        assert found.newest is not None and found.newest.step in (last, last + 1) and found.rejected == []
        weights = load_weights(found.newest)
        assert weights["embed.weight"].flatten().tolist() == pytest.approx(
            tensors(found.newest.step)["embed.weight", "master"].tolist(), nan_ok=True
        )


@pytest.mark.slow
@pytest.mark.parametrize("point", thinned(["save.copied", "save.staged", "save.pruning"], keep=["save.staged"]))
def test_kill_9_during_a_background_save_leaves_what_was_committed(run: Path, point: str) -> None:
    """benchmarks/kill_saves.py does this at every point, and to training runs."""
    kill = {FAULT: str(Fault("kill", "0", point, count=2))}
    script = f"import os; os.environ.update({kill!r})\n{ENDLESS}"
    done = run_under([], script, run, "background")
    assert done.returncode == -signal.SIGKILL, done.stderr
    committed = [30, *map(int, done.stdout.split())][-1]
    found = newest_verified(StorageTiers.of(run))
    assert found.newest is not None and found.newest.step in (committed, committed + 1, committed + 2)
    assert found.rejected == [] and len(load_weights(found.newest)) == 3
    save_step(run, 99)
    assert newest(run) == 99 and not list((run / "checkpoints").glob(".*"))


def test_every_rank_writes_a_file_of_its_own(tmp_path: Path) -> None:
    save_step(tmp_path, 1, world_size=3)
    names = sorted(path.name for path in (tmp_path / "checkpoints/step-00000001").glob("state-*"))
    assert names == [f"state-0000{rank}-of-00003.safetensors" for rank in range(3)]

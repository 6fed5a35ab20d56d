"""Saving in the background: it costs one copy, one save at a time, and a failure is an error on every rank."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bigtrain.base import ALONE, RankTree
from bigtrain.base.errors import BigtrainError
from bigtrain.checkpoint import Saver, StorageTiers, load_weights, newest_verified
from bigtrain.checkpoint.folder import Folder
from bigtrain.config.settings import CheckpointSettings
from tests.checkpoint.helpers import SHAPES, cut, described, even, same_bits, tensors
from tests.ranks import on_ranks


@dataclass(frozen=True)
class SlowFolder(Folder):
    """A folder on a disk that writes when the test lets it."""

    go: threading.Event = field(default_factory=threading.Event, compare=False)
    log: list[str] = field(default_factory=list, compare=False)

    def write(self, step: int, name: str, data: memoryview) -> None:
        self.log.append(f"begin {step} {name}")
        assert self.go.wait(20)
        super().write(step, name, data)
        self.log.append(f"end {step} {name}")


def test_training_goes_on_while_the_state_of_the_save_is_written(tmp_path: Path) -> None:
    disk = SlowFolder(tmp_path)
    saver = Saver(StorageTiers(disk), ALONE)
    own = cut(tensors(), even(1), 0)
    saver.save(**described(1, own, ALONE))
    for fragment in own:
        fragment.data.zero_()  # the next step
    assert disk.steps() == [] and saver.finished() == []
    disk.go.set()
    saver.wait()
    (commit,) = saver.finished()
    assert saver.finished() == [] and commit.checkpoint.step == 1 and not commit.local
    assert all(same_bits(w.view(-1), tensors()[n, "master"]) for n, w in load_weights(commit.checkpoint).items())


def test_the_next_save_waits_for_the_last_and_each_has_its_own_state(tmp_path: Path) -> None:
    disk = SlowFolder(tmp_path)
    saver = Saver(StorageTiers(disk), ALONE)
    saver.save(**described(1, cut(tensors(1), even(1), 0), ALONE))
    threading.Timer(0.3, disk.go.set).start()
    assert saver.save(**described(2, cut(tensors(2), even(1), 0), ALONE)) > 0.2  # waiting is lost time too
    saver.wait()
    name = "state-00000-of-00001.safetensors"
    assert [line for line in disk.log if name in line] == [
        f"{what} {step} {name}" for step in (1, 2) for what in ("begin", "end")
    ]
    for commit, seed in zip(saver.finished(), (1, 2), strict=True):
        weights = load_weights(commit.checkpoint)
        assert all(same_bits(weights[name].view(-1), tensors(seed)[name, "master"]) for name in SHAPES)


def test_not_asynchronous_means_durable_on_return(tmp_path: Path) -> None:
    saver = Saver(StorageTiers.of(tmp_path), ALONE, CheckpointSettings(asynchronous=False))
    saver.save(**described(1, cut(tensors(), even(1), 0), ALONE))
    assert [commit.checkpoint.step for commit in saver.finished()] == [1]


def test_what_must_be_durable_before_a_commit_runs_before_it(tmp_path: Path) -> None:
    """What has to be durable before a commit is called before it, and its failure commits nothing."""
    saver = Saver(StorageTiers.of(tmp_path), ALONE)
    durable, seen = StorageTiers.of(tmp_path).durable, []
    saver.save(**described(1, cut(tensors(), even(1), 0), ALONE), before=lambda: seen.append(durable.steps()))
    saver.wait()
    assert seen == [[]]

    def fail() -> None:
        raise OSError(5, "Input/output error")

    saver.save(**described(2, cut(tensors(), even(1), 0), ALONE), before=fail)
    with pytest.raises(BigtrainError, match="Input/output error"):
        saver.wait()
    assert durable.steps() == [1]


def test_a_writer_that_fails_on_one_rank_fails_on_all(tmp_path: Path) -> None:
    """A writer that fails on one rank is a failure on all ranks, and no earlier checkpoint is lost."""

    @dataclass(frozen=True)
    class FailingFolder(Folder):
        def write(self, step: int, name: str, data: memoryview) -> None:
            if step == 2 and "00001-of" in name:
                raise OSError(5, "Input/output error")
            super().write(step, name, data)

    def work(ranks: RankTree) -> tuple[bool, str, str]:
        saver = Saver(StorageTiers(FailingFolder(tmp_path)), ranks)
        saver.save(**described(1, cut(tensors(), even(2), ranks.rank), ranks))
        saver.save(**described(2, cut(tensors(), even(2), ranks.rank), ranks))
        messages = []
        for ask in (saver.wait, lambda: saver.save(**described(3, cut(tensors(), even(2), ranks.rank), ranks))):
            with pytest.raises(BigtrainError) as caught:
                ask()
            messages.append(str(caught.value))
            assert caught.value.shared
        return saver.failed, *messages

    outcomes = on_ranks(2, work)
    assert outcomes[0] == outcomes[1]
    failed, at_wait, at_next_save = outcomes[0]
    assert failed and at_wait == at_next_save and "step 2" in at_wait and "rank 1 on" in at_wait
    assert "Input/output error" in at_wait and "rank 0 on" not in at_wait
    found = newest_verified(StorageTiers.of(tmp_path.parent, CheckpointSettings(dir=str(tmp_path))))
    assert found.newest is not None and found.newest.step == 1 and not list(tmp_path.glob(".*"))


MEMORY = """
import sys
from pathlib import Path
import torch
from tests.checkpoint.helpers import described
from bigtrain.base import ALONE
from bigtrain.checkpoint import Fragment, StorageTiers, Saver
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
shape = (25_000_000,)
own = [Fragment("w", kind, shape, 0, torch.ones(shape)) for kind in ("master", "exp_avg")]
state = sum(fragment.data.nbytes for fragment in own)
saver = Saver(StorageTiers.of(Path(sys.argv[1])), ALONE)
before = peak()
saver.reserve(own, {})
for step in (1, 2):
    saver.save(**described(step, own, ALONE))
    saver.wait()
print((peak() - before) / state)
"""


def test_saving_takes_as_much_memory_as_the_state_and_no_more(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) < 1.3


def test_the_image_is_used_again_and_what_was_longer_leaves_no_trace(tmp_path: Path) -> None:
    saver = Saver(StorageTiers.of(tmp_path), ALONE)
    large = cut(tensors(), even(1), 0)
    for step, own in enumerate([large, large[:2], large], start=1):
        saver.save(**described(step, own, ALONE))
    saver.wait()
    sizes = [c.checkpoint.manifest.files["state-00000-of-00001.safetensors"].size for c in saver.finished()]
    assert sizes[0] == sizes[2] > sizes[1] > 0
    assert not newest_verified(StorageTiers.of(tmp_path)).rejected

"""Two tiers: what is nearest is read, what is durable is never older than promised, and neither is mixed up."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bigtrain.base import ALONE, RankTree
from bigtrain.checkpoint import Checkpoint, Fragment, Saver, Search, StorageTiers, load, newest_verified, verify
from bigtrain.checkpoint.folder import Folder
from bigtrain.config.settings import CheckpointSettings
from tests.checkpoint.helpers import SHAPES, cut, described, even, same_bits, tensors
from tests.ranks import on_ranks

STATE = "state-00000-of-00002.safetensors"


def places(root: Path, rank: int, shared: bool = False) -> StorageTiers:
    """Of a rank that is alone on its node, or whose nodes see one disk."""
    return StorageTiers(Folder(root / "durable"), Folder(root / ("node" if shared else f"node-{rank}")))


def save_steps(
    root: Path, *steps: int, last: bool = False, world_size: int = 2, layout: str = "a", **settings: Any
) -> list[list[tuple[int, bool]]]:
    """One start that saves at these steps; what each rank saw committed."""

    def work(ranks: RankTree) -> list[tuple[int, bool]]:
        saver = Saver(places(root, ranks.rank), ranks, CheckpointSettings(**settings), layout=layout)
        for step in steps:
            own = cut(tensors(step), even(world_size), ranks.rank)
            saver.save(**described(step, own, ranks), last=last and step == steps[-1])
        saver.wait()
        return [(commit.checkpoint.step, commit.local) for commit in saver.finished()]

    return on_ranks(world_size, work)


def search(root: Path, world_size: int = 2, layout: str = "a") -> Search:
    searches = on_ranks(world_size, lambda ranks: newest_verified(places(root, ranks.rank), ranks=ranks, layout=layout))
    described = [
        (found.newest and (found.newest.step, places(root, rank).is_local(found.newest)), len(found.rejected))
        for rank, found in enumerate(searches)
    ]
    assert len(set(described)) == 1  # the same on all
    return searches[0]


def where(found: Search) -> tuple[int, str] | None:
    return found.newest and (found.newest.step, found.newest.path.parent.name)


def test_every_save_is_local_first_and_each_nth_and_the_last_one_durable(tmp_path: Path) -> None:
    seen = save_steps(tmp_path, *range(1, 7), last=True, durable_every=3)
    assert seen[0] == seen[1]
    assert [step for step, local in seen[0] if local] == [1, 2, 3, 4, 5, 6]
    assert [step for step, local in seen[0] if not local] == [1, 4, 6]
    assert seen[0].index((4, True)) < seen[0].index((4, False))
    assert Folder(tmp_path / "durable").steps() == [1, 4, 6]
    for node in (0, 1):
        assert Folder(tmp_path / f"node-{node}").steps() == [5, 6]  # the newest two
        files = sorted(path.name for path in (tmp_path / f"node-{node}/step-00000006").iterdir())
        assert files == ["manifest.json", f"state-0000{node}-of-00002.safetensors"]
        assert not list((tmp_path / f"node-{node}").glob(".*"))


def test_starts_that_are_killed_soon_do_not_put_off_the_durable_copy(tmp_path: Path) -> None:
    for first in (1, 3, 5):
        save_steps(tmp_path, first, first + 1, durable_every=3)
    assert Folder(tmp_path / "durable").steps() == [1, 3, 5]


def test_the_last_one_becomes_durable_even_where_it_is_local_already(tmp_path: Path) -> None:
    saver = Saver(places(tmp_path, 0), ALONE, CheckpointSettings(durable_every=5))
    for step, last in ((1, False), (2, False), (2, True)):
        saver.save(**described(step, cut(tensors(step), even(1), 0), ALONE), last=last)
    saver.wait()
    assert [(c.checkpoint.step, c.local) for c in saver.finished()] == [(1, True), (1, False), (2, True), (2, False)]


def test_the_local_copy_is_preferred_and_every_rank_gets_its_own_back(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, durable_every=1)
    assert where(search(tmp_path)) == (2, "node-0")
    for step in (1, 2):  # what is durable is not touched
        shutil.rmtree(tmp_path / f"durable/step-0000000{step}")

    def read(ranks: RankTree) -> bool:
        found = newest_verified(places(tmp_path, ranks.rank), ranks=ranks, layout="a").newest
        own = cut({key: torch.zeros_like(value) for key, value in tensors().items()}, even(2), ranks.rank)
        loaded = load(found, own, ranks=ranks)
        wanted = cut(tensors(2), even(2), ranks.rank)
        assert loaded.rng is not None and loaded.rng["cpu"][0] == ranks.rank
        return all(same_bits(a.data, b.data) for a, b in zip(own, wanted, strict=True))

    assert on_ranks(2, read) == [True, True]


def lose_a_disk(root: Path) -> None:
    shutil.rmtree(root / "node-1")


def lose_a_file(root: Path) -> None:
    (root / "node-0/step-00000003" / STATE).unlink()


def leave_one_node_uncommitted(root: Path) -> None:
    node = root / "node-1"
    (node / "step-00000003").rename(node / ".step-00000003.staging")


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lose_a_disk, "the node of rank 1 has no copy of it"),
        (lose_a_file, f"{STATE}: missing"),
        (leave_one_node_uncommitted, "the node of rank 1 has no copy of it"),
    ],
)
def test_an_incomplete_local_tier_yields_to_the_durable_one_with_a_reason(
    tmp_path: Path, harm: Callable[[Path], None], why: str
) -> None:
    save_steps(tmp_path, 1, 2, 3, durable_every=2)  # durable: 1 and 3
    shutil.rmtree(tmp_path / "durable/step-00000003")
    save_steps(tmp_path, 2, 3, durable_every=2)  # durable: 1 and 2
    harm(tmp_path)
    found = search(tmp_path)
    lost_all = harm is lose_a_disk
    assert where(found) == ((2, "durable") if lost_all else (2, "node-0"))
    assert found.rejected == [] and why in str(found.elsewhere[0].problems)


def test_copies_of_different_attempts_are_not_mixed(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, durable_every=1)
    node = tmp_path / "node-0"
    shutil.copytree(node, tmp_path / "kept")
    shutil.rmtree(tmp_path / "durable")
    save_steps(tmp_path, 1, layout="another attempt")
    shutil.rmtree(node)
    (tmp_path / "kept").rename(node)
    found = search(tmp_path)
    assert where(found) == (1, "durable")
    assert found.elsewhere[0].problems == ["the nodes hold copies of different attempts"]


def test_a_corrupted_local_copy_yields_to_the_durable_one_of_its_step(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    path = tmp_path / "node-0/step-00000001" / STATE
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = search(tmp_path)
    assert where(found) == (1, "durable")
    assert "contents changed" in found.rejected[0].problems[0]


def test_another_world_size_reads_locally_only_if_all_files_are_visible(tmp_path: Path) -> None:
    """Another layout or world size reads from the local tier only where every rank sees all files."""
    save_steps(tmp_path, 1)
    assert where(search(tmp_path, layout="b")) == (1, "durable")
    assert where(search(tmp_path, world_size=3)) == (1, "durable")
    on_one_node = newest_verified(StorageTiers(Folder(tmp_path / "durable"), Folder(tmp_path / "node-0")))
    assert where(on_one_node) == (1, "durable")
    shutil.copy(tmp_path / "node-1/step-00000001/state-00001-of-00002.safetensors", tmp_path / "node-0/step-00000001")
    assert where(newest_verified(StorageTiers(Folder(tmp_path / "durable"), Folder(tmp_path / "node-0")))) == (
        1,
        "node-0",
    )


def test_ranks_that_share_the_saving_of_a_piece_need_each_others_files(tmp_path: Path) -> None:
    def save(shared_folder: bool) -> Callable[[RankTree], None]:
        def work(ranks: RankTree) -> None:
            own = [
                Fragment(name, kind, SHAPES[name], 0, data, holder=ranks.rank, holders=2)
                for (name, kind), data in tensors().items()
            ]
            saver = Saver(places(tmp_path, ranks.rank, shared_folder), ranks, layout="a")
            saver.save(**described(1, own, ranks))
            saver.wait()

        return work

    assert on_ranks(2, save(False)) == [None, None]
    assert where(search(tmp_path)) == (1, "durable")
    assert on_ranks(2, save(True)) == [None, None]  # both on one node
    found = on_ranks(2, lambda r: newest_verified(places(tmp_path, r.rank, True), ranks=r, layout="a"))
    assert [where(each) for each in found] == [(1, "node"), (1, "node")]
    assert len(list((tmp_path / "node/step-00000001").iterdir())) == 3


def test_verifying_on_one_node_looks_at_what_that_node_has(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    copy = Checkpoint(1, Folder(tmp_path / "node-1"))
    assert verify(copy) == [f"{STATE}: missing"] and verify(copy, others_elsewhere=True) == []
    os.truncate(copy.path / STATE.replace("00000-", "00001-"), 9)
    assert "9 bytes" in verify(copy, others_elsewhere=True)[0]


def test_runs_that_share_a_local_dir_do_not_meet(tmp_path: Path) -> None:
    settings = CheckpointSettings(local_dir=tmp_path / "scratch")
    for name in ("a/run", "b/run"):
        of_run = StorageTiers.of(tmp_path / name, settings)
        saver = Saver(of_run, ALONE, settings)
        saver.save(**described(1, cut(tensors(), even(1), 0), ALONE))
        saver.wait()
        assert [c.step for c in of_run.all()] == [1, 1]
    assert len(list((tmp_path / "scratch").iterdir())) == 2


def test_many_nodes_without_a_copy_are_one_line(tmp_path: Path) -> None:
    """The lowest rank and a count, however many nodes have lost their copy."""
    save_steps(tmp_path, 1, world_size=12)
    for node in range(3, 11):
        shutil.rmtree(tmp_path / f"node-{node}")
    (problem,) = search(tmp_path, world_size=12).elsewhere[0].problems
    assert problem == "the node of rank 3 and 7 more ranks have no copy of it"


def test_nodes_that_lack_files_of_the_others_are_one_line(tmp_path: Path) -> None:
    """Where the layout is another, a node with only its own files says so, and not which ones it lacks."""
    save_steps(tmp_path, 1, world_size=3)
    (problem,) = search(tmp_path, world_size=3, layout="b").elsewhere[0].problems
    assert problem == "the node of rank 0 and 2 more ranks have not all files of it, which ranks of another layout need"


@pytest.mark.parametrize("node", [0, 1])
def test_a_damaged_manifest_of_a_node_does_no_harm(tmp_path: Path, node: int) -> None:
    """Rank 0 reads its own and checks it; the others are compared by their digest, and files by their contents."""
    save_steps(tmp_path, 1)
    path = tmp_path / f"node-{node}/step-00000001/manifest.json"
    path.write_text(path.read_text().replace('"zero_stage": 2', '"zero_stage": 3'))
    found = search(tmp_path)
    assert where(found) == ((1, "durable") if node == 0 else (1, "node-0"))
    assert len(found.elsewhere) == (node == 0)
    path.write_text("{")
    assert where(search(tmp_path)) == (1, "durable")

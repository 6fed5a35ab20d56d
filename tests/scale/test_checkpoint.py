"""What a save, a search and a load cost grows no faster than the number of ranks, and on most ranks not at all."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from bigtrain.base import RankTree
from bigtrain.checkpoint import Checkpoint, Fragment, StorageTiers, load, newest_verified, verify
from bigtrain.checkpoint.contents import Contents
from bigtrain.checkpoint.division import Division
from bigtrain.checkpoint.folder import Folder
from tests.checkpoint.helpers import described, save_fragments
from tests.checkpoint.test_tiers import places
from tests.ranks import Mailboxes, on_ranks
from tests.scale.checkpoints import (
    HeadersOnly,
    checkpoint_at_stage_3,
    children,
    commit_on_first_rank,
    contents_at_stage_3,
    division_at_stage_3,
    is_right,
    llama_70b,
    load_of,
    planning_of,
    stage_1,
    stage_3,
    verification_of,
)
from tests.scale.growth import assert_grows, cpu_seconds

SMALL = {"embed.weight": (701, 13), "up.weight": (64, 13), "norm.weight": (13,), "down.weight": (13, 64)}
SIZES = (256, 1024, 4096)


@pytest.mark.parametrize(
    ("ranks", "to", "some"),
    [
        (16_384, 12_288, [4_000]),
        pytest.param(16_384, 12_288, [1, 12_287], marks=pytest.mark.long),
        pytest.param(4_096, 5_120, [1, 2_000, 5_119], marks=pytest.mark.long),
    ],
)
def test_ranks_of_another_number_open_a_few_files_of_a_70b_layout(ranks: int, to: int, some: list[int]) -> None:
    """A checkpoint of a 70B layout at ZeRO 3, of which there are headers and a manifest, loads into another number of
    ranks. A rank opens a handful of files and reads its own part, whatever their number."""
    checkpoint, sent = checkpoint_at_stage_3(llama_70b(), ranks), list[Any]()
    for rank in (0, *some):
        cost, own = load_of(checkpoint, llama_70b(), rank, to, sent)
        assert is_right(own)
        assert cost.opened <= 8 + (rank == 0)
        manifest = len(cast(HeadersOnly, checkpoint.storage).manifest)
        parts = sum(4 * each.data.numel() for each in own)
        assert cost.read <= parts + 8 * 300_000 + (manifest if rank == 0 else 0)
        assert cost.bytes < 200_000


def test_messages_of_a_load_do_not_grow_with_the_ranks_on_each_of_them() -> None:
    def of_another(ranks: int) -> float:
        checkpoint, sent = checkpoint_at_stage_3(SMALL, ranks), list[Any]()
        return [load_of(checkpoint, SMALL, rank, ranks * 3 // 4, sent)[0].bytes for rank in (0, ranks // 3)][1]

    assert_grows(SIZES, of_another, at_most=0)


def test_rank_0_of_a_load_takes_time_in_proportion_to_the_ranks() -> None:
    def of_rank_0(ranks: int) -> float:
        checkpoint = checkpoint_at_stage_3(SMALL, ranks)
        return cpu_seconds(lambda: load_of(checkpoint, SMALL, 0, ranks * 3 // 4, []))

    assert_grows(SIZES, of_rank_0, at_most=1, slack=0.5)


def test_what_only_rank_0_does_in_a_70b_load_takes_tens_of_megabytes() -> None:
    """At 16,384 ranks, apart from the reading of its own part, which every rank does: the manifest, and who reads what.
    It takes 0.3 s of CPU there; the bound is for a machine that is busy with other tests."""
    cost, peak = planning_of(checkpoint_at_stage_3(llama_70b(), 16_384), llama_70b(), 12_288)
    assert peak < 100
    assert cost.cpu_seconds < 2
    assert cost.opened == 1


def test_a_commit_grows_in_proportion_to_the_ranks_on_rank_0() -> None:
    def reported(ranks: int) -> float:
        return commit_on_first_rank(SMALL, ranks).bytes

    assert_grows(SIZES, reported, at_most=1)
    assert_grows(SIZES, lambda ranks: cpu_seconds(lambda: commit_on_first_rank(SMALL, ranks)), at_most=1, slack=0.5)


def test_a_manifest_does_not_grow_with_ranks_times_parameters() -> None:
    def pieces(ranks: int) -> float:
        records = contents_at_stage_3(llama_70b(), ranks).division.records()
        return len(pickle.dumps(records))

    assert_grows(SIZES, pieces, at_most=0)

    def pieces_at_stage_1(ranks: int) -> float:
        joined = Division({})
        for rank in range(ranks):
            joined = joined.merged(Contents.of(stage_1(SMALL, rank, ranks), rank).division)
        assert sum(map(len, joined.runs.values())) <= ranks + len(SMALL)
        records = joined.records()
        assert records is not None
        return sum(len(each.runs) for each in records)

    assert_grows(SIZES, pieces_at_stage_1, at_most=1)


def test_what_the_reports_of_ranks_join_to_is_what_the_large_tests_use() -> None:
    for ranks in (1, 7, 37, 100):
        joined = Division({})
        for rank in range(ranks):
            joined = joined.merged(Contents.of(stage_3(SMALL, rank, ranks), rank).division)
        assert joined == division_at_stage_3(SMALL, ranks)
    assert [list(each) for each in children(8, 20)] == [[rank] for rank in range(9, 16)]


def in_all(ranks: int, work: Callable[[RankTree], Any]) -> tuple[int, int]:
    """Bytes that all ranks send, and that the last one sends and receives."""
    mailboxes = Mailboxes()
    for found in on_ranks(ranks, work, mailboxes):
        assert not isinstance(found, Exception), found
    return sum(mailboxes.sent.values()), mailboxes.sent[ranks - 1] + mailboxes.received[ranks - 1]


def test_sizes_of_files_are_checked_with_few_bytes_in_all() -> None:
    def of(ranks: int) -> tuple[int, int]:
        checkpoint = checkpoint_at_stage_3(SMALL, ranks)
        sent = in_all(ranks, lambda tree: verify(checkpoint, contents=False, ranks=tree))
        files = [name for name in cast(HeadersOnly, checkpoint.storage).opened if name.startswith("state")]
        assert sorted(files) == sorted(checkpoint.manifest.files)
        return sent

    assert_grows((16, 64, 256), lambda ranks: of(ranks)[0], at_most=1, slack=0.3)  # each level of the tree adds
    assert_grows((16, 64, 256), lambda ranks: of(ranks)[1], at_most=0)
    checkpoint, sent = checkpoint_at_stage_3(SMALL, 4096), list[Any]()
    for rank in (0, 1234):
        assert verification_of(checkpoint, rank, 4096, sent).opened == 1 + (rank == 0)


@pytest.mark.parametrize("in_manifest", [True, False])
def test_a_load_sends_few_bytes_in_all_with_an_old_manifest_too(in_manifest: bool) -> None:
    """An older manifest does not have the pieces: then each header is read once more, by one of the ranks."""

    def of(ranks: int) -> tuple[int, int]:
        checkpoint = checkpoint_at_stage_3(SMALL, ranks, described=in_manifest)

        def work(tree: RankTree) -> None:
            own = stage_3(SMALL, tree.rank, tree.world_size, allocated=True)
            load(checkpoint, own, ranks=tree)
            assert is_right(own)

        sent = in_all(ranks * 3 // 4, work)
        opened = [name for name in cast(HeadersOnly, checkpoint.storage).opened if name.startswith("state")]
        assert len(opened) <= ranks * (6 if in_manifest else 7)
        return sent

    sizes = (16, 64, 256)
    costs = {ranks: of(ranks) for ranks in sizes}
    assert_grows(sizes, lambda ranks: costs[ranks][0], at_most=1, slack=0.3)
    assert_grows(sizes, lambda ranks: costs[ranks][1], at_most=0)


def test_a_save_and_a_search_send_few_bytes_in_all(tmp_path: Path) -> None:
    def save_bytes(ranks: int) -> float:
        def work(tree: RankTree) -> Checkpoint:
            own = stage_3(SMALL, tree.rank, ranks, allocated=True)
            return save_fragments(StorageTiers(Folder(tmp_path / f"{ranks}")), 1, own, tree)

        return in_all(ranks, work)[0]

    sizes = (8, 32, 128)
    assert_grows(sizes, save_bytes, at_most=1, slack=0.3)

    def search_bytes(ranks: int) -> float:
        tiers = StorageTiers(Folder(tmp_path / f"{ranks}"))
        return in_all(ranks, lambda tree: newest_verified(tiers, ranks=tree))[0]

    assert_grows(sizes, search_bytes, at_most=1, slack=0.3)


@pytest.mark.parametrize("layout", ["a", "b"])
def test_a_search_of_the_local_tier_sends_few_bytes_in_all(tmp_path: Path, layout: str) -> None:
    """Also where the ranks have another layout than those that saved: no rank reports the files that its node lacks."""
    from bigtrain.checkpoint import Saver

    def of(ranks: int) -> float:
        root = tmp_path / f"{ranks}"

        def save(tree: RankTree) -> None:
            saver = Saver(places(root, tree.rank), tree, layout="a")
            own = [Fragment("w", "master", (ranks,), tree.rank, torch.zeros(1))]
            saver.save(**described(1, own, tree))
            saver.wait()

        in_all(ranks, save)
        found: list[Any] = []

        def search(tree: RankTree) -> None:
            found.append(newest_verified(places(root, tree.rank), ranks=tree, layout=layout))

        sent = in_all(ranks, search)[0]
        assert all(len(str(each.elsewhere)) < 1000 for each in found)
        assert {each.newest.storage == places(root, 0).durable for each in found} == {layout == "b"}
        return sent

    assert_grows((8, 16, 64), of, at_most=1, slack=0.3)


def test_the_arithmetic_of_the_layouts_is_right() -> None:
    size = sum(math.prod(shape) for shape in SMALL.values())
    for layout in (stage_1, stage_3):
        held = sum(f.data.numel() for rank in range(37) for f in layout(SMALL, rank, 37) if f.kind == "master")
        assert held == size

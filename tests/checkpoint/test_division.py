"""Which elements a file holds, in a few numbers: never other elements than the rank had, and never a file too few."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base import ALONE, BigtrainError
from bigtrain.checkpoint import Checkpoint, CheckpointManifest, Cursor, Fragment, TensorShard
from bigtrain.checkpoint.division import Coverage, Division, Run
from bigtrain.checkpoint.manifest import FileChecksum, TensorPieces
from bigtrain.checkpoint.overlap import Region, region_of, shared
from tests.checkpoint.helpers import save_fragments
from tests.refusals import assert_refused

SHAPE = (6, 5)
NAME, KIND = "up.weight", "master"


@st.composite
def layouts(draw: st.DrawFn) -> list[list[Fragment]]:
    """What each rank of some layout holds of a tensor: shards, cuts, pieces that several hold, or nothing."""
    tensor, data = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    dim = draw(st.sampled_from([None, 0, 1]))
    bounds = [0, *sorted(draw(st.lists(st.integers(0, SHAPE[dim or 0]), min_size=tensor - 1, max_size=tensor - 1)))]
    bounds.append(SHAPE[dim or 0])
    even = draw(st.booleans())
    ranks = []
    for rank in range(tensor * data):
        group, member = divmod(rank, tensor)
        shard, holder, holders = None, member, tensor
        size = math.prod(SHAPE)
        if dim is not None:
            shard, holder, holders = TensorShard(dim, bounds[member], bounds[member + 1] - bounds[member]), 0, 1
            size = size // SHAPE[dim] * shard.length
        part = -(-size // data)
        low, high = (each * size // data for each in (group, group + 1))
        if even:
            low, high = (min(size, each * part) for each in (group, group + 1))
        ranks.append([Fragment(NAME, KIND, SHAPE, low, torch.zeros(high - low), shard, holder, holders)])
    return ranks


def joined(ranks: list[list[Fragment]]) -> Division:
    division = Division({})
    for rank, fragments in enumerate(ranks):
        division = division.merged(Division.of(fragments, rank))
    return division


def region(fragment: Fragment) -> Region:
    return region_of(fragment.shape, fragment.shard, fragment.offset, fragment.data.numel())


def of_record(division: Division, files: int) -> Division:
    """As the manifest has it."""
    records = division.records()
    assert records is not None
    found = Division.of_manifest(manifest_with(records, files), "somewhere")
    assert found is not None
    return found


def manifest_with(pieces: list[TensorPieces], files: int) -> CheckpointManifest:
    names = {f"{number}": FileChecksum(8, "0" * 32) for number in range(files)}
    cursor = Cursor(1, 8, "plan", 1)
    return CheckpointManifest(
        cursor=cursor,
        world_size=files,
        zero_stage=3,
        mathematics={},
        versions={},
        kinds=[KIND],
        tensors={},
        files=names,
        pieces=pieces,
    )


@given(then=layouts(), now=layouts())
def test_each_rank_is_given_every_file_that_holds_a_part_of_its_pieces(
    then: list[list[Fragment]], now: list[list[Fragment]]
) -> None:
    """By any layout and any other; and from whole tensors and pieces of them no file that holds nothing of it."""
    division = of_record(joined(then), len(then))
    files = division.files_for(joined(now), len(now), len(then), {NAME: SHAPE}, "somewhere")
    for own, given_files in zip(now, files, strict=True):
        needed = {
            number
            for number, stored in enumerate(then)
            for piece in map(Fragment.share, stored)
            if piece.data.numel() and own[0].data.numel()
            if any(True for _ in shared(region(piece), region(own[0])))
        }
        assert given_files is not None
        assert needed <= set(given_files.tolist())
        if all(fragment.shard is None or fragment.shard.dim == 0 for fragment in (*own, *(f for r in then for f in r))):
            assert needed == set(given_files.tolist())


def test_equal_pieces_of_many_ranks_are_one_run_and_a_rest() -> None:
    ranks = [[Fragment(NAME, KIND, (100,), start, torch.zeros(min(7, 100 - start)))] for start in range(0, 100, 7)]
    assert joined(ranks).runs == {(NAME, (KIND,)): [Run(0, 14, 0, 7), Run(14, 1, 98, 2)]}
    held = [[Fragment(NAME, KIND, (100,), 0, torch.zeros(100), holder=rank, holders=16)] for rank in range(16)]
    assert joined(held).runs == {(NAME, (KIND,)): [Run(0, 16, 0, 100, 0, 16)]}
    records = joined(held).records()
    assert records is not None and records[0].runs == "0,16,0,100,0,16"


def test_a_rank_that_needs_very_many_files_is_told_so_without_a_list() -> None:
    stored = Division({(NAME, (KIND,)): [Run(0, 1000, 0, 10)]})
    everything = Division({(NAME, (KIND,)): [Run(0, 2, 0, 10_000, 0, 2), Run(2, 1, 0, 15)]})
    all_files, _, few = stored.files_for(everything, 3, 1000, {NAME: (10_000,)}, "somewhere")
    assert all_files is None and few is not None and few.tolist() == [0, 1]


@pytest.mark.parametrize(
    "runs",
    [
        "0,2,0,15,x",
        "0,2,0",
        "0,3,0,10",
        "-1,2,0,15",
        "0,2,0,9223372036854775807",
        "0,2,0,30,1,2",
        "0,2,0,15,0,1,5,3,9",
        "0,2,0,15,0,0",
        "0,9223372036854775807,0,1",
        "0,2,0,15,0,1,5,3,3",
    ],
)
def test_runs_that_cannot_be_are_refused(runs: str) -> None:
    with pytest.raises(BigtrainError) as refusal:
        Division.of_manifest(manifest_with([TensorPieces([KIND], [NAME], runs)], 2), "somewhere")
    assert_refused(refusal, "somewhere/manifest.json is damaged")


def test_runs_that_would_fill_the_memory_are_refused() -> None:
    with pytest.raises(BigtrainError, match="pieces of a tensor"):
        Division.of_manifest(manifest_with([TensorPieces([KIND], [NAME], "0,1000,0,1 " * 5000)], 1000), "somewhere")


@pytest.mark.parametrize(
    "runs", ["0,2,0,14", "0,2,0,16", "0,1,0,30 1,1,0,30", "0,1,0,15 1,1,16,14", "0,2,0,15,0,1,5,0,3", ""]
)
def test_runs_that_leave_a_gap_or_overlap_are_refused(runs: str) -> None:
    stored = Division.of_manifest(manifest_with([TensorPieces([KIND], [NAME], runs)], 2), "somewhere")
    assert stored is not None
    whole = Division({(NAME, (KIND,)): [Run(0, 1, 0, 30)]})
    with pytest.raises(BigtrainError) as refusal:
        stored.files_for(whole, 1, 2, {NAME: SHAPE}, "somewhere")
    assert_refused(refusal, f"does not hold all of master of {NAME}", wanted="30", fix="bigtrain checkpoint verify")


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), max_size=12))
def test_a_coverage_finds_every_element_that_comes_twice(pieces: list[tuple[int, int]]) -> None:
    covered, seen = Coverage(), set[int]()
    for start, length in pieces:
        own = set(range(start, start + length))
        assert covered.add(Region(start, start + length)) is not bool(own & seen)
        if own & seen:
            return
        seen |= own
        assert covered.elements == len(seen)


def test_a_coverage_of_columns_refuses_those_of_another_width_or_place() -> None:
    covered = Coverage()
    assert covered.add(Region(0, 6, 5, 0, 3)) and covered.add(Region(0, 4, 5, 3, 5))
    for other in (Region(0, 2), Region(0, 4, 5, 2, 4), Region(0, 4, 6, 5, 6), Region(5, 7, 5, 0, 3)):
        assert not covered.add(other)


def test_a_manifest_names_the_pieces_of_every_kind(tmp_path: Path) -> None:
    whole = torch.arange(30.0)
    own = [Fragment(NAME, kind, SHAPE, 0, whole) for kind in ("exp_avg", "master")]
    saved = save_fragments(tmp_path, 1, [*own, Fragment("b", "master", (2,), 0, torch.zeros(2))], ALONE)
    assert isinstance(saved, Checkpoint)
    assert saved.manifest.pieces == [
        TensorPieces(["master"], ["b"], "0,1,0,2"),
        TensorPieces(["master", "exp_avg"], [NAME], "0,1,0,30"),
    ]

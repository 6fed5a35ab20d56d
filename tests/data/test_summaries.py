"""A rank that hears what another one has read of the data trains on the same batches and sees the same faults."""

from __future__ import annotations

import pickle
import shutil
import socket
from pathlib import Path
from typing import cast
from unittest.mock import patch

import numpy as np
import pytest

from bigtrain.base import BigtrainError, RankTree
from bigtrain.config import Settings
from bigtrain.data import FileShares, RunData, summaries_of
from bigtrain.data.format import mapping
from bigtrain.data.format.manifest import DatasetManifest
from bigtrain.data.format.pack_file import PackManifest, PackReader
from bigtrain.data.store.store import Dataset
from bigtrain.engine import Topology
from bigtrain.objective import Causal
from bigtrain.train import open_run_data
from tests.data.helpers import (
    build_packs_of,
    contents,
    data_settings,
    jsonl_source,
    make,
    random_dataset,
    sentences,
    write_jsonl,
)
from tests.ranks import Mailboxes, on_ranks
from tests.train.test_continuation import TREE

T = 32


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Two sources in small shards, with packs."""
    folder = tmp_path_factory.mktemp("built")
    sources = [jsonl_source(write_jsonl(folder / f"{n}.jsonl", sentences(120, i)), n) for i, n in enumerate("ab")]
    data = data_settings(folder / "data", *sources, packing="best_fit", shard_tokens=600)
    make(data)
    train = {"steps": 10, "global_batch_size": 8, "micro_batch_size": 2}
    return Settings.model_validate({**TREE, "data": data.model_dump(), "train": train})


def with_packing(settings: Settings, packing: str) -> Settings:
    return settings.model_copy(update={"data": settings.data.model_copy(update={"packing": packing})})


def heard(settings: Settings, ranks: int = 3) -> RunData:
    """The data as a rank has them that opens nothing, after a message from each of so many ranks that open sources."""
    numbers = range(len(settings.data.sources))
    opened = {
        number: summary
        for rank in range(ranks)
        for number, summary in zip(numbers[rank::ranks], summaries_of(settings, numbers[rank::ranks]), strict=True)
    }
    return RunData.of(settings, pickle.loads(pickle.dumps([opened[number] for number in numbers])), Causal())


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_rank_that_heard_of_the_data_trains_on_the_same_batches(built: Settings, packing: str) -> None:
    settings = with_packing(built, packing)
    alone, told = RunData.open(settings), heard(settings)
    assert told.plan.plan_id == alone.plan.plan_id
    assert [d.dataset_id for d in told.held_out_datasets] == [d.dataset_id for d in alone.held_out_datasets]
    with (
        alone.loader(2, 0, rank=0, world_size=2) as wanted,
        told.loader(2, 0, rank=0, world_size=2) as found,
    ):
        for _ in range(20):
            one, other = next(wanted), next(found)
            assert (one.digest, one.label_tokens) == (other.digest, other.label_tokens)


def test_no_manifest_is_read_until_a_hash_is_needed(built: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that heard of the data reads no manifest of local shards, and those of packs when it reads a pack."""
    read: list[str] = []
    for manifest in (DatasetManifest, PackManifest):
        real = manifest.read
        monkeypatch.setattr(
            manifest, "read", lambda *args, name=manifest.__name__, real=real: read.append(name) or real(*args)
        )
    settings = with_packing(built, "concat")
    told = heard(settings)
    del read[:]
    told.check_sizes()
    with told.loader(2, 0, rank=0, world_size=1) as loader:
        next(loader)
    assert not read
    packed = heard(built)
    del read[:]
    packed.train[0].spans(np.arange(packed.train[0].rows))
    assert read == ["PackManifest"]


@pytest.mark.parametrize("name", ["00000.tok", "00000.doc", f"00000.best_fit-{T}.pack"])
def test_a_lost_file_is_found_before_the_first_step_and_when_it_is_read(built: Settings, name: str) -> None:
    """One of the ranks finds it at the start; a rank whose disk loses it later finds it when it needs it."""
    path = built.data.dir / "a" / "train" / name
    content = path.read_bytes()
    told = heard(built)
    path.write_bytes(content[:-3])
    wanted = rf"(?s){path.name} is not what its manifest says.*{len(content) - 3:,} bytes"
    try:
        found = 0
        for rank in range(5):
            try:
                told.check_sizes(FileShares((rank, 5), mountinfo=""))
            except BigtrainError as error:
                assert path.name in error.what
                found += 1
        assert found == 1
        with pytest.raises(BigtrainError, match=wanted):
            RunData.open(built)
        with pytest.raises(BigtrainError, match=wanted):
            packing = heard(built).train[0]
            packing.spans(np.arange(packing.rows))
            for shard in packing.dataset.shards:
                assert len(shard.tokens) and len(shard.documents.offset)
    finally:
        path.write_bytes(content)


def test_a_manifest_that_changed_since_it_was_told_is_refused(built: Settings, tmp_path: Path) -> None:
    """A node with its own copy of the data, of another build, does not read packs by the hashes of its own."""
    told = heard(built)
    folder = built.data.dir / "a" / "train"
    kept = contents(folder)
    other = PackManifest.read(folder, "best_fit", T)
    PackManifest(other.packing, T, other.parents, other.shards, other.block_bytes // 2).write(folder)
    try:
        with pytest.raises(BigtrainError):
            told.train[0].spans(np.arange(4))
    finally:
        (folder / f"best_fit-{T}.json").write_bytes(kept[f"best_fit-{T}.json"])


def test_files_that_were_not_used_for_longest_are_unmapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that meets more shards than it may map goes on, with as many mappings as it may have."""
    random_dataset(tmp_path, 3000)
    datasets = [Dataset(tmp_path) for _ in range(20)]
    wanted = [(shard.tokens.tolist(), shard.documents.offset.tolist()) for shard in datasets[0].shards]
    monkeypatch.setattr(mapping, "most_holders", lambda: 4)
    for _ in range(2):
        for dataset in datasets:
            found = [(shard.tokens.tolist(), shard.documents.offset.tolist()) for shard in dataset.shards]
            assert found == wanted
            assert Path("/proc/self/maps").read_text().count(str(tmp_path)) <= 2 * 4 + 1


def test_only_the_blocks_of_a_pack_that_are_read_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed byte of a pack is found when it is read, whatever else was read before, and only then."""
    random_dataset(tmp_path, 30_000)
    monkeypatch.setattr("bigtrain.data.format.pack_file.BLOCK_BYTES", 256)
    build_packs_of(tmp_path, "best_fit", T)
    manifest = PackManifest.read(tmp_path, "best_fit", T)
    record = manifest.shards[0]
    assert manifest.block_bytes == 256 and len(record.file.blocks) > 30
    path = tmp_path / record.file.name
    content = bytearray(path.read_bytes())

    def read(row: int) -> tuple[list[int], int]:
        reader = PackReader(path, record, 256, T)
        _, start, _ = reader.spans_of(np.array([row]))
        return start.tolist(), len(reader._checked)

    def read_everything() -> None:
        reader = PackReader(path, record, 256, T)
        reader.spans_of(np.arange(record.rows))
        reader.rows_with(0, record.tokens)

    whole = PackReader(path, record, 256, T)
    count, starts, _ = whole.spans_of(np.arange(record.rows))
    ends = np.cumsum(count)
    found = 0
    for place in range(40, len(content), len(content) // 23):
        content[place] ^= 1
        path.write_bytes(content)
        for row in (0, record.rows // 2, record.rows - 1):
            try:
                own, checked = read(row)
            except BigtrainError as error:
                assert "another block" in str(error.found)
                found += 1
            else:
                assert own == starts[ends[row] - count[row] : ends[row]].tolist() and checked < 20
        with pytest.raises(BigtrainError, match="another block"):
            read_everything()
        content[place] ^= 1
        path.write_bytes(content)
    assert found


class _OneOfTwoHosts(RankTree):
    """A rank of two hosts of two ranks each."""

    @property
    def local_rank(self) -> int:
        return self.rank % 2

    local_world_size = 2


@pytest.mark.parametrize("lost", ["00000.tok", "00000.doc", f"00000.best_fit-{T}.pack", f"best_fit-{T}.json"])
def test_a_file_that_one_host_lacks_is_found_before_the_first_step(built: Settings, tmp_path: Path, lost: str) -> None:
    """Where each host has its own copy of the data, all ranks end with one message that names the host and the path.

    The source is opened by a rank of the first host, which has all files. Among all ranks, rank 0 would look at this
    shard, and at the copy of the first host.
    """
    copies = [tmp_path / "host-0", tmp_path / "host-1"]
    for copy in copies:
        shutil.copytree(built.data.dir, copy)
    path = copies[1] / "b" / "train" / lost
    path.unlink()
    mailboxes = Mailboxes()

    def start(tree: RankTree) -> None:
        data = built.data.model_copy(update={"dir": copies[tree.rank // 2]})
        rank = _OneOfTwoHosts(tree.rank, tree.world_size, mailboxes.of(tree.rank))
        open_run_data(built.model_copy(update={"data": data}), cast(Topology, rank))

    with patch("bigtrain.data.store.file_shares.file_system_type", lambda *_: "ext4"):
        errors = on_ranks(4, start)
    assert all(isinstance(error, BigtrainError) for error in errors)
    assert {str(error).split("found", 1)[1] for error in errors} == {str(errors[0]).split("found", 1)[1]}
    assert f"rank 2 on {socket.gethostname()}: " in str(errors[0])
    assert str(path) in str(errors[0])

"""A start reads each manifest and looks at each file once, however many ranks and shards there are."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import xxhash

from bigtrain.data.format import pack_file
from bigtrain.data.format.file_record import FileRecord
from bigtrain.data.format.manifest import DatasetManifest, ShardRecord
from bigtrain.data.format.pack_file import PackReader, PackRecord, ShardPack
from bigtrain.data.format.summary import DatasetSummary
from bigtrain.data.store.store import Dataset
from tests.scale.growth import assert_grows, cpu_seconds

RANKS = 64
TOKENS = 3 << 20


def manifest_of(shards: int) -> DatasetManifest:
    """That of a dataset of so many shards of some 12 blocks."""
    hashes = [f"{number:032x}" for number in range(12)]
    records = [
        ShardRecord(
            TOKENS,
            1000,
            [FileRecord(f"{n:05d}.tok", 4 * TOKENS, hashes[:3]), FileRecord(f"{n:05d}.doc", 40_000 + n, hashes[:1])],
        )
        for n in range(shards)
    ]
    return DatasetManifest("s", "train", "<u4", 70_000, {"end_of_text": 0}, "0" * 32, {}, records)


def summary_of(shards: int) -> DatasetSummary:
    """That of a dataset of so many shards."""
    return DatasetSummary.of(manifest_of(shards))


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose size was asked for, each of which is what it should be."""
    names: list[str] = []
    real = FileRecord.__mro__[1].size_in

    def size_in(self: FileRecord, directory: Path) -> int | None:
        names.append(self.name)
        return self.size if directory == Path("there") else real(self, directory)

    monkeypatch.setattr(FileRecord.__mro__[1], "size_in", size_in)
    return names


def test_what_a_rank_hears_of_a_shard_is_a_few_bytes() -> None:
    """A summary has some 40 bytes a shard, so that of 20,000 shards is a message of less than a megabyte."""
    sizes = [500, 1000, 2000, 4000]
    assert_grows(sizes, lambda shards: len(pickle.dumps(summary_of(shards))), at_most=1.0)
    assert len(pickle.dumps(summary_of(4000))) < 45 * 4000


def test_all_ranks_together_look_at_each_file_once(looked_at: list[str]) -> None:
    dataset = Dataset(Path("there"), None, summary_of(256))
    for rank in range(RANKS):
        before = len(looked_at)
        dataset.check_sizes(rank, RANKS)
        assert len(looked_at) - before == 2 * 256 // RANKS
    assert sorted(looked_at) == sorted(file.name for shard in dataset.shards for file in shard.record.files)


def test_a_rank_pays_for_the_shards_that_it_touches(looked_at: list[str]) -> None:
    """Hearing of a dataset and meeting one shard of it costs no file but that of the shard, and little time."""

    def files(shards: int) -> int:
        del looked_at[:]
        dataset = Dataset(Path("there"), None, summary_of(shards))
        assert dataset.shard_at(shards * TOKENS // 2) == shards // 2 and not looked_at
        dataset.shards[shards // 2].check_sizes()
        return len(looked_at)

    assert [files(shards) for shards in (64, 512, 4096)] == [2, 2, 2]
    told = {shards: pickle.dumps(summary_of(shards)) for shards in (1000, 4000, 16_000)}

    def seconds(shards: int) -> float:
        return cpu_seconds(lambda: Dataset(Path("there"), None, pickle.loads(told[shards])).shards[shards // 2].record)

    assert_grows(list(told), seconds, at_most=1.0, slack=0.4)


def test_a_row_of_a_pack_costs_the_same_in_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that are read and hashed for one row do not grow with the pack."""
    hashed: list[int] = []

    class Counting:
        @staticmethod
        def xxh3_128_hexdigest(data: memoryview) -> str:
            hashed.append(len(data))
            return xxhash.xxh3_128_hexdigest(data)

    def bytes_for(spans: int) -> int:
        lengths, rows = np.full(spans, 8), np.arange(spans) // 4
        pack = ShardPack.from_assignment(lengths, rows)
        data = pack.encode()
        block = 4096
        blocks = [xxhash.xxh3_128_hexdigest(data[at : at + block]) for at in range(0, len(data), block)]
        path = tmp_path / f"{spans}.pack"
        path.write_bytes(data)
        record = PackRecord(pack.rows, spans, pack.tokens, FileRecord(path.name, len(data), blocks))
        del hashed[:]
        PackReader(path, record, block, 32).spans_of(np.array([pack.rows // 3]))
        return sum(hashed)

    monkeypatch.setattr(pack_file, "xxhash", Counting)
    assert_grows([8000, 32_000, 128_000, 512_000], bytes_for, at_most=0.0)

"""Promises of packing at build time: every token once, rows that fit, and a file that says so and cannot lie."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.data import build_datasets, verify
from bigtrain.data.batch.packing import IndexedPacking
from bigtrain.data.build.execute import Inline, Processes
from bigtrain.data.build.pack import PackManifest, ShardPack, best_fit, buckets, pack_shard
from bigtrain.data.build.pack.build_pack import build_packs
from bigtrain.data.format.manifest import DatasetManifest
from bigtrain.data.store.store import Dataset
from tests.data.helpers import contents, data_settings, jsonl_source, sentences, write_dataset, write_jsonl
from tests.matrix import thinned

PACKINGS = ("best_fit", "buckets")
T = 128

documents = st.lists(st.one_of(st.integers(1, 20), st.integers(1, 700)), min_size=1, max_size=80)
powers = st.sampled_from([1, 2, 32, 64, 128, 256, 512])


def offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths)))


def rows_of(pack: ShardPack) -> list[list[tuple[int, int]]]:
    """Each row's spans, as a reader of the file finds them: the tokens [start, end) of the shard."""
    spans = list(pairwise(pack.start.tolist()))
    return [[spans[i] for i in pack.span[begin:end]] for begin, end in pairwise(pack.first.tolist())]


def packed(folder: Path, packing: str, workers: int = 0, sequence_length: int = T) -> list[str]:
    """Make packs, with 0 workers in this process; returns what is reported."""
    lines: list[str] = []
    with Processes(workers) if workers else Inline() as pool:
        build_packs(folder, packing, sequence_length, pool, lines.append)
    return lines


@given(documents, st.sampled_from(PACKINGS), powers, st.integers(1, 3000))
def test_every_token_is_in_one_row_that_fits_and_no_span_crosses_documents(
    lengths: list[int], packing: str, sequence_length: int, group: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_shard, "PACK_TOKENS", group)
        pack = pack_shard.pack_shard(offsets(lengths), packing, sequence_length)
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    seen: list[int] = []
    for number, row in enumerate(rows_of(pack)):
        tokens = [token for start, end in row for token in range(start, end)]
        assert 0 < len(tokens) <= sequence_length
        assert tokens == sorted(tokens)
        assert all(len(set(document_of[start:end])) == 1 for start, end in row)
        assert {int(pack.row[np.searchsorted(pack.start, start)]) for start, _ in row} == {number}
        seen += tokens
    assert sorted(seen) == list(range(sum(lengths)))
    assert pack.fault(offsets(lengths), sequence_length) is None
    starts = [row[0][0] for row in rows_of(pack)]
    assert starts == sorted(starts)


@given(documents, st.integers(1, 300))
def test_best_fit_is_best_fit_decreasing_span_by_span(lengths: list[int], sequence_length: int) -> None:
    spans = best_fit.cut(np.array(lengths), sequence_length).tolist()
    room: list[int] = []
    wanted = [0] * len(spans)
    for span in sorted(range(len(spans)), key=lambda i: (-spans[i], i)):
        fits = [(free, row) for row, free in enumerate(room) if free >= spans[span]]
        if not fits:
            room.append(sequence_length)
        row = min(fits)[1] if fits else len(room) - 1
        room[row] -= spans[span]
        wanted[span] = row
    assert best_fit.assign(np.array(spans), sequence_length).tolist() == wanted


@given(documents, st.integers(1, 300))
def test_best_fit_cuts_only_documents_longer_than_a_row(lengths: list[int], sequence_length: int) -> None:
    spans = best_fit.cut(np.array(lengths), sequence_length).tolist()
    wanted = []
    for length in lengths:
        wanted += [sequence_length] * (length // sequence_length)
        wanted += [rest] if (rest := length % sequence_length) else []
    assert spans == wanted


@given(documents, powers)
def test_buckets_cut_by_the_binary_digits_of_a_length(lengths: list[int], sequence_length: int) -> None:
    spans = iter(buckets.cut(np.array(lengths), sequence_length).tolist())
    smallest = min(buckets.MIN_BUCKET, sequence_length)
    for length in lengths:
        own: list[int] = []
        while sum(own) < length:
            own.append(next(spans))
        assert sum(own) == length
        assert own == sorted(own, reverse=True)
        digits = [span for span in own if span >= smallest]
        assert all(span & (span - 1) == 0 for span in digits)
        assert sum(span < smallest for span in own) <= 1
        below = [span for span in own if span < sequence_length]
        assert len(set(below)) == len(below)
    assert list(spans) == []


@given(documents, powers)
def test_all_rows_of_buckets_but_the_last_few_hold_one_length(lengths: list[int], sequence_length: int) -> None:
    pack = pack_shard.pack_shard(offsets(lengths), "buckets", sequence_length)
    smallest = min(buckets.MIN_BUCKET, sequence_length)
    sizes = [[end - start for start, end in row] for row in rows_of(pack)]
    long = [row for row in sizes if row[0] >= smallest or max(row) >= smallest]
    mixed = [row for row in long if len(set(row)) > 1 or sum(row) < sequence_length]
    assert len(mixed) <= (sequence_length // smallest).bit_length()
    unfilled = [row for row in sizes if sum(row) <= sequence_length // 2]
    assert len(unfilled) <= 1


@given(documents, st.sampled_from(PACKINGS))
def test_a_pack_file_reads_back_as_it_was(lengths: list[int], packing: str) -> None:
    pack = pack_shard.pack_shard(offsets(lengths), packing, T)
    data = pack.encode()
    read = ShardPack.parse(memoryview(data), Path("x.pack"))
    for name in ("start", "row", "first", "span"):
        assert np.array_equal(getattr(read, name), getattr(pack, name))
    assert read.encode() == data
    assert read.tokens == sum(lengths)


@given(documents, st.data())
def test_columns_that_do_not_fit_each_other_are_reported(lengths: list[int], data: st.DataObject) -> None:
    written = bytearray(pack_shard.pack_shard(offsets(lengths), "best_fit", T).encode())
    pack = ShardPack.parse(memoryview(written), Path("x.pack"))
    column = getattr(pack, data.draw(st.sampled_from(["row", "first", "span"])))
    column[data.draw(st.integers(0, len(column) - 1))] += data.draw(st.sampled_from([1, 2, 1000]))
    assert pack.fault(offsets(lengths), T) is not None


def test_faults_are_named() -> None:
    lengths = [100, 100, 20]
    pack = pack_shard.pack_shard(offsets(lengths), "best_fit", T)
    assert pack.fault(offsets(lengths), 120) is None
    assert pack.fault(offsets(lengths), 119) == "row 0 has 120 tokens, more than 119"
    assert pack.fault(offsets([90, 110, 20]), T) == "a span holds tokens of two documents"
    assert pack.fault(offsets([100, 100, 21]), T) == "its spans do not partition the 221 tokens of the shard"


@pytest.mark.parametrize("change", [b"", b"short", b"btpack\0\2" + bytes(100), None])
def test_a_file_that_is_no_pack_is_a_clear_error(change: bytes | None) -> None:
    data = pack_shard.pack_shard(offsets([100, 100, 30]), "best_fit", T).encode()
    with pytest.raises(BigtrainError, match=r"x\.pack was changed after it was written"):
        ShardPack.parse(memoryview(data[:-4] if change is None else change), Path("x.pack"))


def make_shards(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(1)
    write_dataset(folder, [[[1] * int(n) for n in rng.integers(0, 300, 40)] for _ in range(count)])
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of six shards with all its packs."""
    folder = make_shards(tmp_path_factory.mktemp("made") / "train", 6)
    for packing in PACKINGS:
        packed(folder, packing)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / "train"))


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_manifest_names_every_shard_and_its_rows(made: Path, packing: str) -> None:
    manifest = PackManifest.read(made, packing, T)
    dataset = DatasetManifest.read(made)
    assert manifest.parents == {"dataset_id": dataset.dataset_id}
    assert [shard.tokens for shard in manifest.shards] == [shard.tokens for shard in dataset.shards]
    packs = [ShardPack.open(made / shard.file.name) for shard in manifest.shards]
    assert np.diff(manifest.starts).tolist() == [pack.rows for pack in packs]
    assert manifest.rows == sum(pack.rows for pack in packs)
    assert manifest.shards[0].file.name == f"00000.{packing}-{T}.pack"


@pytest.mark.parametrize("workers", thinned([1, 2, 3], keep=[3]))
def test_the_bytes_do_not_depend_on_the_number_of_workers(made: Path, tmp_path: Path, workers: int) -> None:
    other = make_shards(tmp_path / "train", 6)
    for packing in PACKINGS:
        packed(other, packing, workers)
    assert contents(other) == contents(made)


def test_a_second_time_changes_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert packed(folder, "buckets") == [f"made: buckets-{T}: already there"]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_other_lengths_lie_side_by_side(folder: Path) -> None:
    packed(folder, "best_fit", sequence_length=100)
    assert PackManifest.read(folder, "best_fit", 100).pack_id != PackManifest.read(folder, "best_fit", T).pack_id
    assert verify(folder).packs == 18


@pytest.mark.parametrize("damage", ["missing", "short", "manifest", "other data"])
def test_damaged_packs_are_made_again(made: Path, folder: Path, damage: str) -> None:
    path = folder / f"00002.best_fit-{T}.pack"
    manifest = folder / f"best_fit-{T}.json"
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-4])
    elif damage == "manifest":
        manifest.write_bytes(manifest.read_bytes()[:-1])
    else:
        replace(PackManifest.read(folder, "best_fit", T), parents={"dataset_id": "0" * 32}).write(folder)
        with pytest.raises(BigtrainError, match=r"(?s)pack index of other data.*bigtrain data build CONFIG"):
            PackManifest.read(folder, "best_fit", T)
    packed(folder, "best_fit")
    assert contents(folder) == contents(made)


@pytest.mark.parametrize(("kept", "found"), [(None, "no file"), (100, "100 bytes")])
def test_a_pack_that_is_missing_or_cut_off_is_reported_before_a_read(
    folder: Path, kept: int | None, found: str
) -> None:
    path = folder / f"00001.best_fit-{T}.pack"
    begin = path.read_bytes()[:kept]
    path.unlink()
    if kept is not None:
        path.write_bytes(begin)
    with pytest.raises(BigtrainError, match=rf"(?s){path.name} is not what its manifest says.*{found}.*build the data"):
        IndexedPacking(Dataset(folder), "best_fit", T)


def test_data_that_are_not_packed_say_how_to_pack_them(made: Path) -> None:
    with pytest.raises(BigtrainError, match=r"(?s)no best_fit-999\.json.*bigtrain data build CONFIG"):
        PackManifest.read(made, "best_fit", 999)


def test_documents_that_rotted_are_not_packed(folder: Path) -> None:
    path = folder / "00001.doc"
    data = bytearray(path.read_bytes())
    data[24 + 8 * 40] ^= 1  # the last offset
    path.write_bytes(data)
    (folder / f"best_fit-{T}.json").unlink()
    with pytest.raises(BigtrainError, match=r"00001\.doc was changed after it was written"):
        packed(folder, "best_fit")


KILLED = """
import sys
from pathlib import Path
from bigtrain.data.build.pack.build_pack import build_packs
from bigtrain.data.build.execute import Processes

if __name__ == "__main__":
    with Processes(2) as workers:
        for packing in ("best_fit", "buckets"):
            build_packs(Path(sys.argv[1]), packing, int(sys.argv[2]), workers, lambda line: None)
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(made: Path, tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "train", 6)
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(folder), str(T)]
    moments = random.Random(0)
    killed = 0
    for _ in range(2):
        process = subprocess.Popen(command)
        wanted = len(list(folder.iterdir())) + moments.randint(1, 10)
        while process.poll() is None and len(list(folder.iterdir())) < wanted:
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True)
    assert contents(folder) == contents(made)
    assert killed >= 1


def test_what_is_finished_is_kept_and_what_rotted_is_not(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_shards(tmp_path / "train", 6)

    def full(manifest: PackManifest, directory: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PackManifest, "write", full)
    with pytest.raises(OSError, match="No space left"):
        packed(folder, "best_fit")
    monkeypatch.undo()
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pack")}
    corrupted = folder / f"00003.best_fit-{T}.pack"
    data = bytearray(corrupted.read_bytes())
    data[-1] ^= 1
    corrupted.write_bytes(data)
    times.pop(corrupted.name)
    for packing in PACKINGS:
        packed(folder, packing)
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
    assert contents(folder) == contents(made)


def test_verify_finds_any_flipped_byte_of_a_pack_and_names_its_file(folder: Path) -> None:
    rng = np.random.default_rng(0)
    report = verify(folder)
    assert report.ok
    assert (report.shards, report.packs) == (6, 12)
    for name in (f"00002.best_fit-{T}.pack", f"00005.buckets-{T}.pack", f"best_fit-{T}.json"):
        path = folder / name
        whole = path.read_bytes()
        for offset in {0, 9, len(whole) - 1, *rng.integers(0, len(whole), 8).tolist()}:
            changed = bytearray(whole)
            changed[offset] ^= 1
            path.write_bytes(changed)
            assert any(str(path) in problem for problem in verify(folder).problems), (name, offset)
        path.write_bytes(whole)
    path.unlink()
    assert verify(folder).ok  # the packs of a manifest that is gone are nobody's


def test_verify_finds_rows_that_were_written_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With right hashes, as from a build with a bug."""
    (folder / f"best_fit-{T}.json").unlink()
    real = best_fit.assign
    monkeypatch.setattr(best_fit, "assign", lambda spans, length: real(spans, length + 1))
    packed(folder, "best_fit")
    monkeypatch.undo()
    problems = verify(folder).problems
    assert len(problems) == 6
    assert all(f"tokens, more than {T}" in problem and ".pack: row " in problem for problem in problems)


def test_verify_reads_packs_at_a_url(folder: Path) -> None:
    path = folder / f"00002.best_fit-{T}.pack"
    assert verify(f"file://{folder}").packs == 12
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    problems = verify(f"file://{folder}").problems
    assert problems == [f"file://{path}: block 0 (bytes 0 to {len(data) - 1:,}) has another checksum"]


def test_a_build_packs_the_training_split_of_every_source(tmp_path: Path) -> None:
    sources = [jsonl_source(write_jsonl(tmp_path / f"{n}.jsonl", sentences(50, i)), n) for i, n in enumerate("ab")]
    settings = data_settings(tmp_path / "data", *sources, packing="buckets", sequence_length=T)
    lines: list[str] = []
    build_datasets(settings, vocab_size=512, report=lines.append)
    packs = sorted(str(path.relative_to(settings.dir)) for path in settings.dir.rglob("*.pack"))
    assert packs == [f"{name}/train/00000.buckets-{T}.pack" for name in "ab"]
    assert sum(f": buckets-{T}: " in line and "% full" in line for line in lines) == 2
    assert verify(settings.dir).ok


@pytest.mark.parametrize("small_disk", ["1m"], indirect=True)
def test_a_full_disk_is_a_clear_error_and_nothing_is_lost(small_disk: Path, tmp_path: Path) -> None:
    source = jsonl_source(write_jsonl(tmp_path / "x.jsonl", sentences(400, 1)))
    settings = data_settings(small_disk / "data", source)
    build_datasets(settings, vocab_size=512, report=lambda line: None)
    packed_settings = settings.model_copy(update={"packing": "buckets", "sequence_length": 64})
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - 16384)
    with pytest.raises(
        BigtrainError, match=r"(?s)no space left for the data in .*No space left.*finished shards are kept"
    ):
        build_datasets(packed_settings, vocab_size=512, report=lambda line: None)
    filler.unlink()
    build_datasets(packed_settings, vocab_size=512, report=lambda line: None)
    report = verify(small_disk)
    assert report.ok
    assert report.packs == 1
    assert not list(small_disk.rglob("*.tmp")) + list(small_disk.rglob("*.note"))

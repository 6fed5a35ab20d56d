"""Manifests in parts: the root is read alone, the id covers every byte, and what is damaged is refused by name."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.data import Dataset, index_datasets, open_datasets, open_packings, spot_check, verify
from bigtrain.data.format import shard_table
from bigtrain.data.format.hashing import canonical_json, digest, identity
from bigtrain.data.format.manifest import DatasetManifest, ShardRecord
from bigtrain.data.format.pack_file import PackManifest
from bigtrain.data.format.summary import DatasetSummary
from bigtrain.data.store.mirror import Mirror
from tests.data.helpers import build_packs_of, data_settings, jsonl_source, make, random_dataset, sentences, write_jsonl
from tests.hostile import mutate
from tests.refusals import assert_refused
from tests.scale.growth import assert_grows
from tests.scale.test_data import manifest_of

T = 64
ROOT, PACK = "manifest.json", f"best_fit-{T}.json"
FILES = [ROOT, PACK, "00001.json", f"00001.best_fit-{T}.json"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed dataset of three shards of small blocks, whose manifests are in parts."""
    folder = tmp_path_factory.mktemp("original") / "made" / "train"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_table, "PARTS_FROM", 2)
        patch.setattr("bigtrain.data.format.shards.BLOCK_BYTES", 1024)
        patch.setattr("bigtrain.data.format.pack_file.BLOCK_BYTES", 512)
        random_dataset(folder, 6000)
        build_packs_of(folder, "best_fit", T)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "made" / "train"))


def test_a_manifest_in_parts_says_what_one_in_a_file_says(original: Path, tmp_path: Path) -> None:
    manifest, packs = DatasetManifest.read(original), PackManifest.read(original, "best_fit", T)
    assert (manifest.format, packs.format) == (3, 2)
    assert sorted(path.name for path in original.glob("*.json")) == sorted(
        [ROOT, PACK, *(f"{n:05d}.json" for n in range(3)), *(f"{n:05d}.best_fit-{T}.json" for n in range(3))]
    )
    whole = replace(manifest, shards=list(manifest.shards), format=1)
    whole.write(tmp_path)
    again = DatasetManifest.read(tmp_path)
    assert list(again.shards) == list(manifest.shards)
    assert (again.tokens, again.documents) == (manifest.tokens, manifest.documents)
    one, other = DatasetSummary.of(again), DatasetSummary.of(manifest)
    assert [one.shard(n) for n in range(3)] == [other.shard(n) for n in range(3)]
    assert replace(again, format=3).dataset_id == manifest.dataset_id != again.dataset_id


def test_the_id_is_the_hash_of_the_root_and_the_root_has_those_of_parts(original: Path) -> None:
    root = json.loads((original / ROOT).read_bytes())
    content = {name: value for name, value in root.items() if name not in ("dataset_id", "tokens", "documents")}
    assert root["dataset_id"] == identity(content) == Dataset(original).dataset_id
    parts = [(original / f"{n:05d}.json").read_bytes() for n in range(3)]
    assert root["shards"]["parts"] == [digest(part).hex() for part in parts]
    assert [ShardRecord.from_json(json.loads(part), original) for part in parts] == list(
        DatasetManifest.read(original).shards
    )


def test_local_data_are_read_without_the_parts(original: Path, folder: Path) -> None:
    """What trains on local shards reads the root alone; packs need the part of a shard whose rows they read."""
    for path in folder.glob("0*.json"):
        if path.name != f"00001.best_fit-{T}.json":
            path.unlink()
    settings = data_settings(folder, jsonl_source(folder, "made"), sequence_length=T, packing="best_fit")
    dataset, whole = Dataset(folder), Dataset(original)
    for shard in range(3):
        assert np.array_equal(dataset.shards[shard].tokens, whole.shards[shard].tokens)
    (packing,), (wanted,) = open_packings(settings, [dataset]), open_packings(settings, [whole])
    row = np.array([int(packing._summary.starts[1])])
    assert packing.spans(row).start.tolist() == wanted.spans(row).start.tolist()
    with pytest.raises(BigtrainError) as refusal:
        packing.spans(np.array([0]))
    assert_refused(refusal, f"00000.best_fit-{T}.json", found="no file")


def test_records_that_are_sent_to_workers_bring_their_hashes(original: Path, folder: Path) -> None:
    shards = list(DatasetManifest.read(folder).shards)
    sent = pickle.dumps(shards)
    shutil.rmtree(folder)
    assert pickle.loads(sent) == list(DatasetManifest.read(original).shards)


def test_verify_finds_any_changed_byte_of_root_parts_and_files(folder: Path) -> None:
    report = verify(folder)
    assert report.ok and (report.shards, report.packs) == (3, 3) and report.blocks >= 30
    chance = random.Random(0)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for place in (0, chance.randrange(len(content)), len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            problems = verify(folder).problems
            assert any(path.name in problem for problem in problems), (path.name, place, problems)
        path.unlink()
        if path.name != ROOT:
            assert any(path.name in problem for problem in verify(folder).problems) or path.name == PACK
        path.write_bytes(content)
    assert verify(folder).ok


def test_a_spot_check_reads_the_parts_that_it_needs(folder: Path) -> None:
    assert spot_check([Dataset(folder)], seconds=10, seed=0).problems == []
    (folder / "00001.json").write_bytes(b"{}")
    problems = spot_check([Dataset(folder)], seconds=10, seed=0).problems
    assert problems and all("00001.json" in problem for problem in problems)


def test_a_mirror_fetches_the_part_of_a_shard_that_it_reads(original: Path, tmp_path: Path) -> None:
    """A part comes with the first read of its shard; one that is damaged here is fetched again."""
    whole = Dataset(original)
    mirror = Mirror(tmp_path / "mirror", f"file://{original.parent.parent}", 1 << 30)
    directory = mirror.directory / "made" / "train"
    mirror._fetch_record(f"made/train/{ROOT}")
    mirror._fetch_record(f"made/train/{PACK}")
    dataset = Dataset(directory, mirror)
    start = whole.starts[1]
    assert not list(directory.glob("0*.json"))
    assert dataset.shards[1].slice(0, 9).tolist() == whole.shards[1].slice(0, 9).tolist()
    assert [path.name for path in directory.glob("0*.json")] == ["00001.json"]
    packing = open_packings(
        data_settings(directory, jsonl_source(directory), packing="best_fit", sequence_length=T), [dataset]
    )[0]
    assert len(packing.sequences_with(start, start + 1)) == 1
    assert sorted(path.name for path in directory.glob("0*.json")) == [f"00001.best_fit-{T}.json", "00001.json"]
    (directory / "00001.json").write_bytes(b"{}")
    assert Dataset(directory, mirror).shards[1].slice(0, 9).tolist() == whole.shards[1].slice(0, 9).tolist()


def read_everything(folder: Path) -> None:
    dataset = Dataset(folder)
    for shard in dataset.shards:
        assert len(shard.tokens) and len(shard.documents.offset)
    for record in dataset.manifest.shards:
        assert [len(list(file.blocks)) for file in record.files]
    index_datasets(folder)
    for record in PackManifest.read(folder, "best_fit", T, dataset.dataset_id).shards:
        assert list(record.file.blocks)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(choose=st.randoms(use_true_random=False), which=st.sampled_from(FILES))
def test_any_change_with_right_hashes_is_refused_or_harmless(
    original: Path, tmp_path_factory: pytest.TempPathFactory, choose: random.Random, which: str
) -> None:
    folder = Path(shutil.copytree(original, tmp_path_factory.mktemp("changed") / "train"))
    value = json.loads((folder / which).read_bytes())
    mutate(value, choose)
    of_packs = "best_fit" in which
    root, id_name = (folder / PACK, "pack_id") if of_packs else (folder / ROOT, "dataset_id")
    try:
        if which in (ROOT, PACK):
            sealed(root, value, id_name)
        else:
            part = canonical_json(value)
            (folder / which).write_bytes(part)
            content = json.loads(root.read_bytes())
            content["shards"]["parts"][1] = digest(part).hex()
            sealed(root, content, id_name)
    except (ValueError, TypeError, AttributeError):  # no such hash
        return
    for action in (lambda: read_everything(folder), lambda: verify(folder)):
        try:
            action()
        except BigtrainError as refusal:
            assert_refused(refusal)


def sealed(path: Path, content: dict[str, Any], id_name: str) -> None:
    """Write a root with the right hash of its content."""
    totals = {
        name: content.pop(name, None) for name in (id_name, "tokens", "rows" if id_name == "pack_id" else "documents")
    }
    totals[id_name] = identity(content)
    path.write_bytes(canonical_json({**content, **totals}))


def test_a_root_has_some_bytes_a_shard_whatever_the_shards_hold(tmp_path: Path) -> None:
    """Opening 20,000 shards reads one file of some 3 MB."""

    def size(shards: int) -> int:
        (*_, (name, content)) = manifest_of(shards).files()
        assert name == ROOT
        return len(content)

    assert_grows([1100, 1600, 2200], size, at_most=1.0)
    assert size(2200) < 110 * 2200


def test_few_shards_keep_the_format_and_the_id_that_they_had(tmp_path: Path) -> None:
    assert (manifest_of(shard_table.PARTS_FROM - 1).format, manifest_of(shard_table.PARTS_FROM).format) == (1, 3)


@pytest.mark.usefixtures("small_pieces")
def test_a_build_of_many_shards_writes_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of many shards writes its manifests in parts, and a second build leaves them as they are."""
    monkeypatch.setattr(shard_table, "PARTS_FROM", 2)
    source = jsonl_source(write_jsonl(tmp_path / "x.jsonl", sentences(400, 1)))
    data = data_settings(tmp_path / "data", source, shard_tokens=3000, packing="best_fit")
    make(data)
    (dataset,) = open_datasets(data, model_vocab_size=512)
    assert len(dataset.shards) >= 2 and dataset.manifest.format == 3
    before = {path.name: path.read_bytes() for path in dataset.directory.iterdir()}
    assert any("already there" in line for line in make(data))
    assert {path.name: path.read_bytes() for path in dataset.directory.iterdir()} == before
    assert verify(data.dir).ok
    assert not any(name.endswith(".tmp") for name in before)

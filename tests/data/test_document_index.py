"""An index of documents by id: made in bounded memory, the same whatever the bound."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from bigtrain.data import Dataset
from bigtrain.data.format.manifest import DatasetManifest
from bigtrain.data.format.shards import ShardWriter, TokenizedDocuments
from bigtrain.data.store import document_index
from bigtrain.data.store.document_index import FILES, look_up, shards_with_file, write_index
from bigtrain.data.store.stored_document import find_document
from tests.data.helpers import random_dataset, write_dataset

SHARDS, DOCUMENTS = 4, 50


def identity(shard: int, number: int) -> bytes:
    return hashlib.blake2b(bytes([shard, number]), digest_size=16).digest()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Documents of one token with ids as a build makes them: hashes."""
    records = []
    for shard in range(SHARDS):
        writer = ShardWriter(tmp_path, shard)
        ids = [identity(shard, number) for number in range(DOCUMENTS)]
        numbers = list(range(DOCUMENTS))
        writer.append(
            TokenizedDocuments(np.zeros(DOCUMENTS, "<u2"), [1] * DOCUMENTS, ids, ["file"] * DOCUMENTS, numbers)
        )
        records.append(writer.finish())
    DatasetManifest(
        source="made",
        split="train",
        dtype="<u2",
        vocab_size=9,
        special_ids={"end_of_text": 0},
        tokenizer="0" * 32,
        parents={},
        shards=[record for record in records if record is not None],
    ).write(tmp_path)
    return Dataset(tmp_path)


def test_an_index_is_the_same_whatever_memory_it_was_made_in(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = write_index(dataset).read_bytes()
    keys = np.frombuffer(at_once, "<u8", SHARDS * DOCUMENTS, len(at_once) - 16 * SHARDS * DOCUMENTS)
    assert (keys[1:] > keys[:-1]).all()
    for rows_at_once in (1, 17, 1000):
        monkeypatch.setattr(document_index, "ROWS_AT_ONCE", rows_at_once)
        for documents_at_once in (1, 7, 60, 199):
            assert write_index(dataset, documents_at_once=documents_at_once).read_bytes() == at_once


def test_an_index_in_portions_finds_every_document_and_no_other(dataset: Dataset) -> None:
    write_index(dataset, documents_at_once=30)
    for shard in range(SHARDS):
        for number in range(DOCUMENTS):
            assert look_up(dataset, identity(shard, number)) == [(shard, number)]
    assert look_up(dataset, identity(SHARDS, 0)) == []


def test_an_index_of_files_names_the_shards_that_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document is found by its origin as without the index, and no shard without the file is read."""
    dataset = write_dataset(tmp_path, [[[1]] * 3, [[2]], [[3]] * 2])  # files file-0, file-1, file-2 in turn
    origins = [f"made:file-{position % 3}:{position}" for position in range(6)]
    scanned = [find_document([dataset], origin) for origin in origins]
    assert shards_with_file(dataset, b"file-0") is None
    write_index(dataset, FILES)
    named = [shards_with_file(dataset, f"file-{number}".encode()) for number in range(4)]
    assert named == [[0, 1], [0, 2], [0, 2], []]
    opened: list[int] = []
    real = dataset.shards.__class__.__getitem__
    monkeypatch.setattr(
        dataset.shards.__class__, "__getitem__", lambda self, index: (opened.append(index), real(self, index))[1]
    )
    assert [find_document([dataset], origin) for origin in origins] == scanned
    del opened[:]
    find_document([dataset], "made:file-1:1")
    assert 1 not in opened


def test_an_index_of_files_of_other_data_is_ignored(tmp_path: Path) -> None:
    old, new = (random_dataset(tmp_path / name, 2000, seed=seed) for seed, name in enumerate(("old", "new")))
    index = write_index(old, FILES).read_bytes()
    for wrong in (index, index[:-1], b""):
        (new.directory / FILES.name).write_bytes(wrong)
        assert shards_with_file(new, b"file-0") is None
    content = bytearray(write_index(new, FILES).read_bytes())
    content[-8:] = b"\xff" * 8  # a shard that there is not
    (new.directory / FILES.name).write_bytes(content)
    assert all(shard < 3 for number in range(3) for shard in shards_with_file(new, f"file-{number}".encode()) or [])

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
from bigtrain.data.store.document_index import look_up, write_index

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
            assert write_index(dataset, documents_at_once).read_bytes() == at_once


def test_an_index_in_portions_finds_every_document_and_no_other(dataset: Dataset) -> None:
    write_index(dataset, documents_at_once=30)
    for shard in range(SHARDS):
        for number in range(DOCUMENTS):
            assert look_up(dataset, identity(shard, number)) == [(shard, number)]
    assert look_up(dataset, identity(SHARDS, 0)) == []

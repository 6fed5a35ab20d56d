"""Metadata of documents: kept beside the shards, found by `where`, and without effect on what is trained on."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bigtrain.base.errors import BigtrainError
from bigtrain.config.data_settings import DataSettings
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data.build.corpus import read_documents
from bigtrain.data.format.document_metadata import (
    CUT,
    LONGEST_TEXT,
    encoded_metadata,
    metadata_of,
    metadata_text,
)
from bigtrain.data.provenance.provenance import DocumentPart
from bigtrain.data.store.store import Dataset, open_datasets
from bigtrain.data.store.stored_document import StoredDocument, find_document
from bigtrain.rundir.provenance import part_of_document
from tests.data.helpers import VOCABULARY, data_settings, make, sentences
from tests.refusals import assert_refused

pytestmark = pytest.mark.usefixtures("small_pieces")

TEXTS = sentences(120, seed=9)
RECORDS = [
    {
        "text": text,
        "meta": {"url": f"https://x/{n}", "n": n},
        "date": None if n % 7 == 0 else f"2026-11-{n % 30 + 1:02}",
    }
    for n, text in enumerate(TEXTS)
]
KEPT = [{"meta.url": f"https://x/{n}", "date": record["date"]} for n, record in enumerate(RECORDS)]


def source(path: Path, kind: str = "jsonl", **changes: object) -> SourceSettings:
    return SourceSettings.model_validate({"name": "s", "kind": kind, "path": str(path), **changes})


def write(folder: Path, kind: str) -> Path:
    path = folder / f"x.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    else:
        pq.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=50)
    return path


def settings_for(folder: Path, kind: str, **changes: object) -> DataSettings:
    own = source(write(folder, kind), kind, **changes)
    return data_settings(folder / "data", own, shard_tokens=2000)


def documents(dataset: Dataset) -> list[StoredDocument]:
    return [
        StoredDocument(dataset, number, document)
        for number, shard in enumerate(dataset.shards)
        for document in range(shard.record.documents)
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_each_document_has_its_fields_and_the_data_stay_the_same(kind: str, tmp_path: Path) -> None:
    """In both splits, in several shards, by the dotted path of a field; the dataset's id is that without metadata."""
    plain, kept = tmp_path / "plain", tmp_path / "kept"
    plain.mkdir()
    kept.mkdir()
    without, own = settings_for(plain, kind), settings_for(kept, kind, metadata=["meta.url", "date"])
    make(without)
    make(own)
    assert not list(without.dir.rglob("*.meta"))
    for split in ("train", "validation"):
        (before,) = open_datasets(without, model_vocab_size=VOCABULARY, split=split)
        (after,) = open_datasets(own, model_vocab_size=VOCABULARY, split=split)
        assert before.dataset_id == after.dataset_id
        assert [document.metadata for document in documents(after)] == [KEPT[d.position] for d in documents(after)]
        assert {document.metadata for document in documents(before)} == {None}
        assert len(after.shards) > 1 or kind == "parquet"
    found = find_document([after], documents(after)[0].id)
    assert part_of_document(DocumentPart(found, 0, 2, True)).metadata == KEPT[found.position]


def test_metadata_at_a_url_are_fetched_when_they_are_asked_for(tmp_path: Path) -> None:
    built = settings_for(tmp_path, "jsonl", metadata=["meta.url", "date"])
    make(built)
    remote = {"remote": f"file://{built.dir}", "dir": tmp_path / "mirror"}
    (dataset,) = open_datasets(built.model_copy(update=remote), model_vocab_size=VOCABULARY)
    assert not list((tmp_path / "mirror").rglob("*.meta"))
    assert [document.metadata for document in documents(dataset)] == [KEPT[d.position] for d in documents(dataset)]
    shutil.rmtree(tmp_path / "mirror")
    for file in built.dir.rglob("*.meta"):
        file.unlink()
    (dataset,) = open_datasets(built.model_copy(update=remote), model_vocab_size=VOCABULARY)
    assert documents(dataset)[0].metadata is None


def test_an_unfinished_shard_leaves_no_metadata(tmp_path: Path) -> None:
    """What an interrupted build left is removed with its shard, and the build that goes on has all of it."""
    settings = settings_for(tmp_path, "jsonl", metadata=["date"])
    make(settings)
    folder = settings.dir / "s"
    whole = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.meta")}
    assert len(whole) > 2
    for manifest in folder.rglob("manifest.json"):
        manifest.unlink()
    (folder / "train" / "00099.meta").write_bytes(b"left over")
    make(settings)
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.meta")} == whole


def test_a_web_archive_has_url_date_and_language(tmp_path: Path, require: Callable[[str], object]) -> None:
    require("warcio")
    require("trafilatura")
    head = (
        "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: https://example.org/\r\n"
        "WARC-Date: 2026-11-30T00:00:00Z\r\n{}Content-Type: text/plain\r\nContent-Length: 4\r\n\r\ntext\r\n\r\n"
    )
    records = head.format("WARC-Identified-Content-Language: deu,\r\n  eng\r\n") + head.format("")
    (tmp_path / "x.wet.gz").write_bytes(gzip.compress(records.encode()))
    found = [
        json.loads(d.metadata) for d in read_documents(source(tmp_path, "warc", metadata=["language", "url", "date"]))
    ]
    both = {"url": "https://example.org/", "date": "2026-11-30T00:00:00Z"}
    assert found == [{"language": "deu, eng", **both}, {"language": None, **both}]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_field_that_is_not_there_is_refused_with_the_nearest(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind)
    with pytest.raises(BigtrainError) as raised:
        list(read_documents(source(path, kind, metadata=["meta.urls"])))
    assert_refused(raised, "no field 'meta.urls'", fix="set metadata: meta.url")


def test_names_that_a_source_cannot_have_are_refused(tmp_path: Path) -> None:
    for kind, names in (("warc", ["title"]), ("jsonl", ["a", "a"]), ("text", ["url"]), ("jsonl", [""])):
        with pytest.raises(ValidationError):
            source(tmp_path, kind, metadata=names)


def test_any_value_becomes_json_of_bounded_length() -> None:
    values: dict[str, Any] = {
        "a": date(2026, 1, 2), "b": float("nan"), "c": [1, {"d": b"x"}], "e": "y" * 9000,
        "f": True, "g": None, "h": 1.5,
    }  # fmt: skip
    found = json.loads(metadata_text(values))
    assert found == {
        "a": "2026-01-02", "b": "nan", "c": '[1, {"d": "b\'x\'"}]', "e": "y" * (LONGEST_TEXT - 1) + CUT,
        "f": True, "g": None, "h": 1.5,
    }  # fmt: skip


FIELDS = st.dictionaries(st.text(max_size=3), st.text(max_size=5) | st.integers() | st.none(), max_size=3)


@given(st.lists(FIELDS, min_size=1, max_size=6), st.data())
def test_a_file_gives_back_its_fields_and_damage_one_message(fields: list[dict[str, Any]], data: st.DataObject) -> None:
    content = encoded_metadata([metadata_text(each) if each else "" for each in fields])
    where = Path("00000.meta")
    assert [metadata_of(memoryview(content), n, where) for n in range(len(fields))] == [each or None for each in fields]
    at = data.draw(st.integers(0, len(content) - 1))
    changed = content[:at] + data.draw(st.binary(min_size=1, max_size=8)) + content[at + 1 :]
    for damaged in (content[:at], changed):
        try:
            found = metadata_of(memoryview(damaged), len(fields) - 1, where)
        except BigtrainError as error:
            assert_refused(error, "00000.meta")
        else:
            assert found is None or isinstance(found, dict)

"""Promises of `data verify` and of opening data for a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bigtrain.base.errors import BigtrainError
from bigtrain.config.data_settings import DataSettings
from bigtrain.data import build_datasets, open_datasets, verify
from bigtrain.data.format.file_record import BLOCK_BYTES
from bigtrain.data.format.hashing import canonical_json
from tests.data.helpers import data_settings, jsonl_source, sentences, write_dataset, write_jsonl


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    folder = tmp_path_factory.mktemp("data")
    settings = data_settings(folder / "data", jsonl_source(write_jsonl(folder / "x.jsonl", sentences(60, 1))))
    build_datasets(settings, vocab_size=512, report=lambda line: None)
    return settings


@pytest.fixture
def settings(original: DataSettings, tmp_path: Path) -> DataSettings:
    shutil.copytree(original.dir, tmp_path / "data")
    return original.model_copy(update={"dir": tmp_path / "data"})


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_good_data_pass_and_are_counted(settings: DataSettings) -> None:
    report = verify(settings.dir)
    assert report.ok
    assert (report.datasets, report.shards, report.blocks, report.documents) == (2, 2, 4, 60)
    assert report.tokens == sum(
        d.tokens
        for split in ("train", "validation")
        for d in open_datasets(settings, model_vocab_size=512, split=split)
    )
    assert json.loads(json.dumps(report.to_json()))["ok"] is True
    assert verify(settings.dir / "lines").datasets == 2


def test_any_flipped_byte_is_found_and_its_file_named(settings: DataSettings) -> None:
    rng = np.random.default_rng(0)
    names = ["tokenizer.json"]
    names += [f"lines/{s}/{f}" for s in ("train", "validation") for f in ("00000.tok", "00000.doc", "manifest.json")]
    for name in names:
        path = settings.dir / name
        size = path.stat().st_size
        for offset in {0, size - 1, *rng.integers(0, size, 20).tolist()}:
            flip(path, offset)
            report = verify(settings.dir)
            assert any(str(path) in problem for problem in report.problems), (name, offset)
            flip(path, offset)
    assert verify(settings.dir).ok


def test_the_block_of_a_flipped_byte_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_dataset(tmp_path, [rng.integers(1, 1000, (600, 8000)).tolist()])
    path = tmp_path / "00000.tok"
    assert path.stat().st_size > 2 * BLOCK_BYTES
    flip(path, BLOCK_BYTES + 5)
    assert verify(tmp_path).problems == [
        f"{path}: block 1 (bytes 4,194,304 to 8,388,607) has another checksum",
    ]


def test_a_short_or_missing_file_is_found_by_verify_and_before_a_run(settings: DataSettings) -> None:
    path = settings.dir / "lines" / "train" / "00000.tok"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    assert any(
        f"{len(whole) - 2:,} bytes, expected {len(whole):,}" in problem for problem in verify(settings.dir).problems
    )
    with pytest.raises(BigtrainError, match=r"00000\.tok is not what its manifest says"):
        open_datasets(settings, model_vocab_size=512)
    path.unlink()
    assert verify(settings.dir).problems == [f"{path}: the file is missing"]
    with pytest.raises(BigtrainError, match="no file"):
        open_datasets(settings, model_vocab_size=512)


def test_an_id_outside_the_vocabulary_is_found(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [[[1, 2, 900, 3]]], vocab_size=500)
    assert dataset.tokens == 5
    assert verify(tmp_path).problems == [f"{tmp_path / '00000.tok'}: id 900 at token 2, vocabulary 500"]


def test_an_edited_manifest_is_found(settings: DataSettings) -> None:
    path = settings.dir / "lines" / "train" / "manifest.json"
    value = json.loads(path.read_bytes())
    value["vocab_size"] = 10
    path.write_bytes(canonical_json(value))
    assert any("was changed after it was written" in problem for problem in verify(settings.dir).problems)
    with pytest.raises(BigtrainError, match="was changed after it was written"):
        open_datasets(settings, model_vocab_size=512)


def test_an_unfinished_source_is_named(settings: DataSettings) -> None:
    (settings.dir / "lines" / "train" / "manifest.json").unlink()
    assert verify(settings.dir).problems == [f"{settings.dir / 'lines'}: the build of this source is not finished"]
    with pytest.raises(BigtrainError, match="bigtrain data build CONFIG"):
        open_datasets(settings, model_vocab_size=512)


def test_a_folder_without_data_is_a_clear_error(tmp_path: Path, settings: DataSettings) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BigtrainError, match="there is no dataset"):
        verify(tmp_path / "empty")
    with pytest.raises(BigtrainError, match="bigtrain data build CONFIG"):
        open_datasets(settings.model_copy(update={"dir": tmp_path / "empty"}), model_vocab_size=512)


def test_another_tokenizer_in_the_folder_stops_a_run(settings: DataSettings) -> None:
    path = settings.dir / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b'"ignore_merges":false', b'"ignore_merges":true'))
    with pytest.raises(BigtrainError, match="built with another tokenizer"):
        open_datasets(settings, model_vocab_size=512)


def test_a_model_with_too_few_embeddings_stops_a_run(settings: DataSettings) -> None:
    with pytest.raises(BigtrainError, match=r"(?s)model\.vocab_size 299.*300"):
        open_datasets(settings, model_vocab_size=299)


def test_the_dataset_id_is_the_hash_of_what_is_in_it(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "a", [[[1, 2, 3]], [[4]]])
    assert write_dataset(tmp_path / "elsewhere" / "b", [[[1, 2, 3]], [[4]]]).dataset_id == one.dataset_id
    changed = [
        write_dataset(tmp_path / "c", [[[1, 2, 4]], [[4]]]),
        write_dataset(tmp_path / "d", [[[1, 2, 3], [4]]]),
        write_dataset(tmp_path / "e", [[[1, 2, 3]], [[4]]], vocab_size=1001),
        write_dataset(tmp_path / "f", [[[1, 2, 3]], [[4]]], source="other"),
    ]
    assert len({dataset.dataset_id for dataset in [one, *changed]}) == 5

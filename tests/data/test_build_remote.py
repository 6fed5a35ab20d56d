"""A build writes its shards straight into an object store, with the bytes of a build on a disk."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bigtrain.base.errors import BigtrainError
from bigtrain.config.data_settings import DataSettings
from bigtrain.data import open_datasets, verify
from bigtrain.data.build import build_source
from bigtrain.data.format.remote_files import RetryPolicy
from bigtrain.data.format.work_folder import WorkFolder
from tests.data.helpers import VOCABULARY, contents, data_settings, jsonl_source, make, sentences, write_jsonl
from tests.data.servers import BUCKET, Proxy, S3Server, s3_environment
from tests.refusals import assert_refused

pytestmark = pytest.mark.usefixtures("small_pieces")


@pytest.fixture(scope="module")
def proxy(require: Any) -> Iterator[Proxy]:
    for module in ("moto", "s3fs"):
        require(module)
    server = S3Server()
    made = Proxy(server.port)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(made.url).items():
            patch.setenv(name, value)
        server.start()
        yield made
    made.stop()
    server.kill()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    """Data that were built on a disk."""
    folder = tmp_path_factory.mktemp("local")
    sources = [
        jsonl_source(write_jsonl(folder / f"{name}.jsonl", sentences(200, seed)), name)
        for seed, name in enumerate("ab")
    ]
    settings = data_settings(folder / "data", *sources, shard_tokens=20_000, packing="best_fit", dedup="exact")
    make(settings)
    return settings


def at(local: DataSettings, folder: Path, name: str) -> DataSettings:
    return local.model_copy(update={"dir": folder / "fetched", "remote": f"s3://{BUCKET}/{name}"})


def files_at(settings: DataSettings) -> dict[str, bytes]:
    assert settings.remote is not None
    target = WorkFolder.at(settings.remote)
    return {name: target.read(name) for name in target.names()}


def visible(settings: DataSettings) -> dict[str, bytes]:
    return {name: content for name, content in contents(settings.dir).items() if not name.startswith(".")}


def test_a_store_with_faults_gets_the_bytes_of_a_disk(
    proxy: Proxy, local: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that are refused, or whose answers are cut off, are made again; then a run can read the data."""
    monkeypatch.setattr(RetryPolicy, "pause", lambda policy, failures: 0.01)
    faults = random.Random(0)
    proxy.suffix, proxy.faults = "", [faults.choice([None, None, "503", "truncated"]) for _ in range(30)]
    settings = at(local, tmp_path, "faults")
    make(settings)
    assert not proxy.faults
    assert files_at(settings) == visible(local)
    assert not settings.dir.with_name("fetched.building").exists()
    for split in ("train", "validation"):
        found = open_datasets(settings, model_vocab_size=VOCABULARY, split=split)
        wanted = open_datasets(local, model_vocab_size=VOCABULARY, split=split)
        assert [dataset.dataset_id for dataset in found] == [dataset.dataset_id for dataset in wanted]
    assert verify(settings.remote).ok
    assert make(settings) == ["a: already there", "b: already there"]


def test_a_build_into_a_store_goes_on_after_its_finished_shards(
    proxy: Proxy, local: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = at(local, tmp_path, "stopped")
    real, calls = build_source.ShardPair.write, iter(range(100))

    def stop(pair: build_source.ShardPair, folder: Path) -> None:
        if next(calls) >= 1:
            raise KeyboardInterrupt
        real(pair, folder)

    with monkeypatch.context() as patch:
        patch.setattr(build_source.ShardPair, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            make(settings)
    assert "a/train/manifest.json" not in files_at(settings), "a manifest commits what is complete"
    assert "a: continuing after 1 finished shard(s)" in make(settings)
    assert files_at(settings) == visible(local)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"remote": "https://example.org/data"}, "web server"),
        ({"packing": "sentence_pairs"}, "reads the tokens of shards"),
    ],
)
def test_what_cannot_be_built_at_a_url_is_refused(
    local: DataSettings, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    settings = at(local, tmp_path, "refused").model_copy(update=changes)
    with pytest.raises(BigtrainError) as raised:
        make(settings)
    assert_refused(raised, message, fix="build without data.remote")

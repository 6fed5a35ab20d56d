"""Promises about shards at a URL, tested with a real S3 protocol server that has faults."""

from __future__ import annotations

import gzip
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bigtrain.data.batch.planning
import bigtrain.data.format.shards
from bigtrain.base.errors import BigtrainError
from bigtrain.config.settings import TrainSettings
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data import (
    Dataset,
    Loader,
    build_datasets,
    load_tokenizer,
    make_plan,
    open_datasets,
    open_packings,
    verify,
)
from bigtrain.data.batch.assemble import assemble
from bigtrain.data.batch.packing import ConcatPacking, fetch
from bigtrain.data.build.corpus import read_documents
from bigtrain.data.format.remote_files import Remote, RetryPolicy
from bigtrain.data.store.block_cache import STALE_SECONDS
from bigtrain.data.store.mirror import Mirror
from tests.data.helpers import contents, data_settings, jsonl_source, random_dataset, sentences, write_jsonl
from tests.data.remote_worker import PLACE, QUICK, VOCABULARY, mirror_of
from tests.data.servers import BUCKET, Proxy, S3Server, s3_environment
from tests.matrix import one_of_each, thinned

BLOCK = 4096
S3_URL = f"s3://{BUCKET}/made"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of some 25 small blocks each."""
    folder = tmp_path_factory.mktemp("original")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bigtrain.data.format.shards, "BLOCK_BYTES", BLOCK)
        random_dataset(folder / PLACE, 150_000)
    return folder


@pytest.fixture(scope="module")
def server(original: Path, require) -> Iterator[S3Server]:
    for module in ("moto", "flask", "flask_cors", "boto3", "s3fs"):
        require(module)
    with pytest.MonkeyPatch.context() as patch:
        server = S3Server()
        for name, value in s3_environment(f"http://127.0.0.1:{server.port}").items():
            patch.setenv(name, value)
        server.start()
        server.upload(original, "made")
        yield server
        server.kill()


@pytest.fixture(scope="module")
def module_proxy(server: S3Server) -> Iterator[Proxy]:
    with pytest.MonkeyPatch.context() as patch:
        proxy = Proxy(server.port)
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy
        proxy.stop()


@pytest.fixture
def proxy(module_proxy: Proxy) -> Proxy:
    module_proxy.faults.clear()
    module_proxy.requests.clear()
    return module_proxy


@pytest.fixture
def mirror(original: Path, tmp_path: Path) -> Path:
    """A folder that has the manifest."""
    return fresh_mirror(original, tmp_path / "mirror")


def fresh_mirror(original: Path, folder: Path) -> Path:
    (folder / PLACE).mkdir(parents=True)
    shutil.copy(original / PLACE / "manifest.json", folder / PLACE)
    return folder


def opened(mirror: Path, *, url: str = S3_URL, budget: int = 100 * BLOCK, policy: RetryPolicy = QUICK) -> Dataset:
    return Dataset(mirror / PLACE, mirror_of(mirror, url, budget, policy))


def cached_bytes(mirror: Path) -> int:
    return sum(path.stat().st_size for path in (mirror / "cache" / "blocks").rglob("*") if path.is_file())


def assert_all_equal(original: Path, dataset: Dataset) -> None:
    for local, remote in zip(Dataset(original / PLACE).shards, dataset.shards, strict=True):
        assert np.array_equal(local.tokens, remote.tokens)
        assert np.array_equal(local.documents.offset, remote.documents.offset)
        assert np.array_equal(local.documents.id, remote.documents.id)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), blocks=st.integers(0, 12))
def test_any_range_reads_as_the_local_file_within_any_budget(
    original: Path, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, blocks: int
) -> None:
    mirror = fresh_mirror(original, tmp_path_factory.mktemp("mirror") / "m")
    local, budget = Dataset(original / PLACE), max(1, blocks * BLOCK)
    remote = opened(mirror, budget=budget)
    for _ in range(data.draw(st.integers(1, 12))):
        index = data.draw(st.integers(0, len(local.shards) - 1))
        start = data.draw(st.integers(0, local.shards[index].record.tokens - 1))
        end = start + data.draw(st.integers(1, 3 * BLOCK))
        wanted = local.shards[index].read(start, end, VOCABULARY)
        assert np.array_equal(remote.shards[index].read(start, end, VOCABULARY), wanted)
        assert cached_bytes(mirror) <= max(budget, BLOCK)


@pytest.mark.parametrize("url", [S3_URL, "http"])
def test_each_block_is_fetched_once_and_then_read_without_the_server(
    original: Path, mirror: Path, proxy: Proxy, url: str
) -> None:
    url = f"{proxy.url}/{BUCKET}/made" if url == "http" else url
    assert_all_equal(original, opened(mirror, url=url))
    blocks = sum(len(file.blocks) for shard in Dataset(original / PLACE).manifest.shards for file in shard.files)
    assert len(proxy.requests) == blocks
    assert_all_equal(original, opened(mirror, url=url))
    assert len(proxy.requests) == blocks


FAULTS = list(itertools.product(["503", "truncated", "slow", "corrupted"], [".tok", ".doc"]))


@pytest.mark.parametrize(("fault", "suffix"), thinned(FAULTS, one_of_each(FAULTS, lambda x: dict(enumerate(x)))))
def test_a_fault_is_outlived(original: Path, mirror: Path, proxy: Proxy, fault: str, suffix: str) -> None:
    proxy.suffix = suffix
    proxy.faults += [fault, None, fault]  # type: ignore[list-item]
    assert_all_equal(original, opened(mirror))
    assert not proxy.faults


def test_a_block_that_stays_bad_ends_in_time_with_its_name_and_hashes(
    original: Path, mirror: Path, proxy: Proxy
) -> None:
    proxy.suffix, url = ".tok", f"{proxy.url}/{BUCKET}/made"
    proxy.faults += [None] + ["corrupted"] * 50
    shard = opened(mirror, url=url).shards[1]
    shard.read(0, 10, VOCABULARY)
    started = time.monotonic()
    with pytest.raises(BigtrainError) as error:
        shard.read(BLOCK // 2, BLOCK, VOCABULARY)
    assert time.monotonic() - started < QUICK.total_seconds
    assert f"block 1 (bytes 4,096 to 8,191) of {url}/made/train/00001.tok is corrupt (6 attempts" in error.value.what
    assert shard.record.files[0].blocks[1] in str(error.value.wanted)
    assert "4,096 bytes with xxh3-128" in str(error.value.found)
    assert shard.record.files[0].blocks[1] not in str(error.value.found)
    proxy.faults.clear()
    assert_all_equal(original, opened(mirror, url=url))  # nothing bad was kept


def test_a_server_that_is_killed_and_comes_back_interrupts_nothing(
    original: Path, mirror: Path, proxy: Proxy, server: S3Server
) -> None:
    def outage() -> None:
        server.kill()
        time.sleep(0.5)
        server.start()
        server.upload(original, "made")

    patient = replace(QUICK, attempts=200, total_seconds=60)
    dataset = opened(mirror, policy=patient)
    dataset.shards[0].read(0, 10, VOCABULARY)
    thread = threading.Thread(target=outage)
    thread.start()
    time.sleep(0.1)
    try:
        # Before the objects are back, the restarted server truly says that there are none: not a fault to outlive.
        while thread.is_alive():
            try:
                assert_all_equal(original, dataset)
                break
            except BigtrainError as error:
                assert "is not there" in error.what
    finally:
        thread.join()
    assert_all_equal(original, dataset)


def test_a_server_that_is_gone_is_a_clear_error_in_time(mirror: Path, proxy: Proxy) -> None:
    gone = Proxy(proxy.upstream)
    gone.stop()
    policy = replace(QUICK, attempts=3)
    with pytest.raises(BigtrainError, match=r"00000\.tok cannot be read \(3 attempts"):
        opened(mirror, url=f"{gone.url}/{BUCKET}/made", policy=policy).shards[0].read(0, 10, VOCABULARY)


def worker(original: Path, mirror: Path, *, budget: int, seed: int, count: int) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("remote_worker.py")
    arguments = map(str, (original, mirror, S3_URL, budget, seed, count))
    return subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True)


def test_processes_share_one_cache_within_a_tiny_budget(original: Path, mirror: Path, proxy: Proxy) -> None:
    workers = [worker(original, mirror, budget=5 * BLOCK, seed=seed, count=150) for seed in range(3)]
    for process in workers:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert 0 < cached_bytes(mirror) <= 5 * BLOCK


def test_processes_fetch_a_block_once_for_all(original: Path, mirror: Path, proxy: Proxy) -> None:
    workers = [worker(original, mirror, budget=1000 * BLOCK, seed=7, count=60) for _ in range(3)]
    for process in workers:
        process.communicate(timeout=120)
        assert process.returncode == 0
    files = [path for path in (mirror / "cache" / "blocks").rglob("*") if path.is_file()]
    assert len(proxy.requests) == len(files)


@pytest.mark.parametrize("kills", thinned([3, 8], keep=[3]))
def test_readers_killed_at_any_instant_leave_a_cache_that_the_next_can_use(
    original: Path, mirror: Path, proxy: Proxy, kills: int
) -> None:
    rng = np.random.default_rng(0)
    budget = 8 * BLOCK
    for seed in range(kills):
        process = worker(original, mirror, budget=budget, seed=seed, count=0)
        assert process.stdout is not None
        process.stdout.readline()  # it is under way
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    left = mirror / "cache" / "new" / "tmpleft"  # as the library names temporary files
    left.write_bytes(b"half a bl")
    os.utime(left, (0, time.time() - STALE_SECONDS - 1))
    dataset = opened(mirror, budget=budget)
    assert not left.exists()
    assert cached_bytes(mirror) <= budget
    assert_all_equal(original, dataset)
    assert cached_bytes(mirror) <= budget


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "ledger gone", "ledger torn"])
def test_what_a_power_cut_tears_is_fetched_again(original: Path, mirror: Path, proxy: Proxy, damage: str) -> None:
    assert_all_equal(original, opened(mirror))
    cache = mirror / "cache"
    blocks = sorted(path for path in (cache / "blocks").rglob("*") if path.is_file())
    for path in blocks[::10] + sorted(mirror.rglob("*.doc")):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes({"cut": data[:-1], "emptied": b"", "flipped": data}.get(damage, path.read_bytes()))
    if damage == "ledger gone":
        (cache / "ledger").unlink()
    if damage == "ledger torn":
        (cache / "ledger").write_bytes(b"12")
    assert_all_equal(original, opened(mirror))
    assert cached_bytes(mirror) <= 100 * BLOCK


def test_the_least_recently_used_blocks_are_removed_first(original: Path, mirror: Path, proxy: Proxy) -> None:
    """They are removed first, and a block that is being read stays readable."""
    shard = opened(mirror, budget=4 * BLOCK).shards[0]
    per_block = BLOCK // 2
    view = shard.read(0, per_block, VOCABULARY)
    wanted = view.copy()
    for block in range(1, 20):
        shard.read(block * per_block, block * per_block + 1, VOCABULARY)
    names = shard.record.files[0].blocks
    kept = {path.name for path in (mirror / "cache" / "blocks").rglob("*") if path.is_file()}
    assert kept == set(names[20 - len(kept) : 20])
    assert np.array_equal(view, wanted)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, server: S3Server):
    folder = tmp_path_factory.mktemp("built")
    local = data_settings(folder / "data", jsonl_source(write_jsonl(folder / "x.jsonl", sentences(80, 3))))
    build_datasets(local, vocab_size=512, report=lambda line: None)
    server.upload(local.dir, "built")
    return local


def test_a_run_reads_the_same_batches_from_a_url_as_from_the_folder(built, proxy: Proxy, tmp_path: Path) -> None:
    remote = built.model_copy(update={"dir": tmp_path / "here", "remote": f"s3://{BUCKET}/built/"})
    batches = []
    for data in (built, remote):
        datasets = open_datasets(data, model_vocab_size=512)
        packings = open_packings(data, datasets)
        plan = make_plan(data, TrainSettings(steps=40, global_batch_size=8, seed=1), packings)
        with Loader(plan, packings, micro_batch_size=4) as loader:
            batches.append((plan.plan_id, [next(loader).digest for _ in range(40)]))
    assert batches[0] == batches[1]
    assert load_tokenizer(remote.dir).get_vocab() == load_tokenizer(built.dir).get_vocab()
    validation = open_datasets(remote, model_vocab_size=512, split="validation")[0]
    assert np.array_equal(
        validation.shards[0].tokens,
        open_datasets(built, model_vocab_size=512, split="validation")[0].shards[0].tokens,
    )


def test_a_step_waits_for_many_blocks_side_by_side(original: Path, mirror: Path, proxy: Proxy) -> None:
    dataset = opened(mirror, policy=replace(QUICK, attempt_seconds=10))
    length = BLOCK // 2  # tokens in a block
    packing = ConcatPacking(dataset, length)
    rows = np.arange(0, packing.rows, 8)
    fetch([packing], np.zeros(1, np.int64), rows[:1])
    proxy.faults += ["slow"] * 200
    fetch([packing], np.zeros_like(rows), rows)
    requests = len(proxy.requests)
    assert requests >= 2 * len(rows)
    assert proxy.most_at_once > 6  # up to 16
    assemble([packing], np.zeros_like(rows), rows)
    assert len(proxy.requests) == requests  # all was here


def fetched_blocks(dataset: Dataset, proxy: Proxy, window: int | None, batches: int) -> tuple[int, int]:
    """Requests for blocks that so many batches of 8 samples take, and the tokens in them."""
    settings = data_settings(Path("any"), SourceSettings(name="any", kind="python_stdlib"), shuffle_blocks=window)
    packings = open_packings(settings, [dataset])
    plan = make_plan(settings, TrainSettings(steps=1, global_batch_size=8), packings)
    assert 8 * batches <= plan.sources[0].sequences
    with Loader(plan, packings, micro_batch_size=8) as loader:
        tokens = sum(next(loader).input_tokens for _ in range(batches))
    return len([path for path in proxy.requests if path.endswith(".tok")]), tokens


def test_an_epoch_in_windows_of_blocks_fetches_each_block_about_once(
    original: Path, mirror: Path, tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (bigtrain.data.batch.planning, bigtrain.data.batch.planned_cuts):
        monkeypatch.setattr(module, "SHUFFLE_BYTES", 8 * BLOCK)
    budget = 2 * 10 * BLOCK * 3 // 2  # as `make_plan` demands
    dataset = opened(mirror, budget=budget)
    blocks = sum(len(shard.record.files[0].blocks) for shard in dataset.shards)
    fetched, tokens = fetched_blocks(dataset, proxy, 2, -(-dataset.tokens // 32) // 8)
    assert tokens > 0.99 * dataset.tokens
    assert blocks <= fetched <= 1.5 * blocks

    proxy.requests.clear()  # and what they are good for: a tenth of an epoch without them
    evenly = opened(fresh_mirror(original, tmp_path / "evenly"), budget=budget)
    assert fetched_blocks(evenly, proxy, None, 58)[0] > 2 * blocks


def test_a_cache_that_is_too_small_for_what_is_mixed_is_refused(built) -> None:
    remote = built.model_copy(update={"remote": f"s3://{BUCKET}/built", "cache_bytes": 1000})
    packings = open_packings(built, open_datasets(built, model_vocab_size=512))
    train = TrainSettings(steps=1, global_batch_size=8)
    with pytest.raises(BigtrainError, match=r"data\.shuffle_blocks, for example"):
        make_plan(remote, train, packings)
    with pytest.raises(BigtrainError, match=r"lower data\.shuffle_blocks"):
        make_plan(remote.model_copy(update={"shuffle_blocks": 4}), train, packings)
    make_plan(remote.model_copy(update={"cache_bytes": 10**6}), train, packings)


def test_a_store_that_fails_in_the_background_is_the_users_error(built, proxy: Proxy, tmp_path: Path) -> None:
    data = built.model_copy(update={"dir": tmp_path / "here", "remote": f"{proxy.url}/{BUCKET}/built"})
    mirror = Mirror(data.dir, str(data.remote), 10**6, QUICK)
    mirror.fetch_records(data, data.sources)
    datasets = [Dataset(data.dir / "lines" / "train", mirror)]
    packings = open_packings(data, datasets)
    plan = make_plan(data, TrainSettings(steps=40, global_batch_size=8), packings)
    proxy.suffix = ".tok"
    proxy.faults += ["503"] * 50
    with (
        Loader(plan, packings, micro_batch_size=4) as loader,
        pytest.raises(BigtrainError, match=r"(?s)00000\.tok cannot be read.*503"),
    ):
        next(loader)


def test_a_folder_is_a_mirror_of_one_url_or_none(built, proxy: Proxy, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/built"
    with pytest.raises(BigtrainError, match="were built there"):
        open_datasets(built.model_copy(update={"remote": url}), model_vocab_size=512)
    remote = built.model_copy(update={"dir": tmp_path / "here", "remote": url})
    open_datasets(remote, model_vocab_size=512)
    with pytest.raises(BigtrainError, match="another URL"):
        open_datasets(remote.model_copy(update={"remote": url + "2"}), model_vocab_size=512)


def test_what_cannot_be_is_refused_with_a_way_out(built, proxy: Proxy, tmp_path: Path) -> None:
    missing = built.model_copy(update={"dir": tmp_path / "here", "remote": f"s3://{BUCKET}/nothing"})
    with pytest.raises(BigtrainError, match=r"s3://corpora/nothing/tokenizer\.json is not there"):
        open_datasets(missing, model_vocab_size=512)
    with pytest.raises(BigtrainError, match="carrier-pigeon"):
        Remote("carrier-pigeon://loft/data")


def test_a_disk_that_cannot_be_written_is_named(tmp_path: Path, proxy: Proxy) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(BigtrainError, match="cache of remote shards"):
        Mirror(tmp_path / "file", S3_URL, 10**6)


def test_verify_reads_every_byte_at_a_url(
    original: Path, server: S3Server, proxy: Proxy, tmp_path: Path, built
) -> None:
    report = verify(f"s3://{BUCKET}/built")
    here = verify(built.dir)
    assert report == here
    assert report.ok
    shutil.copytree(original, tmp_path / "corrupted")
    path = tmp_path / "corrupted" / PLACE / "00001.tok"
    data = bytearray(path.read_bytes())
    data[BLOCK + 7] ^= 1
    path.write_bytes(data)
    (tmp_path / "corrupted" / PLACE / "00002.doc").unlink()
    server.upload(tmp_path / "corrupted", "corrupted")
    assert verify(f"s3://{BUCKET}/corrupted").problems == [
        f"s3://{BUCKET}/corrupted/{PLACE}/00001.tok: block 1 (bytes 4,096 to 8,191) has another checksum",
        f"s3://{BUCKET}/corrupted/{PLACE}/00002.doc: the file is missing",
    ]
    with pytest.raises(BigtrainError, match="there is no dataset in s3://corpora/nothing"):
        verify(f"s3://{BUCKET}/nothing")


@pytest.mark.parametrize("workers", [1, 2])
def test_corpora_at_a_url_give_the_bytes_of_local_ones(
    server: S3Server, proxy: Proxy, tmp_path: Path, workers: int
) -> None:
    folder = tmp_path / "corpus"
    (folder / "more").mkdir(parents=True)
    write_jsonl(folder / "a.jsonl", sentences(40, 1))
    with gzip.open(folder / "more" / "b.jsonl.gz", "wb") as file:
        file.write((folder / "a.jsonl").read_bytes())
    (folder / "more" / ".hidden.jsonl").write_text("{}")
    for index, text in enumerate(sentences(20, 2)):
        (folder / f"{index}.txt").write_text(text)
    pq.write_table(pa.table({"text": sentences(40, 3)}), folder / "c.parquet")
    server.upload(folder, "corpus")

    def built_from(root: str, name: str) -> dict[str, bytes]:
        sources = [
            SourceSettings(name="lines", kind="jsonl", path=root),
            SourceSettings(name="prose", kind="text", path=f"{root}/*.txt"),
            SourceSettings(name="rows", kind="parquet", path=f"{root}/c.parquet"),
        ]
        data = data_settings(tmp_path / name, *sources, workers=workers)
        build_datasets(data, vocab_size=512, report=lambda line: None)
        build_datasets(data, vocab_size=512, report=lambda line: None)  # and what is there is recognised
        return {path: content for path, content in contents(data.dir).items() if Path(path).name != "build.json"}

    local = built_from(str(folder), "local")
    assert len([path for path in local if path.endswith(".tok")]) == 6
    assert built_from(f"s3://{BUCKET}/corpus", "remote") == local


def test_a_corpus_that_cannot_be_read_from_its_url_is_a_clear_error(server: S3Server, proxy: Proxy) -> None:
    def read(path: str) -> None:
        list(read_documents(SourceSettings(name="s", kind="jsonl", path=path)))

    with pytest.raises(BigtrainError, match="'s' finds no files"):
        read(f"s3://{BUCKET}/no/such/corpus")
    with pytest.raises(BigtrainError, match="carrier-pigeon"):
        read("carrier-pigeon://loft/corpus")
    with pytest.raises(BigtrainError, match="cannot be read"):
        read("http://127.0.0.1:9/corpus/*.jsonl")

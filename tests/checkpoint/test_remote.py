"""Checkpoints in an object store: against a server that speaks S3, with and without faults on the way."""

from __future__ import annotations

import http.client
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bigtrain.base import ALONE
from bigtrain.base.errors import BigtrainError
from bigtrain.checkpoint import (
    Checkpoint,
    Fragment,
    Saver,
    StorageTiers,
    Tensors,
    load,
    load_weights,
    newest_verified,
    prune,
    verify,
)
from bigtrain.checkpoint import object_store as stores
from bigtrain.checkpoint.object_store import ObjectStore
from bigtrain.config.settings import CheckpointSettings
from tests import forkserver
from tests.checkpoint.helpers import SHAPES, cut, described, even, same_bits, save_fragments, save_step, tensors
from tests.data.servers import BUCKET, Exchange, Proxy, S3Server, s3_environment
from tests.matrix import thinned
from tests.ranks import on_ranks


class WritingExchange(Exchange):
    """Forwards what has a body too; a fault of the proxy is a 503 for the request that meets it."""

    def handle_expect_100(self) -> bool:
        go_on = super().handle_expect_100()
        self.wfile.flush()  # the client waits for it
        return go_on

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.server.next_fault(self.path) is not None:
            self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=10)
        try:
            connection.request(self.command, self.path, body=body, headers=dict(self.headers))
            answer = connection.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read())
        except OSError:
            self._answer(502, {}, b"")
        finally:
            connection.close()

    do_POST = do_DELETE = do_PUT


@pytest.fixture(scope="module")
def server(require_module: None) -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in s3_environment("").items():
            patched.setenv(name, value)
        patched.delenv("AWS_ENDPOINT_URL")
        server = S3Server()
        server.start()
        yield server
        server.kill()


@pytest.fixture(scope="module")
def require_module(require: Any) -> None:
    for module in ("s3fs", "moto", "boto3"):
        require(module)


@pytest.fixture
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    import s3fs

    proxy = Proxy(server.port)
    proxy.RequestHandlerClass = WritingExchange
    proxy.suffix = ""
    for name, value in s3_environment(proxy.url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stores, "FIRST_PAUSE", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.stop()


@pytest.fixture
def url(proxy: Proxy, request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{re.sub('[^a-z]', '-', request.node.name)}"


@pytest.fixture
def tiers(url: str, tmp_path: Path) -> StorageTiers:
    return StorageTiers.of(tmp_path, CheckpointSettings(dir=url))


def objects(server: S3Server, url: str) -> list[str]:
    prefix = url.removeprefix(f"s3://{BUCKET}/") + "/"
    listed = server._client().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return [entry["Key"].removeprefix(prefix) for entry in listed]


def corrupt(server: S3Server, url: str, name: str) -> None:
    client, key = server._client(), f"{url.removeprefix(f's3://{BUCKET}/')}/{name}"
    data = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    client.put_object(Bucket=BUCKET, Key=key, Body=data[:-1] + bytes([data[-1] ^ 1]))


def test_a_checkpoint_at_a_url_is_listed_verified_loaded_and_pruned(
    tiers: StorageTiers, url: str, server: S3Server
) -> None:
    assert newest_verified(tiers).newest is None
    for step in (1, 2, 3):
        assert isinstance(save_step(tiers, step, seed=step)[0], Checkpoint)
    found = newest_verified(tiers)
    assert found.newest is not None and found.newest.location == f"{url}/step-00000003" and not found.rejected

    def read(ranks: Any) -> list[Any]:
        own = cut({key: torch.zeros_like(value) for key, value in tensors().items()}, even(3), ranks.rank)
        load(found.newest, own, ranks=ranks)
        return own

    for rank, own in enumerate(on_ranks(3, read)):
        wanted = cut(tensors(3), even(3), rank)
        assert all(same_bits(a.data, b.data) for a, b in zip(own, wanted, strict=True))
    assert same_bits(
        load_weights(Checkpoint.at(f"{url}/step-00000002"))["norm.weight"], tensors(2)["norm.weight", "master"]
    )
    assert [checkpoint.step for checkpoint in prune(tiers.durable, keep=2)] == [1]
    assert sorted({name.partition("/")[0] for name in objects(server, url)}) == ["step-00000002", "step-00000003"]


def test_a_tensor_is_read_from_the_files_that_hold_it_and_no_others(tiers: StorageTiers, proxy: Proxy) -> None:
    save_step(tiers, 1, world_size=4)
    stored = Tensors(Checkpoint(1, tiers.durable))
    assert len({path for path in proxy.requests if ".safetensors" in path}) == 4  # the headers
    proxy.requests.clear()
    stored.read("norm.weight")  # one element
    assert len({path for path in proxy.requests if ".safetensors" in path}) == 1


def test_trouble_on_the_way_is_tried_again_and_the_checkpoint_is_whole(tiers: StorageTiers, proxy: Proxy) -> None:
    proxy.faults = ["503", None, "503", "503", None, "503"] * 3
    assert isinstance(save_step(tiers, 1)[0], Checkpoint)
    proxy.faults = ["503", None, "truncated"] * 2
    assert newest_verified(tiers).rejected == [] and not verify(Checkpoint(1, tiers.durable))


def test_a_store_that_does_not_answer_is_one_clear_error_on_every_rank(
    tiers: StorageTiers, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_step(tiers, 1)
    monkeypatch.setattr(stores, "ATTEMPTS", 2)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    proxy.faults = ["503"] * 10_000
    errors = save_step(tiers, 2)
    assert all(isinstance(error, BigtrainError) and "attempts in" in str(error) for error in errors), errors
    proxy.faults = []
    found = newest_verified(tiers)
    assert found.newest is not None and found.newest.step == 1


@pytest.mark.parametrize("name", ["state-00001-of-00002", "manifest.json"])
def test_a_flipped_bit_in_a_checkpoint_at_a_url_is_found_and_skipped(
    tiers: StorageTiers, url: str, server: S3Server, name: str
) -> None:
    for step in (1, 2):
        save_step(tiers, step)
    (victim,) = (each for each in objects(server, url) if each.startswith(f"step-00000002/{name}"))
    corrupt(server, url, victim)
    found = newest_verified(tiers)
    assert found.newest is not None and found.newest.step == 1
    assert name in found.rejected[0].problems[0]


HALF = """
import sys
from pathlib import Path
from tests.checkpoint.helpers import cut, even, save_fragments, tensors
from bigtrain.base import ALONE
from bigtrain.checkpoint import StorageTiers
from bigtrain.config.settings import CheckpointSettings
tiers = StorageTiers.of(Path("unused"), CheckpointSettings(dir=sys.argv[1]))
save_fragments(tiers, int(sys.argv[2]), cut(tensors(9), even(1), 0), ALONE)
"""


@pytest.mark.parametrize("point", thinned(["save.written", "save.staged", "save.renamed"], keep=["save.staged"]))
def test_a_half_uploaded_one_is_not_there_and_is_cleared_by_the_next_save(
    tiers: StorageTiers, url: str, server: S3Server, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    save_step(tiers, 1)
    monkeypatch.setenv("BIGTRAIN_FAULT", f"kill,rank=0,at={point}")
    assert forkserver.python("-c", HALF, url, 2).returncode == 128 + signal.SIGKILL
    committed = point == "save.renamed"
    assert any(name.startswith("step-00000002/state") for name in objects(server, url))
    found = newest_verified(tiers)
    assert found.newest is not None and (found.newest.step, found.rejected) == (2 if committed else 1, [])
    save_step(tiers, 3)
    assert any(name.startswith("step-00000002/") for name in objects(server, url)) is committed


def test_saving_a_step_again_replaces_it_by_one_request(
    tiers: StorageTiers, url: str, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving a step again replaces it by one request, and the old checkpoint stays until then."""
    save_step(tiers, 1, seed=1)
    monkeypatch.setenv("BIGTRAIN_FAULT", "kill,rank=0,at=save.staged")
    assert forkserver.python("-c", HALF, url, 1).returncode == 128 + signal.SIGKILL
    assert len(objects(server, url)) == 4
    checkpoint = Checkpoint(1, tiers.durable)
    assert verify(checkpoint) == []  # the old one is whole
    assert same_bits(load_weights(checkpoint)["norm.weight"], tensors(1)["norm.weight", "master"])
    save_fragments(tiers, 1, cut(tensors(2), even(1), 0), ALONE)
    assert verify(checkpoint) == [] and len(objects(server, url)) == 2
    assert same_bits(load_weights(checkpoint)["norm.weight"], tensors(2)["norm.weight", "master"])


def test_files_of_several_parts_arrive_whole(tiers: StorageTiers) -> None:
    shape = (9_000_000,)  # 36 MB
    own = [Fragment("w", "master", shape, 0, torch.arange(shape[0], dtype=torch.float32))]
    saver = Saver(tiers, ALONE)
    saver.save(**described(1, own, ALONE))
    saver.wait()
    (commit,) = saver.finished()
    assert verify(commit.checkpoint) == []
    assert torch.equal(load_weights(commit.checkpoint)["w"], own[0].data)


def test_a_protocol_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BigtrainError, match="nowhere://bucket"):
        StorageTiers.of(tmp_path, CheckpointSettings(dir="nowhere://bucket/x"))


def test_the_manifest_names_the_files_of_its_attempt(tiers: StorageTiers, url: str, server: S3Server) -> None:
    save_step(tiers, 1)
    (key,) = (name for name in objects(server, url) if name.endswith("manifest.json"))
    text = server._client().get_object(Bucket=BUCKET, Key=f"{url.removeprefix(f's3://{BUCKET}/')}/{key}")["Body"].read()
    files = json.loads(text)["files"]
    assert sorted(f"step-00000001/{name}" for name in files) == sorted(set(objects(server, url)) - {key})
    assert set(SHAPES) == set(json.loads(text)["tensors"]) and isinstance(tiers.durable, ObjectStore)


def test_objects_are_removed_many_with_one_request(tiers: StorageTiers, proxy: Proxy) -> None:
    """Removing a checkpoint takes a request for a thousand files, not one for each."""
    for step in (1, 2):
        save_step(tiers, step, world_size=8)
    proxy.requests.clear()
    assert [checkpoint.step for checkpoint in prune(tiers.durable, keep=1)] == [1]
    assert len([path for path in proxy.requests if "delete" in path]) == 1
    assert not any("state-" in path and "step-00000001" in path for path in proxy.requests)
    assert tiers.durable.steps() == [2]


def test_objects_that_a_store_did_not_remove_are_an_error(tiers: StorageTiers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may answer well and still have kept some of the objects."""
    import s3fs

    async def kept(self: Any, paths: list[str], **options: Any) -> list[str]:
        return []

    for step in (1, 2):
        save_step(tiers, step)
    monkeypatch.setattr(stores, "ATTEMPTS", 2)
    monkeypatch.setattr(s3fs.S3FileSystem, "_bulk_delete", kept)
    with pytest.raises(BigtrainError, match="2 of 2 objects are still there"):
        prune(tiers.durable, keep=1)
    assert tiers.durable.steps() == [2]


def test_a_prefix_that_looks_like_a_pattern_removes_nothing_else(url: str, server: S3Server, tmp_path: Path) -> None:
    """The names of objects are never taken for patterns, which would fit the objects of another run."""
    root = url.rpartition("/")[0]
    other, own = (StorageTiers.of(tmp_path, CheckpointSettings(dir=f"{root}/{name}")) for name in ("run1", "run[1]"))
    for tiers in (other, own):
        for step in (1, 2):
            save_step(tiers, step)
    prune(own.durable, keep=1)
    assert own.durable.steps() == [2] and len(objects(server, f"{root}/run1")) == 6

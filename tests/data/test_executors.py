"""A build is the same, to the byte, wherever its pieces are worked on, and whatever dies meanwhile."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bigtrain.base.errors import BigtrainError
from bigtrain.config.data_settings import DataSettings
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data import Dataset, read_funnels
from bigtrain.data.build.clean import Rejection
from bigtrain.data.build.execute import FailurePolicy, Inline, open_executor
from bigtrain.data.build.filters import Filters
from bigtrain.data.format.documents import Document
from bigtrain.data.format.layout import SPLITS
from bigtrain.data.format.work_folder import WorkFolder
from tests.data.helpers import contents, data_settings, jsonl_source, make, sentences, write_jsonl
from tests.matrix import thinned
from tests.refusals import assert_refused

pytestmark = pytest.mark.usefixtures("small_pieces")


class Cluster:
    """Machines of a Ray cluster on this one: a head without cores, and raylets, each with one core and its own id."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": STORE,
                "_system_config": {"health_check_period_ms": 300, "health_check_failure_threshold": 3},
            },
        )
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def have(self, count: int) -> None:
        """Have so many machines beside the head."""
        while len(self.nodes) > count:
            self._cluster.remove_node(self.nodes.pop(), allow_graceful=True)
        while len(self.nodes) < count:
            self.nodes.append(self._cluster.add_node(num_cpus=1, object_store_memory=STORE))

    def kill_one(self, node: Any) -> None:
        """End a machine without a farewell."""
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_head(self) -> None:
        self._cluster.head_node.kill_gcs_server()

    def stop(self) -> None:
        self._cluster.shutdown()


STORE = 80 << 20
"""Bytes of a machine's object store, at least."""


@pytest.fixture(scope="module")
def cluster(require: Callable[[str], None]) -> Iterator[Cluster]:
    require("ray")
    made = Cluster()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[SourceSettings]:
    folder = tmp_path_factory.mktemp("corpus")
    lines = jsonl_source(write_jsonl(folder / "lines.jsonl", sentences(300, 2)))
    other = jsonl_source(write_jsonl(folder / "other.jsonl", sentences(150, 2) + sentences(100, 3)), "other")
    return [lines, other]


def settings_of(folder: Path, corpus: list[SourceSettings], **changes: object) -> DataSettings:
    wanted = {"shard_tokens": 20_000, "workers": 2, "packing": "best_fit", "dedup": "near", **changes}
    return data_settings(folder, *corpus, **wanted)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory, corpus: list[SourceSettings]) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("wanted") / "data"
    make(settings_of(folder, corpus))
    return contents(folder)


@pytest.mark.parametrize("machines", thinned([1, 2, 4], keep=[2]))
def test_a_cluster_writes_the_bytes_of_one_process(
    cluster: Cluster, corpus: list[SourceSettings], wanted: dict[str, bytes], tmp_path: Path, machines: int
) -> None:
    """Any number of machines, each with its own node id and memory, write what this process writes."""
    cluster.have(machines)
    lines = make(settings_of(tmp_path / "data", corpus), on=cluster.address)
    assert f"Ray: {machines} machine{'s' * (machines > 1)}, {machines} cores" in lines
    assert contents(tmp_path / "data") == wanted


class Deadly(Filters):
    """Filters with a fault: a text of this kind kills the process, or hangs it."""

    def __call__(self, document: Document) -> Document | Rejection:
        outcome = super().__call__(document)
        if isinstance(outcome, Document) and "deadly" in document.text:
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(outcome, Document) and "endless" in document.text:
            re.match("(a|a)+$", "a" * 100 + "b")  # it keeps the interpreter's lock
        return outcome


@pytest.fixture
def tokenizer(tmp_path: Path, corpus: list[SourceSettings]) -> dict[str, str]:
    """One that is not trained, so that the corpus is read once."""
    make(data_settings(tmp_path / "tokenizer", *corpus))
    return {"path": str(tmp_path / "tokenizer")}


def with_poison(folder: Path, poison: dict[int, str]) -> SourceSettings:
    texts = sentences(160, 4)
    for position, text in poison.items():
        texts[position] = text
    return jsonl_source(write_jsonl(folder / "x.jsonl", texts))


def test_a_document_that_kills_its_worker_stops_the_build(
    tmp_path: Path, tokenizer: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the document, and what can be done."""
    monkeypatch.setattr("bigtrain.data.build.build.Filters", Deadly)
    settings = data_settings(tmp_path / "data", with_poison(tmp_path, {70: "a deadly text"}), tokenizer=tokenizer)
    with pytest.raises(BigtrainError) as raised:
        make(settings, on="processes")
    assert_refused(raised, "died, at document 70 of 'x.jsonl' (13 characters)", fix="data.poison_documents: skip")


@pytest.mark.parametrize("dedup", thinned(["none", "exact"], keep=["none"]))
def test_poison_is_left_out_and_counted_where_the_settings_say(
    tmp_path: Path, tokenizer: dict[str, str], monkeypatch: pytest.MonkeyPatch, dedup: str
) -> None:
    """All other documents are built as if the one that kills and the one that hangs its process were not there."""
    source = with_poison(tmp_path, {70: "a deadly text", 150: "an endless text"})
    plain = data_settings(tmp_path / "plain", source, tokenizer=tokenizer, dedup=dedup, workers=2)
    make(plain)
    monkeypatch.setattr("bigtrain.data.build.build.Filters", Deadly)
    changes = {"dir": tmp_path / "data", "poison_documents": "skip", "document_seconds": 3.0}
    settings = plain.model_copy(update=changes)
    make(settings, on="processes")
    (removed,) = (each for each in read_funnels(settings.dir)["lines"].removed if each.rule == "poison")
    assert [example["position"] for example in removed.examples] == [70, 150]
    found, others = (
        [id for split in SPLITS for id in ids_of(folder / "lines" / split)] for folder in (settings.dir, plain.dir)
    )
    assert len(found) == len(others) - 2 and set(found) < set(others)


def ids_of(directory: Path) -> list[bytes]:
    return [id.tobytes() for shard in Dataset(directory).shards for id in shard.documents.id]


def test_workers_that_are_killed_at_random_change_no_byte(
    corpus: list[SourceSettings], wanted: dict[str, bytes], tmp_path: Path
) -> None:
    """A process that dies is replaced, and its task is done again."""
    moments, killed, ended = random.Random(0), [0], threading.Event()

    def kill_some() -> None:
        while not ended.wait(moments.uniform(0.3, 1.0)) and killed[0] < 4:
            workers = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
            if workers:
                moments.choice(workers).kill()
                killed[0] += 1

    killer = threading.Thread(target=kill_some)
    killer.start()
    try:
        make(settings_of(tmp_path / "data", corpus), on="processes")
    finally:
        ended.set()
        killer.join()
    assert killed[0] >= 2
    assert contents(tmp_path / "data") == wanted


class Flaky:
    """Fails by its surroundings for a while, then does its work."""

    def __init__(self, folder: Path, failures: int) -> None:
        self.folder, self.failures = folder, failures

    def __call__(self, item: int) -> int:
        attempt = len(list(self.folder.iterdir()))
        (self.folder / str(attempt)).touch()
        if attempt < self.failures:
            raise OSError(errno.EIO, "Input/output error")
        return -item


def test_a_disk_that_fails_is_tried_again_and_then_is_the_error(tmp_path: Path) -> None:
    with Inline(FailurePolicy(losses=3)) as executor:
        assert list(executor.map_in_order(Flaky(tmp_path, 2), [5, 6])) == [-5, -6]
        assert executor.failures == 2
    for file in tmp_path.iterdir():
        file.unlink()
    with Inline(FailurePolicy(losses=3)) as executor, pytest.raises(OSError, match="Input/output error"):
        list(executor.map_in_order(Flaky(tmp_path, 3), [5]))


def test_an_error_of_the_input_is_not_tried_again(tmp_path: Path) -> None:
    def refused(item: int) -> int:
        (tmp_path / str(len(list(tmp_path.iterdir())))).touch()
        raise BigtrainError("a line is not JSON")

    with Inline() as executor, pytest.raises(BigtrainError, match="a line is not JSON"):
        list(executor.map_in_order(refused, [1, 2]))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("on", ["spark", "ray//host", "host", "ray://host"])
def test_what_a_build_cannot_run_on_is_refused(tmp_path: Path, on: str) -> None:
    with pytest.raises(BigtrainError) as raised:
        open_executor(on, 1, WorkFolder.at(tmp_path), FailurePolicy(), print)
    assert_refused(raised, "--on names nothing", fix="--on ray")


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigtrain.data.build.execute.ray_cluster.find_spec", lambda name: None)
    with pytest.raises(BigtrainError) as raised:
        open_executor("ray", 1, WorkFolder.at(tmp_path), FailurePolicy(), print)
    assert_refused(raised, "Ray is not installed", fix="bigtrain[ray]")

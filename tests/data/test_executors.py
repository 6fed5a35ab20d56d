"""A build is the same, to the byte, wherever its pieces are worked on, and whatever dies meanwhile."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
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
from tests.data.build_driver import PIECE_BYTES
from tests.data.conftest import READERS
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
                "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 6},
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

    def kill_raylet(self, but: str) -> None:
        """End a machine at once, not the one with this id; another one comes in its place."""
        victim = next(node for node in self.nodes if node.node_id != but)
        self.nodes.remove(victim)
        self._cluster.remove_node(victim, allow_graceful=False)
        self.have(len(self.nodes) + 1)

    def kill_worker(self) -> bool:
        """End a process that may have a task. Returns whether there was one."""
        raylets = (process for process in psutil.Process().children() if process.name() == "raylet")
        processes = [process for raylet in raylets for process in raylet.children()]
        workers = [each for each in processes if "".join(each.cmdline()[:1]).startswith(("ray::_run", "ray::IDLE"))]
        for worker in workers[:1]:
            worker.kill()
        return bool(workers)

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
    changes = {"dir": tmp_path / "data", "poison_documents": "skip", "document_seconds": 2.0}
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
        while not ended.wait(moments.uniform(0.3, 1.0)) and killed[0] < 3:
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
    assert killed[0] >= 1
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


class Disturbed:
    """A build on a cluster, in a process of its own, during which things die."""

    def __init__(self, folder: Path, cluster: Cluster, settings: DataSettings) -> None:
        self.folder, self.cluster = folder, cluster
        self.settings = settings.model_copy(update={"dir": folder / "data"})
        (folder / "settings.json").write_text(self.settings.model_dump_json())
        self.driver = self._started()

    def _started(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.data.build_driver", str(self.folder / "settings.json")]
        return subprocess.Popen(
            [*command, self.cluster.address], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def advance(self, files: int) -> bool:
        """Wait until the build has written so many more files. Returns whether it still runs."""
        wanted = self._files() + files
        while self.driver.poll() is None and self._files() < wanted:
            time.sleep(0.01)
        return self.driver.poll() is None

    def _files(self) -> int:
        """Results of pieces, finished shards, and what else the build writes."""
        return sum(len(files) for _, _, files in os.walk(self.settings.dir))

    def kill(self, what: str) -> None:
        """Kill something; a driver that dies of it is started again, if its cluster lives."""
        if what == "worker":
            assert self.cluster.kill_worker()
        elif what == "raylet":
            self.cluster.kill_raylet(but=(self.folder / "node").read_text())
        elif what == "driver":
            self.driver.kill()
            self.ended()
            self.driver = self._started()
        else:
            self.cluster.kill_head()

    def ended(self) -> tuple[int, str]:
        """Wait for the end of the driver. Returns its status and its errors."""
        _, errors = self.driver.communicate(timeout=300)
        return self.driver.returncode, errors


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    """Settings of a corpus whose build takes long enough to be disturbed."""
    folder = tmp_path_factory.mktemp("larger")
    lines = jsonl_source(write_jsonl(folder / "lines.jsonl", sentences(2000, 5)))
    return data_settings(folder / "data", lines, shard_tokens=50_000)


def undisturbed(settings: DataSettings) -> dict[str, bytes]:
    """The files of a build by one process, with the pieces that the driver has."""
    with pytest.MonkeyPatch.context() as patch:
        for module in READERS:
            patch.setattr(module, "PIECE_BYTES", PIECE_BYTES)
        make(settings)
    return contents(settings.dir)


def test_what_dies_on_a_cluster_changes_no_byte(cluster: Cluster, larger: DataSettings, tmp_path: Path) -> None:
    """A process, a machine and the driver die; then the head, of which a message tells; the next start goes on."""
    cluster.have(2)
    build = Disturbed(tmp_path, cluster, larger)
    for victim in ("worker", "raylet", "driver", "head"):
        assert build.advance(5), build.ended()
        build.kill(victim)
    status, errors = build.ended()
    assert_refused((status, errors), "the head of the Ray cluster is gone", fix="it goes on with what is finished")
    assert list((tmp_path / "data" / ".build").rglob("*.npz"))
    assert undisturbed(build.settings) == undisturbed(larger)

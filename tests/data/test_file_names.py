"""No file name in foreign data leads out of their folder, neither from a URL nor on this machine."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bigtrain.base.errors import BigtrainError
from bigtrain.config.data_settings import DataSettings
from bigtrain.data import build_datasets, open_datasets, open_packings, verify
from bigtrain.data.build.execute import Inline
from bigtrain.data.build.pack.build_pack import build_packs
from bigtrain.data.build.progress import finished_pairs
from bigtrain.data.format.layout import SPLITS
from bigtrain.data.format.manifest import DatasetManifest
from bigtrain.data.format.pack_file import PackManifest
from tests.data.helpers import contents, data_settings, jsonl_source, sentences, write_jsonl

TREASURE = b"what must stay as it is"
TRAIN = Path("lines/train")
VOCABULARY = 512
Serve = Callable[..., str]


class StrangersServer(ThreadingHTTPServer):
    """Answers with the files of a folder and with `bait` for any other path, and lists `links` instead of what there is
    under their names."""

    daemon_threads = True

    def __init__(self, folder: Path, bait: bytes, links: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {f"/data/{name}": content for name, content in contents(folder).items()}
        self.bait, self.links = bait, links
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    server: StrangersServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        below = self.path.rstrip("/") + "/"
        inside = [name.removeprefix(below) for name in self.server.files if name.startswith(below)]
        body = self.server.files.get(self.path, self.server.bait)
        if inside:
            links = self.server.links if self.path.rstrip("/") == "/data" else []
            names = {name.partition("/")[0] + "/" * ("/" in name) for name in inside}
            names -= {link.rpartition("/")[2] for link in links}
            body = "".join(f'<a href="{link}">x</a>\n' for link in ["../", *sorted(names), *links]).encode()
        start, _, end = (self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")
        part = body[int(start) : int(end or len(body)) + 1]
        self.send_response(206 if self.headers["Range"] else 200)
        self.send_header("Content-Type", "text/html" if inside else "application/octet-stream")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return part

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers = []

    def start(folder: Path, *, bait: bytes = b"", links: list[str] | None = None) -> str:
        servers.append(StrangersServer(folder, bait, links or []))
        return f"http://127.0.0.1:{servers[-1].server_port}/data"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    folder = tmp_path_factory.mktemp("original")
    lines = write_jsonl(folder / "x.jsonl", sentences(30, 1))
    settings = data_settings(folder / "data", jsonl_source(lines), packing="best_fit")
    build_datasets(settings, vocab_size=VOCABULARY, report=lambda line: None)
    return settings


@pytest.fixture
def built(original: DataSettings, tmp_path: Path) -> DataSettings:
    """Packed data in a folder, beside a treasure."""
    (tmp_path / "treasure").write_bytes(TREASURE)
    return original.model_copy(update={"dir": shutil.copytree(original.dir, tmp_path / "data")})


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made, so deep that what leads out of one is still seen here."""
    folder = tmp_path / "a/b/c"
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def forged_file(settings: DataSettings, name: str, suffix: str) -> None:
    """Give a file of the training split another name in its manifest, whose hash is then right for it again."""
    directory = settings.dir / TRAIN
    dataset = DatasetManifest.read(directory)
    pack = PackManifest.read(directory, "best_fit", settings.sequence_length)
    if suffix == ".pack":
        shards = [replace(record, file=replace(record.file, name=name)) for record in pack.shards]
        replace(pack, shards=shards).write(directory)
        return
    which = [".tok", ".doc"].index(suffix)
    shard = dataset.shards[0]
    files = [replace(file, name=name) if index == which else file for index, file in enumerate(shard.files)]
    forged = replace(dataset, shards=[replace(shard, files=files)])
    forged.write(directory)
    replace(pack, parents={"dataset_id": forged.dataset_id}).write(directory)


def leading_to(treasure: Path, folder: Path) -> dict[str, str]:
    """Ways to say where the treasure is, from a folder."""
    return {"relative": os.path.relpath(treasure, folder), "absolute": str(treasure)}


@pytest.mark.parametrize("suffix", [".tok", ".doc", ".pack"])
@pytest.mark.parametrize("way", ["relative", "absolute"])
def test_a_run_on_foreign_data_writes_nothing_outside(
    built: DataSettings, serve: Serve, tmp_path: Path, way: str, suffix: str
) -> None:
    """Training, `data where` and all that opens data at `data.remote` do what this does."""
    here = tmp_path / "here"
    honest = (built.dir / TRAIN / f"00000{'.best_fit-32' * (suffix == '.pack')}{suffix}").read_bytes()
    name = leading_to(tmp_path / "treasure", here / TRAIN)[way]
    forged_file(built, name, suffix)
    remote = built.model_copy(update={"dir": here, "remote": serve(built.dir, bait=honest)})
    before = contents(tmp_path)
    with pytest.raises(BigtrainError) as raised:
        for packing in open_packings(remote, open_datasets(remote, model_vocab_size=VOCABULARY)):
            _ = packing.dataset.shards[0].documents, packing.dataset.shards[0].tokens
    manifest = here / TRAIN / ("best_fit-32.json" if suffix == ".pack" else "manifest.json")
    assert raised.value.what.startswith(f"{manifest} ") and raised.value.found == repr(name) and raised.value.fix
    assert {name: data for name, data in contents(tmp_path).items() if not name.startswith("here/")} == before


@pytest.mark.parametrize("suffix", [".tok", ".doc", ".pack"])
@pytest.mark.parametrize("way", ["relative", "absolute"])
def test_verify_of_a_url_writes_and_deletes_nothing_outside(
    built: DataSettings, serve: Serve, tmp_path: Path, temporary: Path, way: str, suffix: str
) -> None:
    honest = (built.dir / TRAIN / f"00000{'.best_fit-32' * (suffix == '.pack')}{suffix}").read_bytes()
    name = leading_to(tmp_path / "treasure", temporary / "bigtrain-verify-xxxxxxxx" / TRAIN)[way]
    forged_file(built, name, suffix)
    before = contents(tmp_path)
    report = verify(serve(built.dir, bait=honest))
    assert any(repr(name) in problem for problem in report.problems) and not report.ok
    assert contents(tmp_path) == before


@pytest.mark.parametrize("suffix", [".tok", ".doc", ".pack"])
@pytest.mark.parametrize("name", ["../../../treasure", "..", ".", "", "a/b", "a\\b", "a\0b"])
def test_data_in_a_folder_are_held_to_the_same(built: DataSettings, name: str, suffix: str) -> None:
    forged_file(built, name, suffix)
    report = verify(built.dir)
    assert any(repr(name) in problem for problem in report.problems)
    with pytest.raises(BigtrainError, match="path in place of the name"):
        open_packings(built, open_datasets(built, model_vocab_size=VOCABULARY))


@pytest.mark.parametrize("file", ["manifest.json", "tokenizer.json", "build.json", "best_fit-32.json"])
@pytest.mark.parametrize("link", ["../../../{}", "lines/../../../{}", "/data/../../{}", "..\\..\\x/{}"])
def test_a_listing_that_leads_out_of_its_folder_is_refused(
    built: DataSettings, serve: Serve, tmp_path: Path, temporary: Path, link: str, file: str
) -> None:
    url = serve(built.dir, bait=b"{}", links=[link.format(file)])
    before = contents(tmp_path)
    with pytest.raises(BigtrainError, match=f"the listing of {url} has a path"):
        verify(url)
    assert contents(tmp_path) == before


def test_good_names_on_a_server_go_on_working(built: DataSettings, serve: Serve, tmp_path: Path) -> None:
    url = serve(built.dir)
    report = verify(url)
    assert report.ok and report == verify(built.dir) and report.packs
    remote = built.model_copy(update={"dir": tmp_path / "here", "remote": url})
    for split in SPLITS:
        theirs, ours = (open_datasets(each, model_vocab_size=VOCABULARY, split=split)[0] for each in (remote, built))
        assert theirs.shards[0].tokens.tolist() == ours.shards[0].tokens.tolist()
        assert theirs.shards[0].documents.file_name(0) == ours.shards[0].documents.file_name(0)
    assert open_packings(remote, open_datasets(remote, model_vocab_size=VOCABULARY))[0].rows


def test_a_name_may_be_any_bare_one(built: DataSettings) -> None:
    directory = built.dir / TRAIN
    (directory / "00000.tok").rename(directory / ".. ü~$(a) b")
    forged_file(built, ".. ü~$(a) b", ".tok")
    assert verify(built.dir).ok


def test_the_records_of_an_unfinished_build_name_no_paths(built: DataSettings, tmp_path: Path) -> None:
    directory = built.dir / TRAIN
    pack = PackManifest.read(directory, "best_fit", built.sequence_length)
    before = contents(directory)
    record = replace(pack.shards[0], file=replace(pack.shards[0].file, name="../../../treasure"))
    note = {"format": 1, "dataset_id": pack.parents["dataset_id"], "pack": record.to_json()}
    (directory / f"{pack.shards[0].file.name}.note").write_text(json.dumps(note))
    (directory / "best_fit-32.json").unlink()
    with Inline() as executor:
        build_packs(directory, "best_fit", built.sequence_length, executor, lambda line: None)
    assert contents(directory) == before, "the note counts for nothing, and the pack is made again"

    shard = DatasetManifest.read(directory).shards[0]
    forged = replace(shard, files=[replace(shard.files[0], name="../../../treasure"), shard.files[1]])
    progress = {"index": 0, "next_piece": 1, "corpus": "", "funnel": {}, "train": forged.to_json(), "validation": None}
    (directory.parent / "progress-00000.json").write_text(json.dumps(progress))
    with pytest.raises(BigtrainError, match=r"progress-00000\.json has a path"):
        finished_pairs(directory.parent)

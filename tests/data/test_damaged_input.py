"""Input that is cut off, damaged or skipped is never silently less."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import signal
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config.data_settings import DecontaminateSettings
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data.build.corpus import open_corpus, read_documents, rows
from bigtrain.data.build.corpus.compressed import opened
from bigtrain.data.build.evaluation_texts import find_evaluation_files, read_evaluation_texts
from bigtrain.data.build.execute import Processes, note
from bigtrain.data.build.funnel import read_funnels
from bigtrain.data.format.documents import Document
from bigtrain.data.format.layout import ADDED_TO_SOURCES, source_request, what_documents
from bigtrain.data.format.manifest import MANIFEST
from bigtrain.data.format.shards import DocumentColumns
from tests.data.helpers import data_settings, jsonl_source, make, sentences, write_jsonl
from tests.refusals import assert_refused


def source(path: Path | str, kind: str = "jsonl", **changes: object) -> SourceSettings:
    return SourceSettings.model_validate({"name": "s", "kind": kind, "path": str(path), **changes})


def texts(path: Path | str, kind: str = "jsonl", **changes: object) -> list[str]:
    return [document.text for document in read_documents(source(path, kind, **changes))]


def lines(first: int, last: int) -> bytes:
    return "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(first, last)).encode()


def _zstd(data: bytes) -> bytes:
    """A frame of several blocks, with a checksum and without the size of its content, as from a pipe."""
    compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    half = len(data) // 2
    return b"".join(
        (
            compressor.compress(data[:half]),
            compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK),
            compressor.compress(data[half:]),
            compressor.flush(),
        )
    )


SKIPPABLE = b"\x5a\x2a\x4d\x18\x05\0\0\0index"
MEMBERS: dict[str, list[bytes]] = {
    ".gz": [gzip.compress(lines(0, 40)), gzip.compress(lines(40, 50))],
    ".zst": [SKIPPABLE, _zstd(lines(0, 40)), zstandard.compress(lines(40, 50)), SKIPPABLE, _zstd(b"\n" * 300_000)],
    ".bz2": [bz2.compress(lines(0, 40)), bz2.compress(lines(40, 50))],
    ".xz": [lzma.compress(lines(0, 40)), b"\0\0\0\0", lzma.compress(lines(40, 50))],
}
WHOLE = [f"text {i}" for i in range(50)]


@pytest.mark.parametrize("suffix", MEMBERS)
def test_a_compressed_corpus_of_several_members_is_read_whole(suffix: str, tmp_path: Path) -> None:
    """Its name may be in capitals, or without the suffix: then the first bytes say what it is."""
    for name in (f"x.jsonl{suffix}", f"X.NDJSON{suffix.upper()}", "x.jsonl"):
        path = tmp_path / name
        path.write_bytes(b"".join(part for part in MEMBERS[suffix] if name != "x.jsonl" or part != SKIPPABLE))
        assert texts(path) == WHOLE


@pytest.mark.parametrize("suffix", MEMBERS)
@given(st.data())
def test_a_compressed_corpus_cut_at_any_byte_is_refused(suffix: str, data: st.DataObject) -> None:
    """Only a cut between two members cannot be told from the end of a file."""
    content = b"".join(MEMBERS[suffix])
    ends = list(accumulate(map(len, MEMBERS[suffix])))
    end = data.draw(st.one_of(st.integers(0, len(content) - 1), st.sampled_from([e - 1 for e in ends])))
    with pytest.raises(Exception) as raised:
        with opened(io.BufferedReader(io.BytesIO(content[:end])), f"x{suffix}") as stream:  # type: ignore[arg-type]
            stream.read()
        assert end in ends or content[:end].rstrip(b"\0") in {content[:e].rstrip(b"\0") for e in ends}
        raise EOFError("between two members")
    assert isinstance(raised.value, EOFError | OSError | lzma.LZMAError)


@pytest.mark.parametrize("suffix", MEMBERS)
@pytest.mark.parametrize("damage", ["cut", "tail", "garbage", "member", "empty"])
def test_a_damaged_archive_is_refused_by_name(suffix: str, damage: str, tmp_path: Path) -> None:
    """Also where the damage is in a later member, of which some libraries say nothing. The fix loses nothing."""
    content = b"".join(MEMBERS[suffix])
    later = len(content) - len(MEMBERS[suffix][-1])
    damaged = {
        "cut": content[: len(content) // 2],
        "tail": content[:-3],
        "garbage": content + b"garbage",
        "member": content[:later] + b"?" + content[later + 1 :],
        "empty": b"",
    }[damage]
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(damaged)
    with pytest.raises(BigtrainError) as raised:
        texts(path)
    assert_refused(raised, str(path), "cut off", fix="fetch or write the file again")
    evaluation = DecontaminateSettings(paths=(str(path),))
    with pytest.raises(BigtrainError, match=r"cannot be read.*cut off"):
        for file in find_evaluation_files(evaluation):
            list(read_evaluation_texts(file, ["text"]))


def test_a_zstandard_window_of_two_gibibytes_is_read(tmp_path: Path) -> None:
    """As `zstd --long=31` writes it; memory is taken only as far as the text reaches."""
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True, compression_level=3)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "x.jsonl.zst").write_bytes(compressor.compress(lines(0, 50)) + compressor.flush())
    assert texts(tmp_path) == WHOLE


def test_a_line_that_unpacks_to_more_than_the_limit_takes_no_memory(tmp_path: Path) -> None:
    compressor = zstandard.ZstdCompressor().compressobj()
    parts = [compressor.compress(b'{"text": "')] + [compressor.compress(b"a" * 1_000_000) for _ in range(300)]
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(b"".join([*parts, compressor.compress(b'"}\n'), compressor.flush()]))
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(BigtrainError) as raised:
            texts(path, max_document_bytes=2_000_000)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert_refused(raised, f"{path}:1 is too long", fix="max_document_bytes")


def test_a_dictionary_of_long_texts_is_not_expanded_at_once(tmp_path: Path) -> None:
    """A Parquet file of two kilobytes may stand for gigabytes: rows that all refer to one text."""
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["a" * 2_000_000]))
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": repeated}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 10_000
    before = pa.total_allocated_bytes()
    documents = read_documents(source(path, "parquet"))
    for _ in range(20):
        assert len(next(documents).text) == 2_000_000
    assert pa.total_allocated_bytes() - before < 100_000_000
    with pytest.raises(BigtrainError, match="row 0 is too long"):
        next(read_documents(source(path, "parquet", max_document_bytes=1_999_999)))


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "huggingface"])
def test_a_document_above_max_document_bytes_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    if kind == "text":
        path = tmp_path / "x.txt"
        path.write_text("x" * 1000)
    elif kind == "jsonl":
        path = write_jsonl(tmp_path / "x.jsonl", ["x", "x" * 1000])
    elif kind == "parquet":
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"text": ["x", "é" * 500]}), path)
    else:
        datasets = pytest.importorskip("datasets")
        path = tmp_path / "saved"
        datasets.Dataset.from_dict({"text": ["x", "x" * 1000]}).save_to_disk(path)
    with pytest.raises(BigtrainError) as raised:
        texts(path, kind, max_document_bytes=999)
    assert_refused(raised, path.name, "too long", fix="max_document_bytes")
    assert "x" in texts(path, kind, max_document_bytes=1100)[0]


@given(st.integers(0, 10_000))
@settings(deadline=None)
def test_a_parquet_file_cut_at_any_byte_is_refused(cut: int) -> None:
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": WHOLE}), stream)
    content = stream.getvalue()
    path = Path(f"/tmp/bigtrain-cut-{os.getpid()}.parquet")
    path.write_bytes(content[: cut % len(content)])
    try:
        with pytest.raises(BigtrainError, match=r"\.parquet cannot be read: it is damaged or cut off"):
            texts(path, "parquet")
    finally:
        path.unlink()


def test_a_saved_dataset_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Also between two batches, where the library takes the rest for the whole."""
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": sentences(3000, 1)}).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    content = file.read_bytes()
    stream = pa.ipc.open_stream(io.BytesIO(content))
    stream.read_next_batch()
    for cut in (0, 5, 1000, len(content) // 2, len(content) - 8, len(content) - 1):
        file.write_bytes(content[:cut])
        with pytest.raises(BigtrainError) as raised:
            texts(tmp_path / "saved", "huggingface")
        assert_refused(raised, "cannot be read", "cut off")


def test_the_library_reads_no_archive_that_is_cut(tmp_path: Path) -> None:
    """The datasets library decompresses a folder's files, and stops where a zstandard file stops."""
    pytest.importorskip("datasets")
    (tmp_path / "x.jsonl.zst").write_bytes(_zstd(lines(0, 50))[:-20])
    with pytest.raises(BigtrainError) as raised:
        texts(tmp_path, "huggingface")
    assert_refused(raised, "x.jsonl.zst", "cut off")


@given(st.integers(1, 200))
@example(1)
def test_json_lines_cut_inside_a_line_are_called_cut_off(cut: int) -> None:
    """The fix must not make the loss permanent: nobody is told to remove the line."""
    content = b"".join(
        json.dumps({"text": f"text {i}", "n": {"a": [i, None, True]}}).encode() + b"\n" for i in range(9)
    )
    end = len(content) - 1 - cut
    path = Path(f"/tmp/bigtrain-cut-{os.getpid()}.jsonl")
    path.write_bytes(content[:end])
    try:
        whole_lines = content[:end].count(b"\n")
        if content[end : end + 1] == b"\n" or content[:end].endswith(b"\n"):
            assert len(texts(path)) == whole_lines + (content[end : end + 1] == b"\n")
            return
        with pytest.raises(BigtrainError) as raised:
            texts(path)
        assert_refused(raised, f":{whole_lines + 1} is cut off", fix="fetch or write the file again")
        assert "remove" not in str(raised.value)
    finally:
        path.unlink()


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    """A folder, `**` and `*` find the same, as `find -L` does."""
    (tmp_path / "corpus/part1").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "corpus/part1/a.jsonl").write_bytes(lines(0, 30))
    (tmp_path / "elsewhere/b.jsonl").write_bytes(lines(30, 50))
    (tmp_path / "corpus/part2").symlink_to("../elsewhere")
    (tmp_path / "corpus/circle").symlink_to(".")
    (tmp_path / "elsewhere/circle").symlink_to("../corpus")
    for pattern in ("corpus", "corpus/**/*.jsonl", "corpus/*/*.jsonl", "corpus/**", "c*/**/part?/**/*.jsonl"):
        assert sorted(texts(tmp_path / pattern)) == sorted(WHOLE), pattern
    (tmp_path / "link.jsonl").symlink_to("elsewhere/b.jsonl")
    assert texts(tmp_path / "link.jsonl") == WHOLE[30:]


@pytest.mark.parametrize("obstacle", ["pipe", "dangling", "itself"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_name_without_a_file_behind_it_is_refused(obstacle: str, alone: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    (tmp_path / "a.jsonl").write_bytes(lines(0, 50))
    if obstacle == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("x.jsonl" if obstacle == "itself" else "nothing")
    with pytest.raises(BigtrainError) as raised:
        texts(path if alone else tmp_path)
    assert_refused(raised, str(path), *([] if alone else ["regular file"]))
    path.rename(tmp_path / "x.csv")
    assert texts(tmp_path) == WHOLE


def test_suffixes_count_in_any_case_and_others_are_counted(tmp_path: Path) -> None:
    names = ("a.jsonl", "b.json.gz", "c.JSONL", "d.ndjson", "e.Json", "f.JsonL.GZ")
    corpus = tmp_path / "in"
    corpus.mkdir()
    for number, name in enumerate(names):
        content = "".join(json.dumps({"text": text}) + "\n" for text in sentences(5, number)).encode()
        (corpus / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    for name in ("g.csv", "h.csv", "README", "i.tar.gz"):
        (corpus / name).write_text("other")
    (corpus / "j.json").write_text(json.dumps({"text": "pretty"}, indent=1))
    (corpus / "k.json").write_text('{"version": 1}')
    build = data_settings(tmp_path / "data", source(corpus))
    report = make(build)
    skipped = {".csv": 2, ".json": 2, ".tar.gz": 1, "no suffix": 1}
    funnel = read_funnels(build.dir)["s"]
    assert funnel.skipped_files == skipped and funnel.read.documents == 5 * len(names)
    line = "s: 6 files skipped: 2 .csv, 2 .json, 1 .tar.gz, 1 no suffix (kind jsonl does not read them)"
    assert report[-1] == line and make(build)[-1] == line
    with pytest.raises(BigtrainError, match=r"(?s)finds no files.*12 files skipped: .*2 \.csv"):
        texts(corpus, "parquet")


def test_data_built_without_files_that_are_found_now_stay_valid(tmp_path: Path) -> None:
    """A finished source of an earlier version is kept, and the user is told what it lacks."""
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in/a.jsonl", sentences(30, 1))
    build = data_settings(tmp_path / "data", source(tmp_path / "in"))
    make(build)
    write_jsonl(tmp_path / "in/b.ndjson", sentences(30, 2))
    assert any("an earlier version skipped" in line for line in make(build))
    write_jsonl(tmp_path / "in/c.jsonl", sentences(30, 2))
    with pytest.raises(BigtrainError, match="the corpus has changed"):
        make(build)


NAMES = ["with space", "-dash", "new\nline", "a*b", "x[1]", "what?", "ünï", os.fsdecode(b"latin-\xe9"), "~nobody", "**"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_that_the_file_system_allows_works(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name}.jsonl").write_bytes(lines(0, 3))
    (folder / f"{name}.txt").write_text("plain")
    for path in (folder, folder / f"{name}.jsonl", folder / "*.jsonl", f"{folder}/**/*.jsonl"):
        documents = list(read_documents(source(path)))
        assert [document.text for document in documents] == WHOLE[:3]
        assert all(document.file.encode().endswith(b".jsonl") for document in documents)
    assert texts(folder / f"{name}.txt", "text") == ["plain"]
    (folder / f"{name}.jsonl").write_bytes(b"?\n")
    with pytest.raises(BigtrainError) as raised:
        texts(folder)
    str(raised.value).encode()
    assert "\n" not in raised.value.what


def test_a_name_that_is_not_utf8_is_built_and_kept(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"latin-\xe9.jsonl")).write_bytes(
        write_jsonl(tmp_path / "x", sentences(30, 1)).read_bytes()
    )
    build = data_settings(tmp_path / "data", source(tmp_path / "in"))
    make(build)
    path = build.dir / "s/train/00000.doc"
    assert DocumentColumns.parse(memoryview(path.read_bytes()), path).file_name(0) == r"latin-\xe9.jsonl"


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
def test_a_byte_order_mark_is_no_character_of_a_text(mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(mark + b"alpha")
    assert texts(tmp_path / "x.txt", "text") == ["alpha"]
    (tmp_path / "x.jsonl").write_bytes(mark + lines(0, 50))
    assert texts(tmp_path / "x.jsonl") == WHOLE
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(mark + lines(0, 50)))
    assert texts(tmp_path / "x.jsonl.gz") == WHOLE


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_named(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(lines(0, 5).decode().encode(encoding))
    (tmp_path / "x.txt").write_bytes("some text".encode(encoding))
    for name, kind in (("x.jsonl", "jsonl"), ("x.txt", "text")):
        with pytest.raises(BigtrainError) as raised:
            texts(tmp_path / name, kind)
        assert_refused(raised, f"{name} is {encoding[:6].upper()} text", fix="iconv")


def test_what_is_no_json_lines_is_named_with_a_true_remedy(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for content, message, fix in (
        ('[{"text": "a"}, {"text": "b"}]\n', "is a JSON array", "jq -c '.[]'"),
        ('\ufeff[\n {"text": "a"}\n]', "is a JSON array", "jq -c '.[]'"),
        ('{\n "text": "a"\n}\n', "is not JSON", "jq -c"),
        ('{"text": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "nested too deeply", "without the field"),
        ('{"text": "a"}\n{"text": "b", \n{"text": "c"}\n', "x.jsonl:2 is not JSON", "write the file again"),
    ):
        path.write_text(content)
        with pytest.raises(BigtrainError) as raised:
            texts(path)
        assert_refused(raised, str(path), message, fix=fix)
        assert "remove" not in raised.value.fix
    path.write_text('{"text": "a"}\n["b"]\n')
    with pytest.raises(BigtrainError, match=r"(?s)x\.jsonl:2 is not a JSON object.*a JSON array"):
        list(read_evaluation_texts(find_evaluation_files(DecontaminateSettings(paths=(str(path),)))[0], ["text"]))


@pytest.mark.parametrize("dedup", ["none", "exact"])
def test_nulls_are_skipped_and_counted_where_a_source_says_so(dedup: str, tmp_path: Path) -> None:
    """Otherwise they are refused, with the row and the setting."""
    datasets = pytest.importorskip("datasets")
    column = [*sentences(40, 3), None, *sentences(40, 4), None]
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in column))
    datasets.Dataset.from_dict({"text": column}).save_to_disk(tmp_path / "saved")
    for kind, name in (("parquet", "x.parquet"), ("jsonl", "x.jsonl"), ("huggingface", "saved")):
        with pytest.raises(BigtrainError) as raised:
            texts(tmp_path / name, kind)
        assert_refused(raised, "41" if kind == "jsonl" else "row 40", found="null", fix="on_null: skip")
    settings = source(tmp_path / "x.parquet", "parquet", on_null="skip")
    build = data_settings(tmp_path / "data", settings, dedup=dedup)
    make(build)
    funnel = read_funnels(build.dir)["s"]
    assert [(each.rule, each.documents) for each in funnel.removed] == [("on_null", 2)]
    assert funnel.read.documents == 82 == funnel.train.documents + funnel.validation.documents + 2
    refusing = build.model_copy(update={"sources": [settings.model_copy(update={"on_null": "refuse"})]})
    with pytest.raises(BigtrainError, match="on_null"):
        make(refusing)


def test_settings_added_later_change_no_recorded_identity(tmp_path: Path) -> None:
    """What `build.json` of the first versions lacks counts as the default."""
    plain = jsonl_source(tmp_path / "x.jsonl")
    assert not set(ADDED_TO_SOURCES) & set(what_documents(plain))
    assert "max_document_bytes" not in source_request(plain, data_settings(tmp_path, plain), "")["source"]
    assert what_documents(plain.model_copy(update={"on_null": "skip"})) != what_documents(plain)


def old_groups(values: list[str]) -> list[list[str]]:
    """Pieces as the first versions made them: whole batches of 256 rows, until they have a megabyte."""
    groups: list[list[str]] = [[]]
    for start in range(0, len(values), 256):
        groups[-1] += values[start : start + 256]
        if sum(map(len, groups[-1])) >= 1 << 20:
            groups.append([])
    return [group for group in groups if group]


@given(st.lists(st.sampled_from([1, 100, 5_000, 300_000, 2_000_000]), min_size=1, max_size=600))
@settings(max_examples=15, deadline=None)
def test_pieces_of_rows_are_bounded_and_keep_the_groups_of_old(lengths: list[int]) -> None:
    values = ["x" * length for length in lengths[:30]] + ["y" * min(length, 5_000) for length in lengths[30:]]
    pieces = list(
        rows.pieces_of_rows(values, name="n", place="p", source=source("x", "parquet"), extent_at=lambda count: count)
    )
    groups: list[list[str]] = [[]]
    for piece in pieces:
        groups[-1] += [document.text for document in piece.documents()]
        assert sum(map(len, piece.texts)) < rows.LARGEST_PIECE + 2_000_000
        if not piece.continued:
            groups.append([])
    assert [group for group in groups if group] == old_groups(values)
    assert not pieces[-1].continued and sum(piece.extent for piece in pieces) == len(values)


def test_how_long_rows_are_divided_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the ids of data that earlier versions built are those of the same data now."""
    column = [text * (1 + number % 20) for number, text in enumerate(sentences(270, 1))]
    kind, path = "parquet", tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": column}), path, row_group_size=90)
    manifests = []
    for largest, dedup in ((1 << 40, "none"), (100_000, "exact")):
        monkeypatch.setattr(rows, "LARGEST_PIECE", largest)
        folder = tmp_path / str(largest)
        make(data_settings(folder, source(path, kind), shard_tokens=100_000, dedup=dedup))
        manifests.append({split: (folder / "s" / split / MANIFEST).read_bytes() for split in ("train", "validation")})
        pieces = list(open_corpus(source(path, kind)).pieces())
        assert any(piece.continued for piece in pieces) == (largest == 100_000)
    assert manifests[0] == manifests[1]


class Web(ThreadingHTTPServer):
    """Serves one corpus to whoever brings a signature, or a fault."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.body, self.status, self.missing = lines(0, 50), 200, 0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/a/x.jsonl"


class Answer(BaseHTTPRequestHandler):
    server: Web

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        status = self.server.status if "sig=" in self.path else 403
        status = status if self.path.startswith("/a/x.jsonl") else 404
        body = self.server.body if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return body[: len(body) - self.server.missing]

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.shutdown()
    server.server_close()


def test_a_signature_is_in_no_name_and_a_new_one_moves_nothing(web: Web, tmp_path: Path) -> None:
    """Neither in the shards nor in build.json; and data built from one signed URL are those of the next."""
    web.body = write_jsonl(tmp_path / "x.jsonl", sentences(60, 1)).read_bytes()
    built = {}
    for signature in ("first/secret", "second"):
        build = data_settings(tmp_path / signature.partition("/")[0], source(f"{web.url}?sig={signature}&expires=9"))
        make(build)
        files = {path.relative_to(build.dir).as_posix(): path for path in build.dir.rglob("*") if path.is_file()}
        assert not any(b"sig=" in path.read_bytes() for path in files.values())
        built[signature] = {name: path.read_bytes() for name, path in files.items() if name.startswith("s/")}
    assert built["first/secret"] == built["second"]
    assert b'"file": "x.jsonl"' in json.dumps({"file": next(read_documents(source(f"{web.url}?sig=x"))).file}).encode()
    first = data_settings(tmp_path / "first", source(f"{web.url}?sig=third"))
    assert "s: already there" in make(first)


def test_a_server_that_fails_is_named_with_the_cause(web: Web) -> None:
    for url, status, cause in (
        (f"{web.url}?sig=1", 503, "503"),
        (web.url, 200, "403"),
        ("http://127.0.0.1:9/x.jsonl", 200, "Cannot connect"),
        (web.url.replace("http:", "https:"), 200, "Cannot connect"),
        ("http://127.0.0.1:9/*.jsonl", 200, "Cannot connect"),
    ):
        web.status = status
        with pytest.raises(BigtrainError) as raised:
            texts(url)
        assert_refused(raised, url.partition("?")[0], "cannot be read", cause)
        assert "sig=" not in str(raised.value)
    with pytest.raises(BigtrainError, match="finds no files"):
        texts(web.url.replace("x.jsonl", "y.jsonl?sig=1"))


def test_a_body_shorter_than_its_length_is_refused(web: Web) -> None:
    web.missing = 100
    with pytest.raises(BigtrainError) as raised:
        texts(f"{web.url}?sig=1")
    assert_refused(raised, web.url, "cannot be read")


@pytest.fixture(scope="module")
def doc_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("doc")
    make(data_settings(folder / "data", jsonl_source(write_jsonl(folder / "x.jsonl", sentences(20, 1)))))
    return (folder / "data/lines/train/00000.doc").read_bytes()


@given(st.data())
@settings(max_examples=200)
def test_a_damaged_doc_file_is_refused_by_name_or_readable(doc_file: bytes, data: st.DataObject) -> None:
    """Whatever its bytes say, nothing but the one error that names it comes out of its columns."""
    content = bytearray(doc_file)
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        columns = DocumentColumns.parse(memoryview(bytes(content)), Path("d/00000.doc"))
    except BigtrainError as error:
        assert_refused(error, "d/00000.doc", fix="restore the file")
        return
    assert np.all(np.diff(columns.offset) > 0)
    for number in range(len(columns.file)):
        columns.file_name(number)


def _die_at_the_third(position: int) -> int:
    note(Document("x" * position, "folder/x.jsonl", position))
    if position == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return position


@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_that_is_killed_names_its_document(count: int) -> None:
    """As the system kills it for lack of memory."""
    with Processes(count) as workers, pytest.raises(BigtrainError) as raised:
        list(workers.map_in_order(_die_at_the_third, range(10)))
    assert_refused(raised, "a worker process of the build died, at document 3 of 'folder/x.jsonl'", fix="data.workers")

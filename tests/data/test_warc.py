"""Web archives: every page is a document or is counted, and an archive that is not whole is refused."""

from __future__ import annotations

import gzip
import io
import random
import tracemalloc
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data.build.corpus import open_corpus, read_documents
from bigtrain.data.build.corpus.web_pages import NotAPageError, text_of_response
from bigtrain.data.build.funnel import read_funnels
from bigtrain.data.format.documents import Document
from tests.data.helpers import data_settings, make
from tests.refusals import assert_refused


@pytest.fixture(autouse=True)
def _the_libraries(require: Callable[[str], object]) -> None:
    require("warcio")
    require("trafilatura")


PARAGRAPH = "The river rises in the hills, and it flows past {} old mills to the sea, where the town was built. " * 3


def page(number: int, charset: str = "utf-8") -> bytes:
    html = (
        f"<html><head><meta charset={charset}><title>Mills</title></head><body><nav><a href=/>Home</a></nav>"
        f"<article><h1>Mills</h1><p>{PARAGRAPH.replace('{}', str(number))}</p><p>Größe {number}, naïve.</p></article>"
        "<footer>Cookies</footer></body></html>"
    )
    return html.encode(charset)


def response(body: bytes, kind: str = "text/html", status: str = "200 OK", *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", *headers])
    return head.encode() + b"\r\n\r\n" + body


def record(kind: str, content: bytes, content_type: str = "application/http; msgtype=response") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: https://example.org/{len(content)}\r\n"
        f"WARC-Date: 2026-11-30T00:00:00Z\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content + b"\r\n\r\n"


def chunked(body: bytes) -> bytes:
    parts = [body[start : start + 100] for start in range(0, len(body), 100)]
    return b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts) + b"0\r\n\r\n"


CHUNKED = "Transfer-Encoding: chunked"
RECORDS = [
    record("warcinfo", b"software: test\r\n", "application/warc-fields"),
    record("request", b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request"),
    *(record("response", response(page(number))) for number in range(5)),
    record("response", response(b"Not here", "text/html", "404 Not Found")),
    record("response", response(b"\x89PNG", "image/png")),
    record("response", response(b"<html><body></body></html>")),
    record("response", response(b"just a plain text", "text/plain; charset=utf-8")),
    record("response", b"\x16\x03 no headers at all"),
    record("metadata", b"x: y", "application/warc-fields"),
]
ARCHIVES = {
    ".warc": b"".join(RECORDS),
    ".warc.gz": b"".join(map(gzip.compress, RECORDS)),
    ".warc.zst": b"".join(map(zstandard.compress, RECORDS)),
}


def read(path: Path, **changes: object) -> list[Document]:
    source = {"name": "s", "kind": "warc", "path": str(path), **changes}
    return list(read_documents(SourceSettings.model_validate(source)))


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_each_page_is_a_document_or_has_a_reason(suffix: str, tmp_path: Path) -> None:
    """Positions count all records. The text is that of the article, without what stands around it."""
    (tmp_path / f"CC-MAIN{suffix}").write_bytes(ARCHIVES[suffix])
    (tmp_path / "robots.txt").write_text("no archive")
    found = read(tmp_path)
    assert [(d.position, d.unread) for d in found] == [
        *((position, None) for position in range(2, 7)),
        (7, "another HTTP status than 200"),
        (8, "another content than a web page"),
        (9, "no text in its HTML"),
        (10, None),
        (11, "no HTTP headers"),
    ]
    for number, document in enumerate(found[:5]):
        assert f"flows past {number} old mills" in document.text and f"Größe {number}, naïve." in document.text
        assert "Cookies" not in document.text and "Home" not in document.text and document.file == f"CC-MAIN{suffix}"
    assert found[8].text == "just a plain text"
    only = open_corpus(SourceSettings(name="s", kind="warc", path=str(tmp_path)))
    assert dict(only.skipped) == {".txt": 1} and "trafilatura" in only.summary


def test_the_texts_of_pages_are_read_as_they_are(tmp_path: Path) -> None:
    """WET: records of type conversion. Bytes that are not UTF-8 become U+FFFD."""
    wet = record("warcinfo", b"x: y", "application/warc-fields") + b"".join(
        record("conversion", text, "text/plain") for text in ("Größe\n1".encode(), b"a\xffb", b"")
    )
    (tmp_path / "x.warc.wet.gz").write_bytes(gzip.compress(wet))
    assert [(d.text, d.position) for d in read(tmp_path)] == [("Größe\n1", 1), ("a\ufffdb", 2), ("", 3)]


@pytest.mark.parametrize(
    "sent",
    [
        response(page(1)),
        response(page(1, "iso-8859-1"), "text/html; charset=ISO-8859-1"),
        response(page(1, "windows-1252"), "text/html"),
        response(page(1), "text/html; charset=no-such"),
        response(page(1), "text/html; charset=hex"),
        response(chunked(page(1)), "text/html", "200 OK", CHUNKED),
        response(page(1), "text/html", "200 OK", CHUNKED),
        response(gzip.compress(page(1)), "text/html", "200 OK", "Content-Encoding: gzip"),
        response(page(1), "text/html", "200 OK", "Content-Encoding: gzip"),
        response(chunked(zlib.compress(page(1))), "text/html", "200", "Content-Encoding: deflate", CHUNKED),
        response(page(1)).replace(b"HTTP/1.1", b"HTTP/2"),
    ],
)  # fmt: skip
def test_a_page_has_one_text_however_it_was_sent(sent: bytes) -> None:
    """Encodings of content, transfer and characters; some crawlers decode a body and keep the header that says so."""
    assert text_of_response(sent, 100_000) == text_of_response(response(page(1)), 100_000)


def test_a_text_does_not_depend_on_pages_before_it() -> None:
    """The library's own deduplication would drop what it has seen."""
    assert len({text_of_response(response(page(1)), 100_000) for _ in range(5)}) == 1


@pytest.mark.parametrize("suffix", ARCHIVES)
@given(st.data())
@settings(deadline=None, max_examples=25)
def test_a_web_archive_cut_at_any_byte_is_refused(suffix: str, tmp_path_factory: Any, data: st.DataObject) -> None:
    """Only a cut between two records, or in the lines between them, cannot be told from the end."""
    content = ARCHIVES[suffix]
    end = data.draw(st.integers(1, len(content) - 1))
    path = tmp_path_factory.mktemp("cut") / f"x{suffix}"
    path.write_bytes(content[:end])
    pack = {".warc": bytes, ".warc.gz": gzip.compress, ".warc.zst": zstandard.compress}[suffix]
    ends, at = {0}, 0
    for each in RECORDS:
        at += len(pack(each))
        ends |= {at - rest for rest in range(5 if suffix == ".warc" else 1)}
    try:
        read(path)
    except BigtrainError as error:
        assert_refused(error, str(path), "cut off")
    else:
        assert end in ends


@given(st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_a_damaged_web_archive_gives_documents_or_one_message(tmp_path_factory: Any, rng: random.Random) -> None:
    content = bytearray(ARCHIVES[".warc"])
    for _ in range(rng.randint(1, 6)):
        content[rng.randrange(len(content))] = rng.choice([0, 10, 13, 32, 57, 60, 255])
    path = tmp_path_factory.mktemp("damaged") / "x.warc"
    path.write_bytes(content)
    try:
        found = read(path)
    except BigtrainError as error:
        assert_refused(error, str(path), "cannot be read")
    else:
        assert all(document.file == "x.warc" and not (document.text and document.unread) for document in found)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ((b"Content-Length: 16\r\n", b"Content-Length: 12\r\n"), "maybe the Content-Length before is wrong"),
        ((b"Content-Length: 16\r\n", b"Content-Length: 26\r\n"), "maybe the Content-Length before is wrong"),
        ((b"Content-Length: 16\r\n", b"Content-Length: -1\r\n"), "a record with Content-Length -1"),
        ((b"Content-Length: 16\r\n", b""), "a record with Content-Length none"),
        ((b"Content-Length: 16\r\n", b"Content-Length: 99999999999999999\r\n"), "bytes before the end of a record"),
        ((b"WARC-Date", b"x" * 70_000), "a line of more than 65,536 bytes"),
        ((b"WARC/1.0", b"GIF89a"), "no record where one should start"),
    ],
)
def test_a_wrong_header_is_refused_with_the_file(change: tuple[bytes, bytes], what: str, tmp_path: Path) -> None:
    (tmp_path / "x.warc").write_bytes(ARCHIVES[".warc"].replace(*change, 1))
    with pytest.raises(BigtrainError) as raised:
        read(tmp_path)
    assert_refused(raised, str(tmp_path / "x.warc"), what)


def test_long_pages_and_bombs_are_counted_and_take_no_memory(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(100_000_000))
    deep = b"<html><body>" + b"<div>" * 20_000 + b"text" + b"</div>" * 20_000
    records = [
        record("response", response(b"x" * 300_000)),
        record("response", response(bomb, "text/html", "200 OK", "Content-Encoding: gzip")),
        record("response", response(bomb[:50_000], "text/html", "200 OK", "Content-Encoding: gzip")),
        record("conversion", b"x" * 300_000, "text/plain"),
        record("response", response(page(1))),
    ]
    (tmp_path / "x.warc").write_bytes(b"".join(records))
    read(tmp_path, max_document_bytes=1)  # imports the library
    tracemalloc.start()
    found = read(tmp_path, max_document_bytes=200_000)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert [document.unread for document in found[:4]] == ["longer than max_document_bytes"] * 4
    assert "mills" in found[4].text
    with pytest.raises(NotAPageError):
        text_of_response(response(deep), 1_000_000)
    with pytest.raises(NotAPageError, match="cut off"):
        text_of_response(response(gzip.compress(page(1))[:-9], "text/html", "200", "Content-Encoding: gzip"), 100_000)


@given(st.binary(max_size=300), st.sampled_from(["text/html", "text/plain", "text/html; charset=utf-7"]))
@settings(deadline=None, max_examples=60)
def test_any_body_has_a_text_or_a_reason(body: bytes, kind: str) -> None:
    for sent in (body, response(body, kind), response(b"<html><body><p>" + body + b"<table><b>", kind)):
        try:
            text_of_response(sent, 200).encode()
        except NotAPageError as error:
            assert str(error)


def test_the_funnel_accounts_for_every_page(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    many = [record("response", response(page(number))) for number in range(40)]
    (corpus / "x.warc.gz").write_bytes(b"".join(map(gzip.compress, [*RECORDS, *many])))
    source = SourceSettings(name="web", kind="warc", path=str(corpus))
    settings = data_settings(tmp_path / "data", source)
    make(settings)
    funnel = read_funnels(settings.dir)["web"]
    assert {removal.rule for removal in funnel.removed} == {"source"} and len(funnel.removed) == 4
    assert funnel.read.documents == 50 and funnel.train.documents + funnel.validation.documents == 46


def test_a_missing_library_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("bigtrain.data.build.corpus.warc"), "EXTRACTOR", "no-such")
    with pytest.raises(BigtrainError) as raised:
        read(tmp_path)
    assert_refused(raised, "needs warcio and trafilatura", found="no-such", fix="bigtrain[warc]")


def test_warcio_writes_what_is_read_here(tmp_path: Path) -> None:
    """The oracle: the library's writer, one gzip member a record."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with (tmp_path / "x.warc.gz").open("wb") as out:
        writer = WARCWriter(out, gzip=True)
        for number in range(3):
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
            payload = io.BytesIO(page(number))
            writer.write_record(
                writer.create_warc_record(f"https://x/{number}", "response", payload, http_headers=headers)
            )
    assert [f"past {number} old" in document.text for number, document in enumerate(read(tmp_path))] == [True] * 3

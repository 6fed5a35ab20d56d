"""Files in archives are documents like files in a folder; an archive that is not whole is refused."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data.build.corpus import open_corpus, read_documents
from bigtrain.data.build.funnel import read_funnels
from bigtrain.data.format.documents import Document
from tests.data.helpers import data_settings, make, sentences
from tests.refusals import assert_refused

FILES = {f"part/{i:02}.txt": f"text {i} süß\n" * (i + 1) for i in range(20)}


def tar(files: dict[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for about in extra:
            archive.addfile(about)
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            about.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(about, io.BytesIO(content))
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


ENCODED = {name: text.encode() for name, text in FILES.items()}
PACK: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    ".zip": zipped,
    ".tar": tar,
    ".tar.gz": lambda files: gzip.compress(tar(files)),
    ".tgz": lambda files: gzip.compress(tar(files)),
    ".tar.zst": lambda files: zstandard.compress(tar(files)),
}


def source(path: Path | str, **changes: object) -> SourceSettings:
    return SourceSettings.model_validate({"name": "s", "kind": "text", "path": str(path), **changes})


def read(path: Path | str, **changes: object) -> list[Document]:
    return list(read_documents(source(path, **changes)))


@pytest.mark.parametrize("suffix", PACK)
def test_members_are_documents_in_the_archive_s_order(suffix: str, tmp_path: Path) -> None:
    """Beside plain files, in the order of the names of files; hidden names and folders are left out."""
    files = {**ENCODED, ".hidden": b"\xff", "__MACOSX/._00.txt": b"\xff", "./x/": b""}
    (tmp_path / f"b{suffix.upper()}").write_bytes(PACK[suffix](files))
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress("süß".encode()))
    inside = [Document(text, f"b{suffix.upper()}/{name}", 0) for name, text in FILES.items()]
    found = read(tmp_path)
    assert sorted(found, key=lambda document: document.file) == [
        Document("first", "a.txt", 0),
        *inside,
        Document("süß", "c.txt.gz", 0),
    ]
    assert [document for document in found if document in inside] == inside
    only = read(tmp_path / f"b{suffix.upper()}", members="*/1?.txt")
    assert [document.text for document in only] == [FILES[f"part/{i}.txt"] for i in range(10, 20)]


def test_an_archive_at_a_url_is_read_as_here(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    for suffix in PACK:
        files.pipe(f"/archives/x{suffix}", PACK[suffix](ENCODED))
        (tmp_path / f"x{suffix}").write_bytes(PACK[suffix](ENCODED))
    assert read("memory://archives") == read(tmp_path)
    files.rm("/archives", recursive=True)


@pytest.mark.parametrize("suffix", PACK)
@given(st.data())
@settings(deadline=None, max_examples=25)
def test_an_archive_cut_at_any_byte_is_refused(suffix: str, tmp_path_factory: Any, data: st.DataObject) -> None:
    """A tar file is padded after its end, which may be cut."""
    content = PACK[suffix](ENCODED)
    whole = len(content.rstrip(b"\0")) + 512 if suffix == ".tar" else len(content)
    path = tmp_path_factory.mktemp("cut") / f"x{suffix}"
    path.write_bytes(content[: data.draw(st.integers(0, whole - 1))])
    with pytest.raises(BigtrainError) as raised:
        read(path)
    assert_refused(raised, str(path), "cannot be read")


@pytest.mark.parametrize("suffix", PACK)
@given(st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_a_damaged_archive_gives_documents_or_one_message(
    suffix: str, tmp_path_factory: Any, rng: random.Random
) -> None:
    content = bytearray(PACK[suffix](ENCODED))
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path = tmp_path_factory.mktemp("damaged") / f"x{suffix}"
    path.write_bytes(content)
    try:
        found = read(path)
    except BigtrainError as error:
        assert_refused(error, str(path))
    else:
        assert all(document.file.startswith(path.name) for document in found)


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_a_hostile_archive_gives_one_message(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    for files, changes, parts in (
        ({"../../etc/cron.d/x": b"x"}, {}, ("leads out of the archive",)),
        ({"a/../../x": b"x"}, {}, ("leads out of the archive",)),
        ({"a.txt": bytes(3_000_000)}, {"max_document_bytes": 100_000}, ("a.txt is too long",)),
        ({"a\x1b[2J.png": b"\x89PNG\xff"}, {}, ("a\\x1b[2J.png is not UTF-8", "narrow `members`")),
    ):
        path.write_bytes(PACK[suffix](files))
        with pytest.raises(BigtrainError) as raised:
            read(path, **changes)
        assert_refused(raised, str(path), *parts)
    path.write_bytes(b"not an archive at all" * 100)
    with pytest.raises(BigtrainError) as raised:
        read(path)
    assert_refused(raised, str(path), "cannot be read")
    path.write_bytes(PACK[suffix]({"/abs/a.txt": b"x", "./b.txt": b"y"}))
    assert [document.file for document in read(path)] == [f"x{suffix}/abs/a.txt", f"x{suffix}/b.txt"]


def test_what_is_no_regular_file_is_left_out(tmp_path: Path) -> None:
    links = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        about = tarfile.TarInfo(f"special-{kind.decode()}")
        about.type, about.linkname = kind, "/etc/passwd"
        links.append(about)
    (tmp_path / "x.tar").write_bytes(tar({"a.txt": b"text"}, *links))
    assert [document.text for document in read(tmp_path)] == ["text"]


def test_an_encrypted_member_is_refused_by_name(tmp_path: Path) -> None:
    content = bytearray(zipped({"a.txt": b"secret"}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(BigtrainError) as raised:
        read(tmp_path)
    assert_refused(raised, "has an encrypted member", found="a.txt")


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_a_bomb_takes_no_memory(suffix: str, tmp_path: Path) -> None:
    """60 MB of zeros in 60 kB, and a tar header that asks for 7 GB."""
    (tmp_path / f"x{suffix}").write_bytes(PACK[suffix]({"a.txt": bytes(60_000_000)}))
    tracemalloc.start()
    with pytest.raises(BigtrainError, match="too long"):
        read(tmp_path, max_document_bytes=1_000_000)
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()
    about = tarfile.TarInfo("x")
    about.type, about.size = tarfile.XHDTYPE, 7 << 30
    (tmp_path / f"x{suffix}").write_bytes(zstandard.compress(about.tobuf(tarfile.USTAR_FORMAT) + bytes(100_000)))
    (tmp_path / f"x{suffix}").rename(tmp_path / "x.tar.zst")
    with pytest.raises(BigtrainError, match="a header of 7,516,192,768 bytes"):
        read(tmp_path)


def test_archives_in_archives_are_counted_and_not_opened(tmp_path: Path) -> None:
    """In the funnel, under the rule `source`; the build has the rest, in pieces of any number of members."""
    texts = {f"{i}.txt": text.encode() for i, text in enumerate(sentences(40, seed=3))}
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "x.tar.gz").write_bytes(PACK[".tar.gz"]({**texts, "more.zip": zipped({"a.txt": b"x"})}))
    settings = data_settings(tmp_path / "data", source(corpus))
    make(settings)
    funnel = read_funnels(settings.dir)["s"]
    assert [(r.rule, r.reason, r.documents) for r in funnel.removed] == [("source", "an archive inside an archive", 1)]
    assert funnel.train.documents + funnel.validation.documents == 40
    opened = open_corpus(source(corpus))
    assert sum(piece.extent for piece in opened.pieces()) <= (opened.extent or 0)

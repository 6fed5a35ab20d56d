"""Promises of the corpus kinds."""

from __future__ import annotations

import gzip
import json
import pickle
import sysconfig
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data.build.corpus import open_corpus, read_documents
from bigtrain.data.build.corpus.python_stdlib import TOPICS, documentation
from bigtrain.data.format.documents import Document, document_id, is_held_out
from tests.data.helpers import jsonl_source, write_jsonl
from tests.refusals import assert_refused


def read(**settings: object) -> list[Document]:
    return list(read_documents(SourceSettings.model_validate({"name": "s", **settings})))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in (("b.txt", "beta"), ("a.txt", "alpha"), ("sub/c.md", "gamma"), (".hidden/d.txt", "delta")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_text_reads_a_file_a_folder_or_a_glob_in_the_order_of_names(tree: Path) -> None:
    everything = [Document("alpha", "a.txt", 0), Document("beta", "b.txt", 0), Document("gamma", "sub/c.md", 0)]
    assert read(kind="text", path=str(tree)) == everything
    assert read(kind="text", path=f"{tree}/**/*.txt") == everything[:2]
    assert read(kind="text", path=f"{tree}/b.txt") == everything[1:2]


def test_text_names_the_byte_that_is_not_utf8(tree: Path) -> None:
    (tree / "b.txt").write_bytes(b"fine \xff not")
    with pytest.raises(BigtrainError, match=r"(?s)b\.txt is not UTF-8.*0xff at offset 5"):
        read(kind="text", path=str(tree))


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
@pytest.mark.parametrize("path", ["nothing/here", "nothing/*.txt", "empty"])
def test_a_path_without_files_is_a_clear_error(kind: str, path: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BigtrainError, match="finds no files"):
        read(kind=kind, path=str(tmp_path / path))


def test_jsonl_reads_plain_gzip_and_zstandard_alike(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"text {i}"}) + "\n\n" for i in range(1000))
    (tmp_path / "x.jsonl").write_text(lines)
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    frames = [zstandard.compress(part.encode()) for part in (lines[:5000], lines[5000:])]
    (tmp_path / "z.jsonl.zst").write_bytes(b"".join(frames))
    found = read(kind="jsonl", path=str(tmp_path))
    assert [d.file for d in found] == ["x.jsonl"] * 1000 + ["y.jsonl.gz"] * 1000 + ["z.jsonl.zst"] * 1000
    for start in (0, 1000, 2000):
        own = found[start : start + 1000]
        assert [(d.text, d.position) for d in own] == [(f"text {i}", 2 * i) for i in range(1000)]


def test_jsonl_errors_name_file_and_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", ["fine"])
    for line, message in (
        ("{not json", r"x\.jsonl:2 is not JSON"),
        ('{"body": "b", "txet": "t"}', r"(?s)x\.jsonl:2: there is no field 'text'.*body, txet.*text_field: txet"),
        ('["text"]', r"x\.jsonl:2: there is no field"),
        ('{"text": 3}', r"(?s)x\.jsonl:2: the field 'text' does not hold text.*int"),
    ):
        path.write_text('{"text": "fine"}\n' + line + "\n")
        with pytest.raises(BigtrainError, match=message):
            list(read_documents(jsonl_source(path)))


def test_a_truncated_archive_is_a_clear_error(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    (tmp_path / "x.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(BigtrainError, match=r"x\.jsonl\.gz cannot be read"):
        read(kind="jsonl", path=str(tmp_path))


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(r'{"text": "a\ud800b \ud83d\ude00"}')
    assert read(kind="jsonl", path=str(tmp_path))[0].text == "a\ufffdb 😀"


def test_huggingface_reads_saved_datasets_and_folders_of_parquet_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made = datasets.Dataset.from_dict({"body": [f"row {i}" for i in range(600)], "n": list(range(600))})
    made.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"dev": made}).save_to_disk(tmp_path / "saved-splits")
    made.to_parquet(tmp_path / "parquet" / "part.parquet")
    made.to_json(tmp_path / "json" / "part.jsonl")
    for name, split in (("saved", "train"), ("saved-splits", "dev"), ("parquet", "train"), ("json", "train")):
        found = read(kind="huggingface", path=str(tmp_path / name), split=split, text_field="body")
        assert [(d.text, d.position) for d in found] == [(f"row {i}", i) for i in range(600)]
        assert {d.file for d in found} == {f"{name}/{split}"}
        streamed = {"path": str(tmp_path / name), "split": split, "text_field": "body", "streaming": True}
        assert read(kind="huggingface", **streamed) == found

    settings = SourceSettings(name="s", kind="huggingface", path=str(tmp_path / "parquet"), text_field="bodi")
    with pytest.raises(BigtrainError, match=r"(?s)no field 'bodi'.*body, n.*text_field: body"):
        open_corpus(settings)
    with pytest.raises(BigtrainError, match="cannot be loaded"):
        read(kind="huggingface", path=str(tmp_path / "nothing-here"))
    for name, asked, found in (
        ("saved", {"subset": "en"}, "no subsets; no splits"),
        ("saved", {"split": "dev"}, "no subsets; no splits"),
        ("saved-splits", {"split": "train"}, "no subsets; split dev"),
        ("saved-splits", {"split": "dev", "subset": "en"}, "no subsets; split dev"),
    ):
        with pytest.raises(BigtrainError, match=found):
            read(kind="huggingface", path=str(tmp_path / name), text_field="body", **asked)


def test_the_standard_library_is_read_as_source_and_as_documentation() -> None:
    """Both are read from the same files."""
    source = SourceSettings(name="s", kind="python_stdlib")
    corpus = open_corpus(source)
    first = [d for piece in islice(corpus.pieces(), 2) for d in piece.documents()]
    root = Path(sysconfig.get_paths()["stdlib"])
    assert len(first) > 20
    assert all((root / d.file).read_bytes().decode() == d.text for d in first)
    assert not any("site-packages" in d.file for d in first)
    other = open_corpus(source.model_copy(update={"content": "documentation"}))
    assert other.stamp == corpus.stamp
    second = [d for piece in islice(other.pieces(), 2) for d in piece.documents()]
    assert [(d.file, d.position) for d in second] == [(d.file, d.position) for d in first]
    future = next(d.text for d in second if d.file == "__future__.py")
    assert future.startswith("__future__\n\nRecord of phased-in incompatible language changes.")


def test_documentation_is_every_docstring_under_its_name() -> None:
    code = '"""Module."""\nclass A:\n    """Class.\n\n    More."""\n    def f(self):\n        """Method."""\nx = "no"\n'
    assert (
        documentation(code, "pkg/__init__.py") == "pkg\n\nModule.\n\npkg.A\n\nClass.\n\nMore.\n\npkg.A.f\n\nMethod.\n"
    )
    assert documentation("x = 1", "x.py") == ""
    assert documentation("not python", "x.py") == ""
    assert documentation("topics = {'a': 'Text A', 'b': 'Text B'}", TOPICS) == "Text A\n\nText B\n"


def test_pieces_travel_between_processes(tree: Path) -> None:
    settings = SourceSettings(name="s", kind="text", path=str(tree))
    for piece in open_corpus(settings).pieces():
        assert list(pickle.loads(pickle.dumps(piece)).documents()) == list(piece.documents())


def test_the_stamp_changes_when_a_file_does(tree: Path) -> None:
    settings = SourceSettings(name="s", kind="text", path=str(tree))
    before = open_corpus(settings).stamp
    assert open_corpus(settings).stamp == before
    (tree / "a.txt").write_text("alpha and more")
    assert open_corpus(settings).stamp != before


def test_the_id_of_a_document_depends_on_source_file_position_and_content() -> None:
    base = Document("text", "file", 1)
    others = [("t", base), ("s", Document("texu", "file", 1)), ("s", Document("text", "filf", 1))]
    ids = {document_id(*pair) for pair in [("s", base), *others, ("s", Document("text", "file", 2))]}
    assert len(ids) == 5
    assert document_id("s", base).hex() == "3a1d2a3b02463f0edece2b42a8aac290"


@given(st.text(), st.integers(0, 10**9))
def test_the_held_out_side_depends_on_origin_and_grows_with_fraction(file: str, position: int) -> None:
    sides = [is_held_out(file, position, fraction) for fraction in (0.0, 0.01, 0.1, 0.5, 0.999)]
    assert sides == sorted(sides)
    assert not sides[0]


def test_the_held_out_share_is_the_fraction() -> None:
    held_out = sum(is_held_out("file", position, 0.05) for position in range(20_000))
    assert 900 < held_out < 1100
    assert [p for p in range(60) if is_held_out("json/decoder.py", p, 0.05)] == [6, 13, 17, 22, 38]  # for all time


def test_parquet_reads_rows_in_order_for_any_row_groups_and_compression(tmp_path: Path) -> None:
    texts = [f"text {i} " + "é" * (i % 700) for i in range(5000)]
    for name, group, compression in (("a", 100, "zstd"), ("b", 100_000, "snappy")):
        table = pa.table({"id": range(len(texts)), "body": texts})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=group, compression=compression)
    found = read(kind="parquet", path=str(tmp_path), text_field="body")
    assert found == [Document(text, f"{name}.parquet", row) for name in "ab" for row, text in enumerate(texts)]
    source = SourceSettings(name="s", kind="parquet", path=str(tmp_path), text_field="body")
    assert len(list(open_corpus(source).pieces())) > 2  # work for several processes
    pickle.dumps(list(open_corpus(source).pieces()))


def test_parquet_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"body": ["one", None], "n": [1, 2]}), path)
    with pytest.raises(BigtrainError, match=r"(?s)x\.parquet: there is no field 'bodi'.*set text_field: body"):
        read(kind="parquet", path=str(path), text_field="bodi")
    with pytest.raises(BigtrainError, match=r"(?s)x\.parquet: row 1: the field 'body' does not hold text.*NoneType"):
        read(kind="parquet", path=str(path), text_field="body")
    with pytest.raises(BigtrainError, match=r"x\.parquet: row 0: the field 'n' does not hold text"):
        read(kind="parquet", path=str(path), text_field="n")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BigtrainError, match=r"x\.parquet cannot be read"):
        read(kind="parquet", path=str(path), text_field="body")


NESTED = [
    {"message": {"content": "one", "n": 1}, "a.b": "dotted"},
    {"message": {"content": "two", "n": 2}, "a.b": "name"},
    {"message": {"content": None, "n": 3}, "a.b": ""},
    {"message": None, "a.b": "x"},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_field_in_a_field_is_named_by_its_dotted_path(kind: str, tmp_path: Path) -> None:
    """A field of that very name comes first. What is in a null is null."""
    path = tmp_path / f"x.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in NESTED))
    else:
        pq.write_table(pa.Table.from_pylist(NESTED), path, row_group_size=3)
    found = read(kind=kind, path=str(path), text_field="message.content", on_null="skip")
    assert [(d.text, d.null, d.position) for d in found] == [
        ("one", False, 0),
        ("two", False, 1),
        ("", True, 2),
        ("", True, 3),
    ]
    assert [d.text for d in read(kind=kind, path=str(path), text_field="a.b")] == ["dotted", "name", "", "x"]
    for field, parts in (
        ("message.contents", {"found": "message.content", "fix": "text_field: message.content"}),
        ("message.n", {"found": "int", "wanted": "a string"}),
        ("message", {"wanted": "a string"}),
        ("message.content.x", {"found": "message.content"}),
        ("message.content", {"found": "null", "fix": "on_null: skip"}),
    ):
        with pytest.raises(BigtrainError) as raised:
            read(kind=kind, path=str(path), text_field=field)
        assert_refused(raised, str(path), **parts)


def test_a_dotted_path_reads_dictionaries_and_deep_structs(tmp_path: Path) -> None:
    """Also in a folder of `.json` files, of which those with the field are meant."""
    texts = ["same"] * 500 + ["other", "same"]
    table = pa.Table.from_pylist([{"a": {"b": {"c": text}}} for text in texts])
    pq.write_table(table, tmp_path / "x.parquet", use_dictionary=True)
    assert [d.text for d in read(kind="parquet", path=str(tmp_path), text_field="a.b.c")] == texts
    (tmp_path / "x.json").write_text('{"a": {"b": "text"}}\n')
    (tmp_path / "y.json").write_text('{"a": "text"}\n')
    assert [d.file for d in read(kind="jsonl", path=str(tmp_path), text_field="a.b")] == ["x.json"]

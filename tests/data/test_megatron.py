"""Token ids of Megatron-LM's indexed datasets come into the shards exactly, whatever their type and layout."""

from __future__ import annotations

import importlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bigtrain.base.errors import BigtrainError
from bigtrain.config.data_settings import DataSettings, TokenizerSettings
from bigtrain.config.source_settings import SourceSettings
from bigtrain.data import Dataset, build_datasets, load_tokenizer, read_funnels, verify
from bigtrain.data.build.corpus import open_corpus, read_documents
from bigtrain.data.format.documents import Document, document_id, is_held_out
from bigtrain.data.store.stored_document import find_document
from tests.data.helpers import contents, data_settings, jsonl_source, sentences, write_jsonl

megatron = importlib.import_module("bigtrain.data.build.corpus.megatron")
CODES = {"u1": 1, "i1": 2, "i2": 3, "i4": 4, "i8": 5, "u2": 8}


def write_pair(
    prefix: Path, documents: Sequence[Sequence[Sequence[int]]], dtype: str = "i4", modes: bool = False
) -> Path:
    """A dataset of documents, each some sequences, from the published format and with none of our code."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    index, data, ends, pointers, lengths = b"", b"", [0], [], []
    for document in documents:
        for sequence in document:
            pointers.append(len(data))
            lengths.append(len(sequence))
            data += b"".join(number.to_bytes(int(dtype[1]), "little", signed=dtype[0] == "i") for number in sequence)
        ends.append(len(lengths))
    index += b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, CODES[dtype], len(lengths), len(ends))
    index += struct.pack(f"<{len(lengths)}i", *lengths) + struct.pack(f"<{len(pointers)}q", *pointers)
    index += struct.pack(f"<{len(ends)}q", *ends) + bytes(len(lengths) if modes else 0)
    prefix.with_name(prefix.name + ".bin").write_bytes(data)
    prefix.with_name(prefix.name + ".idx").write_bytes(index)
    return prefix


def source(path: Path | str, name: str = "ids", **changes: Any) -> SourceSettings:
    return SourceSettings.model_validate({"name": name, "kind": "megatron", "path": str(path), **changes})


def ids_of(document: Document) -> list[int]:
    assert document.text == "" and document.ids is not None
    return np.frombuffer(document.ids, "<u4").tolist()


def read(path: Path | str) -> list[tuple[str, int, list[int]]]:
    return [(d.file, d.position, ids_of(d)) for d in read_documents(source(path))]


@pytest.mark.parametrize(("dtype", "largest"), [("u1", 255), ("i1", 127), ("i2", 2**15 - 1), ("u2", 2**16 - 1),
                                                ("i4", 2**31 - 1), ("i8", 2**32 - 1)])  # fmt: skip
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_id_of_every_document_is_read_in_order(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, largest: int, data: st.DataObject
) -> None:
    sequence = st.lists(st.integers(0, largest), max_size=6)
    documents = data.draw(st.lists(st.lists(sequence, max_size=4), max_size=12))
    folder = tmp_path_factory.mktemp("pair")
    write_pair(folder / "x", documents, dtype, modes=data.draw(st.booleans()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(megatron, "PIECE_BYTES", data.draw(st.integers(1, 40)))
        patch.setattr(megatron, "DOCUMENTS_AT_ONCE", data.draw(st.integers(1, 5)))
        found = read(folder / "x")
    assert found == [("x.bin", n, [i for part in parts for i in part]) for n, parts in enumerate(documents)]


def test_a_prefix_either_file_a_folder_and_a_glob_mean_the_same_pairs(tmp_path: Path) -> None:
    for name, first in (("b_text_document", 5), ("a_text_document", 7)):
        write_pair(tmp_path / "d" / name, [[[first, 1]], [[first, 2], [3]]], "u2")
    (tmp_path / "d" / "notes.txt").write_text("mine")
    one = [("b_text_document.bin", 0, [5, 1]), ("b_text_document.bin", 1, [5, 2, 3])]
    for path in ("d/b_text_document", "d/b_text_document.bin", "d/b_text_document.idx"):
        assert read(tmp_path / path) == one
    both = [("a_text_document.bin", 0, [7, 1]), ("a_text_document.bin", 1, [7, 2, 3]), *one]
    for path in ("d", "d/*_document", "d/*.bin", "d/*.idx", "d/*"):
        assert read(tmp_path / path) == both
    assert read(f"file://{tmp_path}/d/*_document") == both
    assert read(f"file://{tmp_path}/d/b_text_document") == one
    assert "4 files" in open_corpus(source(tmp_path / "d")).summary


def test_a_pair_at_a_url_is_read_like_a_local_one(tmp_path: Path) -> None:
    import fsspec

    write_pair(tmp_path / "x", [[[n, n + 1], [n] * n] for n in range(50)], "u2")
    memory = fsspec.filesystem("memory")
    for name in ("x.bin", "x.idx"):
        memory.pipe(f"/megatron-test/{name}", (tmp_path / name).read_bytes())
    for path in ("memory://megatron-test/x", "memory://megatron-test", "memory://megatron-test/*.idx"):
        assert read(path) == read(tmp_path / "x")


def broken(write: Any) -> Any:
    return pytest.param(write, id=write.__name__)


def another_magic(data: bytearray, index: bytearray) -> str:
    index[:6] = b"TNTIDX"
    return r"x\.idx is not an index.*TNTIDX.*MMIDIDX"


def another_version(data: bytearray, index: bytearray) -> str:
    index[9] = 2
    return "version 2"


def floats(data: bytearray, index: bytearray) -> str:
    index[17] = 7
    return "dtype code 7"


def a_short_index(data: bytearray, index: bytearray) -> str:
    del index[-5:]
    return r"x\.idx.*bytes"


def an_empty_index(data: bytearray, index: bytearray) -> str:
    index.clear()
    return r"x\.idx is not an index"


def short_data(data: bytearray, index: bytearray) -> str:
    del data[-2:]
    return r"x\.bin is not the file that its index describes.*10 bytes.*12"


def a_pointer_that_points_elsewhere(data: bytearray, index: bytearray) -> str:
    index[34 + 3 * 4 + 8] += 2
    return r"x\.idx cannot be read: its pointers"


def a_length_that_is_negative(data: bytearray, index: bytearray) -> str:
    index[34 : 34 + 4] = struct.pack("<i", -3)
    return r"x\.idx cannot be read: its pointers"


def documents_that_go_back(data: bytearray, index: bytearray) -> str:
    index[-16:-8] = struct.pack("<q", 7)
    return r"x\.idx cannot be read: the sequences"


def a_sequence_in_no_document(data: bytearray, index: bytearray) -> str:
    index[-8:] = struct.pack("<q", 2)
    return "sequences 0 to 2 in documents.*0 to 3"


@pytest.mark.parametrize("write", [broken(w) for w in (another_magic, another_version, floats, a_short_index,
    an_empty_index, short_data, a_pointer_that_points_elsewhere, a_length_that_is_negative, documents_that_go_back,
    a_sequence_in_no_document)])  # fmt: skip
def test_a_file_that_is_not_whole_is_one_clear_error(tmp_path: Path, write: Any) -> None:
    write_pair(tmp_path / "x", [[[1, 2]], [[3], [4, 5, 6]]], "u2")
    data, index = bytearray((tmp_path / "x.bin").read_bytes()), bytearray((tmp_path / "x.idx").read_bytes())
    message = write(data, index)
    (tmp_path / "x.bin").write_bytes(data)
    (tmp_path / "x.idx").write_bytes(index)
    with pytest.raises(BigtrainError, match=f"(?s){message}"):
        read(tmp_path / "x")


def test_half_a_pair_or_none_is_one_clear_error(tmp_path: Path) -> None:
    write_pair(tmp_path / "x", [[[1]]])
    with pytest.raises(BigtrainError, match="finds no files"):
        read(tmp_path / "y")
    (tmp_path / "x.idx").unlink()
    for path in (tmp_path / "x", tmp_path, tmp_path / "x.bin"):
        with pytest.raises(BigtrainError, match=r"(?s)lacks a file of a pair.*x\.bin.*x\.idx beside it"):
            read(path)


def test_a_negative_number_is_named_with_its_document(tmp_path: Path) -> None:
    write_pair(tmp_path / "x", [[[1, 2]], [], [[3], [4, -5]]])
    with pytest.raises(BigtrainError, match=r"(?s)document 2 of .*x\.bin.*found: +-5"):
        read(tmp_path / "x")


def test_equal_ids_are_equal_documents_whatever_their_type(tmp_path: Path) -> None:
    found = []
    for dtype in ("u2", "i4", "i8"):
        write_pair(tmp_path / dtype / "x", [[[70, 2, 3]]], dtype)
        found += read_documents(source(tmp_path / dtype / "x"))
    assert len({document_id("s", document) for document in found}) == 1
    text = Document(found[0].content.decode("latin-1"), "x.bin", 0)
    assert text.content == found[0].content and text.content_hash != found[0].content_hash


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small build, which holds a tokenizer of 300 tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    settings = data_settings(folder / "data", jsonl_source(write_jsonl(folder / "x.jsonl", sentences(60, 3))))
    build_datasets(settings, vocab_size=300, report=lambda line: None)
    return settings.dir


def token_documents(tokenizer: Path) -> list[list[list[int]]]:
    """What preprocess_data.py would make of 400 texts, --append-eod given for every second; one empty, two equal."""
    model = load_tokenizer(tokenizer)
    end = model.token_to_id("<|endoftext|>")
    documents = []
    for number, text in enumerate(sentences(400, 4)):
        ids = model.encode(text).ids
        documents.append([ids[:7], ids[7:] + [end] * (number % 2)])
    documents[20], documents[201] = [], documents[200]
    return documents


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(megatron, "PIECE_BYTES", 10_000)
        yield


def settings_for(directory: Path, tokenizer: Path, pair: Path, **changes: Any) -> DataSettings:
    return data_settings(
        directory, source(pair), tokenizer=TokenizerSettings(path=tokenizer), **{"shard_tokens": 9_000, **changes}
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    return write_pair(tmp_path_factory.mktemp("megatron") / "web_text_document", token_documents(tokenizer), "u2")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, pair: Path) -> DataSettings:
    settings = settings_for(tmp_path_factory.mktemp("built") / "data", tokenizer, pair, dedup="exact")
    build_datasets(settings, vocab_size=300, report=lambda line: None)
    return settings


def test_the_shards_hold_the_ids_closed_once_on_the_side_of_their_origin(built: DataSettings, tokenizer: Path) -> None:
    wanted: dict[str, list[tuple[int, list[int]]]] = {"train": [], "validation": []}
    end = load_tokenizer(tokenizer).token_to_id("<|endoftext|>")
    for number, parts in enumerate(token_documents(tokenizer)):
        ids = [i for part in parts for i in part]
        if ids and number != 201:
            split = "validation" if is_held_out("web_text_document.bin", number, 0.1) else "train"
            wanted[split].append((number, [end, *ids] if ids[-1] == end else [end, *ids, end]))
    for split, documents in wanted.items():
        dataset = Dataset(built.dir / "ids" / split)
        found = [
            (int(shard.documents.position[index]), shard.tokens[start:stop].tolist())
            for shard in dataset.shards
            for index, (start, stop) in enumerate(pairwise(shard.documents.offset))
        ]
        assert found == documents
    assert len(Dataset(built.dir / "ids" / "train").shards) >= 3


def test_the_funnel_verify_and_the_search_for_a_document_know_them(built: DataSettings, tokenizer: Path) -> None:
    funnel = read_funnels(built.dir)["ids"]
    documents = [[i for part in parts for i in part] for parts in token_documents(tokenizer)]
    assert (funnel.read.documents, funnel.read.bytes) == (400, 4 * sum(map(len, documents)))
    assert {(r.rule, r.documents) for r in funnel.removed} == {("empty", 1), ("dedup", 1)}
    (example,) = next(r.examples for r in funnel.removed if r.rule == "dedup")
    assert example["position"] == 201
    assert example["text"] == ("token ids " + " ".join(map(str, documents[201])))[:200]
    assert verify(built.dir).ok
    datasets = [Dataset(built.dir / "ids" / split) for split in ("train", "validation")]
    by_origin = find_document(datasets, "ids:web_text_document.bin:200")
    assert find_document(datasets, by_origin.id) == by_origin
    assert by_origin.read(1, 6).tolist() == documents[200][:5]  # after the token that predicts the first


def test_the_bytes_do_not_depend_on_the_number_of_workers(built: DataSettings, tmp_path: Path) -> None:
    settings = built.model_copy(update={"dir": tmp_path / "data", "workers": 3})
    build_datasets(settings, vocab_size=300, report=lambda line: None)
    assert contents(settings.dir) == contents(built.dir)


def test_the_type_in_which_ids_lay_changes_none_of_them(built: DataSettings, tokenizer: Path, tmp_path: Path) -> None:
    wider = write_pair(tmp_path / "web_text_document", token_documents(tokenizer), "i4")
    settings = settings_for(tmp_path / "data", tokenizer, wider, dedup="exact")
    build_datasets(settings, vocab_size=300, report=lambda line: None)

    def written(directory: Path) -> list[bytes]:
        shards = [shard for split in ("train", "validation") for shard in Dataset(directory / "ids" / split).shards]
        tokens = b"".join(shard.tokens.tobytes() for shard in shards)
        return [tokens, b"".join(shard.documents.id.tobytes() for shard in shards)]

    assert written(settings.dir) == written(built.dir)


def test_killed_it_goes_on_to_the_same_bytes(built: DataSettings, tmp_path: Path) -> None:
    settings = built.model_copy(update={"dir": tmp_path / "data", "workers": 2})
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    script = tmp_path / "script.py"
    script.write_text(
        "import importlib, os, signal, sys\n"
        "from pathlib import Path\n"
        "from bigtrain.config.data_settings import DataSettings\n"
        "from bigtrain.data import build_datasets\n"
        "from bigtrain.data.build import build_source\n"
        "if __name__ == '__main__':\n"
        "    importlib.import_module('bigtrain.data.build.corpus.megatron').PIECE_BYTES = 10_000\n"
        "    real, left = build_source.ShardPair.write, [int(sys.argv[2])]\n"
        "    def write(pair, folder):\n"
        "        if left[0] == 0:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        left[0] -= 1\n"
        "        real(pair, folder)\n"
        "    build_source.ShardPair.write = write\n"
        "    settings = DataSettings.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "    build_datasets(settings, vocab_size=300, report=lambda line: None, on='inline')\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "settings.json")]
    assert subprocess.run([*command, "2"]).returncode == -9
    assert len(list((settings.dir / "ids").glob("progress-*.json"))) == 2
    subprocess.run([*command, "-1"], check=True)
    assert contents(settings.dir) == contents(built.dir)


def test_an_id_beyond_the_vocabulary_stops_with_file_document_and_id(tokenizer: Path, tmp_path: Path) -> None:
    pair = write_pair(tmp_path / "x", [[[1, 2]], [[3], [299, 300]]])
    with pytest.raises(BigtrainError, match=r"(?s)document 1 of x\.bin.*id 300 as token 2 of 3.*below 300"):
        build_datasets(settings_for(tmp_path / "data", tokenizer, pair), vocab_size=512, report=lambda line: None)


def test_a_pair_that_changed_after_the_build_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    pair = write_pair(tmp_path / "x", token_documents(tokenizer)[:50])
    settings = settings_for(tmp_path / "data", tokenizer, pair)
    build_datasets(settings, vocab_size=300, report=lambda line: None)
    os.utime(tmp_path / "x.idx", ns=(10**18, 10**18))
    with pytest.raises(BigtrainError, match="the corpus has changed"):
        build_datasets(settings, vocab_size=300, report=lambda line: None)


def test_without_their_tokenizer_or_with_rules_they_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"set tokenizer\.path to the tokenizer that made them"):
        data_settings(tmp_path, source("x"))
    with pytest.raises(ValidationError, match="remove clean"):
        source("x", clean=["c4"])
    assert json.loads(data_settings(tmp_path, source("x"), tokenizer={"path": "t"}).model_dump_json())

"""Whatever a file of a labelled source holds, it becomes documents or one message."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data import read_documents
from bigtrain.data.format.chat_template import ChatTemplate
from bigtrain.data.format.documents import Document
from tests.data.labelled import source_of
from tests.data.test_chat import CALLS, CHATML, PLAIN, TOOLS
from tests.data.test_labelled_sources import CONLL, GLUE_FILES, SUPER_GLUE_RECORDS, question, squad_file
from tests.hostile import mutate

TEXTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "glue cola": ("glue", {"task": "cola"}, GLUE_FILES["cola"][0]),
    "glue mrpc": ("glue", {"task": "mrpc", "on_null": "skip"}, GLUE_FILES["mrpc"][0]),
    "conll": ("conll", {}, CONLL),
    "csv": ("csv", {"label_field": "label"}, 'label,text\r\nyes,"two\nlines, ""quoted"""\r\nno,plain\r\n'),
}
"""Kinds of lines: kind, keys and a right file."""
RECORDS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "boolq": ("super_glue", {"task": "boolq"}, SUPER_GLUE_RECORDS["boolq"][0]),
    "wic": ("super_glue", {"task": "wic"}, SUPER_GLUE_RECORDS["wic"][0]),
    "classes": ("jsonl", {"label_field": "label", "text_pair_field": "b"}, {"text": "a", "b": "c", "label": 3}),
    "tags": ("jsonl", {"tokens_field": "w", "tags_field": "t"}, {"w": ["a", "b"], "t": ["X", "Y"]}),
    "spans": (
        "jsonl",
        {"spans_field": "s"},
        {"text": "one two three", "s": [{"start": 4, "end": 7, "label": "n"}, {"start": 0, "end": 3, "label": "m"}]},
    ),
    "messages": ("chat", {}, {"messages": CALLS, "tools": TOOLS}),
    "sharegpt": ("chat", {}, {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
}
"""Kinds of JSON lines: kind, keys and a right record."""


def whole(document: Document) -> None:
    """Check that spans lie in their texts, in order and without overlap, and that a text can be written."""
    for segment in document.segments:
        end = 0
        assert not segment.label or segment.label.encode()
        for span in segment.spans:
            assert span.label.encode()
            assert end <= span.start <= span.end <= len(segment.text) and span.label
            end = span.end
    assert document.content and document.file


def documents_or_one_message(source: SourceSettings) -> list[Document]:
    """The documents of a source, all of them whole; none where it is refused with a message."""
    found = []
    try:
        for document in read_documents(source):
            if not document.null and document.text:
                whole(document)
                found.append(document)
    except BigtrainError as error:
        assert str(error) and error.found is not None
    return found


@pytest.mark.parametrize("name", TEXTS)
@given(data=st.data())
def test_any_change_of_a_table_is_documents_or_a_message(name: str, data: Any) -> None:
    kind, keys, text = TEXTS[name]
    content = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        put = data.draw(st.sampled_from([b"\t", b"\n", b'"', b",", b"\r", b"\0", b"\xff", b"", b" ", b"x" * 50]))
        content[place : place + data.draw(st.integers(0, 3))] = put
    suffix = {"glue": ".tsv", "csv": ".csv"}.get(kind, "")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"file{suffix}")
        path.write_bytes(content)
        documents_or_one_message(source_of(kind, path, **keys))


@pytest.mark.parametrize("name", RECORDS)
@given(seed=st.integers(0, 2**32))
def test_any_change_of_a_record_is_documents_or_a_message(name: str, seed: int) -> None:
    """A conversation that is read is rendered by each template, or refused with a message."""
    kind, keys, record = RECORDS[name]
    changed = {"whole": json.loads(json.dumps(record))}
    mutate(changed, random.Random(seed))
    value = changed.get("whole", changed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.jsonl")
        path.write_text(json.dumps(value) + "\n")
        for document in documents_or_one_message(source_of(kind, path, **keys)):
            for template in (CHATML, PLAIN) if document.conversation is not None else ():
                assert document.conversation is not None
                try:
                    segment = ChatTemplate(template, {"bos_token": "<s>"}).render(document.conversation, "here")
                except BigtrainError:
                    continue
                assert segment.text.encode() and segment.spans


@given(seed=st.integers(0, 2**32))
def test_any_change_of_a_squad_file_is_documents_or_a_message(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = squad_file(Path(folder, "file.json"), question("When?", "late 1990s"), question("Why?"))
        value = {"whole": json.loads(path.read_text())}
        mutate(value, random.Random(seed))
        path.write_text(json.dumps(value.get("whole", value)))
        documents_or_one_message(source_of("squad", path))

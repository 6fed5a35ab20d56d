"""Promises of what reads others' JSON: a value of the type that is expected, or one message, in bounded time."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from bigtrain.base import STRICT, BigtrainError, as_record, parse_json, read_json, read_regular
from tests.refusals import assert_refused


@dataclass(frozen=True)
class Entry:
    __pydantic_config__ = STRICT
    size: Annotated[int, Field(ge=0, le=2**63)]


@dataclass(frozen=True)
class Listing:
    __pydantic_config__ = STRICT
    loss: float
    files: dict[str, Entry]
    steps: tuple[int, ...] = field(default_factory=tuple)


GOOD: dict[str, Any] = {"loss": 1, "files": {"a": {"size": 2}}, "steps": [1]}


def test_a_record_of_the_right_types_is_made():
    assert as_record(Listing, GOOD, "f") == Listing(1.0, {"a": Entry(2)}, (1,))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"loss": "1"}, "loss"),
        ({"loss": None}, "loss"),
        ({"files": {"a": {"size": 2.0}}}, "files.a.size"),
        ({"files": {"a": {"size": True}}}, "files.a.size"),
        ({"files": {"a": {"size": -1}}}, "files.a.size"),
        ({"files": {"a": {"size": 10**30}}}, "files.a.size"),
        ({"files": {"a": {"size": 1, "later": 1}}}, "files.a.later"),
        ({"files": []}, "files"),
        ({"steps": ["1"]}, "steps.0"),
        ({"\ud800": 1}, ""),
    ],
)
def test_a_wrong_field_is_named(change, field):
    with pytest.raises(BigtrainError) as refusal:
        as_record(Listing, {**GOOD, **change}, "/data/list.json")
    assert_refused(refusal, "/data/list.json", found=field)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_value_is_a_record_or_a_message(value):
    with pytest.raises(BigtrainError):
        as_record(Listing, value, "f")


@pytest.mark.parametrize(
    "text", [b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000, b"", b'{"a": ' * 100_000], ids=lambda text: str(text[:6])
)
def test_what_is_no_json_is_one_message(tmp_path, text):
    (tmp_path / "f.json").write_bytes(text)
    with pytest.raises(BigtrainError) as refusal:
        read_json(tmp_path / "f.json")
    assert_refused(refusal, str(tmp_path / "f.json"), wanted="JSON")


def test_a_pipe_and_a_folder_are_no_records(tmp_path):
    """A pipe without a writer would block whoever opens it."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(BigtrainError) as refusal:
            read_regular(tmp_path / path)
        assert_refused(refusal, str(path))


def test_a_file_that_is_too_long_is_not_read(tmp_path):
    with (tmp_path / "f").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BigtrainError) as refusal:
        read_regular(tmp_path / "f")
    assert_refused(refusal, found=str(1 << 40), wanted="at most")


@pytest.mark.parametrize("name", ["missing", "file/below"])
def test_a_missing_file_is_told_apart(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / name)


def test_texts_are_parsed_with_the_source_named():
    assert parse_json('{"a": [1, 2.5, null]}', "f") == {"a": [1, 2.5, None]}
    with pytest.raises(BigtrainError) as refusal:
        parse_json("nonsense", "https://host/answer")
    assert_refused(refusal, "https://host/answer")

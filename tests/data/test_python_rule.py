"""A rule of the user's own: its code is part of what the data are, and its failures name the document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from bigtrain.base.errors import BigtrainError
from bigtrain.config.cleaning import CleanStep
from bigtrain.config.data_settings import DataSettings
from bigtrain.data.build.clean import Rejection, clean, pinned
from bigtrain.data.build.clean.python_function import _opened
from bigtrain.data.build.funnel import read_funnels
from tests.data.helpers import data_settings, jsonl_source, make, sentences, write_jsonl
from tests.refusals import assert_refused

MODULE = """
def keep(text):
    if "3." in text:
        return None, "magic"
    if len(text) < 80:
        return None
    return text.upper() if "tea" in text else text

def fail(text):
    if "3." in text:
        raise ZeroDivisionError("no wizard divides")
    return text

def number(text):
    return len(text)

def half(text):
    return "\\ud800" + text

def long_reason(text):
    return None, text * 100

constant = 3
"""


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `own` with a module of rules in the current folder, which is not on Python's path."""
    package = tmp_path / "own"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rules.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield package / "rules.py"
    sys.path[:] = path
    for name in ("own", "own.rules"):
        sys.modules.pop(name, None)
    _opened.cache_clear()


def step(function: str, **changes: str) -> CleanStep:
    return CleanStep.model_validate({"python": {"function": f"own.rules:{function}", **changes}})


def settings_for(folder: Path, function: str) -> DataSettings:
    path = write_jsonl(folder / "x.jsonl", sentences(60, seed=1))
    source = jsonl_source(path, clean=[{"python": {"function": f"own.rules:{function}"}}])
    return data_settings(folder / "data", source, workers=2)


def test_a_function_keeps_rewrites_and_removes(rules: Path) -> None:
    own = pinned([step("keep")])
    long = "a fox and a dog " * 8
    assert clean(long, own) == long
    assert clean(long + "tea", own) == long.upper() + "TEA"
    assert clean("short", own) == Rejection("python", "own.rules:keep")
    assert clean("13.", own) == Rejection("python", "own.rules:keep: magic")


def test_its_source_is_part_of_the_data(rules: Path) -> None:
    """Worker processes import it from the current folder; other code over finished data is refused."""
    settings = settings_for(rules.parents[1], "keep")
    make(settings)
    funnel = read_funnels(settings.dir)["lines"]
    assert {removal.reason for removal in funnel.removed} >= {"own.rules:keep: magic"}
    record = json.loads((settings.dir / "lines" / "build.json").read_text())
    make(settings)
    rules.write_text(MODULE + "# a comment\n")
    with pytest.raises(BigtrainError) as raised:
        make(settings)
    assert_refused(raised, "was built with another clean.0.python", found=record["rule_files"]["clean.0.python"])


def test_its_failure_names_the_document_and_the_function(rules: Path) -> None:
    """Also from a worker process. The first document with the word is the one that is named."""
    settings = settings_for(rules.parents[1], "fail")
    first = next(i for i, text in enumerate(sentences(60, seed=1)) if "3." in text)
    with pytest.raises(BigtrainError) as raised:
        make(settings)
    where = f"own.rules:fail failed at document {first} of x.jsonl"
    assert_refused(raised, where, found="ZeroDivisionError: no wizard divides", fix="correct the function")


@pytest.mark.parametrize(
    ("function", "found"),
    [("number", "int: 4"), ("half", "str: '\\ud800text'"), ("long_reason", "tuple: (None, 'text")],
)
def test_another_result_than_a_text_is_refused(rules: Path, function: str, found: str) -> None:
    with pytest.raises(BigtrainError) as raised:
        clean("text", pinned([step(function)]))
    assert_refused(raised, "returned something else", found=found)


@pytest.mark.parametrize(
    ("function", "what", "found"),
    [
        ("own.rules:nothing", "finds no function nothing", "nothing of this name"),
        ("own.rules:constant", "finds no function constant", "int"),
        ("own.other:keep", "cannot import own.other", "ModuleNotFoundError"),
        ("sys:intern", "cannot hash the module", "without a file"),
    ],
)
def test_a_function_that_is_not_there_stops_before_the_build(rules: Path, function: str, what: str, found: str) -> None:
    with pytest.raises(BigtrainError) as raised:
        pinned([CleanStep.model_validate({"python": {"function": function}})])
    assert_refused(raised, what, found=found)


def test_a_hash_holds_it_to_one_source(rules: Path) -> None:
    (own,) = pinned([step("keep")])
    assert own.python is not None and own.python.hash is not None
    assert pinned([step("keep", hash=own.python.hash)]) == (own,)
    with pytest.raises(BigtrainError) as raised:
        pinned([step("keep", hash="0" * 32)])
    assert_refused(raised, "finds another content", wanted="0" * 32)
    rules.write_text(MODULE + "\n")
    with pytest.raises(BigtrainError) as raised:
        clean("text", [own])
    assert_refused(raised, "finds another content", wanted=own.python.hash)


@pytest.mark.parametrize("name", ["rules", "rules.keep", ":keep", "a b:c", "rules:keep()", "../rules:keep"])
def test_what_is_no_name_of_a_function_is_refused_in_the_settings(name: str) -> None:
    with pytest.raises(ValidationError):
        CleanStep.model_validate({"python": {"function": name}})

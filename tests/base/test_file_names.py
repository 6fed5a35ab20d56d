"""Promises of bare_name: a name from a manifest or a listing is that of a file in one folder, or it is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.base.file_names import bare_name

TEXTS = st.text() | st.text(alphabet=["/", "\\", "\0", ".", "a", "~", " ", "\n", "\ud800"], max_size=8)


def is_bare(name: str) -> bool:
    """The same question, answered without a pattern."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name not in ("", ".", "..") and not any(sign in name for sign in "/\\\0")


def is_taken(name: object) -> bool:
    try:
        return bare_name(name, "x/manifest.json") is name
    except BigtrainError:
        return False


@settings(max_examples=500)
@given(TEXTS)
def test_a_name_is_taken_as_it_is_or_refused(name: str) -> None:
    assert is_taken(name) == is_bare(name)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40) | TEXTS.filter(is_bare))
def test_a_name_that_is_taken_makes_a_file_of_its_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """On a real file system, for any text: nothing is created beside the folder."""
    outer = tmp_path_factory.mktemp("outer")
    folder = outer / "folder"
    folder.mkdir()
    if is_taken(name):
        (folder / name).write_bytes(b"")
        assert [path.name for path in folder.iterdir()] == [name]
    assert [path.name for path in outer.iterdir()] == ["folder"]


@given(TEXTS.map(lambda rest: f"../{rest}") | TEXTS.map(lambda rest: f"/{rest}") | TEXTS.map(lambda rest: f"a\0{rest}"))
def test_what_leads_elsewhere_is_never_taken(name: str) -> None:
    assert not is_taken(name)


@pytest.mark.parametrize("value", [None, 3, 0.5, True, b"a", ["a"], {"a": 1}])
def test_what_is_no_text_is_no_name(value: object) -> None:
    assert not is_taken(value)


def test_the_error_has_the_four_parts() -> None:
    with pytest.raises(BigtrainError) as raised:
        bare_name("../\x1b[2J" + 1000 * "x", "data/manifest.json")
    error = raised.value
    assert error.what.startswith("data/manifest.json ") and "bare name" in str(error.wanted) and error.fix
    assert str(error.found).startswith(r"'../\x1b[2Jxxx"), "control characters are shown, not sent to the terminal"
    assert len(str(error)) < 600

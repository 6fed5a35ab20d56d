"""Runs, data and models that an earlier version has written are read as they were. See README.md."""

from __future__ import annotations

import json

import pytest

from tests.golden.before import EXPECTED, QUESTIONS, ask
from tests.golden.record import differences, tolerance_of


@pytest.fixture(scope="module")
def expected():
    return json.loads(EXPECTED.read_text())


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_an_earlier_version_wrote_gives_its_answers(question, expected, start, tmp_path):
    """A run goes on to the same bits, and every command that reads it says the same."""
    found = ask(question, tmp_path, start)
    assert not list(differences(expected["answers"][question], found, tolerance_of(expected)))

"""What the tests of builds share."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest

# By name, for their package holds functions of the same names.
READERS = [importlib.import_module(f"bigtrain.data.build.corpus.{name}") for name in ("corpus", "jsonl", "rows")]


@pytest.fixture(scope="module")
def small_pieces() -> Iterator[None]:
    """Pieces of 20 kB in this process, so that small corpora have many."""
    with pytest.MonkeyPatch.context() as patch:
        for module in READERS:
            patch.setattr(module, "PIECE_BYTES", 20_000)
        yield

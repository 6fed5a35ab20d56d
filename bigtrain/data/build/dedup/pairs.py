"""Pairs of documents that are duplicates of each other, in files of which the tasks of a shuffle read ranges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from bigtrain.data.build.dedup.sorted_tables import SortedTables, Table, table_of

Pairs = Table
"""[pairs] with the columns `document` and `earlier`, numbers over all sources; earlier < document."""

PAIRS = "pairs"
EARLIER_OF = "pairs by the earlier"
"""The table of the same pairs, sorted by the earlier document."""


def pairs_of(documents: npt.ArrayLike, earlier: npt.ArrayLike) -> Pairs:
    """Pairs of documents, each with an earlier one, in this order."""
    return table_of(("document", "<u8", documents), ("earlier", "<u8", earlier))


def tables_of_pairs(pairs: Pairs) -> dict[str, Table]:
    """The two tables of distinct pairs, which are sorted."""
    order = np.argsort(pairs["earlier"], kind="stable")
    columns = (("earlier", "<u8", pairs["earlier"][order]), ("document", "<u8", pairs["document"][order]))
    return {PAIRS: pairs, EARLIER_OF: table_of(*columns)}


def distinct(table: Table) -> Table:
    """The different rows of a table, sorted by its columns in their order."""
    columns = [np.ascontiguousarray(table[name]) for name in table.dtype.names or ()]
    order = np.lexsort(columns[::-1])
    return table[order[is_new([column[order] for column in columns])]]


def is_new(columns: Sequence[npt.NDArray[np.uint64]]) -> npt.NDArray[np.bool_]:
    """[rows], whether each row of sorted columns differs from the one before it."""
    new = np.ones(len(columns[0]), np.bool_)
    new[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return new


def pairs_between(files: Iterable[SortedTables], table: str, low: int, high: int) -> Pairs:
    """The distinct pairs of a table of all files whose first column is in [low, high), sorted."""
    return distinct(np.concatenate([file.between(table, low, high) for file in files]))

"""Connected components of documents, as tasks over ranges of documents: each ends up paired with the first of its own.

The state is a set of pairs of a document and an earlier one. A round of hooking and pointer jumping (Shiloach and
Vishkin 1982), in the form that shuffles pairs alone (the small and large stars of Kiveris et al. 2014):

    jump    (v, u)         -->  (v, first of u)            u's first is its earliest partner, or u itself
    hook    (v, u) (v, w)  -->  (v, first) (w, first)      v is paired with its earliest alone, and so are its others

Both keep the components. A chain of n documents takes about log2 n rounds. In the end every document is paired with the
first of its component, and with no other: a star forest, which jumping leaves as it is.

A file has its pairs twice, sorted by either document, so that a task reads the pairs that it needs as ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

from bigtrain.data.build.dedup.numbering import Documents
from bigtrain.data.build.dedup.pairs import (
    EARLIER_OF,
    PAIRS,
    Pairs,
    distinct,
    is_new,
    pairs_between,
    pairs_of,
    tables_of_pairs,
)
from bigtrain.data.build.dedup.sorted_tables import About, FileSeries, Table
from bigtrain.data.build.execute import BuildExecutor


@dataclass(frozen=True)
class StepOfRound:
    """One step of a round; it is pickled for the workers."""

    files: FileSeries
    """A file for each part."""
    before: FileSeries
    """The files of the step before it."""
    documents: int
    """All documents: a part is an equal range of them."""

    def range_of(self, part: int) -> tuple[int, int]:
        """The documents [low, high) of a part."""
        return self.documents * part // self.files.count, self.documents * (part + 1) // self.files.count


class JumpPairs(StepOfRound):
    """Pairs each document with the first of its partner. A part has the pairs whose partner is in its range."""

    def __call__(self, part: int) -> int:
        """Make the file of a part, unless it is there. Returns how many pairs were not as those of a star forest."""
        unsettled: int = self.files.make(part, lambda: self._jump(*self.range_of(part)))["unsettled"]
        return unsettled

    def _jump(self, low: int, high: int) -> tuple[dict[str, Table], About]:
        own = pairs_between(self.before, PAIRS, low, high)
        starts = _starts(own)
        documents, firsts = own["document"][starts], own["earlier"][starts]
        pairs = pairs_between(self.before, EARLIER_OF, low, high)
        jumped = _looked_up(pairs["earlier"], documents, firsts)
        unsettled = len(own) - len(starts) + int(np.count_nonzero(jumped != pairs["earlier"]))
        return {PAIRS: distinct(pairs_of(pairs["document"], jumped))}, {"unsettled": unsettled}


class HookPairs(StepOfRound):
    """Pairs each document, and all that it was paired with, with the earliest. A part has a range of documents."""

    def __call__(self, part: int) -> None:
        """Make the file of a part, unless it is there."""
        self.files.make(part, lambda: self._hook(*self.range_of(part)))

    def _hook(self, low: int, high: int) -> tuple[dict[str, Table], About]:
        pairs = pairs_between(self.before, PAIRS, low, high)
        starts = _starts(pairs)
        first = np.repeat(pairs["earlier"][starts], np.diff(np.append(starts, len(pairs))))
        others = pairs["earlier"] != first
        documents = np.concatenate((pairs["document"][starts], pairs["earlier"][others]))
        hooked = pairs_of(documents, np.concatenate((pairs["earlier"][starts], first[others])))
        return tables_of_pairs(distinct(hooked)), {}


def star_forest(pairs: FileSeries, where: str, *, documents: int, parts: int, executor: BuildExecutor) -> StepOfRound:
    """Pair each document that is not the first of its component with the first.

    Args:
        pairs: the files of the pairs that join documents.
        where: the start of the names of the files that are made in the same folder.
        documents: all documents.
        parts: tasks of a step. It does not change the result.
        executor: runs the tasks.

    Returns:
        The last step. A part of it has the pairs of its range of documents.
    """
    for number in count():
        jump = JumpPairs(FileSeries(pairs.folder, f"{where}/jump-{number:02d}-of-{parts}", parts), pairs, documents)
        unsettled = sum(executor.map_in_order(jump, range(parts)))
        hook = HookPairs(
            FileSeries(pairs.folder, f"{where}/hook-{number:02d}-of-{parts}", parts), jump.files, documents
        )
        for _ in executor.map_in_order(hook, range(parts)):
            pass
        if not unsettled:
            break
        pairs = hook.files
    return hook


def _starts(pairs: Pairs) -> npt.NDArray[np.intp]:
    """Where the pairs of each document start, in sorted pairs; the first of these has the earliest partner."""
    return np.flatnonzero(is_new([pairs["document"]]))


def _looked_up(values: Documents, known: Documents, firsts: Documents) -> Documents:
    """The first of each value that is known, and each other value as it is. `known` is sorted."""
    if not len(known):
        return values
    place = np.minimum(known.searchsorted(values), len(known) - 1)
    return np.where(known[place] == values, firsts[place], values)

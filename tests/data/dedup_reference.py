"""Deduplication of documents whose keys are given: as a plain search in one process, and as the shuffle of a build."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bigtrain.data.build.dedup.components import star_forest
from bigtrain.data.build.dedup.document_keys import ORIGINS, SourceKeys, tables_of_keys
from bigtrain.data.build.dedup.marks import MARKS
from bigtrain.data.build.dedup.pairs import PAIRS, distinct, pairs_of, tables_of_pairs
from bigtrain.data.build.dedup.search import DuplicateSearch, MarkedSource
from bigtrain.data.build.dedup.sorted_tables import FileSeries, encode, table_of
from bigtrain.data.build.execute import Inline
from bigtrain.data.build.selection import DuplicateMark
from bigtrain.data.format.work_folder import WorkFolder

Keys = npt.NDArray[np.uint64]
"""[documents, parts]: the key of each document, in parts of 64 bits. Zeros mean no key."""


Group = tuple[Keys, Keys]
"""Keys of the texts [documents, 2], and of the bands [documents, bands], of a group of pieces."""


def write_keys(folder: WorkFolder, source: str, groups: Sequence[Group]) -> SourceKeys:
    """The files of a source whose documents have these keys. Document n of group g is at position n of file `g`."""
    keys = SourceKeys(folder, source, f"{source}/made")
    for index, (hashes, bands) in enumerate(groups):
        runs = json.dumps([[str(index), 0, len(hashes)]] if len(hashes) else []).encode() + b"\n"
        origins = table_of(("byte", "u1", np.frombuffer(runs, np.uint8)))
        tables = tables_of_keys(hashes, bands) | {ORIGINS: origins}
        folder.write(keys.group_name(index), encode(tables, {"pieces": [len(hashes)]}), durable=False)
    folder.write(keys.record_name, encode({}, {"documents": [len(hashes) for hashes, _ in groups]}))
    return keys


@dataclass(frozen=True)
class Searched:
    """What the shuffle found."""

    marks: list[int]
    sources: list[MarkedSource]


def searched(folder: Path, sources: Sequence[Sequence[Group]], bands: int, **limits: int) -> Searched:
    """The marks of all documents of these sources, by the shuffle, with its files in a folder."""
    work = WorkFolder.at(folder)
    keys = [write_keys(work, f"s{number}", groups) for number, groups in enumerate(sources)]
    search = DuplicateSearch(work, keys, bands)
    with Inline() as executor:
        found = search.run(executor, **limits)
    files = [file for source in range(len(keys)) for file in search.marks_of(found, source)]
    return Searched([mark for file in files for mark in file.rows(MARKS)["mark"].tolist()], found)


def shuffled_firsts(folder: Path, batches: Sequence[Sequence[tuple[int, int]]], count: int, parts: int) -> list[int]:
    """The first member of each one's component, by the shuffle. Each batch of pairs is a file."""
    files = FileSeries(WorkFolder.at(folder), "pairs", max(1, len(batches)))
    for index in range(files.count):
        pairs = np.array(batches[index] if index < len(batches) else [], np.int64).reshape(-1, 2)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        tables = tables_of_pairs(distinct(pairs_of(pairs.max(axis=1, initial=0), pairs.min(axis=1, initial=count))))
        files.folder.write(files.name(index), encode(tables, {}), durable=False)
    with Inline() as executor:
        step = star_forest(files, "job", documents=count, parts=parts, executor=executor)
    found = list(range(count))
    for file in step.files:
        for document, first in file.rows(PAIRS).tolist():
            found[document] = first
    return found


@dataclass(frozen=True)
class Reference:
    """For each document of all sources: its mark, and the document that is kept instead of it, or itself."""

    marks: list[int]
    kept: list[int]


def reference(hashes: Keys, bands: Keys | None = None) -> Reference:
    """The duplicates of documents with these keys.

    Args:
        hashes: [documents, 2]. Zeros if the filters remove the document.
        bands: near: [documents, bands]. Documents with an equal key of a band are connected.
    """
    exact = _firsts(hashes)
    parents = exact.copy()
    for band in () if bands is None else bands.T:
        for document, first in enumerate(_firsts(band[:, None]).tolist()):
            one, other = _root(parents, document), _root(parents, first)
            parents[max(one, other)] = min(one, other)
    kept = [_root(parents, document) for document in range(len(hashes))]
    marks = [
        int(DuplicateMark.EXACT if exact[n] != n else DuplicateMark.NEAR if kept[n] != n else DuplicateMark.KEPT)
        for n in range(len(hashes))
    ]
    return Reference(marks, kept)


def _firsts(keys: Keys) -> npt.NDArray[np.int64]:
    """The first document with the key of each one; itself where it has none."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(key.tobytes(), n) if key.any() else n for n, key in enumerate(keys)], np.int64)


def _root(parents: npt.NDArray[np.int64], document: int) -> int:
    while parents[document] != document:
        document = int(parents[document])
    return document


def firsts(pairs: Sequence[tuple[int, int]], count: int) -> list[int]:
    """The first member of each one's component, by a plain search."""
    neighbours: dict[int, set[int]] = {i: {i} for i in range(count)}
    for a, b in pairs:
        neighbours[a].add(b)
        neighbours[b].add(a)
    first = [-1] * count
    for start in range(count):
        todo = [start] if first[start] < 0 else []
        while todo:
            here = todo.pop()
            if first[here] < 0:
                first[here] = start
                todo += neighbours[here]
    return first

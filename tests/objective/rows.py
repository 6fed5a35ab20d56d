"""Rows of tokens for tests of objectives, without data on a disk."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.objective import ObjectiveVocabulary, PreparedRows, TokenRows
from bigtrain.objective.randomness import U64

VOCABULARY = 50
SPECIAL = {"<|endoftext|>": 0, "[MASK]": 1, "<fim_prefix>": 2, "<fim_suffix>": 3, "<fim_middle>": 4}
FIRST = len(SPECIAL)
"""The first ordinary token."""
START, SENTINELS = VOCABULARY, [VOCABULARY + 1 + number for number in range(12)]
"""What decoders start with, and what stands for spans."""
STOP = 49
"""What ends a sentence."""
FURTHER = {"<pad>": START} | {f"<extra_id_{number}>": token for number, token in enumerate(SENTINELS)}


def vocabulary() -> ObjectiveVocabulary:
    """Fifty tokens, the first five of them special, and special ones after them; every third one begins a word."""
    tokens = np.arange(VOCABULARY + len(FURTHER))
    ordinary = (tokens >= FIRST) & (tokens < VOCABULARY)
    ends_sentence = tokens == STOP
    return ObjectiveVocabulary(SPECIAL | FURTHER, ordinary, tokens % 3 == 0, end_of_text=0, ends_sentence=ends_sentence)


def rows_of(documents: list[list[list[int]]], length: int) -> TokenRows:
    """Rows from the documents of each, which fill it or are followed by padding."""
    ids = np.zeros((len(documents), length), np.int32)
    following, positions = np.full_like(ids, IGNORE_INDEX), np.zeros_like(ids)
    boundaries, tokens = [], []
    for row, parts in enumerate(documents):
        at = 0
        for part in [*parts, [0] * (length - sum(map(len, parts)))]:
            if not part:
                continue
            boundaries.append(row * length + at)
            ids[row, at : at + len(part)] = part
            positions[row, at : at + len(part)] = range(len(part))
            if at + len(part) <= sum(map(len, parts)):
                following[row, at : at + len(part) - 1] = part[1:]
            at += len(part)
        tokens.append(sum(map(len, parts)))
    return TokenRows(
        ids,
        following,
        positions,
        np.array([*boundaries, ids.size]),
        (following != IGNORE_INDEX).sum(axis=1),
        np.array(tokens),
    )


def some_rows(seed: int, count: int, length: int) -> list[list[list[int]]]:
    """The documents of rows of random tokens; some rows are not full."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        left, parts = int(random.integers(1, length + 1)), []
        while left:
            size = int(random.integers(1, left + 1))
            parts.append([*random.integers(FIRST, VOCABULARY, size - 1).tolist(), 0])
            left -= size
        found.append(parts)
    return found


def keys_of(seed: int, count: int) -> U64:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)


def row(prepared: PreparedRows, number: int) -> list[list[int]]:
    """What a model is given of one row."""
    arrays = [prepared.input_ids, prepared.labels, prepared.positions, *prepared.others.values()]
    if prepared.encoder is not None:
        arrays += [prepared.encoder.input_ids, prepared.encoder.positions]
    return [array[number].tolist() for array in arrays] + [
        [int(prepared.label_tokens[number]), int(prepared.input_tokens[number])]
    ]


def documents(array: np.ndarray, boundaries: np.ndarray) -> list[list[list[int]]]:
    """Of each row [R, T] its documents, padding included."""
    length = array.shape[1]
    found: list[list[list[int]]] = [[] for _ in array]
    for first, end in pairwise(boundaries.tolist()):
        found[first // length].append(array.reshape(-1)[first:end].tolist())
    return found


shapes = st.tuples(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 40))

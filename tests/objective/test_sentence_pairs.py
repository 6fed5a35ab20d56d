"""Promises of pairs of segments: how they are joined, which label they have, and that labels are balanced."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.config import ObjectiveSettings
from bigtrain.objective import Masked, PreparedRows, SentencePairs, TokenRows, make_objective
from tests.objective.rows import FIRST, keys_of, row, rows_of, vocabulary

CLS, SEP, LENGTH = 900, 901, 24
pairs = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 11), st.booleans()), min_size=1, max_size=6)


def rows_with(shapes: list[tuple[int, int, bool]]) -> TokenRows:
    """Rows of segments of so many tokens; whether the second one follows the first. Each token is its own number."""
    tokens = iter(range(FIRST, 10_000))
    documents = [[[next(tokens) for _ in range(size)] for size in (one, other) if size] for one, other, _ in shapes]
    rows = rows_of(documents, LENGTH)
    follows = np.zeros(len(rows.boundaries) - 1, np.bool_)
    for number, (one, other, continues) in enumerate(shapes):
        if one and other:
            follows[np.searchsorted(rows.boundaries, number * LENGTH + one)] = continues
    return replace(rows, follows=follows)


@given(pairs, st.booleans(), st.integers(0, 2**32))
def test_a_pair_is_two_segments_between_special_tokens(
    shapes: list[tuple[int, int, bool]], orders: bool, seed: int
) -> None:
    """[CLS] first [SEP] second [SEP], token types 0 and 1, one document and padding; the label at [CLS] says whether
    they follow each other in this order."""
    rows = rows_with(shapes)
    found = SentencePairs(CLS, SEP, orders).joined(rows, keys_of(seed, len(shapes)))
    for number, (one, other, follows) in enumerate(shapes):
        data = rows.input_ids[number].tolist()
        first, second = data[:one], data[one : one + other]
        if not one:
            first, second = second, []
        swapped = found.rows.input_ids[number, 1] != data[0]
        assert not swapped or (orders and second and follows)
        if swapped:
            first, second = second, first
        wanted = [CLS, *first, SEP, *([*second, SEP] if second else [])] if first else []
        assert found.rows.input_ids[number].tolist() == wanted + [0] * (LENGTH - len(wanted))
        types = [0] * (len(first) + 2) + [1] * (len(second) + 1) if second else []
        assert found.token_type_ids[number].tolist() == types + [0] * (LENGTH - len(types))
        places = [*range(len(wanted)), *range(LENGTH - len(wanted))]
        assert found.rows.positions[number].tolist() == places
        label = IGNORE_INDEX
        if second:
            label = (int(swapped) if follows else IGNORE_INDEX) if orders else int(not follows)
        assert found.example_labels[number].tolist() == [label] + [IGNORE_INDEX] * (LENGTH - 1)
    starts = set(found.rows.boundaries.tolist())
    assert starts >= set(range(0, LENGTH * len(shapes) + 1, LENGTH))
    padded = [0 < one + other + 2 + bool(one and other) < LENGTH for one, other, _ in shapes if one + other]
    assert len(starts) == len(shapes) + 1 + sum(padded)


def objective(task: str) -> Masked:
    settings = ObjectiveSettings(name="masked", sentence_task=task, mask_rate=0.3)
    known = vocabulary()
    special = {**known.special, "[CLS]": CLS, "[SEP]": SEP}
    ordinary = np.zeros(10_000, np.bool_)
    ordinary[FIRST:800] = True
    made = make_objective(settings, replace(known, special=special, ordinary=ordinary))
    assert isinstance(made, Masked)
    return made


@pytest.mark.parametrize("task", ["next_sentence", "sentence_order"])
@given(shapes=pairs, seed=st.integers(0, 2**32))
def test_a_row_becomes_the_same_alone_and_in_any_order(
    task: str, shapes: list[tuple[int, int, bool]], seed: int
) -> None:
    made, rows, keys = objective(task), rows_with(shapes), keys_of(seed, len(shapes))
    together = made.prepare(rows, keys)
    order = np.random.default_rng(seed).permutation(len(shapes))
    for numbers in ([int(number)] for number in order):
        own = made.prepare(_subset(rows, shapes, numbers), keys[numbers])
        assert row(own, 0) == row(together, numbers[0])
        assert own.label_examples is not None and together.label_examples is not None
        assert own.label_examples[0] == together.label_examples[numbers[0]]


def _subset(rows: TokenRows, shapes: list[tuple[int, int, bool]], numbers: list[int]) -> TokenRows:
    """Some rows, with the tokens that they have among all."""
    alone = rows_with([shapes[number] for number in numbers])
    return replace(alone, input_ids=rows.input_ids[numbers].copy())


def test_half_of_the_ordered_pairs_are_the_other_way_round() -> None:
    shapes = [(5, 6, True)] * 20_000
    found = objective("sentence_order").prepare(rows_with(shapes[:500]), keys_of(1, 500))
    labels = [found.others["example_labels"][:, 0]]
    for seed in range(2, 41):
        own = objective("sentence_order").prepare(rows_with(shapes[:500]), keys_of(seed, 500))
        labels.append(own.others["example_labels"][:, 0])
    drawn = np.concatenate(labels)
    assert stats.binomtest(int(drawn.sum()), len(drawn), 0.5).pvalue > 1e-6


def test_a_withheld_part_is_not_masked_and_its_pair_has_no_label() -> None:
    """The tokens of a document in data.skip are neither hidden nor asked about, wherever the pair has them."""
    for task, seed in (("sentence_order", 3), ("next_sentence", 4)):
        rows = rows_with([(8, 9, True)] * 200)
        kept = rows.input_ids[:, :8].copy()
        for number in range(0, 200, 2):
            rows.withhold(number, 0, 8)
        found: PreparedRows = objective(task).prepare(rows, keys_of(seed, 200))
        hidden = found.labels != IGNORE_INDEX
        for number in range(200):
            labelled = set(found.labels[number][hidden[number]].tolist())
            assert number % 2 or not labelled & set(kept[number].tolist())
            assert (found.others["example_labels"][number, 0] == IGNORE_INDEX) == (number % 2 == 0)
            assert hidden[1::2].any()

"""Promises of fill in the middle: the transformed form has the whole text, and rates are exact."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.config import ObjectiveSettings
from bigtrain.objective import ObjectiveVocabulary, PreparedRows, TokenRows, make_objective
from bigtrain.objective.objective import FIM_TOKENS
from tests.objective.rows import VOCABULARY, keys_of, rows_of, shapes, some_rows, vocabulary

PREFIX, SUFFIX, MIDDLE, END = 2, 3, 4, 0


def prepared(rows: TokenRows, seed: int = 5, **fim: object) -> PreparedRows:
    objective = make_objective(ObjectiveSettings(name="fill_in_the_middle", **fim), vocabulary())
    return objective.prepare(rows, keys_of(seed, len(rows.input_ids)))


def parts(rows: TokenRows, array: np.ndarray) -> list[list[int]]:
    bounds = rows.boundaries.tolist()
    return [array.reshape(-1)[a:b].tolist() for a, b in pairwise(bounds)]


def text_of(part: list[int]) -> tuple[str, list[int]]:
    """The form of a transformed part, and the text that it was made of."""
    assert part[0] == PREFIX and part[-1] == END
    suffix, middle = part.index(SUFFIX), part.index(MIDDLE)
    if suffix == 1:
        return "either", part[middle + 1 : -1] + part[suffix + 1 : middle]
    return "PSM", part[1:suffix] + part[middle + 1 : -1] + part[suffix + 1 : middle]


@settings(max_examples=80, deadline=None)
@given(shapes)
@pytest.mark.parametrize("spm_rate", [0.0, 1.0])
def test_the_text_is_that_of_the_document_in_another_order(spm_rate: float, shape: tuple[int, int, int]) -> None:
    seed, count, length = shape
    rows = rows_of(some_rows(seed, count, length), length)
    found = prepared(rows, fim_rate=1.0, fim_spm_rate=spm_rate)
    for before, after, labels in zip(
        parts(rows, rows.input_ids), parts(rows, found.input_ids), parts(rows, found.labels), strict=True
    ):
        text = before[:-1] if before[-1] == END else before
        if after[0] != PREFIX:
            assert after == before and (len(text) < 8 + 4 or not any(text))  # too short, or padding
            continue
        form, put_together = text_of(after)
        assert spm_rate == 0.0 or form == "either"
        assert put_together == text[: len(put_together)] and len(text) - len(put_together) in (3, 4)
        assert labels == [*after[1:], IGNORE_INDEX]


def test_a_document_that_is_not_chosen_stays_as_it_is() -> None:
    rows = rows_of(some_rows(1, 300, 60), 60)
    found = prepared(rows)
    pairs = zip(parts(rows, rows.input_ids), parts(rows, found.input_ids), strict=True)
    assert all(after in (before, after) and len(before) == len(after) for before, after in pairs)
    unchanged = (rows.input_ids == found.input_ids).all(axis=1)
    assert unchanged.any()
    assert (found.labels[unchanged] == rows.next_ids[unchanged]).all()


@pytest.mark.parametrize(("rate", "spm_rate"), [(0.5, 0.5), (0.9, 0.1)])
def test_rates_are_within_exact_binomial_bounds(rate: float, spm_rate: float) -> None:
    random = np.random.default_rng(2)
    rows = rows_of([[[*random.integers(5, VOCABULARY, 399).tolist(), END]] for _ in range(3000)], 400)
    found = prepared(rows, fim_rate=rate, fim_spm_rate=spm_rate)
    moved = found.input_ids[found.input_ids[:, 0] == PREFIX]
    assert stats.binomtest(len(moved), 3000, rate).pvalue > 1e-6
    # An empty prefix, one in 397, cannot be known from the other form.
    spm = int((moved[:, 1] == SUFFIX).sum())
    assert stats.binomtest(spm, len(moved), spm_rate + (1 - spm_rate) * 2 / 398).pvalue > 1e-6


def test_cuts_are_uniform_over_the_text() -> None:
    random = np.random.default_rng(3)
    rows = rows_of([[[*random.integers(5, VOCABULARY, 43).tolist(), END]] for _ in range(4000)], 44)
    found = prepared(rows, fim_rate=1.0, fim_spm_rate=0.0)
    prefixes = np.array([part.index(SUFFIX) - 1 for part in found.input_ids.tolist()])
    suffixes = np.array([part.index(MIDDLE) - part.index(SUFFIX) - 1 for part in found.input_ids.tolist()])
    text = 40
    lower = np.array([2 * (text - place) + 1 for place in range(text + 1)]) / (text + 1) ** 2  # of two uniform cuts
    for sizes in (prefixes, suffixes):
        assert stats.chisquare(np.bincount(sizes, minlength=text + 1), lower * len(sizes)).pvalue > 1e-6


def test_what_documents_begin_with_stays_in_front() -> None:
    rows = rows_of([[[7, *range(10, 40), END]]] * 20, 40)
    plain = vocabulary()
    begins = ObjectiveVocabulary(plain.special, plain.ordinary, plain.begins_word, 0, (7,))
    objective = make_objective(ObjectiveSettings(name="fill_in_the_middle", fim_rate=1.0), begins)
    found = objective.prepare(rows, keys_of(6, 20))
    assert (found.input_ids[:, 0] == 7).all() and (found.input_ids[:, 1] == PREFIX).all()


@pytest.mark.parametrize("family", FIM_TOKENS)
def test_the_sentinels_of_every_family_are_found_by_name(family: str) -> None:
    names = FIM_TOKENS[family]
    special = {"<|endoftext|>": 0} | {name: 1 + number for number, name in enumerate(names)}
    own = ObjectiveVocabulary(special, np.arange(50) >= len(special), np.ones(50, np.bool_), 0)
    settings = ObjectiveSettings(name="fill_in_the_middle", fim_tokens=family, fim_rate=1.0, fim_spm_rate=0.0)
    found = make_objective(settings, own).prepare(rows_of([[[*range(10, 40), END]]], 31), keys_of(1, 1))
    ids = found.input_ids[0].tolist()
    assert [ids.index(special[name]) for name in names[:3]] == sorted(ids.index(special[name]) for name in names[:3])
    assert ids[-1] == special[names[3]] if len(names) > 3 else ids[-1] == END

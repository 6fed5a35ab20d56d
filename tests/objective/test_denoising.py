"""Promises of denoising: the decoder has the whole document, and each noise of the encoder its exact distribution."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.config import ObjectiveSettings
from bigtrain.objective import Denoising, PreparedRows, TokenRows, make_objective
from bigtrain.objective.denoising import _BUDGET, _GAPS, _LENGTHS
from bigtrain.objective.randomness import numbers_at
from bigtrain.objective.subsets import DrawnParts
from tests.objective.rows import FIRST, START, STOP, documents, keys_of, rows_of, shapes, some_rows, vocabulary
from tests.objective.test_subsets import one_subset

END, MASK = 0, 1
CERTAIN = 1e-6
NO_NOISE = {"infilling_rate": 0.0, "sentence_permutation_rate": 0.0}
EVERY_NOISE = {"token_masking_rate": 0.2, "token_deletion_rate": 0.2, "rotation_rate": 0.5}


def objective(**noises: float) -> Denoising:
    made = make_objective(ObjectiveSettings(name="denoising", **noises), vocabulary())
    assert isinstance(made, Denoising)
    return made


def prepared(rows: TokenRows, seed: int = 1, **noises: float) -> PreparedRows:
    return objective(**noises).prepare(rows, keys_of(seed, len(rows.input_ids)))


def encoders(found: PreparedRows) -> list[list[list[int]]]:
    assert found.encoder is not None
    return documents(found.encoder.input_ids, found.encoder.boundaries)


def is_part_of(shorter: list[int], longer: list[int]) -> bool:
    """Whether a list is another one without some of its elements."""
    rest = iter(longer)
    return all(token in rest for token in shorter)


@settings(max_examples=150, deadline=None)
@given(shapes, st.sampled_from([{}, EVERY_NOISE, {**NO_NOISE, "infilling_rate": 0.9, "infilling_length": 1.0}]))
def test_the_decoder_has_the_documents_and_the_encoder_fits(shape: tuple[int, int, int], noises: dict) -> None:
    seed, count, length = shape
    rows = rows_of(given_rows := some_rows(seed, count, length), length)
    found = prepared(rows, seed, **noises)
    assert found.encoder is not None
    assert found.encoder.input_ids.shape == found.input_ids.shape == (count, length)
    sides = encoders(found), documents(found.input_ids, found.boundaries), documents(found.labels, found.boundaries)
    for before, encoder, decoder, labels in zip(given_rows, *sides, strict=True):
        assert len(encoder) == len(decoder)
        flat = [token for document in before for token in document]
        seen = [label for document in labels for label in document if label != IGNORE_INDEX]
        assert seen in (flat, flat[:-1])
        assert seen == flat or len(flat) == length
        for one, other, whole in zip(encoder, decoder, before, strict=False):
            assert other[0] == START and other[1:] == whole[: len(other) - 1]
            if len(seen) == len(flat) or whole is not before[-1]:
                assert one[-1] == END and len(one) <= len(whole)
                assert not Counter(token for token in one if token != MASK) - Counter(whole)
        for one, other in zip(encoder[len(before) :], labels[len(before) :], strict=True):  # padding
            assert set(one) == {END} and set(other) == {IGNORE_INDEX}


def in_plain_python(rows: TokenRows, keys: np.ndarray, made: Denoising) -> list[list[int]]:
    """The tokens of each encoder's row after text infilling, one document at a time."""
    result: list[list[int]] = [[] for _ in rows.input_ids]
    for first, end in zip(rows.boundaries[:-1].tolist(), rows.boundaries[1:].tolist(), strict=True):
        row, place = np.array([first // rows.input_ids.shape[1]]), np.array([first % rows.input_ids.shape[1]])
        if place[0] >= rows.input_tokens[row[0]]:
            continue
        ids = rows.input_ids.reshape(-1)[first:end].tolist()
        text, last = (ids[:-1], ids[-1:]) if ids[-1] == END else (ids, [])
        budget = int(len(text) * made.infilling_rate + numbers_at(keys, _BUDGET, row, place)[0] / 2**32)
        lengths: list[int] = []
        for draw in range(budget):
            chance = (int(numbers_at(keys, _LENGTHS, row, place + draw)[0]) + 0.5) / 2**32
            if sum(lengths) < budget:
                lengths.append(min(int(stats.poisson.ppf(chance, made.mean)), budget - sum(lengths)))
        spare = sum(length - 1 for length in lengths if length)
        nothing = [number for number, length in enumerate(lengths) if not length]
        lengths = [length for number, length in enumerate(lengths) if number not in nothing[spare:]]
        size = len(text) - sum(lengths) + len(lengths)
        bars = one_subset(DrawnParts(keys, _GAPS, row, place, np.array([size])), 0, len(lengths))
        corrupted, at = [], 0
        for slot in range(size):
            if slot in bars:
                corrupted.append(MASK)
                at += lengths[bars.index(slot)]
            else:
                corrupted.append(text[at])
                at += 1
        result[row[0]] += corrupted + last
    return result


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 150), st.sampled_from([0.3, 0.05, 0.9]))
def test_a_slow_implementation_of_infilling_gives_the_same(seed: int, count: int, length: int, rate: float) -> None:
    rows, keys = rows_of(some_rows(seed, count, length), length), keys_of(seed, count)
    made = objective(infilling_rate=rate, sentence_permutation_rate=0.0)
    found = made.prepare(rows, keys)
    assert found.encoder is not None
    for own, expected in zip(found.encoder.input_ids.tolist(), in_plain_python(rows, keys, made), strict=True):
        assert own[: len(expected)] == expected
        assert set(own[len(expected) :]) <= {END}


@pytest.mark.parametrize("mean", [1.0, 3.0, 10.0, 100.0])
def test_lengths_have_the_poisson_distribution(mean: float) -> None:
    bounds = objective(infilling_length=mean)._bounds.astype(np.float64) / 2**32
    assert np.abs(bounds - stats.poisson.cdf(np.arange(len(bounds)), mean)).max() < 2**-30
    assert stats.poisson.sf(len(bounds), mean) < 2**-32


def test_infilling_hides_its_share_of_the_tokens() -> None:
    text = list(range(FIRST, FIRST + 40)) * 5
    found = prepared(rows_of([[[*text, END]]] * 500, 201), **{**NO_NOISE, "infilling_rate": 0.3})
    masks = []
    for document, *_ in encoders(found):
        kept = [token for token in document if token not in (MASK, END)]
        assert is_part_of(kept, text) and len(kept) == 140
        masks.append(document.count(MASK))
    assert abs(np.mean(masks) - 60 / 3) < 1  # the last span is cut, which makes a few more


def test_sentences_are_in_every_order_alike() -> None:
    sentences = [[10, 11, STOP], [20, STOP], [30, 31, 32, STOP], [40]]
    whole = [token for sentence in sentences for token in sentence]
    found = prepared(rows_of([[[*whole, END]]] * 4800, 11), **{**NO_NOISE, "sentence_permutation_rate": 1.0})
    orders = Counter(tuple(token // 10 for token in row[0] if token % 10 == 0 and token) for row in encoders(found))
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > CERTAIN
    assert all(Counter(row[0]) == Counter([*whole, END]) for row in encoders(found))
    some = prepared(rows_of([[[*whole, END]]] * 4800, 11), **{**NO_NOISE, "sentence_permutation_rate": 0.4})
    same = sum(row[0] == [*whole, END] for row in encoders(some))
    assert stats.binomtest(same, 4800, 0.6 + 0.4 / 24).pvalue > CERTAIN


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_tokens_are_masked_and_deleted_at_their_rates(rate: float) -> None:
    text = list(range(FIRST, FIRST + 40))
    rows = rows_of([[[*text, END]]] * 1000, 41)
    masked = encoders(prepared(rows, **{**NO_NOISE, "token_masking_rate": rate}))
    assert all(len(row[0]) == 41 for row in masked)
    assert stats.binomtest(sum(row[0].count(MASK) for row in masked), 40_000, rate).pvalue > CERTAIN
    deleted = encoders(prepared(rows, **{**NO_NOISE, "token_deletion_rate": rate}))
    assert all(is_part_of(row[0], [*text, END]) and row[0][0] == FIRST for row in deleted)
    assert stats.binomtest(sum(41 - len(row[0]) for row in deleted), 39_000, rate).pvalue > CERTAIN


def test_a_rotated_document_begins_at_a_uniform_token() -> None:
    text = list(range(10, 30))
    found = encoders(prepared(rows_of([[[*text, END]]] * 4000, 21), **{**NO_NOISE, "rotation_rate": 1.0}))
    assert all(row[0][:-1] in [text[at:] + text[:at] for at in range(20)] and row[0][-1] == END for row in found)
    assert stats.chisquare(np.bincount([row[0][0] - 10 for row in found], minlength=20)).pvalue > CERTAIN


def test_withheld_documents_are_not_corrupted() -> None:
    rows = rows_of([[[5] * 30, [*range(10, 40), END]]] * 20, 61)
    for row in range(20):
        rows.withhold(row, 30, 61)
    found = prepared(rows, **EVERY_NOISE)
    assert all(row[1][:30] == list(range(10, 40)) for row in encoders(found))
    assert (found.labels[:, 30:] == IGNORE_INDEX).all() and (found.labels[:, :30] == 5).all()


def test_settings_that_corrupt_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing is corrupted"):
        ObjectiveSettings(name="denoising", **NO_NOISE)

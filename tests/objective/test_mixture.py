"""Promises of mixtures: exact quotas of turns, and a row that is what its objective alone makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.config import ObjectiveSettings
from bigtrain.objective import ObjectiveMixture, make_objective, row_lengths
from bigtrain.objective.mixture import turns_of
from tests.objective.rows import documents, keys_of, row, rows_of, some_rows, vocabulary

LENGTH = 40
UL2 = ObjectiveSettings.model_validate(
    {
        "name": "mixture",
        "components": [
            {"name": "span_corruption", "weight": 2},
            {"name": "span_corruption", "noise_density": 0.5, "mean_span_length": 8.0},
            {"name": "denoising", "weight": 3, "infilling_rate": 0.2},
        ],
    }
)
CAUSAL = ObjectiveSettings.model_validate(
    {"name": "mixture", "components": [{"name": "causal", "weight": 3}, {"name": "fill_in_the_middle"}]}
)
IN_AN_ORDER = ObjectiveSettings.model_validate(
    {"name": "mixture", "components": [{"name": "causal", "weight": 2}, {"name": "prefix"}]}
)


@given(st.integers(0, 2**32), st.integers(1, 9))
def test_rows_without_an_order_see_what_comes_before_alone(seed: int, count: int) -> None:
    """Beside rows with prefixes, a causal row has the causal order; it has it where no row has a prefix, too, so that
    what a row becomes does not depend on those beside it."""
    mixture = make_objective(IN_AN_ORDER, vocabulary(), LENGTH)
    rows = replace(rows_of(some_rows(seed, count, LENGTH), LENGTH), turns=np.arange(count))
    found = mixture.prepare(rows, keys_of(seed, count))
    ranks, causal = found.others["order_ranks"], turns_of([2, 1])[np.arange(count) % 3] == 0
    assert np.array_equal(ranks[causal], rows.positions[causal])
    alone = mixture.prepare(rows.chosen(np.array([0])), keys_of(seed, count)[:1])
    assert np.array_equal(alone.others["order_ranks"][0], ranks[0])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 200), st.integers(1, 300))
def test_any_run_of_turns_has_each_share_to_within_one(weights: list[int], first: int, count: int) -> None:
    """From the start of a pattern the count of each objective is its exact share, rounded up or down; and a whole
    pattern has exactly the weights."""
    pattern = turns_of(weights)
    assert np.bincount(pattern, minlength=len(weights)).tolist() == weights
    taken = np.bincount(pattern[np.arange(count) % len(pattern)], minlength=len(weights))
    assert (np.abs(taken - count * np.array(weights) / sum(weights)) < 1).all()
    run = np.bincount(pattern[(first + np.arange(count)) % len(pattern)], minlength=len(weights))
    assert (np.abs(run - count * np.array(weights) / sum(weights)) < 2).all()


@pytest.mark.parametrize("settings", [UL2, CAUSAL, IN_AN_ORDER], ids=["encoder-decoder", "decoder", "order"])
@given(st.integers(0, 2**32), st.integers(1, 9))
def test_a_row_is_what_its_own_objective_makes_of_it(settings: ObjectiveSettings, seed: int, count: int) -> None:
    """The same tokens, labels and documents, and padding after them where the others' rows are longer."""
    mixture = make_objective(settings, vocabulary(), LENGTH)
    assert isinstance(mixture, ObjectiveMixture)
    turns = np.random.default_rng(seed).integers(0, 100, count)
    rows = replace(rows_of(some_rows(seed, count, LENGTH), LENGTH), turns=turns)
    keys = keys_of(seed, count)
    found = mixture.prepare(rows, keys)
    decoder, encoder = row_lengths(settings, LENGTH)
    assert found.input_ids.shape == (count, decoder)
    assert (found.encoder is None) == (encoder is None)
    pattern = turns_of([component.weight for component in settings.components])
    for number in range(count):
        alone = make_objective(settings.components[pattern[turns[number] % len(pattern)]], vocabulary())
        one = np.array([number])
        own = alone.prepare(rows.chosen(one), keys[one])
        pairs = [
            (documents(found.input_ids, found.boundaries)[number], documents(own.input_ids, own.boundaries)[0]),
            (documents(found.labels, found.boundaries)[number], documents(own.labels, own.boundaries)[0]),
            (documents(found.positions, found.boundaries)[number], documents(own.positions, own.boundaries)[0]),
        ]
        if own.encoder is not None and found.encoder is not None:
            read = documents(found.encoder.input_ids, found.encoder.boundaries)[number]
            pairs.append((read, documents(own.encoder.input_ids, own.encoder.boundaries)[0]))
            assert len(read) == len(pairs[0][0])
        for mixed, plain in pairs:
            assert mixed[: len(plain)] == plain
        assert all(label == IGNORE_INDEX for part in pairs[1][0][len(pairs[1][1]) :] for label in part)
        assert found.label_tokens[number] == own.label_tokens[0]


@pytest.mark.parametrize("settings", [UL2, CAUSAL, IN_AN_ORDER], ids=["encoder-decoder", "decoder", "order"])
@given(st.integers(0, 2**32), st.integers(1, 7))
def test_a_row_becomes_the_same_alone_and_in_any_order(settings: ObjectiveSettings, seed: int, count: int) -> None:
    mixture = make_objective(settings, vocabulary(), LENGTH)
    random = np.random.default_rng(seed)
    rows = replace(rows_of(some_rows(seed, count, LENGTH), LENGTH), turns=random.integers(0, 100, count))
    rows.withhold(0, 0, 1)
    keys = keys_of(seed, count)
    together = mixture.prepare(rows, keys)
    for number in range(count):
        one = np.array([number])
        assert row(mixture.prepare(rows.chosen(one), keys[one]), 0) == row(together, number)


@pytest.mark.parametrize(
    ("components", "words"),
    [
        ([{"name": "causal"}], "two components"),
        ([{"name": "causal"}, {"name": "masked"}], "decoder and encoder"),
        ([{"name": "denoising"}, {"name": "translation"}], "translation cannot be a component"),
        ([{"name": "causal"}, {"name": "causal", "weight": 0}], "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_mixed_is_refused(components: list[dict[str, object]], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ObjectiveSettings.model_validate({"name": "mixture", "components": components})

"""Promises of translation: which pairs of a row are learned from, and what encoder and decoder are given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.config import ObjectiveSettings
from bigtrain.objective import PreparedRows, TokenRows, Translation, make_objective
from bigtrain.objective.translation import side_length
from tests.objective.rows import FIRST, START, VOCABULARY, documents, keys_of, row, rows_of, vocabulary

LENGTH = 48
Pair = tuple[int, int, bool]
pairs = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.booleans()), max_size=9)


def rows_with(shapes: list[list[Pair]], seed: int) -> TokenRows:
    """Rows of pairs: tokens of source and target, and whether the end-of-text token is in the row."""
    random = np.random.default_rng(seed)
    texts, labels = [], np.full((len(shapes), LENGTH), IGNORE_INDEX, np.int32)
    for number, own in enumerate(shapes):
        parts, at = [], 0
        for source, target, ended in own:
            size = source + target + ended
            if not size or at + size > LENGTH:
                continue
            text = random.integers(FIRST, VOCABULARY, source + target).tolist()
            parts.append([*text, *([0] if ended else [])])
            labels[number, at : at + size] = [0] * source + [1] * (target + ended)
            at += size
        texts.append(parts)
    return replace(rows_of(texts, LENGTH), labels=labels)


def objective(share: float) -> Translation:
    made = make_objective(ObjectiveSettings(name="translation", pair_share=share), vocabulary())
    assert isinstance(made, Translation)
    return made


def expected(rows: TokenRows, number: int, shapes: list[Pair], side: int) -> list[tuple[list[int], list[int]]]:
    """Source and target of each pair that is learned from, found one token after the other."""
    found: list[tuple[list[int], list[int]]] = []
    used = [0, 0]
    at = 0
    for source, target, ended in shapes:
        size = source + target + ended
        if not size or at + size > LENGTH:
            continue
        text = rows.input_ids[number, at : at + size].tolist()
        at += size
        if source and target and ended:
            used = [used[0] + source + 1, used[1] + target + 1]
            if max(used) < side:
                found.append(([*text[:source], 0], text[source:]))
    return found


@given(st.lists(pairs, min_size=1, max_size=4), st.sampled_from([0.3, 0.75, 1.0]), st.integers(0, 2**32))
def test_encoder_and_decoder_are_given_the_two_texts_of_whole_pairs(
    shapes: list[list[Pair]], share: float, seed: int
) -> None:
    rows = rows_with(shapes, seed)
    side = side_length(LENGTH, share)
    found: PreparedRows = objective(share).prepare(rows, keys_of(seed, len(shapes)))
    assert found.encoder is not None
    assert found.input_ids.shape == found.encoder.input_ids.shape == (len(shapes), side)
    read = documents(found.encoder.input_ids, found.encoder.boundaries)
    inputs, labels = (documents(each, found.boundaries) for each in (found.input_ids, found.labels))
    for number, own in enumerate(shapes):
        wanted = expected(rows, number, own, side)
        assert [text for text, _ in wanted] == read[number][:-1] and set(read[number][-1]) == {0}
        assert [target for _, target in wanted] == labels[number][:-1]
        assert set(labels[number][-1]) == {IGNORE_INDEX}
        assert [[START, *target[:-1]] for _, target in wanted] == inputs[number][:-1]
        assert found.label_tokens[number] == sum(len(target) for _, target in wanted)


@given(st.lists(pairs, min_size=1, max_size=5), st.integers(0, 2**32))
def test_a_row_becomes_the_same_alone_and_in_any_order(shapes: list[list[Pair]], seed: int) -> None:
    rows, made = rows_with(shapes, seed), objective(0.75)
    together = made.prepare(rows, keys_of(seed, len(shapes)))
    for number in np.random.default_rng(seed).permutation(len(shapes)).tolist():
        first, after = np.searchsorted(rows.boundaries, [number * LENGTH, (number + 1) * LENGTH])
        alone = TokenRows(
            **{
                name: getattr(rows, name)[number : number + 1]
                for name in ("input_ids", "next_ids", "positions", "next_tokens", "input_tokens", "labels")
            },
            boundaries=rows.boundaries[first : after + 1] - number * LENGTH,
        )
        assert row(made.prepare(alone, keys_of(0, 1)), 0) == row(together, number)


def test_a_withheld_pair_is_read_and_not_learned() -> None:
    rows = rows_with([[(3, 4, True), (5, 6, True)]], 1)
    rows.withhold(0, 0, 8)
    found = objective(1.0).prepare(rows, keys_of(1, 1))
    one, other, _ = documents(found.labels, found.boundaries)[0]
    assert set(one) == {IGNORE_INDEX} and IGNORE_INDEX not in other
    assert found.label_tokens.tolist() == [7]

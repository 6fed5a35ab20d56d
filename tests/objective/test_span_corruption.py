"""Promises of span corruption: T5's lengths, rows that are full, texts that can be put together again."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import comb, floor

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from bigtrain.base import BigtrainError
from bigtrain.base.labels import IGNORE_INDEX
from bigtrain.config import ObjectiveSettings
from bigtrain.objective import PreparedRows, SpanCorruption, TokenRows, make_objective, span_lengths
from bigtrain.objective.parts import DocumentParts, quotas
from bigtrain.objective.randomness import numbers
from bigtrain.objective.span_corruption import noise_of
from bigtrain.objective.subsets import DrawnParts
from tests.objective.rows import FIRST, SENTINELS, START, VOCABULARY, documents, keys_of, rows_of, some_rows, vocabulary
from tests.objective.test_subsets import one_subset

END = 0
CERTAIN = 1e-6
MANY = list(range(1000, 1200))
"""Sentinels for documents of any length here."""

rules = st.sampled_from([(0.15, 3.0), (0.5, 3.0), (0.15, 8.0), (0.5, 32.0), (0.3, 1.0), (0.9, 2.0), (0.01, 1.5)])


def corruption(density: float = 0.15, mean: float = 3.0, sentinels: list[int] = MANY) -> SpanCorruption:
    return SpanCorruption(density, mean, sentinels, START, END)


def text(random: np.random.Generator, size: int) -> list[int]:
    return random.integers(FIRST, VOCABULARY, size).tolist()


def long_documents(seed: int, count: int, length: int, least: int, *, full: bool = True) -> list[list[list[int]]]:
    """Rows of documents of at least `least` tokens; the last one of a full row may be cut."""
    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        left, parts = length if full else int(random.integers(least, length + 1)), []
        while left:
            size = least + int(random.exponential(2 * least))
            size = left if left - size < least else size
            parts.append([*text(random, size - 1), END if random.random() < 0.8 or left > size else FIRST])
            left -= size
        found.append(parts)
    return found


def pairs(found: PreparedRows) -> list[list[tuple[list[int], list[int], list[int]]]]:
    """Of each row its documents: what the encoder reads, what the decoder reads, and its labels."""
    assert found.encoder is not None
    sides = (
        documents(found.encoder.input_ids, found.encoder.boundaries),
        documents(found.input_ids, found.boundaries),
        documents(found.labels, found.boundaries),
    )
    return [list(zip(*row, strict=True)) for row in zip(*sides, strict=True)]


def put_together(encoder: list[int], labels: list[int], sentinels: list[int]) -> list[int]:
    """The text that encoder and decoder have together."""
    spans: dict[int, list[int]] = {}
    own: list[int] = []
    for token in [label for label in labels if label != IGNORE_INDEX]:
        if token in sentinels:
            assert token == sentinels[len(spans)]
            own = spans[token] = []
        elif token != END:
            own.append(token)
    used = [token for token in encoder if token in sentinels]
    assert used == list(spans)
    assert all(spans.values())
    assert (encoder[-1] == END) == (END in labels)
    return [token for one in encoder for token in spans.get(one, [one])]


def t5_lengths(tokens: int, density: float, mean: float, random: np.random.Generator) -> tuple[int, int]:
    """The lengths of a text with an end on both sides, by T5's mask, naively."""
    noise = min(max(int(np.round(tokens * density)), 1), tokens - 1)
    spans = max(int(np.round(noise / mean)), 1)

    def segmentation(items: int) -> list[int]:
        cuts = [0, *sorted(random.choice(np.arange(1, items), spans - 1, replace=False).tolist()), items]
        return np.diff(cuts).tolist()

    kept, hidden = segmentation(tokens - noise), segmentation(noise)
    mask = [each for a, b in zip(kept, hidden, strict=True) for each in [False] * a + [True] * b]
    starts = [now and not before for before, now in zip([False, *mask], mask, strict=False)]
    encoder = sum(not masked for masked in mask) + sum(starts)
    return encoder + 1, sum(mask) + sum(starts) + 1


@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 3.0), (0.15, 8.0), (0.25, 1.0)])
@pytest.mark.parametrize("length", [8, 33, 100, 512, 569])
def test_a_document_that_fills_a_row_fills_both_sides(length: int, density: float, mean: float) -> None:
    random = np.random.default_rng(length)
    lengths = span_lengths(length, density, mean)
    assert lengths == t5_lengths(length - 1, density, mean, random)
    found = corruption(density, mean, list(range(1000, 2000))).prepare(
        rows_of([[[*text(random, length - 1), END]]] * 20, length), keys_of(1, 20)
    )
    assert found.encoder is not None
    assert (found.encoder.input_ids.shape, found.input_ids.shape) == ((20, lengths[0]), (20, lengths[1]))
    assert found.encoder.boundaries.tolist() == list(range(0, 20 * lengths[0] + 1, lengths[0]))
    assert (found.labels != IGNORE_INDEX).all()


def test_the_lengths_of_t5_are_found() -> None:
    """T5 takes 568 tokens and their end for inputs of 512: 114 targets."""
    assert span_lengths(569, 0.15, 3.0) == (512, 114)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 80), rules, st.sampled_from([1, 3, 200]))
def test_texts_can_be_put_together_again(
    seed: int, count: int, length: int, rule: tuple[float, float], names: int
) -> None:
    """Whatever a row holds: nothing overflows, and what is not left out from its end is there, in order."""
    rows = rows_of(given_rows := some_rows(seed, count, length), length)
    found = corruption(*rule, MANY[:names]).prepare(rows, keys_of(seed, count))
    assert found.encoder is not None
    assert (found.encoder.input_ids.shape[1], found.input_ids.shape[1]) == span_lengths(length, *rule)
    for before, after in zip(given_rows, pairs(found), strict=True):
        kept = [document for document in after if set(document[2]) != {IGNORE_INDEX}]
        for (encoder, decoder, labels), document in zip(kept, before, strict=False):
            own = len(labels) - labels.count(IGNORE_INDEX)
            assert decoder == [START, *labels[: own - 1], *[START] * (len(labels) - own)]
            assert labels[own:] == [IGNORE_INDEX] * (len(labels) - own)
            assert put_together(encoder, labels, MANY[:names]) == document
        assert after[: len(kept)] == kept and len(kept) <= len(before) and len(after) <= len(kept) + 1
        for encoder, decoder, labels in after[len(kept) :]:  # padding
            assert set(encoder) == {END} and set(decoder) == {START} and set(labels) == {IGNORE_INDEX}


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(16, 400), st.integers(16, 60))
def test_full_rows_have_at_most_two_tokens_of_padding(seed: int, count: int, length: int, least: int) -> None:
    """With T5's rates and documents of at least 16 tokens nothing is left out, and only the decoder is padded."""
    assume(least <= length)
    rows = long_documents(seed, count, length, least)
    found = corruption().prepare(rows_of(rows, length), keys_of(seed, count))
    assert [len(own) for own in pairs(found)] == [len(own) for own in rows]
    assert (found.labels == IGNORE_INDEX).sum(axis=1).max() <= 2 + sum(
        labels == [IGNORE_INDEX] for own in pairs(found) for _, _, labels in own
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(32, 400), st.integers(16, 60))
@example(0, 32, 31)
def test_rows_that_are_not_full_lose_nothing(seed: int, length: int, least: int) -> None:
    assume(least <= length)
    rows = long_documents(seed, 4, length, least, full=False)
    found = corruption().prepare(rows_of(rows, length), keys_of(seed, 4))
    for before, after in zip(rows, pairs(found), strict=True):
        assert len(after) - len(before) in (0, 1)
        assert [put_together(encoder, labels, MANY) for encoder, _, labels in after[: len(before)]] == before


def in_plain_python(rows: TokenRows, keys: np.ndarray, rule: SpanCorruption) -> list[list[tuple[list[int], list[int]]]]:
    """Encoder and targets of each document, by the rule that the module's docstring gives, one at a time."""
    count, length = rows.input_ids.shape
    parts = DocumentParts.of(rows, END)
    noise, spans = noise_of(length - 1, rule.density, rule.mean)
    encoder_length, decoder_length = span_lengths(length, rule.density, rule.mean)
    result: list[list[tuple[list[int], list[int]]]] = []
    for row in range(count):
        own = np.flatnonzero(parts.row == row).tolist()
        sizes = [int(parts.text[number]) for number in own]
        filled = int(rows.input_tokens[row])
        share = [floor(Fraction(total * filled, length) + Fraction(1, 2)) for total in (noise - spans, spans)]
        most = (decoder_length - share[0] - len(own) - (filled < length)) // 2
        words = numbers(keys[row : row + 1], 0, 2)[0]
        counts = shared(max(min(share[1], most), min(1, most), 0), [size // 2 for size in sizes], words[0])
        free = [size - 2 * n if n else 0 for size, n in zip(sizes, counts, strict=True)]
        hidden = [a + b for a, b in zip(counts, shared(share[0], free, words[1]), strict=True)]
        result.append([])
        for number, size, n, own_noise in zip(own, sizes, counts, hidden, strict=True):
            place = int(parts.first[number]) - row * length
            ids = rows.input_ids[row, place : place + size].tolist()
            end = [END] * int(parts.ended[number])
            n = min(n, len(rule.sentinels))
            encoder, targets = [], []
            at = 0
            kept = cut(keys, row, place, size - own_noise, n)
            lost = cut(keys, row, place + size - own_noise, own_noise, n)
            for name, (seen, hides) in enumerate(zip(kept, lost, strict=True)):
                encoder += [*ids[at : at + seen], rule.sentinels[name]]
                targets += [rule.sentinels[name], *ids[at + seen : at + seen + hides]]
                at += seen + hides
            result[-1].append((encoder + ids[at:] + end, targets + end))
        used = [0, 0]
        for document, (encoder, targets) in enumerate(result[-1]):
            used = [used[0] + len(encoder), used[1] + max(len(targets), 1)]
            if (
                used[0] > encoder_length
                or used[1] > decoder_length
                or (used[1] == decoder_length and used[0] < encoder_length)
            ):
                del result[-1][document:]
                break
    return result


def shared(total: int, weights: list[int], word: np.uint32) -> list[int]:
    """Differences of cumulative floors after an offset."""
    whole, total = max(sum(weights), 1), min(total, sum(weights))
    offset = Fraction(int(word) * whole // 2**32, whole)
    ends = [floor(Fraction(total * sum(weights[:number]), whole) + offset) for number in range(len(weights) + 1)]
    return [b - a for a, b in pairwise(ends)]


def cut(keys: np.ndarray, row: int, place: int, size: int, count: int) -> list[int]:
    if count == 0:
        return []
    part = DrawnParts(keys, 1, np.array([row]), np.array([place]), np.array([size - 1]))
    return np.diff([0, *(value + 1 for value in one_subset(part, 0, count - 1)), size]).tolist()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 120), rules, st.sampled_from([2, 200]), st.booleans())
def test_a_slow_implementation_of_the_rule_gives_the_same(
    seed: int, count: int, length: int, rule: tuple[float, float], names: int, long: bool
) -> None:
    given_rows = long_documents(seed, count, length, min(10, length)) if long else some_rows(seed, count, length)
    rows, keys = rows_of(given_rows, length), keys_of(seed, count)
    objective = corruption(*rule, MANY[:names])
    found = pairs(objective.prepare(rows, keys))
    for expected, own in zip(in_plain_python(rows, keys, objective), found, strict=True):
        assert [encoder for encoder, _, _ in own[: len(expected)]] == [encoder for encoder, _ in expected]
        labels = [[label for label in labels if label != IGNORE_INDEX] for _, _, labels in own[: len(expected)]]
        assert labels == [targets for _, targets in expected]
        assert all(set(labels) == {IGNORE_INDEX} for _, _, labels in own[len(expected) :])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=12), min_size=1, max_size=6), st.data())
def test_quotas_are_exact_and_nearest_to_the_shares(weights: list[list[int]], data: st.DataObject) -> None:
    totals = [data.draw(st.integers(0, sum(own))) for own in weights]
    row = np.repeat(np.arange(len(weights)), [len(own) for own in weights])
    words = np.array([data.draw(st.integers(0, 2**32 - 1)) for _ in weights], np.uint32)
    found = quotas(np.array(totals), np.array([each for own in weights for each in own]), row, words)
    for number, (own, total) in enumerate(zip(weights, totals, strict=True)):
        shares = found[row == number].tolist()
        assert sum(shares) == total
        assert shares == shared(total, own, words[number])
        assert all(0 <= share <= weight for share, weight in zip(shares, own, strict=True))


def test_quotas_are_the_exact_shares_in_the_mean() -> None:
    words = np.random.default_rng(1).integers(0, 2**32, 20_000, np.uint32)
    row = np.repeat(np.arange(20_000), 3)
    found = quotas(np.full(20_000, 4), np.tile([2, 5, 13], 20_000), row, words).reshape(-1, 3)
    for shares, exact in zip(found.T.tolist(), (0.4, 1.0, 2.6), strict=True):
        assert set(shares) <= {floor(exact), floor(exact) + 1}
        assert stats.binomtest(sum(shares) - 20_000 * floor(exact), 20_000, exact % 1).pvalue > CERTAIN


def test_span_lengths_are_those_of_uniform_cuts() -> None:
    """Of 15 noise tokens in 5 spans, and of 85 others before them, each has the exact distribution of a segment."""
    random = np.random.default_rng(5)
    found = corruption().prepare(rows_of([[[*text(random, 100), END]]] * 4000, 101), keys_of(6, 4000))
    sentinel = [np.flatnonzero(labels >= MANY[0]) for labels in found.labels]
    lengths = np.array([np.diff([*places, len(found.labels[0]) - 1]) - 1 for places in sentinel])
    assert found.encoder is not None
    gaps = np.array([np.diff([-1, *np.flatnonzero(ids >= MANY[0])]) - 1 for ids in found.encoder.input_ids])
    for segments, items in ((lengths, 15), (gaps, 85)):
        assert segments.shape == (4000, 5) and (segments.sum(axis=1) == items).all()
        chances = np.array([comb(items - size - 1, 3) / comb(items - 1, 4) for size in range(1, items - 3)])
        for number in range(5):
            seen = np.bincount(segments[:, number] - 1, minlength=len(chances))
            large = chances * 4000 >= 5
            expected = np.append(chances[large], chances[~large].sum()) * 4000
            assert stats.chisquare(np.append(seen[large], seen[~large].sum()), expected).pvalue > CERTAIN


@pytest.mark.parametrize("least", [40, 200])
def test_the_noise_of_rows_of_many_documents_is_nearly_that_of_one(least: int) -> None:
    """Each two documents after the first cost a span and one noise token of their row."""
    length = 1024
    rows = rows_of(given_rows := long_documents(3, 50, length, least), length)
    found = corruption().prepare(rows, keys_of(4, 50))
    noise, spans = noise_of(length - 1, 0.15, 3.0)
    for own, labels in zip(given_rows, found.labels, strict=True):
        fewer = (len(own)) // 2
        found_spans = int((labels >= MANY[0]).sum())
        hidden = int(((labels != IGNORE_INDEX) & (labels != END)).sum()) - found_spans
        assert spans - fewer <= found_spans <= spans
        assert hidden - found_spans == noise - spans


def test_too_few_sentinels_make_fewer_and_longer_spans() -> None:
    random = np.random.default_rng(8)
    rows = rows_of([[[*text(random, 399), END]]] * 10, 400)
    found, plenty = (corruption(sentinels=MANY[:names]).prepare(rows, keys_of(1, 10)) for names in (7, 200))
    for few, many in zip(found.labels, plenty.labels, strict=True):
        assert [token for token in few.tolist() if token in MANY] == MANY[:7]
        assert sum(FIRST <= token < VOCABULARY for token in few) == sum(FIRST <= token < VOCABULARY for token in many)


def test_a_text_too_short_for_a_span_has_its_end_alone() -> None:
    rows = rows_of([[[END], [7, END], [*([12] * 100), END], [9]]], 105)
    first, second, _, last = pairs(corruption().prepare(rows, keys_of(3, 1)))[0]
    assert first == ([END], [START], [END])
    assert second == ([7, END], [START], [END])
    assert last[0] == [9] and last[1][0] == START and set(last[2]) == {IGNORE_INDEX}


def test_withheld_documents_change_nothing_for_the_others() -> None:
    random = np.random.default_rng(2)
    documents_of_rows = [[[*text(random, 29), END], [*text(random, 49), END]] for _ in range(30)]
    rows, withheld = rows_of(documents_of_rows, 80), rows_of(documents_of_rows, 80)
    for row in range(30):
        withheld.withhold(row, 0, 30)
    plain, found = (corruption().prepare(each, keys_of(4, 30)) for each in (rows, withheld))
    for before, after in zip(pairs(plain), pairs(found), strict=True):
        assert set(after[0][2]) == {IGNORE_INDEX} and after[1] == before[1]


def test_sentinels_are_those_of_the_tokenizer_by_name() -> None:
    objective = make_objective(ObjectiveSettings(name="span_corruption"), vocabulary())
    assert isinstance(objective, SpanCorruption)
    assert list(objective.sentinels) == SENTINELS and objective.start_id == START
    with pytest.raises(BigtrainError) as error:
        make_objective(ObjectiveSettings(name="span_corruption", sentinel_tokens="<sentinel_{}>"), vocabulary())
    assert "<sentinel_0>" in str(error.value) and "additional_special_tokens" in str(error.value)
    with pytest.raises(ValueError, match="sentinel_tokens"):
        ObjectiveSettings(name="span_corruption", sentinel_tokens="<sentinel>")


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(16, 90))
def test_noise_at_the_end_is_one_span_of_the_last_tokens(seed: int, count: int, length: int) -> None:
    """The encoder reads the start of a document and a sentinel, and the decoder goes on from there."""
    rule = SpanCorruption(0.25, 4.0, MANY, START, END, at_end=True)
    texts = long_documents(seed, count, length, 8)
    found = rule.prepare(rows_of(texts, length), keys_of(seed, count))
    spans = 0
    for row, parts in zip(pairs(found), texts, strict=True):
        for (read, _, labels), part in zip(row, parts, strict=False):
            body = part[:-1] if part[-1] == END else part
            ending = [END] if part[-1] == END else []
            written = [label for label in labels if label != IGNORE_INDEX]
            if written[:1] == [MANY[0]]:
                spans += 1
                hidden = written[1 : len(written) - len(ending)]
                assert hidden and body[len(body) - len(hidden) :] == hidden
                wanted = [*body[: len(body) - len(hidden)], MANY[0], *ending]
                assert read[: len(wanted)] == wanted
    assert spans or length < 40

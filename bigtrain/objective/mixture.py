"""Mixtures: rows take turns among several objectives, in exact integer quotas (UL2; Tay et al., 2022, section 3.1).

A row's turn is its sequence number plus its epoch. The weights, whole numbers whose sum is W, make a pattern of W turns
in which each objective has as many turns as its weight, spread as evenly as they can be. So each objective has its
exact share of the first n sequences of a source, rounded up or down, for every n; and a sequence that comes again takes
the next turn.

All rows of a model have one length. Where objectives make rows of different lengths, the shorter ones end in padding,
which is a document of its own on both sides of an encoder-decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bigtrain.base import IGNORE_INDEX
from bigtrain.objective.randomness import U64
from bigtrain.objective.rows import I32, I64, EncoderRows, PreparedRows, TokenRows


class _Component(Protocol):
    @property
    def reads_next_ids(self) -> bool: ...

    @property
    def causal(self) -> bool: ...

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows: ...


def turns_of(weights: Sequence[int]) -> I64:
    """The pattern [W] of turns: which of the objectives has each.

    The next turn is of the one that lacks most of its share; of equal ones the first.
    """
    total = sum(weights)
    taken = [0] * len(weights)
    pattern = []
    for turn in range(1, total + 1):
        chosen = max(range(len(weights)), key=lambda one: weights[one] * turn - taken[one] * total)
        taken[chosen] += 1
        pattern.append(chosen)
    return np.array(pattern)


def common_lengths(lengths: Sequence[tuple[int, int | None]]) -> tuple[int, int | None]:
    """The lengths of the rows of a decoder and of its encoder, from those of all objectives: see `row_lengths`."""
    decoders, encoders = {one for one, _ in lengths}, {one for _, one in lengths if one is not None}
    if not encoders:
        return max(decoders), None
    padded = len(decoders) + len(encoders) > 2  # then all rows have padding on both sides, one token at least
    return max(decoders) + padded, max(encoders) + padded


@dataclass(frozen=True)
class ObjectiveMixture:
    """Each row by one of several objectives."""

    components: Sequence[_Component]
    weights: Sequence[int]
    length: int | None
    """Tokens of a row of an encoder-decoder's decoder; None where all rows are as long as those of the data."""
    encoder_length: int | None
    padding: int
    """The token of padding."""
    in_an_order: bool = False
    """Whether an objective says in which order tokens see each other: then all rows have one."""

    @property
    def changes_inputs(self) -> bool:
        """See `Objective`: which objective has a row is part of what is made of it."""
        return True

    @property
    def reads_next_ids(self) -> bool:
        """See `Objective`."""
        return any(component.reads_next_ids for component in self.components)

    @property
    def causal(self) -> bool:
        """See `Objective`."""
        return all(component.causal for component in self.components)

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """See `Objective.prepare`."""
        assert rows.turns is not None  # the loader gives them to objectives that change inputs
        chosen = self._pattern[rows.turns % len(self._pattern)]
        own = [np.flatnonzero(chosen == number) for number in range(len(self.components))]
        made = [
            (which, self._ordered(self._lengthened(component.prepare(rows.chosen(which), keys[which]))))
            for component, which in zip(self.components, own, strict=True)
            if len(which)
        ]
        return _merged(made)

    def _ordered(self, rows: PreparedRows) -> PreparedRows:
        """Rows of an objective without an order with that in which a token of a decoder sees those before it."""
        if not self.in_an_order or "order_ranks" in rows.others:
            return rows
        return replace(rows, others={**rows.others, "order_ranks": rows.positions})

    @cached_property
    def _pattern(self) -> I64:
        return turns_of(self.weights)

    def _lengthened(self, rows: PreparedRows) -> PreparedRows:
        """Rows of the common lengths."""
        if self.length is None or rows.encoder is None or self.encoder_length is None:
            return rows
        before, after = rows.input_ids.shape[1], self.length
        if (before, rows.encoder.input_ids.shape[1]) == (after, self.encoder_length):
            return rows
        encoder = rows.encoder
        ids, positions, boundaries = _padded(encoder.input_ids, encoder.boundaries, self.encoder_length, self.padding)
        read = EncoderRows(ids, positions, boundaries)
        ids, positions, boundaries = _padded(rows.input_ids, rows.boundaries, after, self.padding)
        labels = _wider(rows.labels, after, IGNORE_INDEX)
        return replace(rows, input_ids=ids, labels=labels, positions=positions, boundaries=boundaries, encoder=read)


def _wider(values: npt.NDArray[Any], length: int, padding: int) -> npt.NDArray[Any]:
    """[R, length]: rows with padding after them."""
    return np.pad(values, ((0, 0), (0, length - values.shape[1])), constant_values=padding)


def _padded(ids: I32, boundaries: I64, length: int, padding: int) -> tuple[I32, I32, I64]:
    """Ids, positions and boundaries of rows with a document of padding after them."""
    count, before = ids.shape
    row, place = np.divmod(boundaries[:-1], before)
    ends = np.arange(count) * length + before
    longer = np.sort(np.concatenate((row * length + place, ends, [count * length])))
    starts = np.repeat(longer[:-1], np.diff(longer))
    positions = (np.arange(count * length) - starts).astype(np.int32).reshape(count, length)
    return _wider(ids, length, padding), positions, longer


def _merged(made: Sequence[tuple[I64, PreparedRows]]) -> PreparedRows:
    """The rows of all objectives, each at its own place."""
    order = np.argsort(np.concatenate([which for which, _ in made]))
    all_rows = [rows for _, rows in made]

    def joined(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate(arrays)[order]

    def bounds(all_boundaries: Sequence[I64], length: int) -> I64:
        sizes = np.concatenate([np.diff(each) for each in all_boundaries])
        first = np.concatenate([[0], np.cumsum([len(rows.input_ids) for rows in all_rows])[:-1]]) * length
        row = np.concatenate([(each[:-1] + start) // length for each, start in zip(all_boundaries, first, strict=True)])
        place = np.argsort(order)[row]  # where each document's row comes
        ends = np.cumsum(sizes[np.argsort(place, kind="stable")])
        return np.concatenate(([0], ends))

    encoders = [rows.encoder for rows in all_rows if rows.encoder is not None]
    names = sorted({name for rows in all_rows for name in rows.others})
    examples = {name: next(rows.others[name] for rows in all_rows if name in rows.others) for name in names}
    return PreparedRows(
        input_ids=joined([rows.input_ids for rows in all_rows]),
        labels=joined([rows.labels for rows in all_rows]),
        positions=joined([rows.positions for rows in all_rows]),
        boundaries=bounds([rows.boundaries for rows in all_rows], all_rows[0].input_ids.shape[1]),
        label_tokens=joined([rows.label_tokens for rows in all_rows]),
        input_tokens=joined([rows.input_tokens for rows in all_rows]),
        others={
            name: joined([rows.others.get(name, _zeros(rows, examples[name])) for rows in all_rows]) for name in names
        },
        encoder=EncoderRows(
            input_ids=joined([each.input_ids for each in encoders]),
            positions=joined([each.positions for each in encoders]),
            boundaries=bounds([each.boundaries for each in encoders], encoders[0].input_ids.shape[1]),
        )
        if encoders
        else None,
    )


def _zeros(rows: PreparedRows, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.zeros((len(rows.input_ids), *like.shape[1:]), like.dtype)

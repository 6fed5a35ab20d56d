"""The causal objective: each token predicts the next one of its document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bigtrain.objective.randomness import U64
from bigtrain.objective.rows import PreparedRows, TokenRows


@dataclass(frozen=True)
class Causal:
    """Leaves the rows as they are; a label is the next token."""

    changes_inputs: ClassVar[bool] = False
    reads_next_ids: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """See `Objective.prepare`. The arrays are those of `rows`."""
        return PreparedRows(
            rows.input_ids, rows.next_ids, rows.positions, rows.boundaries, rows.next_tokens, rows.input_tokens
        )

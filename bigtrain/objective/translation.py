"""Translation: an encoder reads the source of a pair, a decoder writes its target (Sutskever et al., 2014).

    pair                 the cat <0>  le chat <end>     each token labelled: 0 in the source, 1 in the target
    encoder              the cat <end>
    decoder, inputs      <start> le chat
    decoder, labels              le chat <end>

A row holds several pairs, each a document on both sides. A pair that is not whole in its row is left out; so are the
last ones of a row whose sources or targets do not fit. What is left of a row is padding, of one token at least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bigtrain.base import IGNORE_INDEX
from bigtrain.objective.parts import DocumentParts, RowLayout, labels_of, running, shifted, sums
from bigtrain.objective.randomness import U64
from bigtrain.objective.rows import I64, Bools, EncoderRows, PreparedRows, TokenRows
from bigtrain.objective.subsets import ragged

SOURCE, TARGET = 0, 1
"""Labels of tokens."""


def side_length(length: int, share: float) -> int:
    """The tokens of a row of an encoder, and of a decoder.

    Args:
        length: tokens of a row of the data.
        share: `objective.pair_share`.
    """
    return min(max(round(length * share), 2), length)


@dataclass(frozen=True)
class Translation:
    """The labels of a decoder are the targets of the sources that its encoder reads."""

    changes_inputs: ClassVar[bool] = True
    reads_next_ids: ClassVar[bool] = False
    causal: ClassVar[bool] = False

    start_id: int
    """What a decoder's document starts with."""
    end_of_text_id: int
    share: float
    """See `side_length`."""

    def prepare(self, rows: TokenRows, keys: U64) -> PreparedRows:
        """See `Objective.prepare`. There is nothing random in it."""
        assert rows.labels is not None  # the settings and the data say so
        ids, (count, length) = rows.input_ids.reshape(-1), rows.input_ids.shape
        side = side_length(length, self.share)
        parts = DocumentParts.of(rows, self.end_of_text_id)
        sources = _counted(rows.labels.reshape(-1) == SOURCE, parts)
        targets = parts.text + parts.ended - sources
        chosen = (sources > 0) & (targets > 1) & (parts.ended > 0)
        parts, sources, targets = parts[chosen], sources[chosen], targets[chosen]
        read = sources + 1  # with a token that ends it
        end = np.maximum(running(read, parts.row, count) + read, running(targets, parts.row, count) + targets)
        fits = end < side
        parts, sources, targets, read = parts[fits], sources[fits], targets[fits], read[fits]

        source_ids = np.full(read.sum(), self.end_of_text_id, np.int32)
        source_ids[ragged(np.cumsum(read) - read, sources)] = ids[ragged(parts.first, sources)]
        target_ids = ids[ragged(parts.first + sources, targets)]
        encoder, decoder = (RowLayout.of(sizes, parts.row, count, side) for sizes in (read, targets))
        bounds = [layout.boundaries(np.ones(count, np.bool_)) for layout in (encoder, decoder)]
        labels = decoder.rows_of(labels_of(target_ids, targets, ~parts.withheld), IGNORE_INDEX)
        return PreparedRows(
            input_ids=decoder.rows_of(shifted(target_ids, targets, self.start_id), self.end_of_text_id),
            labels=labels,
            positions=decoder.positions(bounds[1]),
            boundaries=bounds[1],
            label_tokens=sums(np.where(parts.withheld, 0, targets), parts.row, count),
            input_tokens=rows.input_tokens,
            encoder=EncoderRows(
                input_ids=encoder.rows_of(source_ids, self.end_of_text_id),
                positions=encoder.positions(bounds[0]),
                boundaries=bounds[0],
            ),
        )


def _counted(flags: Bools, parts: DocumentParts) -> I64:
    """[D]: how many tokens of each part, without its end, have a flag [R*T]."""
    total = np.concatenate(([0], np.cumsum(flags)))
    return total[parts.first + parts.text] - total[parts.first]

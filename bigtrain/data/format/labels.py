"""What the labels of a source's tokens are called, and which numbers they have in the `.lab` file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bigtrain.base import IGNORE_INDEX
from bigtrain.config import LabelKind

FIXED_NAMES: Mapping[LabelKind, tuple[str, ...]] = {
    "parts": ("source", "target"),
    "answers": ("question", "context", "answer"),
    "turns": ("other", "assistant"),
}
"""The labels of kinds that always have the same, in the order of their numbers."""
OTHER, ASSISTANT = FIXED_NAMES["turns"]
QUESTION, CONTEXT, ANSWER = FIXED_NAMES["answers"]
MOST_NAMES = 1 << 15
"""So many numbers an int16 has."""


def label_dtype(names: int) -> np.dtype[np.signedinteger]:
    """The type of the labels in a `.lab` file: int8, or little-endian int16 where so many names need it."""
    return np.dtype("i1") if names <= 1 << 7 else np.dtype("<i2")


@dataclass(frozen=True)
class LabelScheme:
    """The labels of a source."""

    kind: LabelKind
    names: tuple[str, ...]
    """In the order of their numbers, from 0."""

    @classmethod
    def of(cls, kind: LabelKind | None, names: tuple[str, ...] | None) -> LabelScheme | None:
        """The labels that a manifest records; None where there are none."""
        return None if kind is None else cls(kind, names or FIXED_NAMES[kind])

    @property
    def recorded_names(self) -> tuple[str, ...] | None:
        """The names that a manifest spells out: not those of kinds that always have the same."""
        return None if self.kind in FIXED_NAMES else self.names

    @property
    def dtype(self) -> np.dtype[np.signedinteger]:
        """The type of the numbers in a file."""
        return label_dtype(len(self.names))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def name(self, number: int) -> str | None:
        """The label of a number; None for IGNORE_INDEX."""
        return None if number == IGNORE_INDEX else self.names[number]

    def number(self, label: str | None) -> int:
        """The number of a label; IGNORE_INDEX for None.

        Raises:
            KeyError: it is none of the names.
        """
        return IGNORE_INDEX if label is None else self._numbers[label]

"""Numbers for the words of documents, and how often each occurs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]


class WordTable:
    """Numbers words in the order in which they come, and counts them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.counts: list[int] = []

    def numbers_of(self, words: Sequence[str]) -> I32:
        """The number of each word."""
        return np.fromiter(map(self._number, words), np.int32, len(words))

    def _number(self, word: str) -> int:
        number = self._numbers.get(word)
        if number is None:
            number = self._numbers[word] = len(self._numbers)
            self.counts.append(0)
        self.counts[number] += 1
        return number

    @property
    def words(self) -> Mapping[str, int]:
        """The number of each word."""
        return self._numbers

    def most_frequent(self, most: int, min_count: int) -> list[tuple[str, int]]:
        """Words with their counts: the more frequent first, of equally frequent ones by their characters.

        Args:
            most: how many, at most.
            min_count: rarer words are left out.
        """
        found = [(-self.counts[number], word) for word, number in self._numbers.items()]
        return [(word, -count) for count, word in sorted(found)[:most] if -count >= min_count]

    def renumbered(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """For each word of the table its index in `words`; -1 for one that is not among them."""
        numbers = np.full(len(self._numbers), -1, np.int64)
        for index, word in enumerate(words):
            if (number := self._numbers.get(word)) is not None:
                numbers[number] = index
        return numbers

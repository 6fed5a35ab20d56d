"""From tokens, one at a time, to text that can be shown: whole characters, up to a stop string.

token --Characters--> text without half characters --StopStrings--> text that belongs to no stop string
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from bigtrain.base import BigtrainError
from bigtrain.data import decode_ids

_HALF = "\ufffd"
"""What the bytes of a character decode to as long as some of them are missing."""


class Characters:
    """Decodes the tokens after a prompt. The text of a token may depend on the token before it, as the space before a
    word does, so each is decoded with the piece of text before it."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt)
        self._before, self._shown = 0, len(prompt)

    def add(self, token: int) -> str:
        """The text that a token adds; empty while its last character is incomplete."""
        self._ids.append(token)
        text = self._unshown()
        if text.endswith(_HALF):
            return ""
        self._before, self._shown = self._shown, len(self._ids)
        return text

    def end(self) -> str:
        """The text that was held back."""
        return self._unshown()

    def _unshown(self) -> str:
        before, all_of_it = (
            decode_ids(self._tokenizer, self._ids[self._before : end]) for end in (self._shown, len(self._ids))
        )
        return all_of_it[len(before) :]


class StopStrings:
    """Lets text through up to the first stop string, wherever tokens start and end."""

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise BigtrainError("a stop string is empty", found=list(stops), wanted="at least one character in each")
        self._stops = stops
        self._held = ""
        self.found = False
        """Whether a stop string was found; after it nothing is let through."""

    def add(self, text: str) -> str:
        """The text that can be shown: without a stop string, or what may become one."""
        if self.found:
            return ""
        self._held += text
        ends = [(self._held.find(stop) + len(stop), -len(stop)) for stop in self._stops if stop in self._held]
        if ends:  # the one that ends first, so that the result does not depend on the pieces
            end, length = min(ends)
            self.found = True
            return self._held[: end + length]
        keep = max((_beginning(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def end(self) -> str:
        """The text that was held back and did not become a stop string."""
        return "" if self.found else self._held


def _beginning(text: str, stop: str) -> int:
    """How many characters at the end of a text are the start of a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)

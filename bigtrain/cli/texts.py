"""Prompts from the command line, and texts on the terminal as they are generated."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bigtrain.base import BigtrainError, show_controls


def read_prompts(arguments: Sequence[str], file: Path | None) -> list[str]:
    """The prompts of a command line: arguments, where `-` stands for standard input without its last line break, and
    the lines of a file.

    Raises:
        BigtrainError: the file cannot be read.
    """
    prompts = [sys.stdin.read().removesuffix("\n") if argument == "-" else argument for argument in arguments]
    if file is None:
        return prompts
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BigtrainError(
            f"no prompts can be read from {file}", found=str(error), wanted="a text file, one prompt on each line"
        ) from None
    return prompts + lines


class InTurn:
    """Prints texts that are generated in parallel one after the other."""

    def __init__(self, prompts: Sequence[str], *, silent: bool = False) -> None:
        self._waiting = list(prompts)
        self._done = [False] * len(prompts)
        self._now = -1
        self._silent = silent
        if not silent:
            self._next()

    def show(self, number: int, text: str, ended: object | None) -> None:
        """Print a piece of a text, or keep it until its turn. `ended` is not None for the last piece."""
        if self._silent:
            return
        self._done[number] = ended is not None
        if number != self._now:
            self._waiting[number] += text
            return
        self._print(text)
        while self._now < len(self._waiting) and self._done[self._now]:
            self._print("\n")
            self._next()

    def _next(self) -> None:
        self._now += 1
        if self._now < len(self._waiting):
            if self._now:
                self._print("----\n")
            self._print(self._waiting[self._now])

    def _print(self, text: str) -> None:
        sys.stdout.write(show_controls(text))
        sys.stdout.flush()

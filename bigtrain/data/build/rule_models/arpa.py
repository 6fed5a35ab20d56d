r"""ARPA files, the text form of n-gram models that KenLM and SRILM write and read.

    \data\
    ngram 1=4                            as many as there are of each order
    ngram 2=3

    \1-grams:
    -0.9031	the	-0.30103             log10 probability, tokens, log10 backoff weight if it is not 0
    ...
    \end\
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bigtrain.base import write_asked_for
from bigtrain.data.build.corpus.compressed import opened
from bigtrain.data.build.rule_models.backoff_model import BackoffLevel, BackoffModel, require_consistent
from bigtrain.data.build.rule_models.sentences import UNKNOWN

LONGEST_LINE = 1 << 16
HIGHEST_ORDER = 20
NOTHING = -100.0
"""log10 of the probability of an unknown word where a file has no <unk>, as in KenLM."""

_PARTS = re.compile(r"[^ \t]+")
_COUNT = re.compile(r"ngram (\d+) *= *(\d+)")
I64 = npt.NDArray[np.int64]


def read_arpa(path: Path) -> BackoffModel:
    """Read an ARPA file, which may be compressed.

    Raises:
        ValueError: it is none, is cut off, or has an n-gram without the shorter one that it begins with.
        EOFError, OSError: it cannot be read.
    """
    with path.open("rb") as raw, opened(raw, path.name) as stream:
        return _ArpaReader(_lines(iter(lambda: stream.readline(LONGEST_LINE), b""))).model()


def _lines(lines: Iterator[bytes]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, start=1):
        if len(line) == LONGEST_LINE:
            raise ValueError(f"line {number} has more than {LONGEST_LINE:,} bytes")
        if text := line.decode().strip("\r\n"):
            yield number, text


class _ArpaReader:
    """Reads the parts of a file in their order."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self._words: dict[str, int] = {}
        self._levels: list[BackoffLevel] = []

    def model(self) -> BackoffModel:
        counts, header = self._counts()
        for order, count in enumerate(counts, start=1):
            if header != f"\\{order}-grams:":
                raise ValueError(f"{header[:80]!r} in place of the {order}-grams")
            header = self._level(order, count, last=order == len(counts))
        if header != "\\end\\":
            raise ValueError(f"{header[:80]!r} in place of its end")
        model = BackoffModel(list(self._words), self._levels, None)
        require_consistent(model)
        return model

    def _next(self) -> tuple[int, str]:
        line = next(self._lines, None)
        if line is None:
            raise EOFError("it ends before its \\end\\")
        return line

    def _counts(self) -> tuple[list[int], str]:
        while self._next()[1].strip() != "\\data\\":
            pass
        counts: list[int] = []
        while (match := _COUNT.fullmatch((line := self._next()[1]).strip())) is not None:
            counts.append(int(match[2]))
            if int(match[1]) != len(counts) or not counts[-1] or len(counts) > HIGHEST_ORDER:
                raise ValueError(f"{line[:80]!r} among the numbers of n-grams")
        return counts, line.strip()

    def _level(self, order: int, count: int, *, last: bool) -> str:
        """Read the n-grams of an order. Returns the header that follows them."""
        grams: list[list[int]] = []
        numbers: list[tuple[float, float]] = []
        while not (line := self._next())[1].startswith("\\"):
            at, text = line
            parts = _PARTS.findall(text)
            if not order + 1 <= len(parts) <= order + 2 - last:
                raise ValueError(f"line {at} is no {order}-gram: {text[:80]!r}")
            try:
                weight = float(parts[order + 1]) if len(parts) > order + 1 else 0.0
                numbers.append((float(parts[0]), weight))
                grams.append([self._number(word, order) for word in parts[1 : order + 1]])
            except ValueError as error:
                raise ValueError(f"line {at}: {error}") from None
        if len(grams) != count:
            raise ValueError(f"{len(grams):,} {order}-grams of {count:,}")
        if order == 1 and UNKNOWN not in self._words:
            grams.append([self._number(UNKNOWN, order)])
            numbers.append((NOTHING, 0.0))
        self._levels.append(self._sorted(np.array(grams, np.int64), np.array(numbers, np.float32)))
        return line[1].strip()

    def _number(self, word: str, order: int) -> int:
        if (order == 1) == (word in self._words):
            raise ValueError(f"{word!r} is {'there twice' if order == 1 else 'no unigram'}")
        return self._words.setdefault(word, len(self._words))

    def _sorted(self, grams: I64, numbers: npt.NDArray[np.float32]) -> BackoffLevel:
        index = np.zeros(len(grams), np.int64)
        for level, column in zip(self._levels, grams.T, strict=False):
            index = level.find(index * len(self._words) + column)
            if (index < 0).any():
                raise ValueError(f"a {grams.shape[1]}-gram without the shorter one that it begins with")
        keys = index * len(self._words) + grams[:, -1]
        order = np.argsort(keys)
        return BackoffLevel(keys[order], numbers[order, 0].copy(), numbers[order, 1].copy())


def write_arpa(model: BackoffModel, path: Path) -> None:
    """Write a model as an ARPA file, in which single precision is exact."""
    lines = ["\\data\\", *(f"ngram {k}={len(level.keys)}" for k, level in enumerate(model.levels, start=1))]
    grams: list[str] = [""]
    for k, level in enumerate(model.levels, start=1):
        context, token = np.divmod(level.keys, len(model.words))
        grams = [f"{grams[before]} {model.words[last]}".lstrip() for before, last in zip(context, token, strict=True)]
        lines += ["", f"\\{k}-grams:"]
        weights = [f"\t{weight:.9g}" if weight else "" for weight in level.backoff]
        lines += [f"{p:.9g}\t{gram}{w}" for p, gram, w in zip(level.log_prob, grams, weights, strict=True)]
    write_asked_for(path, "\n".join([*lines, "", "\\end\\", ""]))

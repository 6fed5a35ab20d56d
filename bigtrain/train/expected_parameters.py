"""Whether the model has as many parameters as its configuration expects: `model.expect_parameters`."""

from __future__ import annotations

import re
from decimal import Decimal

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.model import model_shapes

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def check_expected_parameters(settings: ModelSettings) -> None:
    """Refuse a model that has another number of parameters than `model.expect_parameters`.

    Raises:
        BigtrainError: names the real count and its parts; or the key is not a count.
    """
    expected = settings.expect_parameters
    if expected is None:
        return
    low, high = believed(expected)
    parts = parameters_by_part(settings)
    count = sum(parts.values())
    if not low <= count < high:
        made_of = ", ".join(f"{part} {size:,}" for part, size in parts.items())
        span = f"{low:,}" if high - low == 1 else f"from {low:,} up to, not including, {high:,}"
        raise BigtrainError(
            "the model does not have as many parameters as model.expect_parameters says; nothing was started",
            found=f"{count:,}: {made_of}",
            wanted=f"{expected}: {span}",
            fix=f"correct the section model, or write model.expect_parameters: {_in_digits_of(expected, count)}",
        )


def believed(expected: str | int) -> tuple[int, int]:
    """The counts [low, high) that an expectation allows: an int is exact, text counts in the digits that it gives.

    124M allows [123,500,000, 124,500,000), 1.24B allows [1,235,000,000, 1,245,000,000).

    Raises:
        BigtrainError: the text is not a count.
    """
    if isinstance(expected, int):
        return expected, expected + 1
    number, unit = _parse(expected)
    step = Decimal(1).scaleb(_last_digit(number)) * unit  # the value of one unit of the last digit
    if step <= 1:
        return int(number * unit), int(number * unit) + 1
    return int(number * unit - step / 2), int(number * unit + step / 2)


def parameters_by_part(settings: ModelSettings) -> dict[str, int]:
    """Parameters of embedding, blocks, final norm and head; a tied head has none of its own."""
    parts = dict.fromkeys(("embedding", "blocks", "final norm", "head"), 0)
    for parameter in model_shapes(settings).parameters:
        kind = parameter.name.partition(".")[0]
        parts[_PARTS.get(kind, "embedding" if kind.startswith("embed") else "blocks")] += parameter.numel
    if settings.tie_word_embeddings and settings.task_head == "none":
        parts["head (tied to the embedding)"] = parts.pop("head")
    return parts


_PARTS = {"layers": "blocks", "norm": "final norm", "lm_head": "head", "task_head": "head"}


def _parse(text: str) -> tuple[Decimal, int]:
    match = re.fullmatch(r"\s*(\d[\d_]*(?:\.\d+)?)\s*([KMBT]?)\s*", text, re.IGNORECASE)
    if match is None:
        raise BigtrainError(
            f"model.expect_parameters cannot be {text!r}",
            found=text,
            wanted="a count: a whole number, or a number with K, M, B or T, such as 124M or 1.24B",
            fix="write model.expect_parameters: 124M, or leave it out",
        )
    return Decimal(match[1]), _UNITS[match[2].upper()]


def _last_digit(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)  # neither infinite nor no number
    return exponent


def _in_digits_of(expected: str | int, count: int) -> str:
    """The real count, as precisely as the expectation was given."""
    if isinstance(expected, int):
        return str(count)
    number, unit = _parse(expected)
    rounded = (Decimal(count) / unit).quantize(Decimal(1).scaleb(min(0, _last_digit(number))))
    if not rounded:
        return str(count)
    return f"{rounded}{next(suffix for suffix, size in _UNITS.items() if size == unit)}"

"""Cleaning: rules that keep, rewrite or remove documents.

A rule is a function in `RULES`. From a text and its settings it makes a text (the same one, or a rewritten one), or a
`Rejection`, which removes the document. The rules are applied in the order of the source's settings, up to the first
rejection. Only the text decides, so the result for a document is the same in every build. To add a rule, write such a
function, name it here, and give it a section in bigtrain/config/cleaning.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bigtrain.config import CleanStep
from bigtrain.data.build.clean.c4 import c4
from bigtrain.data.build.clean.encoding import fix_encoding, require_ftfy
from bigtrain.data.build.clean.fineweb import fineweb
from bigtrain.data.build.clean.gopher import gopher_quality, gopher_repetition
from bigtrain.data.build.clean.language import language, require_languages
from bigtrain.data.build.clean.pii import pii
from bigtrain.data.build.clean.text import Rejection, Text

RULES: dict[str, Callable[[Text, Any], Text | Rejection]] = {
    "fix_encoding": fix_encoding,
    "language": language,
    "gopher_quality": gopher_quality,
    "gopher_repetition": gopher_repetition,
    "c4": c4,
    "fineweb": fineweb,
    "pii": pii,
}

REQUIREMENTS: dict[str, Callable[[Any], None]] = {"fix_encoding": require_ftfy, "language": require_languages}
"""Rules that need a library or a model: a function that raises BigtrainError if it is missing."""

POISON = Rejection("poison", "it ended the worker process that worked on it")
NO_TEXT = Rejection("empty", "no text")
NULL = Rejection("on_null", "null in place of a text")
NO_ROOM = Rejection("sequence_length", "nothing that is labelled fits into a row")


def clean(text: str, steps: Sequence[CleanStep]) -> str | Rejection:
    """Apply rules in order. A document without text, before or after a rule, is removed too."""
    current = Text(text)
    for step in steps:
        if not current.text.strip():
            break
        result = RULES[step.rule](current, step.settings)
        if isinstance(result, Rejection):
            return result
        current = result
    return current.text if current.text.strip() else NO_TEXT


def require_libraries(steps: Sequence[CleanStep]) -> None:
    """Raise BigtrainError if a rule needs a library that is not installed, or a feature that the library lacks."""
    for step in steps:
        if step.rule in REQUIREMENTS:
            REQUIREMENTS[step.rule](step.settings)


__all__ = ["NO_ROOM", "NO_TEXT", "NULL", "POISON", "RULES", "Rejection", "Text", "clean", "require_libraries"]

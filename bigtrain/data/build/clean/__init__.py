"""Cleaning: which documents are kept, and what of them.

A rule is a function in `RULES` from a text and its settings to a text (the same one, or a rewritten one) or to the
`Rejection` that removes the document. The rules are applied in the order of the source's settings, up to the first
rejection. Nothing but the text decides, so a document's fate is the same in every build. To add a rule, write such a
function, name it here, and give it a section in bigtrain/config/cleaning.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bigtrain.config.cleaning import CleanStep
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
"""Rules that need more than their text: what raises BigtrainError where it is missing."""

NO_TEXT = Rejection("empty", "no text")


def clean(text: str, steps: Sequence[CleanStep]) -> str | Rejection:
    """Apply rules in order. What has no text, at first or after a rule, is removed too."""
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
    """Raise BigtrainError where a rule needs a library that is not installed, or more than the library can do."""
    for step in steps:
        if step.rule in REQUIREMENTS:
            REQUIREMENTS[step.rule](step.settings)


__all__ = ["NO_TEXT", "RULES", "Rejection", "Text", "clean", "require_libraries"]

"""Cleaning: rules that keep, rewrite or remove documents.

A rule is a function in `RULES`. From a text and its settings it makes a text (the same one, or a rewritten one), or a
`Rejection`, which removes the document. The rules are applied in the order of the source's settings, up to the first
rejection. Only the text decides, so the result for a document is the same in every build. To add a rule, write such a
function, name it here, and give it a section in bigtrain/config/cleaning.py.

A rule that reads a file has a second function in `PINNED`, which finds the file and puts the hash of its content into
the settings that the workers get (model_files.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bigtrain.config import CleanStep
from bigtrain.data.build.clean.c4 import c4
from bigtrain.data.build.clean.classifier import classifier, pin_classifier
from bigtrain.data.build.clean.encoding import fix_encoding, require_ftfy
from bigtrain.data.build.clean.fineweb import fineweb
from bigtrain.data.build.clean.gopher import gopher_quality, gopher_repetition
from bigtrain.data.build.clean.language import FIRST_MODEL, language, pin_language
from bigtrain.data.build.clean.perplexity import perplexity, pin_perplexity
from bigtrain.data.build.clean.pii import pii
from bigtrain.data.build.clean.python_function import FunctionFailedError, pin_python, python
from bigtrain.data.build.clean.text import Rejection, Text

RULES: dict[str, Callable[[Text, Any], Text | Rejection]] = {
    "fix_encoding": fix_encoding,
    "language": language,
    "gopher_quality": gopher_quality,
    "gopher_repetition": gopher_repetition,
    "c4": c4,
    "fineweb": fineweb,
    "pii": pii,
    "classifier": classifier,
    "perplexity": perplexity,
    "python": python,
}

REQUIREMENTS: dict[str, Callable[[Any], None]] = {"fix_encoding": require_ftfy}
"""Rules that need a library: a function that raises BigtrainError if it is missing."""

PINNED: dict[str, Callable[[Any], Any]] = {
    "language": pin_language,
    "classifier": pin_classifier,
    "perplexity": pin_perplexity,
    "python": pin_python,
}
"""Rules that read a file: a function from their settings to those with the file's hash. It raises BigtrainError if the
file, or a library to read it, is missing."""

POISON = Rejection("poison", "it ended the worker process that worked on it")
NO_TEXT = Rejection("empty", "no text")
NULL = Rejection("on_null", "null in place of a text")
UNREAD = "source"
"""The funnel's rule for what a source has in place of a text; the document says why."""
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


def pinned(steps: Sequence[CleanStep]) -> tuple[CleanStep, ...]:
    """The rules as a build applies them: each file that they read is held to its content of now.

    Raises:
        BigtrainError: a library that a rule needs is not installed, or a file that it reads is missing, damaged, or of
            another content than its settings say.
    """
    for step in steps:
        if step.rule in REQUIREMENTS:
            REQUIREMENTS[step.rule](step.settings)
    return tuple(
        step.model_copy(update={step.rule: PINNED[step.rule](step.settings)}) if step.rule in PINNED else step
        for step in steps
    )


def contents_of(steps: Sequence[CleanStep]) -> dict[str, str]:
    """The hashes of what pinned rules read, by the number and name of the rule. Data that were built by the first
    model of languages have no record of it, so it is left out."""
    hashes = {f"clean.{number}.{step.rule}": getattr(step.settings, "hash", None) for number, step in enumerate(steps)}
    return {rule: content for rule, content in hashes.items() if content not in (None, FIRST_MODEL)}


__all__ = [
    "NO_ROOM",
    "NO_TEXT",
    "NULL",
    "POISON",
    "RULES",
    "UNREAD",
    "FunctionFailedError",
    "Rejection",
    "Text",
    "clean",
    "contents_of",
    "pinned",
]

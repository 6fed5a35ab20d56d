"""Encoding repair, with ftfy (Speer, 2019): text that was decoded with the wrong encoding is corrected."""

from __future__ import annotations

from bigtrain.base import BigtrainError
from bigtrain.config import FixEncodingSettings
from bigtrain.data.build.clean.text import Text


def fix_encoding(text: Text, settings: FixEncodingSettings) -> Text:
    """Correct wrong decodings, broken HTML entities and control characters. It never removes a document."""
    import ftfy

    return Text(
        ftfy.fix_text(text.text, normalization=None if settings.normalization == "none" else settings.normalization)
    )


def require_ftfy(settings: FixEncodingSettings) -> None:
    """Raise BigtrainError if ftfy is not installed."""
    try:
        import ftfy  # noqa: F401
    except ImportError:
        raise BigtrainError(
            "data.sources: the rule fix_encoding needs the ftfy library",
            found="it is not installed",
            fix="pip install 'bigtrain[clean]', or take fix_encoding out of clean",
        ) from None

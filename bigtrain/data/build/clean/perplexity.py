"""The perplexity of a text under an n-gram model, as CCNet has it: Wenzek et al., CCNet: Extracting High Quality
Monolingual Datasets from Web Crawl Data, 2019 (arXiv:1911.00359), section 3.4.

CCNet trains on Wikipedia and cuts a corpus into thirds by percentiles of the perplexity. `bigtrain data ngram score`
prints percentiles of a sample, which become `min` and `max`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from bigtrain.base import BigtrainError
from bigtrain.config import PerplexitySettings
from bigtrain.data.build.clean.model_files import require_content
from bigtrain.data.build.clean.text import Rejection, Text
from bigtrain.data.build.rule_models.backoff_model import BackoffModel
from bigtrain.data.build.rule_models.ngram_file import read_ngrams

RULE = "perplexity"


def perplexity(text: Text, limits: PerplexitySettings) -> Text | Rejection:
    """Remove documents with too high or too low a perplexity, or without a word; the evidence is the perplexity."""
    found = perplexity_of(text.text, limits)
    if found is None:
        return Rejection(RULE, "no word")
    if limits.max is not None and found > limits.max:
        return Rejection(RULE, "too high", evidence=f"perplexity {found:.1f}")
    if found < limits.min:
        return Rejection(RULE, "too low", evidence=f"perplexity {found:.1f}")
    return text


def perplexity_of(text: str, limits: PerplexitySettings) -> float | None:
    """The perplexity of a text; None where it has no token."""
    assert limits.hash is not None
    return _opened(limits.model, limits.hash).perplexity(text, limits.tokens)


def pin_perplexity(limits: PerplexitySettings) -> PerplexitySettings:
    """The settings with the hash of the model's content.

    Raises:
        BigtrainError: the file is no n-gram model, has other tokens, or another content than the settings say.
    """
    content = require_content(limits.model, limits.hash, RULE)
    form = _opened(limits.model, content).form
    if form not in (None, limits.tokens):
        raise BigtrainError(
            f"data.sources: the rule {RULE} counts other tokens than {limits.model}",
            found=f"tokens: {limits.tokens}",
            wanted=f"tokens: {form}",
            fix=f"set tokens: {form}",
        )
    return limits.model_copy(update={"hash": content})


@lru_cache(maxsize=4)
def _opened(path: Path, content: str) -> BackoffModel:
    require_content(path, content, RULE)
    return read_ngrams(path, f"data.sources: the rule {RULE}")

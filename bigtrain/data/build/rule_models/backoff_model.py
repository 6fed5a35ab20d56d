"""An n-gram model in the form of Katz (1987), as ARPA files and KenLM (Heafield 2011) have it.

    p(w | h) = p(hw) if hw is in the model, else backoff(h) * p(w | h')        backoff(h) is 1 for an unknown h

h' is h without its first token. An interpolated model has this form too: p(hw) has the share of the order below in it.
A k-gram is known by the index of its first k-1 tokens among the (k-1)-grams, and its last token, as in kneser_ney.py.

    FILE.ngram    safetensors: `words` (UTF-8, a word a line), and for each order k
                  keys.k (i64, sorted), log_prob.k (f32), backoff.k (f32), logarithms to the base 10
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from bigtrain.base import write_asked_for
from bigtrain.data.build.rule_models.kneser_ney import NGramModel
from bigtrain.data.build.rule_models.sentences import START, UNKNOWN, TokenForm, sentences_of

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

FORMAT = "bigtrain n-gram 1"
LEAST = 1e-30
"""The least probability or weight that is stored: its logarithm is finite."""


@dataclass(frozen=True)
class BackoffLevel:
    """The k-grams of one order, by their sorted keys."""

    keys: I64
    """[K], index of the first k-1 tokens among the k-grams below * V + last token."""
    log_prob: F32
    """[K], log10 p(last token | the others)."""
    backoff: F32
    """[K], log10 of the weight of the order below after this k-gram; 0 at the highest order."""

    def find(self, keys: I64) -> I64:
        """The index of each key; -1 for one that is not there."""
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)


@dataclass(frozen=True)
class BackoffModel:
    """Words with their numbers, and the levels from unigrams up. Every word is a unigram: its number is its index."""

    words: Sequence[str]
    levels: Sequence[BackoffLevel]
    form: TokenForm | None
    """What its tokens are; None where its file does not say."""

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The number of each word."""
        return {word: number for number, word in enumerate(self.words)}

    def log_probabilities(self, tokens: I64, visible: I64) -> F64:
        """log10 p(token | the `visible` tokens before it) for every token.

        Args:
            tokens: [n], any number of sentences one after the other.
            visible: [n], how many tokens before each belong to its sentence.
        """
        size = len(self.words)
        result = np.zeros(len(tokens))
        index = np.zeros(len(tokens), np.int64)
        for k, level in enumerate(self.levels, start=1):
            context = np.where(visible >= k - 1, np.roll(index, 1), -1) if k > 1 else index
            known = np.flatnonzero(context >= 0)
            found = level.find(context[known] * size + tokens[known])
            there = found >= 0
            if k > 1:
                result[known] += self.levels[k - 2].backoff[context[known]]
            result[known[there]] = level.log_prob[found[there]]
            index = np.full(len(tokens), -1, np.int64)
            index[known] = found
        return result

    def perplexity(self, text: str, form: TokenForm) -> float | None:
        """The perplexity of a text: 10^(-mean log10 p), over all tokens but those that start a sentence.

        None for a text without a token.
        """
        sentences = sentences_of(text, form)
        if not sentences:
            return None
        unknown = self.numbers[UNKNOWN]
        tokens = np.array([self.numbers.get(token, unknown) for sentence in sentences for token in sentence])
        visible = np.concatenate([np.arange(len(sentence)) for sentence in sentences])
        # A power of a float may be out of range, where numpy's is infinite.
        return float(np.power(10.0, -self.log_probabilities(tokens, visible)[visible > 0].mean()))

    def write(self, path: Path) -> None:
        """Write a `.ngram` file."""
        from safetensors.numpy import save

        tensors: dict[str, npt.NDArray[np.generic]] = {"words": np.frombuffer("\n".join(self.words).encode(), np.uint8)}
        for k, level in enumerate(self.levels, start=1):
            tensors |= {f"keys.{k}": level.keys, f"log_prob.{k}": level.log_prob, f"backoff.{k}": level.backoff}
        about = json.dumps({"format": FORMAT, "order": len(self.levels), "tokens": self.form})
        write_asked_for(path, save(tensors, {"about": about}))


def backoff_of(model: NGramModel, words: Sequence[str], form: TokenForm) -> BackoffModel:
    """The same distribution in this form.

    Args:
        model: an interpolated model over the numbers of the words.
        words: all words of its vocabulary, UNKNOWN among them.
        form: what its tokens are.
    """
    size = len(words)
    first = model.levels[0]
    own = np.full(size, first.left_over[0] / size)
    own[first.keys] += first.discounted
    keys, probabilities = [np.arange(size)], [own]
    weights = [np.ones(size)]
    suffix = np.zeros(size, np.int64)  # of each k-gram: the index of its last k-1 tokens, one order below
    for k, level in enumerate(model.levels[1:], start=2):
        context, token = np.divmod(level.keys, size)
        if k == 2:  # a word that never occurred is no unigram of the model below
            weights[0][first.keys] = level.left_over
            context = first.keys[context]
            suffix = token
        else:
            weights[k - 2][:] = level.left_over
            suffix = np.searchsorted(keys[k - 2], suffix[context] * size + token)
        keys.append(context * size + token)
        left_over = weights[k - 2][context]
        probabilities.append(level.discounted + left_over * probabilities[k - 2][suffix])
        weights.append(np.ones(len(level.keys)))
    levels = [
        BackoffLevel(own_keys, _logarithms(probability), _logarithms(weight))
        for own_keys, probability, weight in zip(keys, probabilities, weights, strict=True)
    ]
    return BackoffModel(words, levels, form)


def _logarithms(values: F64) -> F32:
    return np.log10(np.maximum(values, LEAST)).astype(np.float32)


def read_ngram_file(path: Path) -> BackoffModel:
    """Read a `.ngram` file.

    Raises:
        ValueError: it is none, or its parts do not fit each other.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("about", "null"))
            if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("tokens") not in _FORMS:
                raise ValueError("another format, or a later one")
            words = bytes(file.get_tensor("words")).decode().split("\n")
            levels = [
                BackoffLevel(*(file.get_tensor(f"{name}.{k}") for name in ("keys", "log_prob", "backoff")))
                for k in range(1, int(about["order"]) + 1)
            ]
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
    model = BackoffModel(words, levels, about["tokens"])
    require_consistent(model)
    return model


_FORMS = get_args(TokenForm)


def require_consistent(model: BackoffModel) -> None:
    """Raise ValueError where the parts of a model that was read do not fit each other."""
    size, below = len(model.words), 1
    if not model.levels or len(model.numbers) != size or UNKNOWN not in model.numbers or START not in model.numbers:
        raise ValueError(f"no n-grams, a word twice, or no {UNKNOWN} and {START}")
    for k, level in enumerate(model.levels, start=1):
        types = [str(column.dtype) for column in (level.keys, level.log_prob, level.backoff)]
        shapes = {level.keys.shape, level.log_prob.shape, level.backoff.shape}
        if types != ["int64", "float32", "float32"] or shapes != {(len(level.keys),)} or not len(level.keys):
            raise ValueError(f"columns of {k}-grams that do not fit each other")
        if level.keys[0] < 0 or level.keys[-1] >= below * size or (np.diff(level.keys) <= 0).any():
            raise ValueError(f"{k}-grams that are not in order, or of others that are not there")
        if not (np.isfinite(level.log_prob).all() and np.isfinite(level.backoff).all()):
            raise ValueError(f"a probability of a {k}-gram that is no number")
        if k == 1 and len(level.keys) != size:
            raise ValueError(f"{len(level.keys):,} unigrams of {size:,} words")
        below = len(level.keys)

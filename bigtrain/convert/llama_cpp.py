"""Does llama.cpp compute what we compute, and cut text into the same tokens? Needs llama-cpp-python."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.convert.gguf import context_length
from bigtrain.convert.weights import without_training_only
from bigtrain.model import build_model

LARGEST_DIFFERENCE = {torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Of logits, as a share of their standard deviation: llama.cpp rounds what it multiplies with matrices of 16 bits to
their type, and looks GELU up in a table of 16 bits. A wrong layout moves them by about as much as they are."""

TEXTS = (
    "The quick brown fox doesn't jump over 1234567 lazy dogs -- it's 3.14 o'clock, they'LL say; I'VE seen.",
    "def f(x: int) -> str:\n    return {'a': [x, 0x1F], \"b\": None}  # twice\n\n\n\tif x:\r\n\t\tpass   ",
    "   leading, trailing, \t tabs\u00a0and\u3000wide spaces  \n \n  ",
    "Füße, naïve café, Ελληνικά, русский, עברית, العربية, हिन्दी, ไทย, 漢字かな交じり文, 한국어",
    "emoji 🚀👩‍👩‍👧‍👦🏳️‍🌈, ½ ² Ⅷ ٣ ๔, math ∑∫√≠, $€£¥, e\u0301 against é, \u200bzero\u200dwidth, \ufeffmark",
    "a" * 40 + "!" * 20 + "\n" * 9 + "9" * 15 + "_" * 7 + "'s't're",
)
"""What the tokenizers are compared on."""


@dataclass(frozen=True)
class LlamaCppComparison:
    """How far llama.cpp is from us."""

    difference: float
    """Root of the mean square of the logits' differences, as a share of their standard deviation. With experts the
    median over positions: where two experts are nearly tied, rounding chooses another one."""
    greedy_gap: float
    """By how much our logit of a token that llama.cpp chose is below our largest, in the same unit, at the worst."""
    tokens: tuple[int, ...]
    """What llama.cpp chose, one after the other."""

    def check(self, file: Path, dtype: torch.dtype) -> None:
        """Raise a BigtrainError unless they compute the same, but for the rounding that llama.cpp does."""
        limit = LARGEST_DIFFERENCE[dtype]
        if self.difference <= limit and self.greedy_gap <= 10 * limit:  # false for NaN
            return
        raise BigtrainError(
            f"llama.cpp does not compute what bigtrain computes from {file}; do not use it",
            found=f"logits that differ by {self.difference:.2%} of their standard deviation, greedy tokens "
            f"{self.greedy_gap:.2%} below ours",
            wanted=f"at most {limit:.1%} and {10 * limit:.0%}",
            fix="report this with the settings: it is a defect of bigtrain",
        )


def compare_with_llama_cpp(
    file: Path,
    weights: Mapping[str, Tensor],
    settings: ModelSettings,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    *,
    tokens: int = 48,
    seed: int = 0,
) -> LlamaCppComparison:
    """Load an exported file with llama.cpp and compare tokenizer, logits and the tokens it chooses greedily with ours.

    Ours is computed in float32 on the CPU from weights rounded to the exported type.

    Args:
        file: written by `export_gguf`.
        weights: what was exported, by our names.
        settings: of the model.
        tokenizer: ours, of prompts.
        dtype: that the file was written in.
        tokens: length of the sequence compared, cut to the model's context; half of it is chosen by llama.cpp.
        seed: of the random tokens that begin it.

    Raises:
        BigtrainError: llama.cpp does not load the file, or cuts a text into other tokens.
    """
    length = max(2, min(tokens, context_length(settings)))
    theirs = _load(file, length)
    compare_tokenizers(theirs, tokenizer)
    drawn = torch.randint(settings.vocab_size, (length // 2,), generator=torch.Generator().manual_seed(seed))
    theirs.eval(drawn.tolist())
    chosen: list[int] = []
    while theirs.n_tokens < length:
        chosen.append(int(theirs.scores[theirs.n_tokens - 1].argmax()))
        theirs.eval(chosen[-1:])
    their_logits = torch.from_numpy(theirs.scores[:length].copy())
    our_logits = _our_logits(weights, settings, dtype, [*drawn.tolist(), *chosen])
    unit = our_logits.std()
    before = our_logits[len(drawn) - 1 : -1]
    gaps = before.amax(dim=-1) - before.gather(-1, torch.tensor(chosen)[:, None])[:, 0]
    by_position = (their_logits - our_logits).square().mean(dim=-1)
    difference = (by_position.median() if settings.num_experts else by_position.mean()).sqrt()
    return LlamaCppComparison(float(difference / unit), float(gaps.max() / unit), tuple(chosen))


def compare_tokenizers(theirs: Any, tokenizer: Tokenizer, texts: tuple[str, ...] = TEXTS) -> None:
    """Raise BigtrainError where llama.cpp (a `Llama`) cuts a text into other tokens than our tokenizer of prompts."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.encode_special_tokens = True  # text that spells a special token is text
    for text in texts:
        found = theirs.tokenize(text.encode(), add_bos=True, special=False)
        wanted = tokenizer.encode(text, add_special_tokens=True).ids
        if found != wanted:
            raise BigtrainError(
                f"llama.cpp cuts the text {text!r} into other tokens than bigtrain",
                found=found[:40],
                wanted=wanted[:40],
                fix="report this with the tokenizer: it is a defect of bigtrain",
            )


@torch.no_grad()
def _our_logits(
    weights: Mapping[str, Tensor], settings: ModelSettings, dtype: torch.dtype, tokens: list[int]
) -> Tensor:
    """[T, V], in float32 from rounded weights."""
    with torch.device("meta"):
        model = build_model(without_training_only(settings), attn_implementation="reference")
    model = model.to_empty(device="cpu").eval()
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name].to(dtype))
    return model.logits(torch.tensor([tokens]))[0]


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """The lines that llama.cpp logs in the meantime, and, as it goes on calling what it was given, afterwards."""
    import llama_cpp

    lines: list[str] = []
    keep = llama_cpp.llama_log_callback(lambda _level, text, _data: lines.append(text.decode(errors="replace").strip()))
    llama_cpp.llama_log_set(keep, None)
    _KEPT.append(keep)  # llama.cpp goes on calling it
    yield lines


def _load(file: Path, length: int) -> Any:
    import llama_cpp

    threads = torch.get_num_threads()
    with captured_log() as lines:
        try:
            return llama_cpp.Llama(
                str(file), n_ctx=length, n_batch=length, n_ubatch=length, n_threads=threads, n_threads_batch=threads,
                logits_all=True, verbose=False,
                type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,  # not rounded in between
                yarn_attn_factor=-1.0, yarn_beta_fast=-1.0, yarn_beta_slow=-1.0,  # what the file says
            )  # fmt: skip
        except ValueError:
            errors = [line for line in lines if "error" in line.lower()]
            raise BigtrainError(
                f"llama.cpp does not load {file}",
                found=errors[0] if errors else "no reason given",
                fix="report this with the settings: it is a defect of bigtrain",
            ) from None


_KEPT: list[Any] = []

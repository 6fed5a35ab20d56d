"""Does `transformers` compute what we compute?

Both sides get the same random tokens, one after the other, so that memory holds one model in float32 at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.model import Decoder, build_model

LARGEST_DIFFERENCE = 1e-3
"""As a share of the largest logit. The order of summation in float32 explains some 1e-5."""


@dataclass(frozen=True)
class LogitsComparison:
    """What the two sides have in common."""

    largest_logit_difference: float
    """In float32, with weights as they are in the files."""
    largest_logit: float
    greedy_tokens: int
    """How many positions were compared in the files' own precision."""
    greedy_tokens_alike: int
    """At how many both take the same token."""
    greedy_tokens_apart: int
    """Positions at which the logit of their token is lower than the rounding to that precision explains."""

    def check(self, folder: Path) -> None:
        """Raise a BigtrainError unless they compute the same."""
        limit = LARGEST_DIFFERENCE * max(1.0, self.largest_logit)
        if self.largest_logit_difference <= limit and not self.greedy_tokens_apart:  # false for NaN
            return
        raise BigtrainError(
            f"transformers does not compute what bigtrain computes from {folder}; do not use it",
            found=f"logits that differ by {self.largest_logit_difference:.3g}, and {self.greedy_tokens_apart} of "
            f"{self.greedy_tokens} greedy tokens that rounding does not explain",
            wanted=f"at most {limit:.3g}, and none",
            fix="report this with the settings: it is a defect of bigtrain",
        )


@torch.no_grad()
def compare_with_transformers(
    folder: Path,
    weights: Mapping[str, Tensor],
    settings: ModelSettings,
    dtype: torch.dtype,
    *,
    tokens: int = 64,
    seed: int = 0,
) -> LogitsComparison:
    """Compare what `transformers` loads from a folder with our own model. Needs the extra `hf`.

    Args:
        folder: at Hugging Face's format.
        weights: of our model, by our names.
        settings: of our model.
        dtype: of the weights in the folder; ours are rounded to it.
        tokens: length of the two sequences compared, cut to the model's context.
        seed: of the random tokens.
    """
    length = min(tokens, settings.max_position_embeddings)
    input_ids = torch.randint(settings.vocab_size, (2, length), generator=torch.Generator().manual_seed(seed))
    ours = _ours(weights, settings, dtype)
    exact = ours.float().logits(input_ids)
    rounded = ours.to(dtype).logits(input_ids).float()
    del ours
    theirs = _theirs(folder)
    their_exact = theirs.float()(input_ids).logits
    their_rounded = theirs.to(dtype)(input_ids).logits.float()
    del theirs
    # Where two tokens lie closer than rounding moves them, either may win.
    noise = 2 * max((rounded - exact).abs().max().item(), (their_rounded - their_exact).abs().max().item())
    their_tokens = their_rounded.argmax(-1, keepdim=True)
    shortfall = exact.max(-1, keepdim=True).values - exact.gather(-1, their_tokens)
    return LogitsComparison(
        largest_logit_difference=float((their_exact - exact).abs().max()),
        largest_logit=float(exact.abs().max()),
        greedy_tokens=input_ids.numel(),
        greedy_tokens_alike=int((their_tokens == rounded.argmax(-1, keepdim=True)).sum()),
        greedy_tokens_apart=int((shortfall > noise).sum()),
    )


def _ours(weights: Mapping[str, Tensor], settings: ModelSettings, dtype: torch.dtype) -> Decoder:
    with torch.device("meta"):
        model = build_model(settings, attn_implementation="reference")
    model = model.to(dtype).to_empty(device="cpu").eval()
    given = set(weights)
    for name, parameter in model.named_parameters():
        if name in given:  # what is for training only may be left out
            parameter.copy_(weights[name])
    return model


def _theirs(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()

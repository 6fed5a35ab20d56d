"""Does `transformers` compute what we compute?"""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from bigtrain.model import Decoder


@torch.no_grad()
def compare_with_transformers(folder: Path, model: Decoder, *, tokens: int = 64, seed: int = 0) -> float:
    """The largest absolute difference between logits of an exported folder, as `transformers` loads it, and ours.

    Both sides compute in float32 on the CPU, from weights rounded to the exported type, on random tokens: what is
    left is the order of summation, some 1e-5 of the largest logit. Needs the extra `hf`.

    Args:
        folder: written by `export_hf`.
        model: the decoder with the weights that were exported; it is not changed.
        tokens: length of the two sequences compared, cut to the model's context.
        seed: of the random tokens.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    theirs = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    ours = copy.deepcopy(model).to("cpu", theirs.dtype).float()
    theirs = theirs.float().eval()
    length = min(tokens, model.settings.max_position_embeddings)
    input_ids = torch.randint(model.settings.vocab_size, (2, length), generator=torch.Generator().manual_seed(seed))
    return float((theirs(input_ids).logits - ours.logits(input_ids)).abs().max())

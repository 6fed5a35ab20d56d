"""What is done to logits before the softmax."""

from __future__ import annotations

from typing import NamedTuple


class Shaping(NamedTuple):
    """What is done to logits before the softmax, and to their normaliser: see `bigtrain.model.loss.loss`."""

    logits_scaling: float = 1.0
    softcap: float | None = None
    z_loss_coef: float = 0.0
    label_smoothing: float = 0.0

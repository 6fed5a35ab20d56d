"""The router of a mixture of experts: which experts work for a token, and what keeps all of them at work.

    logits = W x;  p = softmax(logits)                  in float32
    experts: the k largest of p + biases;  weights: their p, made to sum to one where the model does so

Balance comes from a loss, from the biases, or both. The losses are sums over labelled tokens, so that micro-batches
and ranks add up to the global batch, whatever the split; the biases move once a step, by what the whole of it has
counted. Everything counted is a *result* of the forward pass and not a side effect: a block that is recomputed counts
once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.config import ModelSettings
from bigtrain.model.sequence_parallel import SequenceParallel


class RouterReport(NamedTuple):
    """What a router found out about the labelled tokens of a micro-batch."""

    balance_loss: Tensor
    """Scalar: the load-balancing loss of each row times its labelled tokens, summed."""
    z_loss: Tensor
    """Scalar: the squared log-normaliser of the logits, summed over labelled tokens."""
    loads: Tensor
    """[E] int64: tokens that chose each expert."""


class Router(nn.Module):
    """Chooses k of E experts for each token (Shazeer et al., 2017; losses and biases: see `_report`, `move`)."""

    moves: Tensor | None

    def __init__(self, settings: ModelSettings, sequence_parallel: SequenceParallel | None) -> None:
        super().__init__()
        self.top_k, self.normalises = settings.num_experts_per_tok, settings.norm_topk_prob
        self.rate = settings.router_bias_update_rate
        self.sequence_parallel = sequence_parallel
        self.weight = nn.Parameter(torch.empty(settings.num_experts, settings.hidden_size))
        # A bias is a whole number of moves: exact in a checkpoint's JSON, and no cast of the model rounds it.
        moves = torch.zeros(settings.num_experts, dtype=torch.int64) if self.rate else None
        self.register_buffer("moves", moves, persistent=False)

    def forward(self, x: Tensor, labelled: Tensor | None = None) -> tuple[Tensor, Tensor, RouterReport | None]:
        """Route [B, T, C].

        Args:
            x: the tokens.
            labelled: [B, T] bool, the tokens to report on; None: no report.

        Returns:
            The experts [B, T, k] int64, their weights [B, T, k] in x's type, and the report.
        """
        logits = F.linear(x, self.weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        probabilities = logits.softmax(dim=-1)
        biased = probabilities.detach()
        if self.moves is not None:
            biased = biased + self.rate * self.moves
        experts = biased.topk(self.top_k, dim=-1).indices
        weights = probabilities.gather(-1, experts)
        if self.normalises:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        report = None if labelled is None else self._report(logits, probabilities, experts, labelled)
        return experts, weights.to(x.dtype), report

    def _report(self, logits: Tensor, probabilities: Tensor, experts: Tensor, labelled: Tensor) -> RouterReport:
        """For a row of n labelled tokens the load-balancing loss is E sum_e f_e P_e (Fedus et al., 2021, equation 4),
        with f_e the share of them that chose e and P_e the mean of its probability. It is linear in P_e, so ranks that
        share a row have to share their counts alone."""
        choices = labelled.long()[..., None].expand_as(experts).flatten(1)
        counts = choices.new_zeros(logits.shape[0], logits.shape[-1]).scatter_add_(1, experts.flatten(1), choices)
        of_rows = counts if self.sequence_parallel is None else self.sequence_parallel.sum_over_ranks(counts)
        tokens = of_rows.sum(dim=1, keepdim=True).clamp(min=self.top_k) / self.top_k
        mask = labelled[..., None].to(logits.dtype)
        balance = logits.shape[-1] * (of_rows / tokens * (probabilities * mask).sum(dim=1)).sum()
        z = (logits.logsumexp(dim=-1, keepdim=True).square() * mask).sum()
        return RouterReport(balance, z, counts.sum(dim=0))

    @property
    def biases(self) -> Tensor | None:
        """[E] float32, what is added to the probabilities for the choice alone; None without."""
        return None if self.moves is None else self.rate * self.moves.float()

    def move(self, loads: Tensor) -> None:
        """Move each bias by the rate towards even loads (Wang et al., 2024, algorithm 1).

        Args:
            loads: [E], of the global batch.
        """
        if self.moves is not None:
            loads = loads.to(self.moves.device)
            self.moves += (loads.sum() - loads * loads.numel()).sign()

"""The head of a task in the place of the one that predicts tokens: classes of texts or tokens, or where answers are.

hidden states -> (dropout, dense, activation, norm) -> dropout -> classifier -> logits, or summed loss

What comes before the classifier is the family's choice, as transformers has it: see `classifier_transform`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.base import IGNORE_INDEX
from bigtrain.config import ModelSettings
from bigtrain.model.cpu.cpu_products import CpuLinear
from bigtrain.model.layers.activations import ACTIVATIONS
from bigtrain.model.layers.dropout import Dropout, DropoutKeys
from bigtrain.model.layers.norm import norm_layer

START, END, START_AND_END = 1, 2, 3
"""Labels of question_answering: at the first token of an answer, at its last one, at its only one."""


class TaskHead(nn.Module):
    """A classifier of texts, of tokens, or of the starts and ends of answers."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width, transform = settings.hidden_size, settings.transform_of_task
        self.finds_answers = settings.task_head == "question_answering"
        self.label_smoothing = settings.label_smoothing
        self.class_weights: tuple[float, ...] | None = None
        """What the loss of each class is multiplied with in training; None: all with 1."""
        self.observer: Callable[[Tensor, Tensor, Tensor], None] | None = None
        """Is given the logits [n, classes] and labels [n] of labelled tokens, of question_answering those of all, and
        where documents start among them; outside training. None: nobody asks."""
        self.input_dropout = Dropout(settings.classifier_dropout if transform == "tanh" else 0.0, "task head")
        self.dense: nn.Module | None = None
        if transform != "none":
            self.dense = CpuLinear(width, width, bias=settings.head_transform_bias or transform != "norm")
        self.activation = ACTIVATIONS[settings.head_act or settings.hidden_act] if transform == "norm" else torch.tanh
        self.norm = norm_layer(settings) if transform == "norm" else nn.Identity()
        self.dropout = Dropout(settings.classifier_dropout, "classifier")
        # As transformers has it: decoders score a text without a bias.
        biased = transform != "none" or settings.task_head != "sequence_classification"
        self.classifier = CpuLinear(width, settings.logits_of_task, bias=biased)

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        dropout: DropoutKeys | None = None,
        *,
        each_token: bool = False,
    ) -> Tensor:
        """[..., C] to logits [..., classes], of question_answering [..., 2] for start and end; with labels to a loss.

        The value is the sum of -log p(label) in nats, whatever class weights and label smoothing are, so that losses
        compare between runs. The *gradient* is that of `torch.nn.functional.cross_entropy(weight=, label_smoothing=,
        reduction="sum")`: a mean over labels divides by their number, and not by their weights. An answer's start and
        end are each chosen among the tokens of its document, and count half.

        Args:
            hidden: [B, T, C].
            labels: [B, T], a class at labelled positions, or START, END or START_AND_END; else -100.
            cu_seqlens: question_answering: [documents + 1] int32, where documents begin among the B T tokens.
            max_seqlen: question_answering: the longest document, or more.
            dropout: the keys of the B T tokens.
            each_token: return the losses of the tokens [B, T] instead of their sum, without a gradient.
        """
        if labels is None:
            return self._logits(hidden, dropout)
        states, flat = hidden.flatten(0, -2), labels.flatten()
        keys = None if dropout is None else dropout.own.flatten()
        if self.finds_answers:
            assert cu_seqlens is not None and max_seqlen is not None  # a start is chosen among those of its document
            logits = self._logits(states, _same_keys(keys))
            self._show(logits, flat, cu_seqlens)
            losses = answer_losses(logits, flat, cu_seqlens, max_seqlen)
            return losses.detach().view_as(labels) if each_token else losses.sum()
        places = (flat != IGNORE_INDEX).nonzero().squeeze(1)
        logits = self._logits(states[places], _same_keys(None if keys is None else keys[places]))
        logits, chosen = logits.to(torch.promote_types(logits.dtype, torch.float32)), flat[places]
        if cu_seqlens is not None:
            self._show(logits, chosen, torch.searchsorted(places, cu_seqlens.to(places.dtype)))
        if each_token:
            found = F.cross_entropy(logits, chosen, reduction="none").detach()
            return found.new_zeros(len(flat)).index_put((places,), found).view_as(labels)
        loss = F.cross_entropy(logits, chosen, reduction="sum")
        if not torch.is_grad_enabled() or (self.class_weights is None and not self.label_smoothing):
            return loss
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        learned = F.cross_entropy(logits, chosen, weights, reduction="sum", label_smoothing=self.label_smoothing)
        return loss.detach() + (learned - learned.detach())

    def set_class_weights(self, weights: Sequence[float] | None) -> None:
        """Weigh the classes in training: what is learned of a label is multiplied with the weight of its class.

        Raises:
            ValueError: there is not one for each class.
        """
        classes = self.classifier.out_features
        if weights is not None and (self.finds_answers or len(weights) != classes):
            raise ValueError(f"{len(weights)} class weights for {0 if self.finds_answers else classes} classes")
        self.class_weights = None if weights is None else tuple(weights)

    def _show(self, logits: Tensor, labels: Tensor, starts: Tensor) -> None:
        if self.observer is not None and not self.training:
            self.observer(logits, labels, starts)

    def _logits(self, x: Tensor, dropout: DropoutKeys | None) -> Tensor:
        if self.dense is not None:
            x = self.norm(self.activation(self.dense(self.input_dropout(x, dropout))))
        return self.classifier(self.dropout(x, dropout))


def _same_keys(keys: Tensor | None) -> DropoutKeys | None:
    return None if keys is None else DropoutKeys(keys, keys)


def answer_losses(logits: Tensor, labels: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """[N] the loss of each start or end of an answer, half of -log p among the tokens of its document; else 0.

    Args:
        logits: [N, 2], for start and end.
        labels: [N] START, END, START_AND_END, or -100.
        cu_seqlens: [documents + 1], where documents begin among the N tokens.
        max_seqlen: the longest document, or more.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    starts = cu_seqlens.long()
    offsets = torch.arange(max_seqlen, device=logits.device)
    within = offsets < starts.diff()[:, None]
    places = (starts[:-1, None] + offsets).clamp(max=len(labels) - 1)  # [documents, L]
    scores = logits[places].masked_fill(~within[..., None], torch.finfo(logits.dtype).min)
    of_tokens = scores.log_softmax(1)[within]  # [N, 2], for documents lie end to end
    asked = torch.stack(((labels == START) | (labels == START_AND_END), labels >= END), dim=-1)
    return torch.where(asked, -of_tokens / 2, 0.0).sum(-1)

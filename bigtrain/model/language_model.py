"""What every language model is to the packages above: it reads packed documents, and says what it learns and keeps.

forward     a packed micro-batch to its summed loss
logits, task_logits, hidden, new_cache     reading without labels, at once or token by token
init_weights, lr_scales, router_moves     what it has learned: parameters, and the moves of routers
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.model.auxiliary import Auxiliary
from bigtrain.model.block import Block
from bigtrain.model.cache import Cache
from bigtrain.model.compression.compressed import CompressedLinear
from bigtrain.model.distillation import Distillation, labelled_positions
from bigtrain.model.initial_weights import initialize, is_hidden_matrix
from bigtrain.model.layer_depth import layers_to_head
from bigtrain.model.layers.dropout import DropoutKeys
from bigtrain.model.layers.embedding import OutputHead, TokenEmbedding
from bigtrain.model.layers.router import Router, RouterReport
from bigtrain.model.layers.task_head import TaskHead
from bigtrain.model.recurrence.characters import CharacterEmbedding
from bigtrain.model.recurrence.recurrent_layer import RecurrentLayer
from bigtrain.model.sequence_parallel import SequenceParallel


class LanguageModel(nn.Module):
    """A model of any architecture. Made by `build_model`; its weights mean something after `init_weights`."""

    settings: ModelSettings
    lm_head: OutputHead
    """Predicts tokens; a model with a task_head has none."""
    task_head: TaskHead | None
    auxiliary: Auxiliary
    distillation: Distillation | None
    """What it learns from a teacher, where there is one."""
    virtual_tokens = 0
    """Virtual tokens that an adapter puts in front of every document."""
    adapter_drops = False
    """Whether training drops in an adapter, too."""
    sequence_parallel: SequenceParallel | None = None
    """The ranks that share each sequence with this one."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def head(self) -> OutputHead | TaskHead:
        """What takes the last hidden states: called with labels it gives a loss, and without them logits."""
        return self.lm_head if self.task_head is None else self.task_head

    def logits(self, *args: Any, **inputs: Any) -> Tensor:
        """Logits [B, T, V] of the head for the tokens that the architecture reads."""
        raise NotImplementedError

    def task_logits(self, *args: Any, **inputs: Any) -> Tensor:
        """Logits [B, T, num_labels] of the classes at every token, of question_answering [B, T, 2] for start and end.

        It takes what `logits` takes: the inputs of `forward` but for labels and keys of dropout.
        """
        assert self.task_head is not None  # else its logits are of tokens
        return self.logits(*args, **inputs)

    def learn_from(self, distillation: Distillation) -> None:
        """Learn from a teacher beside the labels."""
        distillation.watch(self, cast(nn.ModuleList, self.layers))
        self.distillation = distillation
        self.auxiliary.set_coefficients(distillation.coefficients)

    def set_class_weights(self, weights: Sequence[float] | None) -> None:
        """Weigh the classes of the task's head: see `TaskHead.set_class_weights`. Checkpoints do not hold them."""
        assert self.task_head is not None  # only its objectives have classes
        self.task_head.set_class_weights(weights)

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """The last hidden states [B, T, C], which the head takes. Without boundaries, each row is one document.

        With a cache of `new_cache`, the first call reads packed prompts, and each further one a token of every row.
        """
        raise NotImplementedError

    def label_states(self, labels: Tensor, **inputs: Any) -> Tensor:
        """The last hidden states [n, C] at the labelled positions, in their order, of which the head predicts labels.

        Args:
            labels: [B, T], -100 where there is none.
            inputs: what the model reads: those of `forward` but for labels and keys of dropout.
        """
        return self._at_labels(self.hidden(**inputs), labels)

    def set_token_bytes(self, table: Tensor) -> None:
        """Say which bytes each token has: [V, W] symbols of `BYTE_SYMBOLS`; nothing where they are not read.

        They follow from the tokenizer, so checkpoints do not hold them: a model that reads bytes needs them first.
        """
        for _, module in self._own_modules():
            if isinstance(module, CharacterEmbedding):
                module.token_bytes.copy_(table)

    def new_cache(
        self, lengths: Sequence[int], device: torch.device, read_lengths: Sequence[int] | None = None
    ) -> Cache:
        """An empty cache for prompts of these lengths, which the first call of `hidden` brings packed, end to end. Of
        an encoder-decoder `read_lengths` are those of what its encoder has read, likewise."""
        raise NotImplementedError

    def dropout_keys(self, row_keys: Tensor | None, tokens: Tensor) -> DropoutKeys | None:
        """The keys of the dropout of tokens [B, T], whole rows; None in evaluation, and without dropout.

        Raises:
            ValueError: the model trains with dropout, and the rows have no keys.
        """
        if not (self.training and (self.settings.drops or self.adapter_drops)):
            return None
        if row_keys is None:
            raise ValueError("a model trains with dropout on rows that have keys: give row_keys, or call eval()")
        return DropoutKeys.of(row_keys, tokens.shape[1], self.sequence_parallel)

    def init_weights(self, seed: int) -> None:
        """Fill every parameter, in place, by name and seed alone: see `initialize`."""
        for name, parameter in self.named_parameters():
            initialize(name, parameter, self.settings, seed)
        self.set_router_moves({})

    def lr_scales(self, layer_decay: float = 1.0) -> dict[str, float]:
        """Learning rates of parameters by name as multiples of that of the others: muP's 1 / m, and layer_decay once
        for each block from there to the head (see `layers_to_head`)."""
        m = self.settings.width_multiplier
        scales = {
            name: layer_decay ** layers_to_head(name, self.settings) / (m if is_hidden_matrix(name) else 1)
            for name, _ in self.named_parameters()
        }
        return {name: scale for name, scale in scales.items() if scale != 1}

    def at_step(self, step: int) -> None:
        """Compute as after so many steps of training: how much compressed layers prune depends on it."""
        for _, module in self._own_modules():
            if isinstance(module, CompressedLinear):
                module.at_step(step)

    def rotate_by(self, settings: ModelSettings) -> None:
        """Rotate queries and keys by the `rope_theta` and `rope_scaling` of these settings from now on. A model without
        attention rotates nothing."""

    def compile_blocks(self) -> None:
        """Compile the blocks in place, one by one: they share one compilation, which a whole model would not."""
        for module in self.modules():
            if isinstance(module, Block | RecurrentLayer):
                module.compile()

    def routers(self) -> dict[str, Router]:
        """The routers by name, in the order of their loads in `auxiliary`."""
        return {name: module for name, module in self._own_modules() if isinstance(module, Router)}

    def router_moves(self) -> dict[str, list[int]]:
        """The routers' biases as whole numbers of moves, by name, for JSON; empty without biases. Beside the parameters
        they are all that a model learns."""
        return {name: router.moves.tolist() for name, router in self.routers().items() if router.moves is not None}

    def set_router_moves(self, moves: dict[str, list[int]]) -> None:
        """Put the routers' biases where `router_moves` found them; those not named begin at 0.

        Raises:
            BigtrainError: there is not one for each expert.
        """
        for name, router in self.routers().items():
            if router.moves is not None:
                if name in moves and len(moves[name]) != len(router.moves):
                    raise BigtrainError(
                        f"the checkpoint has other biases of {name} than the model",
                        found=f"{len(moves[name])} of them",
                        wanted=f"{len(router.moves)}, one for each expert",
                        fix="use the settings that the checkpoint was written with, or another checkpoint",
                    )
                router.moves.copy_(torch.tensor(moves[name]) if name in moves else torch.tensor(0))

    def _own_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules by name, without those of a teacher."""
        teachers = set() if self.distillation is None else set(self.distillation.modules())
        return ((name, module) for name, module in self.named_modules() if module not in teachers)

    def _add_head(self) -> None:
        """Register the head: the order of the parameters is part of a run's arithmetic."""
        self.task_head = None
        if self.settings.task_head == "none":
            self.lm_head = OutputHead(self.settings)
        else:
            self.task_head = TaskHead(self.settings)

    def _loss(
        self,
        hidden: Tensor,
        labels: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        dropout: DropoutKeys | None = None,
        *,
        each_token: bool = False,
    ) -> Tensor:
        """The summed loss, or that of each token, from the last hidden states."""
        if self.task_head is not None:
            return self.task_head(hidden, labels, cu_seqlens, max_seqlen, dropout, each_token=each_token)
        if each_token:
            return self.lm_head(hidden, labels, each_token=True)
        return self._summed_loss(hidden, labels)

    def _at_labels(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """[n, C] of the last hidden states those at the labelled positions."""
        return hidden.flatten(0, -2)[labelled_positions(labels)]

    def _learned(
        self,
        loss: Tensor,
        hidden: Tensor,
        labels: Tensor,
        reports: Sequence[RouterReport] = (),
        ahead: Sequence[Tensor] = (),
    ) -> Tensor:
        """The summed loss, in training with the gradients of all that is learned beside it.

        Args:
            loss: of the labels.
            hidden: the last hidden states.
            labels: -100 where there is none.
            reports: of the routers, in the order of the model's.
            ahead: the summed losses of the modules of multi-token prediction.
        """
        if not (self.training and torch.is_grad_enabled()):
            return loss
        distilled: dict[str, Tensor] = {}
        if self.distillation is not None:
            distilled = self.distillation.losses(self.head, self._at_labels(hidden, labels), labels)
            loss = self.distillation.weighted(loss)
        return self.auxiliary.join(loss, reports, ahead, distilled)

    def _summed_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The summed loss of tokens."""
        return self.lm_head(hidden, labels)

    def _tie(self) -> None:
        if self.settings.tie_word_embeddings and self.task_head is None:
            self.lm_head.weight = cast(TokenEmbedding, self.embed_tokens).weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Moving off the meta device makes a new Parameter for each name, and so would cut the tie.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tie()
        return self

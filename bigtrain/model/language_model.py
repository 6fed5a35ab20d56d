"""What every language model is to the packages above: it reads packed documents, and says what it learns and keeps.

forward     a packed micro-batch to its summed loss
logits, hidden, new_cache     reading without labels, at once or token by token
init_weights, lr_scales, router_moves     what it has learned: parameters, and the moves of routers
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bigtrain.base import BigtrainError
from bigtrain.config import ModelSettings
from bigtrain.model.auxiliary import Auxiliary
from bigtrain.model.block import Block
from bigtrain.model.cache import Cache
from bigtrain.model.initialize import initialize, is_hidden_matrix
from bigtrain.model.layers.dropout import DropoutKeys
from bigtrain.model.layers.embedding import OutputHead, TokenEmbedding
from bigtrain.model.layers.router import Router
from bigtrain.model.recurrence.characters import CharacterEmbedding
from bigtrain.model.recurrence.recurrent_layer import RecurrentLayer
from bigtrain.model.sequence_parallel import SequenceParallel


class LanguageModel(nn.Module):
    """A model of any architecture. Made by `build_model`; its weights mean something after `init_weights`."""

    settings: ModelSettings
    lm_head: OutputHead
    auxiliary: Auxiliary
    virtual_tokens = 0
    """Virtual tokens that an adapter puts in front of every document."""
    adapter_drops = False
    """Whether training drops in an adapter, too."""
    sequence_parallel: SequenceParallel | None = None
    """The ranks that share each sequence with this one."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.lm_head.weight.device

    def logits(self, *args: Any, **inputs: Any) -> Tensor:
        """Logits [B, T, V] for the tokens that the architecture reads."""
        raise NotImplementedError

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

    def set_token_bytes(self, table: Tensor) -> None:
        """Say which bytes each token has: [V, W] symbols of `BYTE_SYMBOLS`; nothing where they are not read.

        They follow from the tokenizer, so checkpoints do not hold them: a model that reads bytes needs them first.
        """
        for module in self.modules():
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

    def lr_scales(self) -> dict[str, float]:
        """Learning rates of parameters by name as multiples of that of the others: muP's 1 / m."""
        m = self.settings.width_multiplier
        return {name: 1 / m for name, _ in self.named_parameters() if m != 1 and is_hidden_matrix(name)}

    def compile_blocks(self) -> None:
        """Compile the blocks in place, one by one: they share one compilation, which a whole model would not."""
        for module in self.modules():
            if isinstance(module, Block | RecurrentLayer):
                module.compile()

    def routers(self) -> dict[str, Router]:
        """The routers by name, in the order of their loads in `auxiliary`."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Router)}

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

    def _tie(self) -> None:
        if self.settings.tie_word_embeddings:
            self.lm_head.weight = cast(TokenEmbedding, self.embed_tokens).weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Moving off the meta device makes a new Parameter for each name, and so would cut the tie.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tie()
        return self

"""What all architectures with attention share: embeddings, blocks, final norm, head, and the way through them.

input_ids -> embed_tokens (+ token types, + positions, norm, projection) -> layers -> norm -> head -> loss, or logits
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bigtrain.base import IGNORE_INDEX
from bigtrain.config import ModelSettings
from bigtrain.model.attention.attention_rule import OrderRanks
from bigtrain.model.attention.cache import KeyValueCache
from bigtrain.model.attention.virtual_tokens import PromptEmbedding, VirtualPlaces
from bigtrain.model.auxiliary import Auxiliary
from bigtrain.model.block import Block
from bigtrain.model.cache import Cache, of_whole_rows
from bigtrain.model.context import Context, Encoded
from bigtrain.model.cpu.cpu_products import CpuLinear
from bigtrain.model.execution import Execution
from bigtrain.model.language_model import LanguageModel
from bigtrain.model.layers.dropout import Dropout, DropoutKeys
from bigtrain.model.layers.embedding import InputEmbedding, token_types
from bigtrain.model.layers.norm import norm_layer
from bigtrain.model.layers.positions import absolute_positions, relative_positions
from bigtrain.model.layers.rotary import Rotary, rotary_at
from bigtrain.model.layers.router import RouterReport
from bigtrain.model.layers.sentence_head import SentenceHead
from bigtrain.model.tensor_parallel import TENSOR_PARALLEL_PLAN


class BlockStack(nn.Module):
    """Blocks, with what comes in front of them beside the tokens' embeddings, and the norm after them."""

    def __init__(
        self, settings: ModelSettings, execution: Execution, embed_tokens: InputEmbedding | None = None
    ) -> None:
        """Args:
        settings: of these blocks.
        execution: how they are computed.
        embed_tokens: the embedding, where it is the stack's own. It is registered first: the order of the parameters
            is part of a run's arithmetic.
        """
        super().__init__()
        self.settings = settings
        self.rotate_by(settings)
        self.sequence_parallel = execution.sequence_parallel
        self.compiled = False
        self.virtual_tokens = 0
        """Virtual tokens that an adapter puts in front of every document: positions begin after them."""
        self.prompt: PromptEmbedding | None = None
        """Their embeddings, where they go through the layers as others do."""
        if embed_tokens is not None:
            self.embed_tokens = embed_tokens
        self.embed_token_types = token_types(settings)
        self.embed_positions = absolute_positions(settings)
        width = settings.embedding_width
        self.embed_norm = norm_layer(settings, width) if settings.embedding_norm else None
        self.embed_projection = None if settings.embedding_size is None else CpuLinear(width, settings.hidden_size)
        self.embed_dropout = Dropout(settings.embedding_dropout, "embeddings")
        self.relative_attention_bias = relative_positions(settings)
        self.layers = nn.ModuleList(Block(settings, layer, execution) for layer in range(settings.distinct_layers))
        self.norm = nn.Identity() if settings.norm_position == "post_residual" else norm_layer(settings)
        self.final_dropout = Dropout(settings.final_dropout, "final")

    def rotate_by(self, settings: ModelSettings) -> None:
        """Rotate queries and keys by the `rope_theta` and `rope_scaling` of these settings from now on."""
        self._rotary_settings, theta = settings, settings.local_rope_theta
        self._local_settings = None if theta is None else settings.model_copy(update={"rope_theta": theta})

    def stream(
        self,
        embedded: Tensor,
        position_ids: Tensor,
        token_type_ids: Tensor | None = None,
        dropout: DropoutKeys | None = None,
    ) -> Tensor:
        """What enters the first block, [B, T, C], from the embeddings of the tokens."""
        x = embedded
        if self.embed_token_types is not None:
            x = x + self.embed_token_types(torch.zeros_like(position_ids) if token_type_ids is None else token_type_ids)
        if self.embed_positions is not None:
            x = x + self.embed_positions(position_ids + self.virtual_tokens).to(x.dtype)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        x = self.embed_dropout(x, dropout)
        return x if self.embed_projection is None else self.embed_projection(x)

    def through_layers(self, x: Tensor, context: Context) -> tuple[Tensor, list[RouterReport | None]]:
        """The stream after the last block, and what the blocks' routers report."""
        if self.prompt is not None and context.virtual is not None:
            virtual, rows = context.virtual, x.shape[:2]
            x, found = self.through_layers(*self._with_prompt(self.prompt(), x, context, virtual))
            return torch.unflatten(virtual.taken(x[0]), 0, rows), found
        reports: list[RouterReport | None] = []
        times = self.settings.num_hidden_layers // self.settings.distinct_layers
        for layer in self.layers:
            for _ in range(times):
                x, report = layer(x, context.at_layer(len(reports)))
                reports.append(report)
        return x, reports

    def _with_prompt(
        self, prompt: Tensor, x: Tensor, context: Context, virtual: VirtualPlaces
    ) -> tuple[Tensor, Context]:
        """The stream [1, N + P documents, C] and its context, from the stream [B, T, C] and a prompt's embeddings."""
        positions = torch.arange(-self.virtual_tokens, 0, device=x.device)[None]
        of_prompt = self.context(positions, of_whole_rows(positions), self.virtual_tokens, x.dtype)

        def rotation(of_tokens: Rotary | None, of_virtual: Rotary | None) -> Rotary | None:
            if of_tokens is None or of_virtual is None:
                return None
            both = zip(of_tokens, of_virtual, strict=True)
            return Rotary(*(virtual.placed(own.flatten(0, 1), other[0])[None] for own, other in both))

        placed = virtual.placed(x.flatten(0, 1), self.stream(prompt.to(x.dtype), positions)[0])[None]
        return placed, context._replace(
            cu_seqlens=virtual.cu_seqlens,
            max_seqlen=virtual.max_seqlen,
            rotary=rotation(context.rotary, of_prompt.rotary),
            local_rotary=rotation(context.local_rotary, of_prompt.local_rotary),
            virtual=None,
            labelled=None,
        )

    def normalised(self, x: Tensor, context: Context) -> Tensor:
        """The states [B, T, C] that others use, from the stream after the last block."""
        return self.final_dropout(self.norm(x), context.dropout)

    def context(
        self,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        dtype: torch.dtype,
        dropout: DropoutKeys | None = None,
        order_ranks: Tensor | None = None,
    ) -> Context:
        """What the layers know of tokens at positions [B, T], whose embeddings are of this type."""
        if self.compiled:  # the number of documents differs from batch to batch: compile for any
            torch._dynamo.maybe_mark_dynamic(cu_seqlens, 0)
        virtual = None
        if self.virtual_tokens:
            virtual = VirtualPlaces.of(cu_seqlens, max_seqlen, self.virtual_tokens)
            position_ids = position_ids + self.virtual_tokens
        rotates = self.settings.position_embedding == "rope"
        bias = self.relative_attention_bias
        return Context(
            cu_seqlens,
            max_seqlen,
            rotary=rotary_at(position_ids, self._rotary_settings, dtype) if rotates else None,
            local_rotary=rotary_at(position_ids, local, dtype) if (local := self._local_settings) is not None else None,
            distance_bias=None if bias is None else bias(max_seqlen).to(position_ids.device, dtype),
            dropout=dropout,
            virtual=virtual,
            order=None if order_ranks is None else OrderRanks(ranks := order_ranks.flatten(), ranks),
        )


class Transformer(BlockStack, LanguageModel):
    """A language model of blocks with attention: `Decoder`, `Encoder` or `EncoderDecoder`."""

    _tp_plan = TENSOR_PARALLEL_PLAN  # where Hugging Face's models have theirs, and DeepSpeed looks

    def __init__(self, settings: ModelSettings, execution: Execution) -> None:
        super().__init__(settings, execution, InputEmbedding(settings))
        self._add_head()
        self.sentence_head = SentenceHead(settings) if settings.sentence_head else None
        self.auxiliary = Auxiliary(settings)
        self.distillation = None
        self._tie()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        *,
        each_token: bool = False,
        token_type_ids: Tensor | None = None,
        example_labels: Tensor | None = None,
        row_keys: Tensor | None = None,
        order_ranks: Tensor | None = None,
    ) -> Tensor:
        """The summed loss of a packed micro-batch.

        Args:
            input_ids: [B, T] int64.
            labels: [B, T] int64, what is predicted at each position: of a decoder the token after the input token, of
                an encoder the token itself, or what `TaskHead` predicts. -100 where there is nothing to predict.
            position_ids: [B, T] int64, restarting at 0 at each document.
            cu_seqlens: [documents + 1] int32, where documents begin among the B T tokens; each row begins one.
            max_seqlen: the longest document, or more.
            each_token: return the losses of the tokens [B, T] instead of their sum, without a gradient.
            token_type_ids: [B, T] int64, the kind of segment of each token. Default: 0; unused without type_vocab_size.
            example_labels: [B, T] int64, what the sentence_head predicts, at the first tokens of examples; else -100.
            row_keys: [B] int64, from the addresses of the rows: what training drops follows from them.
            order_ranks: [B, T] integers: a token sees those of its document with its own rank or a lower one. Default:
                those that the architecture lets it see.

        Returns:
            A float32 scalar: the sum over labelled tokens of -log p(label), in nats. Of this rank's own tokens, where
            ranks share sequences. While the model trains, its gradient is that of the auxiliary losses too, which are
            counted in `auxiliary`. With example_labels: [2], that and the same sum over labelled examples.
        """
        dropout = self.dropout_keys(row_keys, input_ids)
        if (ranks := self.sequence_parallel) is not None:
            input_ids, labels, position_ids = (ranks.own_tokens(x) for x in (input_ids, labels, position_ids))
            token_type_ids = None if token_type_ids is None else ranks.own_tokens(token_type_ids)
            example_labels = None if example_labels is None else ranks.own_tokens(example_labels)
        embedded = self.embed_tokens(input_ids)
        context = self.context(position_ids, cu_seqlens, max_seqlen, embedded.dtype, dropout, order_ranks)
        learns = self.training and torch.is_grad_enabled()
        if learns:
            context = context._replace(labelled=labels != IGNORE_INDEX)
        x, reports = self.through_layers(self.stream(embedded, position_ids, token_type_ids, dropout), context)
        hidden = self.normalised(x, context)
        loss = self._loss(hidden, labels, cu_seqlens, max_seqlen, dropout, each_token=each_token)
        if each_token:
            return loss
        if learns:
            ahead, further = self._ahead(x, embedded, labels, context)
            reported = [report for report in reports + further if report is not None]
            loss = self._learned(loss, hidden, labels, reported, ahead)
        if example_labels is None:
            return loss
        assert self.sentence_head is not None  # only its objective labels examples
        return torch.stack((loss, self.sentence_head(hidden, example_labels)))

    def logits(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        token_type_ids: Tensor | None = None,
        order_ranks: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] for input_ids [B, T]. Without boundaries, each row is one document."""
        hidden = self.hidden(
            input_ids, position_ids, cu_seqlens, max_seqlen, token_type_ids=token_type_ids, order_ranks=order_ranks
        )
        return self.head(hidden)

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        cache: Cache | None = None,
        token_type_ids: Tensor | None = None,
        encoded: Encoded | None = None,
        dropout: DropoutKeys | None = None,
        order_ranks: Tensor | None = None,
    ) -> Tensor:
        """The normalised last hidden states [B, T, C]; of an encoder-decoder those of its decoder, which attends to
        `encoded`. Without boundaries, each row is one document."""
        batch, length = input_ids.shape
        if position_ids is None:
            position_ids = torch.arange(length, device=input_ids.device).expand(batch, length)
        if cu_seqlens is None:
            cu_seqlens = of_whole_rows(input_ids)
        x = self.embed_tokens(input_ids)
        longest = length if max_seqlen is None else max_seqlen
        context = self.context(position_ids, cu_seqlens, longest, x.dtype, dropout, order_ranks=order_ranks)
        assert cache is None or isinstance(cache, KeyValueCache)  # of `new_cache`
        context = context._replace(cache=cache, encoded=encoded)
        if cache is not None and cache.holds(0):  # virtual tokens, too
            context = context._replace(virtual=None)
        x, _ = self.through_layers(self.stream(x, position_ids, token_type_ids, dropout=dropout), context)
        return self.normalised(x, context)

    def new_cache(
        self, lengths: Sequence[int], device: torch.device, read_lengths: Sequence[int] | None = None
    ) -> KeyValueCache:
        """See `LanguageModel.new_cache`."""
        return KeyValueCache(self.settings, lengths, device, read_lengths, self.virtual_tokens)

    def compile_blocks(self) -> None:
        """See `LanguageModel.compile_blocks`."""
        super().compile_blocks()
        for module in self.modules():
            if isinstance(module, BlockStack):
                module.compiled = True

    def _ahead(
        self, x: Tensor, embedded: Tensor, labels: Tensor, context: Context
    ) -> tuple[list[Tensor], list[RouterReport | None]]:
        """The summed losses of what predicts further ahead, and what its routers report."""
        return [], []

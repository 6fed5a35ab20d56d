"""The parameters of a model: names, shapes, and how often each multiplies a token, from the settings alone.

    parameters_of(settings, adapter)    the list that `named_parameters()` of the built model gives, in its order

A module's own parameters come first, then those of its parts, as in PyTorch. Each function below is a module of the
same name in `bigtrain.model`; the two are held together by tests/model/test_shapes.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import groupby

from bigtrain.base import BYTE_SYMBOLS
from bigtrain.config import AdapterSettings, ModelSettings
from bigtrain.model.adapter_parts import (
    BLOCKS,
    DOWN,
    LORA_A,
    LORA_B,
    MAGNITUDE,
    PREFIX_KEY,
    PREFIX_VALUE,
    PROMPT,
    TASK_HEAD,
    UP,
    is_of_adapter,
    matching,
    require_rank,
)

GATES = {"lstm": 4, "gru": 3}
"""Gates of a recurrent cell, in PyTorch's order: input, forget, candidate, output; or reset, update, candidate."""
RELATIONS = 2
"""Classes of the sentence head: the segments of a pair follow each other in this order, or they do not."""


@dataclass(frozen=True)
class Uses:
    """How often something is computed: a sum over tokens of three kinds."""

    own: float = 0.0
    """For each token of the sequence; of an encoder-decoder the decoder's."""
    read: float = 0.0
    """For each token that an encoder reads."""
    labelled: float = 0.0
    """For each token with a label."""

    def per_token(self, *, read: float, labelled: float) -> float:
        """For one token of the sequence.

        Args:
            read: tokens that the encoder reads for each of them.
            labelled: the share of them with a label.
        """
        return self.own + self.read * read + self.labelled * labelled

    def times(self, factor: float) -> Uses:
        """So many times as often."""
        return Uses(factor * self.own, factor * self.read, factor * self.labelled)


NEVER, EACH, READ, LABELLED = Uses(), Uses(own=1), Uses(read=1), Uses(labelled=1)


@dataclass(frozen=True)
class ParameterShape:
    """One parameter."""

    name: str
    """As in `named_parameters()`; a tied head has the name of the embedding."""
    shape: tuple[int, ...]
    """A matrix is [outputs, inputs], the experts of a layer lie on top of each other: [experts, outputs, inputs]."""
    uses: Uses = NEVER
    """How often it multiplies a token in one pass through its block. Never: norms, biases, and what is looked up."""
    split: int | None = None
    """The dimension along which tensor parallelism divides it; None: each rank has all of it."""
    linear: bool = False
    """Whether it is the weight or bias of a linear layer, in whose place an adapter can be."""
    experts: int = 1
    """Matrices that lie on top of each other, of which a token uses some: the share is in `uses`."""
    learns: bool = True
    """Whether training changes it."""

    @property
    def numel(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def multiplies(self) -> bool:
        """Whether it is the matrix of a product with tokens."""
        return len(self.shape) > 1 and self.uses != NEVER

    @property
    def outputs(self) -> int:
        """Rows of a matrix."""
        return self.shape[-2]

    @property
    def inputs(self) -> int:
        """Columns of a matrix."""
        return self.shape[-1]


Parameters = Iterator[ParameterShape]


def parameters_of(settings: ModelSettings, adapter: AdapterSettings | None = None) -> tuple[ParameterShape, ...]:
    """All parameters of a model, in the order of `named_parameters()`; tied ones once.

    Args:
        settings: the shape.
        adapter: what learns in the place of the model's own parameters.

    Raises:
        BigtrainError: a pattern of target_modules matches no layer, or r is larger than a side of a matrix.
    """
    plain = list(_recurrent(settings) if settings.recurrent else _transformer(settings))
    if adapter is None or adapter.method == "none":
        return tuple(plain)
    return tuple(_frozen(_adapted(plain, settings, adapter), settings, adapter))


def within(prefix: str, parameters: Iterable[ParameterShape]) -> Parameters:
    """The parameters of a part by the names that they have in the whole."""
    return (replace(each, name=f"{prefix}.{each.name}") for each in parameters)


# Architectures


def _transformer(settings: ModelSettings) -> Parameters:
    own = settings.decoder_part if settings.architecture == "encoder_decoder" else settings
    yield ParameterShape("embed_tokens.weight", (own.vocab_size, own.embedding_width), _tied_uses(own))
    yield from _stack(own)
    yield from _head(own)
    if settings.sentence_head:
        yield from within("sentence_head.dense", _linear(own.hidden_size, own.hidden_size, NEVER))
        yield from within("sentence_head.classifier", _linear(RELATIONS, own.hidden_size, NEVER))
    if settings.architecture == "encoder_decoder":
        yield from within("encoder", _stack(settings.encoder_part, READ))
    for number in range(settings.num_nextn_predict_layers):
        yield from within(f"next_token_layers.{number}", _next_token_layer(settings, number))
    if settings.architecture == "two_stream":
        yield ParameterShape("mask_embedding.weight", (1, settings.hidden_size))


def _recurrent(settings: ModelSettings) -> Parameters:
    width, pairs = settings.hidden_size, settings.reads_pairs
    yield from within("embed_tokens", _token_vectors(settings))
    if pairs:
        for number, inputs in enumerate(_input_widths(settings, settings.num_hidden_layers)):
            for direction in ("ahead", "back"):
                layer = _recurrent_layer(settings, inputs, width // 2, READ)
                yield from within(f"encoder.layers.{number}.{direction}", layer)
        yield from within("start", _linear(settings.decoder_layers * width, width, NEVER))
    layers = settings.decoder_layers if pairs else settings.num_hidden_layers
    for number, inputs in enumerate(_input_widths(settings, layers)):
        yield from within(f"layers.{number}", _recurrent_layer(settings, inputs, width, EACH))
    if pairs:
        if settings.attention_score == "additive":
            yield ParameterShape("attention.weight", (1, width))
            yield from within("attention.query", _linear(width, width, EACH))
            yield from within("attention.key", _linear(width, width, READ, bias=False))
        yield from within("readout", _linear(width, 2 * width, EACH))
    yield from _head(settings)


def _input_widths(settings: ModelSettings, layers: int) -> list[int]:
    return [settings.embedding_width] + [settings.hidden_size] * (layers - 1)


# The ends of a model


def _stack(settings: ModelSettings, uses: Uses = EACH) -> Parameters:
    """A `BlockStack` without the embedding of tokens."""
    width = settings.embedding_width
    if settings.type_vocab_size:
        yield ParameterShape("embed_token_types.weight", (settings.type_vocab_size, width))
    if settings.position_embedding == "learned":
        rows = settings.max_position_embeddings + settings.position_offset
        yield ParameterShape("embed_positions.weight", (rows, width))
    if settings.embedding_norm:
        yield from within("embed_norm", norm(settings, width))
    if settings.embedding_size is not None:
        yield from within("embed_projection", _linear(settings.hidden_size, width, uses))
    if settings.position_embedding == "t5":
        shape = settings.relative_attention_num_buckets, settings.num_attention_heads
        yield ParameterShape("relative_attention_bias.weight", shape)
    for layer in range(settings.distinct_layers):
        yield from within(f"layers.{layer}", block(settings, layer, uses))
    if settings.norm_position != "post_residual":
        yield from within("norm", norm(settings, settings.hidden_size))


def _token_vectors(settings: ModelSettings) -> Parameters:
    """A `CharacterEmbedding` or the table of an `InputEmbedding`. What bytes are made into is computed once for all
    occurrences of a token, so it counts as a look-up."""
    if not settings.character_filters:
        yield ParameterShape("weight", (settings.vocab_size, settings.embedding_width), _tied_uses(settings))
        return
    yield ParameterShape("bytes.weight", (BYTE_SYMBOLS, settings.character_size))
    for width, filters in enumerate(settings.character_filters, start=1):
        yield from within(f"filters.{width - 1}", _linear(filters, width * settings.character_size, NEVER))
    for number in range(settings.highway_layers):
        for part in ("transform", "gate"):
            square = _linear(settings.embedding_width, settings.embedding_width, NEVER)
            yield from within(f"highway.{number}.{part}", square)


def head_uses(settings: ModelSettings) -> Uses:
    """How often the head is computed: an encoder, two streams and a classifier compute it where there are labels, a
    decoder for every token, and again for each module of multi-token prediction."""
    if settings.task_head == "question_answering":
        return EACH
    if settings.architecture in ("encoder", "two_stream") or settings.num_labels:
        return LABELLED
    return Uses(own=1 + settings.num_nextn_predict_layers)


def is_tied(settings: ModelSettings) -> bool:
    """Whether the head of tokens has the weight of the embedding."""
    return settings.tie_word_embeddings and settings.task_head == "none"


def _tied_uses(settings: ModelSettings) -> Uses:
    return head_uses(settings) if is_tied(settings) else NEVER


def _head(settings: ModelSettings) -> Parameters:
    uses = head_uses(settings)
    if settings.task_head != "none":
        yield from within("task_head", _task_head(settings, uses))
        return
    width = settings.head_input_width
    if not is_tied(settings):
        yield ParameterShape("lm_head.weight", (settings.vocab_size, width), uses)
    if settings.head_bias:
        yield ParameterShape("lm_head.bias", (settings.vocab_size,))
    if settings.head_transform:
        dense = _linear(width, settings.hidden_size, uses, bias=settings.head_transform_bias)
        yield from within("lm_head.dense", dense)
        yield from within("lm_head.norm", norm(settings, width))


def _task_head(settings: ModelSettings, uses: Uses) -> Parameters:
    width, transform = settings.hidden_size, settings.transform_of_task
    if transform != "none":
        yield from within(
            "dense", _linear(width, width, uses, bias=settings.head_transform_bias or transform != "norm")
        )
    if transform == "norm":
        yield from within("norm", norm(settings, width))
    biased = transform != "none" or settings.task_head != "sequence_classification"
    yield from within("classifier", _linear(settings.logits_of_task, width, uses, bias=biased))


# Blocks


def block(settings: ModelSettings, layer: int, uses: Uses = EACH) -> Parameters:
    """A `Block`.

    Args:
        settings: of its stack.
        layer: its number there.
        uses: which tokens go through it.
    """
    place, width = settings.norm_position, settings.hidden_size
    before, after = place in ("pre", "sandwich"), place in ("post", "post_residual", "sandwich")

    def named(name: str, present: bool) -> Parameters:
        return within(name, norm(settings, width) if present else ())

    yield from named("input_layernorm", before and (layer > 0 or settings.first_attention_norm))
    if settings.position_embedding == "transformer_xl":
        yield from within("self_attn", _relative_attention(settings))
    else:
        yield from within("self_attn", _attention(settings, uses, uses))
    yield from named("attention_output_norm", after)
    if settings.architecture == "encoder_decoder":
        yield from named("cross_attention_layernorm", before)
        yield from within("cross_attn", _attention(settings, uses, READ, crosses=True))
        yield from named("cross_attention_output_norm", after)
    yield from named("post_attention_layernorm", before)
    if settings.has_experts(layer):
        yield from within("mlp", _experts(settings, uses))
    else:
        streams = both_streams(settings) if settings.architecture == "two_stream" else uses
        yield from within("mlp", _feed_forward(settings, streams))
    yield from named("mlp_output_norm", after)


def _attention(settings: ModelSettings, queries: Uses, keys: Uses, *, crosses: bool = False) -> Parameters:
    """A `SelfAttention`, or a `CrossAttention`, which ranks of tensor parallelism do not divide."""
    width, head = settings.hidden_size, settings.head_width
    query_width, key_width = settings.num_attention_heads * head, settings.key_value_heads * head
    columns, rows = (None, None) if crosses else (0, 1)
    bias = settings.attention_bias
    yield from within("q_proj", _linear(query_width, width, queries, bias=bias, split=columns))
    yield from within("k_proj", _linear(key_width, width, keys, bias=bias, split=columns))
    yield from within("v_proj", _linear(key_width, width, keys, bias=bias, split=columns))
    yield from within("o_proj", _linear(width, query_width, queries, bias=settings.attention_output_bias, split=rows))
    if settings.qk_norm != "none" and not crosses:
        of_heads = settings.qk_norm == "head"
        yield from within("q_norm", norm(settings, head if of_heads else query_width))
        yield from within("k_norm", norm(settings, head if of_heads else key_width))


def both_streams(settings: ModelSettings) -> Uses:
    """Both streams of a `TwoStream`: the second one is computed for the labelled tokens, and never for a task_head."""
    return Uses(own=1, labelled=1 if settings.task_head == "none" else 0)


def _relative_attention(settings: ModelSettings) -> Parameters:
    inner = settings.num_attention_heads * settings.head_width
    for name in ("content_bias", "distance_bias", "segment_bias"):
        yield ParameterShape(name, (inner,))
    yield ParameterShape("segments", (2, inner))
    streams, width = both_streams(settings), settings.hidden_size
    # Keys of distances are made for a sequence and not for a token.
    for name, uses in (("q_proj", streams), ("k_proj", EACH), ("v_proj", EACH), ("r_proj", NEVER)):
        yield from within(name, _linear(inner, width, uses, bias=False))
    yield from within("o_proj", _linear(width, inner, streams, bias=False))


def _feed_forward(settings: ModelSettings, uses: Uses) -> Parameters:
    width, inner, bias = settings.hidden_size, settings.intermediate_size, settings.mlp_bias
    for name in ("gate_proj", "up_proj") if settings.gated_mlp else ("up_proj",):
        yield from within(name, _linear(inner, width, uses, bias=bias, split=0))
    yield from within("down_proj", _linear(width, inner, uses, bias=bias, split=1))


def _experts(settings: ModelSettings, uses: Uses) -> Parameters:
    count, width, inner = settings.num_experts, settings.hidden_size, settings.expert_width
    yield ParameterShape("router.weight", (count, width), uses)
    chosen = uses.times(settings.num_experts_per_tok / count)
    for name, shape in (("gate_proj", (inner, width)), ("up_proj", (inner, width)), ("down_proj", (width, inner))):
        yield ParameterShape(f"experts.{name}", (count, *shape), chosen, experts=count)


def _next_token_layer(settings: ModelSettings, number: int) -> Parameters:
    width = settings.hidden_size
    yield from within("hidden_norm", norm(settings, width))
    yield from within("embedding_norm", norm(settings, width))
    yield from within("projection", _linear(width, 2 * width, EACH, bias=False))
    yield from within("block", block(settings, settings.num_hidden_layers + number))
    yield from within("norm", norm(settings, width))


def _recurrent_layer(settings: ModelSettings, inputs: int, width: int, uses: Uses) -> Parameters:
    gates = GATES[settings.cell] * width
    yield from within("input_gates", _linear(gates, inputs, uses))
    yield ParameterShape("state_gates.weight", (gates, width), uses)
    yield ParameterShape("state_gates.bias", (gates,))


# Layers


def norm(settings: ModelSettings, width: int) -> Parameters:
    """A norm over this many channels."""
    yield ParameterShape("weight", (width,))
    if settings.norm == "layer_norm" and settings.norm_bias:
        yield ParameterShape("bias", (width,))


def _linear(outputs: int, inputs: int, uses: Uses, *, bias: bool = True, split: int | None = None) -> Parameters:
    """A linear layer.

    Args:
        outputs: rows of its weight.
        inputs: columns.
        uses: how often it multiplies.
        bias: whether it has one.
        split: the dimension of the weight that tensor parallelism divides; the bias goes with the outputs.
    """
    yield ParameterShape("weight", (outputs, inputs), uses, split, linear=True)
    if bias:
        yield ParameterShape("bias", (outputs,), split=0 if split == 0 else None, linear=True)


# Adapters


def _adapted(plain: list[ParameterShape], settings: ModelSettings, adapter: AdapterSettings) -> Parameters:
    """The parameters with those that an adapter adds; see `bigtrain.model.adapters.adapt`."""
    modules = [(name, list(own)) for name, own in groupby(plain, key=_module_of)]
    if adapter.virtual_tokens:
        yield from _with_virtual_tokens(modules, settings, adapter)
        return
    linears = [name for name, own in modules if own[0].linear and name.startswith(BLOCKS)]
    targets = set(matching("target_modules", adapter.targets, linears))
    for name, own in modules:
        yield from own
        if name in targets:
            if adapter.low_rank:
                require_rank(name, adapter.r, own[0].outputs, own[0].inputs)
            yield from within(name, _added(own[0], adapter))


def _added(weight: ParameterShape, adapter: AdapterSettings) -> Parameters:
    """What an adapted layer has beside its weight and bias."""
    outputs, inputs, inner = weight.outputs, weight.inputs, adapter.bottleneck_size
    if adapter.low_rank:
        yield ParameterShape(LORA_A, (adapter.r, inputs), weight.uses)
        yield ParameterShape(LORA_B, (outputs, adapter.r), weight.uses)
        if adapter.method == "dora":
            yield ParameterShape(MAGNITUDE, (outputs,))
        return
    yield ParameterShape(DOWN, (inner, outputs), weight.uses)
    yield ParameterShape(f"{DOWN}_bias", (inner,))
    yield ParameterShape(UP, (outputs, inner), weight.uses)
    yield ParameterShape(f"{UP}_bias", (outputs,))


def _with_virtual_tokens(
    modules: list[tuple[str, list[ParameterShape]]], settings: ModelSettings, adapter: AdapterSettings
) -> Parameters:
    """Keys and values follow the parts of each attention, embeddings the parts of each stack of blocks."""
    count, width = adapter.virtual_tokens, settings.key_value_heads * settings.head_width

    def attention_of(module: str) -> str:
        head, found, _ = module.partition(".self_attn")
        return head + found if found and module.startswith(BLOCKS) else ""

    prefixes = adapter.method == "prefix_tuning"
    for attention, inside in groupby(modules, key=lambda each: attention_of(each[0])):
        for _, own in inside:
            yield from own
        if prefixes and attention and settings.position_embedding != "transformer_xl":
            for name in (PREFIX_KEY, PREFIX_VALUE):
                yield ParameterShape(f"{attention}.prefix.{name}", (count, width))
    if not prefixes:
        for stack in ("encoder.", "") if settings.architecture == "encoder_decoder" else ("",):
            yield ParameterShape(f"{stack}prompt.{PROMPT}", (count, settings.embedding_width))


def _frozen(parameters: Parameters, settings: ModelSettings, adapter: AdapterSettings) -> Parameters:
    """The same, of which only the adapter's, the head of a task and `modules_to_save` learn. A pattern of these that
    matches nothing is refused where the model is built, which knows parts without parameters, too."""
    for each in parameters:
        names = [each.name]
        if each.name == "embed_tokens.weight" and is_tied(settings):
            names.append("lm_head.weight")
        whole = any(
            fnmatchcase(module, pattern)
            for name in names
            for module in _modules_around(name)
            for pattern in adapter.modules_to_save
        )
        yield replace(each, learns=whole or is_of_adapter(each.name) or each.name.startswith(TASK_HEAD))


def _module_of(parameter: ParameterShape) -> str:
    return parameter.name.rpartition(".")[0]


def _modules_around(name: str) -> Iterator[str]:
    """The modules that a parameter of this name is in, the innermost first."""
    while name := name.rpartition(".")[0]:
        yield name

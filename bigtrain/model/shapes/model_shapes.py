"""What a model consists of and computes, from the settings alone: parameters, blocks in the order in which they run,
the attention of each, and counts of parameters and of floating-point operations that follow from these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from bigtrain.config import AdapterSettings, ModelSettings
from bigtrain.model.shapes.parameters import EACH, READ, ParameterShape, Uses, both_streams, parameters_of

_AHEAD = "next_token_layers."


@dataclass(frozen=True)
class AttentionShape:
    """One attention of a block."""

    heads: int
    key_value_heads: int
    head_width: int
    queries: Uses = EACH
    """Which tokens ask."""
    window: int | None = None
    """A token sees those less than this many places away; None: all that it may see."""
    two_sided: bool = False
    """Whether it sees those after it, too."""
    crosses: bool = False
    """Whether keys and values are those of an encoder's tokens."""
    products: int = 2
    """Matrix products for each pair of query and key: scores and values, and those with keys for distances."""

    def keys_seen(self, length: int, read: float, *, exact: bool) -> float:
        """How many keys a query has on average.

        Args:
            length: of the sequence, in tokens; of an encoder-decoder the decoder's.
            read: tokens that the encoder reads for each of them.
            exact: count those that it sees. Default of the field: all of the sequence.
        """
        if self.crosses or self.queries == READ:
            return read * length
        if not exact:
            return length
        return (_seen_on_both_sides if self.two_sided else _seen)(length, self.window)


@dataclass(frozen=True)
class BlockShape:
    """One pass through a block. Blocks of one shape are equal, whatever their names."""

    parameters: tuple[ParameterShape, ...]
    """By their names inside the block."""
    attentions: tuple[AttentionShape, ...]
    uses: Uses = EACH
    """Which tokens go through it."""

    @cached_property
    def products(self) -> tuple[ParameterShape, ...]:
        """The matrices that multiply tokens."""
        return tuple(each for each in self.parameters if each.multiplies)

    @cached_property
    def norms(self) -> int:
        """Its norms over channels."""
        return sum(1 for each in self.parameters if each.name.endswith("norm.weight"))


@dataclass(frozen=True)
class ModelShapes:
    """A whole model."""

    settings: ModelSettings
    parameters: tuple[ParameterShape, ...]
    """All of them once, in the order of `named_parameters()`."""
    blocks: tuple[BlockShape, ...]
    """In the order in which they run: an encoder's before the decoder's, those of multi-token prediction last. A block
    that several layers share is here for each."""
    block_names: tuple[str, ...]
    """Where the parameters of each of `blocks` are, such as `encoder.layers.0`."""
    ends: tuple[ParameterShape, ...]
    """The parameters outside blocks: embeddings, final norm, heads."""
    adapter: AdapterSettings | None = None
    """What learns in the place of the model's own parameters."""

    @property
    def count(self) -> int:
        """Parameters, tied ones once; those of multi-token prediction too."""
        return sum(each.numel for each in self.parameters)

    @property
    def learning(self) -> int:
        """Parameters that training changes."""
        return sum(each.numel for each in self.parameters if each.learns)

    @property
    def active(self) -> int:
        """Parameters at work for any one token when the model is used: of the experts those that it chooses, and none
        of multi-token prediction."""
        used = (each for each in self.parameters if not each.name.startswith(_AHEAD))
        share = self.settings.num_experts_per_tok
        return round(sum(each.numel * (share / each.experts if each.experts > 1 else 1) for each in used))


def model_shapes(settings: ModelSettings, adapter: AdapterSettings | None = None) -> ModelShapes:
    """The shapes of a model, without building it and without PyTorch.

    Args:
        settings: the shape.
        adapter: what learns in the place of the model's own parameters.

    Raises:
        BigtrainError: a pattern of adapter.target_modules matches no layer, or adapter.r is too large.
    """
    parameters = parameters_of(settings, adapter)
    inside: dict[str, list[ParameterShape]] = {}
    ends = []
    for each in parameters:
        if (name := _block_of(each.name)) is None:
            ends.append(each)
        else:
            inside.setdefault(name, []).append(replace(each, name=each.name[len(name) + 1 :]))
    known: dict[BlockShape, BlockShape] = {}
    own = both_streams(settings) if settings.architecture == "two_stream" else EACH
    blocks, names = [], []
    for name, attentions in _runs(settings):
        uses = READ if name.startswith("encoder.") else own
        block = BlockShape(tuple(inside[name]), attentions, uses)
        blocks.append(known.setdefault(block, block))
        names.append(name)
    return ModelShapes(settings, parameters, tuple(blocks), tuple(names), tuple(ends), adapter)


def flops_per_token(
    settings: ModelSettings,
    sequence_length: int,
    *,
    causal: bool = False,
    labelled: float = 1.0,
    encoder_length: int | None = None,
    adapter: AdapterSettings | None = None,
) -> float:
    """Floating-point operations of matrix products for one training token, forward and backward.

    By the field's convention (Chowdhery et al., 2022, PaLM, appendix B): 6 N + 12 L H Q T. N counts the weights that
    multiply a token (the head, tied or not, the experts that work for it, but no embedding look-up, norm or bias); L
    layers, H heads of width Q, sequences of T tokens; attention is counted as if every token saw the whole sequence,
    and recomputation is not counted. A module of multi-token prediction is a layer with a head and a projection. A
    block that several layers share is counted for each.

    A recurrent layer has no attention: only its weights count. Convolutions over bytes and the highway layers after
    them count as a look-up, because they are computed once for all occurrences of a token.

    Of two streams, the second one multiplies as many tokens as have labels, but makes no keys and values of its own.
    Scores have a second product, with the keys of distances. Making these is not counted: their number is not that of
    the tokens. With a task_head there is one stream.

    Of an encoder-decoder it is for one token of the decoder, with its share of what the encoder does: the weights that
    multiply the encoder's S tokens count S / T times, and cross-attention sees S tokens.

    A weight that does not learn has no gradient: of its three products two are left, and it counts 4 times. The
    gradient of what enters the first layer that learns is counted, though nobody needs it.

    Args:
        settings: the shape.
        sequence_length: T, in tokens.
        causal: count attention as it is, over the tokens that a token sees on average: of a decoder (T + 1) / 2, of an
            encoder all, or fewer where a layer has a sliding window.
        labelled: the share of tokens with a label. An encoder, a model of two streams and the head of a task that
            predicts classes compute their head for these alone, a decoder for all.
        encoder_length: encoder_decoder: S, in tokens. Default: T.
        adapter: what learns in the place of the model's own parameters.
    """
    shapes = model_shapes(settings, adapter)
    read = (encoder_length or sequence_length) / sequence_length
    parts = [*shapes.ends, *(each for block in shapes.blocks for each in block.products)]
    weights = sum(each.numel * each.uses.per_token(read=read, labelled=labelled) * _products(each) for each in parts)
    attention = sum(
        each.products
        * each.heads
        * each.head_width
        * each.queries.per_token(read=read, labelled=labelled)
        * each.keys_seen(sequence_length, read, exact=causal)
        for block in shapes.blocks
        for each in block.attentions
    )
    if settings.architecture == "recurrent_encoder_decoder":
        attention += 2 * settings.hidden_size * read * sequence_length
    return 2 * weights + 6 * attention


def _products(weight: ParameterShape) -> int:
    """How many of the three products of a matrix training computes: without a gradient of its own two of them."""
    return 3 if weight.learns else 2


def _block_of(parameter: str) -> str | None:
    """The block that a parameter is in: its name up to the number after `layers`."""
    parts = parameter.split(".")
    if parts[0] in ("layers", "next_token_layers"):
        return ".".join(parts[:2])
    return ".".join(parts[:3]) if parts[:2] == ["encoder", "layers"] else None


def _runs(settings: ModelSettings) -> Iterator[tuple[str, tuple[AttentionShape, ...]]]:
    """The blocks in the order in which they run, each with its attentions."""
    layers = settings.decoder_layers if settings.reads_pairs else settings.num_hidden_layers
    if settings.recurrent:
        for layer in range(settings.num_hidden_layers if settings.reads_pairs else 0):
            yield f"encoder.layers.{layer}", ()
        for layer in range(layers):
            yield f"layers.{layer}", ()
        return
    if settings.reads_pairs:
        encoder = settings.encoder_part
        for layer in range(settings.num_hidden_layers):
            yield f"encoder.layers.{layer}", (_attention(encoder, layer, READ),)
    times = 1 if settings.reads_pairs else settings.num_hidden_layers // settings.distinct_layers
    for layer in range(layers):
        own = _attention(settings, layer, EACH)
        if settings.architecture == "two_stream":
            own = replace(own, queries=both_streams(settings), two_sided=True, products=3)
        crossing = (replace(own, window=None, two_sided=True, crosses=True),) if settings.reads_pairs else ()
        yield f"layers.{layer // times}", (own, *crossing)
    for number in range(settings.num_nextn_predict_layers):
        yield f"{_AHEAD}{number}", (_attention(settings, settings.num_hidden_layers + number, EACH),)


def _attention(settings: ModelSettings, layer: int, queries: Uses) -> AttentionShape:
    return AttentionShape(
        settings.num_attention_heads,
        settings.key_value_heads,
        settings.head_width,
        queries,
        settings.window_of(layer),
        settings.two_sided,
    )


def _seen(length: int, window: int | None) -> float:
    """How many tokens one sees on average, itself included, in a document of this length."""
    window = min(window or length, length)
    return (window * (window + 1) / 2 + (length - window) * window) / length


def _seen_on_both_sides(length: int, window: int | None) -> float:
    """The same where a token sees those less than `window` places away on either side."""
    window = min(window or length, length)
    return (length * (2 * window - 1) - (window - 1) * window) / length

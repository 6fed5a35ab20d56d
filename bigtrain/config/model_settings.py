"""The section model: the model's shape and its choices, in Hugging Face's own names.

The defaults are those of `llama`; a family's name stands for other ones, which are filled in before anything is
checked, so that the effective settings spell out every choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, PositiveFloat, model_validator

from bigtrain.config.families import FAMILIES
from bigtrain.config.rope_scaling import RopeScaling
from bigtrain.config.section import NonNegativeFloat, NonNegativeInt, OpenUnitInterval, PositiveInt, Section, UserPath

Family = Literal[
    "llama", "gpt2", "gpt_neox", "mistral", "qwen2", "qwen3", "olmo2", "gemma", "gemma2", "granite", "mixtral",
    "qwen3_moe", "bert", "roberta", "albert", "modernbert", "t5", "t5_v1_1", "bart", "marian", "xlnet", "lstm", "gru",
    "char_lstm", "bahdanau", "luong",
]  # fmt: skip
Layers = Annotated[PositiveInt, Field(le=10_000)]
"""Each layer is several Python objects, so a number beyond any real model would fill the memory before a message."""
LayerType = Literal["full_attention", "sliding_attention"]
Activation = Literal["silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2"]
assert set(get_args(Family)) == FAMILIES.keys()

DROPOUT_RATES = (
    "embedding_dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "final_dropout",
    "classifier_dropout",
)  # fmt: skip
"""The settings of dropout."""
TaskHeadKind = Literal["none", "sequence_classification", "token_classification", "question_answering"]
_OF_TASK_HEADS = ("task_head", "num_labels", "classifier_transform", "classifier_dropout")
"""What decides the head of a task: a model of any architecture may have one."""
_NOT_OF_TASK_HEADS = {"sentence_head": False, "num_nextn_predict_layers": 0, "z_loss_coef": 0.0}
"""What belongs to the head of a language model, each with the only value that goes with the head of a task."""

_NOT_OF_ENCODER_DECODERS = {
    "sliding_window": None, "parallel_residual": False, "qk_norm": "none", "num_experts": 0,
    "num_nextn_predict_layers": 0, "embedding_size": None, "num_hidden_groups": None, "type_vocab_size": 0,
}  # fmt: skip
"""What an encoder-decoder cannot have, each with the only value that it takes."""
_OF_RECURRENT = frozenset({
    "family", "architecture", "hidden_size", "num_hidden_layers", "num_decoder_layers", "vocab_size",
    "max_position_embeddings", "tie_word_embeddings", "expect_parameters", "position_embedding", "embedding_size",
    "head_bias", "embedding_multiplier", "label_smoothing", "logits_scaling", "final_logit_softcapping",
    "initializer_range", "z_loss_coef", "cell", "attention_score", "character_filters", "character_size",
    "highway_layers", "max_token_bytes", "embedding_dropout", "hidden_dropout", "final_dropout", *_OF_TASK_HEADS,
})  # fmt: skip
"""What a recurrent model has. Every other key is about blocks with attention, and keeps its default."""
_ONLY_RECURRENT = (
    "cell",
    "attention_score",
    "character_filters",
    "character_size",
    "highway_layers",
    "max_token_bytes",
)
_NOT_OF_TWO_STREAMS = {
    "sliding_window": None, "attention_bias": False, "attention_output_bias": False,
    "qk_norm": "none", "attn_logit_softcapping": None, "num_experts": 0, "num_nextn_predict_layers": 0,
    "embedding_size": None, "embedding_norm": False, "type_vocab_size": 0,
}  # fmt: skip
"""What a model of two streams cannot have, each with the only value that it takes."""


class ModelSettings(Section):
    """The shape of the model and its architecture, in Hugging Face's names. The family gives the defaults."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema["required"].remove("vocab_size"))

    family: Family = "llama"
    """A named set of choices: `llama` (pre-norm with RMSNorm, RoPE, SwiGLU), `gpt2`, `gpt_neox` (Pythia), `mistral`,
    `qwen2`, `qwen3`, `olmo2`, `gemma`, `gemma2`, `granite`, with experts `mixtral`, `qwen3_moe`, the encoders `bert`,
    `roberta`, `albert`, `modernbert`, the encoder-decoders `t5`, `t5_v1_1`, `bart`, `marian`, and `xlnet`. Without
    attention: `lstm`, `gru`, and `char_lstm`, which reads the bytes of its tokens. Recurrent encoder-decoders:
    `bahdanau`, `luong`. Any key below may be given another value, but a model that the family cannot express at Hugging
    Face cannot be exported."""
    architecture: Literal[
        "decoder", "encoder", "encoder_decoder", "two_stream", "recurrent", "recurrent_encoder_decoder"
    ] = "decoder"
    """`decoder`: a token sees those before it, and its label is the next token. `encoder`: a token sees its whole
    document, and its label stands at its own position. An encoder does not generate text. `encoder_decoder`: a decoder
    whose blocks attend to the output of an encoder, too (Vaswani et al., 2017). `two_stream`: tokens are predicted
    in an order of any kind, by a second stream of attention that does not see them (xlnet; Yang et al., 2019).
    `recurrent`: layers that carry a state from token to token, to predict the next one (Zaremba et al., 2014).
    `recurrent_encoder_decoder`: such layers that attend to the states of others, which read in both directions
    (Luong et al., 2015)."""
    init_from: UserPath | None = None
    """What a new run starts from: a folder written by `bigtrain import`, or a run, of which it takes the weights of the
    newest checkpoint. Its head may be another one, which then starts from random weights."""

    # the shape
    hidden_size: PositiveInt
    """Width of the residual stream."""
    num_hidden_layers: Layers
    """Number of blocks; of an encoder-decoder those of the encoder."""
    num_decoder_layers: Layers | None = None
    """encoder_decoder: number of blocks of the decoder. Default: num_hidden_layers."""
    num_attention_heads: NonNegativeInt = 0
    """Number of query heads. It has to be given for every model of blocks with attention; 0: none (recurrent)."""
    num_key_value_heads: PositiveInt | None = None
    """Number of key and value heads. Fewer than the query heads is grouped-query attention. Default: as many as the
    query heads."""
    head_dim: PositiveInt | None = None
    """Width of one head. Default: hidden_size / num_attention_heads."""
    intermediate_size: NonNegativeInt = 0
    """Width inside the feed-forward layer. It has to be given for every model of blocks with attention; 0: none
    (recurrent)."""
    vocab_size: PositiveInt
    """Rows of the embedding. At least the tokenizer's size; a multiple of 64 is fastest on a GPU. Default: the size of
    the tokenizer that is trained (data.tokenizer.vocab_size), rounded up to a multiple of 64."""
    max_position_embeddings: PositiveInt
    """Longest context, in tokens. At Hugging Face, a model with `position_offset` has that many more."""
    tie_word_embeddings: bool = False
    """Use the embedding matrix as the output projection too."""
    expect_parameters: str | PositiveInt | None = None
    """The number of parameters that you expect, for example 124M or 1.24B. The run does not start if the model has
    another number, rounded to the given digits."""

    # norms and residuals
    norm: Literal["rms_norm", "rms_norm_zero_centered", "layer_norm"] = "rms_norm"
    """The norm: `rms_norm_zero_centered` multiplies by 1 + weight (gemma)."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the variance in every norm (`rms_norm_eps`, `layer_norm_epsilon` at Hugging Face)."""
    norm_bias: bool = True
    """layer_norm: whether norms have a bias."""
    norm_position: Literal["pre", "post", "sandwich", "post_residual"] = "pre"
    """Where a block normalises: the inputs of attention and feed-forward layer (`pre`), their outputs before they are
    added to the residual stream (`post`; olmo2), or both (`sandwich`; gemma2). `post_residual`: the residual stream
    after each sum, without a norm after the last block (Vaswani et al., 2017; bert)."""
    first_attention_norm: bool = True
    """pre, sandwich: normalise the input of the first attention, too. modernbert has embedding_norm in its place."""
    parallel_residual: bool = False
    """Attention and feed-forward layer read the same input, in parallel (gpt_neox)."""

    # positions
    position_embedding: Literal["rope", "learned", "sinusoidal", "alibi", "t5", "transformer_xl", "none"] = "rope"
    """How positions enter: rotated queries and keys (`rope`), vectors added to the embedding (`learned`,
    `sinusoidal`), scores lowered by distance (`alibi`; Press et al., 2022), scores with a learned bias by distance
    (`t5`; Raffel et al., 2020), scores with keys for distances (`transformer_xl`; Dai et al., 2019), or not at all."""
    rope_theta: PositiveFloat = 10000.0
    """rope: base of the frequencies."""
    partial_rotary_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """rope: the share of a head's width that rotates."""
    rope_scaling: RopeScaling | None = None
    """rope: frequencies stretched for longer contexts."""
    local_rope_theta: PositiveFloat | None = None
    """rope: base of the frequencies in layers with sliding attention. Default: rope_theta."""
    position_offset: NonNegativeInt = 0
    """learned: the row of the first position. roberta has 2, the id of its padding token plus 1; the rows before it
    are never used."""
    sinusoidal_layout: Literal["interleaved", "halves"] = "interleaved"
    """sinusoidal: sine and cosine of a wavelength side by side, or all sines before all cosines (marian)."""
    relative_attention_num_buckets: Annotated[int, Field(ge=2)] = 32
    """t5: number of buckets of distances. Half of them hold one distance each, the others grow logarithmically. In an
    encoder, half of all buckets are for the tokens after a token."""
    relative_attention_max_distance: PositiveInt = 128
    """t5: all distances from this one on share a bucket."""

    # attention
    sliding_window: PositiveInt | None = None
    """Number of tokens that a token attends to, itself included, in layers with sliding attention. In an encoder it is
    the width of the window: a token attends to itself and sliding_window // 2 tokens on either side (`local_attention`
    of modernbert)."""
    layer_types: tuple[LayerType, ...] = ()
    """`sliding_attention` or `full_attention` for each layer. A shorter list repeats. Default: sliding attention in all
    layers if sliding_window is given."""
    attention_bias: bool = False
    """Biases in the projections to queries, keys and values."""
    attention_output_bias: bool = False
    """A bias in the output projection of attention."""
    qk_norm: Literal["none", "head", "full"] = "none"
    """Normalise queries and keys: each head by itself (`head`; qwen3), or the whole projection (`full`; olmo2)."""
    attention_multiplier: PositiveFloat | None = None
    """Factor on the products of queries and keys. Default: 1 / sqrt(head_dim)."""
    attn_logit_softcapping: PositiveFloat | None = None
    """Soft cap: attention scores s become cap tanh(s / cap) (gemma2)."""

    # feed-forward layer
    hidden_act: Activation = "silu"
    """The activation function; `relu2` is the square of relu."""
    gated_mlp: bool = True
    """down(act(gate(x)) * up(x)) (Shazeer, 2020), or down(act(up(x)))."""
    mlp_bias: bool = False
    """Biases in the feed-forward layer."""

    # mixture of experts
    num_experts: Annotated[NonNegativeInt, Field(le=100_000)] = 0
    """Number of experts that replace the feed-forward layer. 0: no experts."""
    num_experts_per_tok: PositiveInt = 2
    """Number of experts for each token: those with the highest router probability."""
    moe_intermediate_size: PositiveInt | None = None
    """Width inside an expert. Default: intermediate_size."""
    norm_topk_prob: bool = True
    """Scale the weights of the chosen experts so that they sum to one."""
    mlp_only_layers: tuple[NonNegativeInt, ...] = ()
    """Layers, counted from 0, that have a feed-forward layer of width intermediate_size instead of experts."""
    router_aux_loss_coef: NonNegativeFloat = 0.0
    """Weight of the load-balancing loss (Fedus et al., 2021, equation 4), computed over each sequence of a batch, so
    that it does not depend on how the batch is spread over ranks."""
    router_z_loss_coef: NonNegativeFloat = 0.0
    """Weight of the mean square of the router's log-normaliser (Zoph et al., 2022, equation 5)."""
    router_bias_update_rate: NonNegativeFloat = 0.0
    """Balancing without a loss (Wang et al., 2024): each step changes the bias of each expert in the choice by this
    much, up if the expert had less than the average load, else down. 0: no biases."""

    # the ends
    embedding_size: PositiveInt | None = None
    """Width of the embeddings; a projection with a bias brings them to hidden_size (albert). Default: hidden_size,
    without a projection."""
    type_vocab_size: NonNegativeInt = 0
    """Number of kinds of segments, each with a vector that is added to the embeddings of its tokens. 0: none."""
    embedding_norm: bool = False
    """Normalise the sum of all embeddings."""
    head_transform: bool = False
    """The head predicts from norm(act(dense(x))), of the width of the embeddings, and not from x (bert)."""
    head_transform_bias: bool = True
    """head_transform: a bias in its dense layer (`classifier_bias` of modernbert)."""
    head_act: Activation | None = None
    """head_transform: its activation function. Default: hidden_act."""
    head_bias: bool = False
    """A bias for each token of the vocabulary, added to its logit (`decoder_bias` of modernbert)."""
    sentence_head: bool = False
    """A pooling layer and a classifier predict, from the first token of a pair of segments, in what relation they
    stand: BERT's next sentence, ALBERT's sentence order. Encoders only; objective.sentence_task trains it."""
    num_hidden_groups: PositiveInt | None = None
    """encoder: number of blocks that have weights of their own. Each is used num_hidden_layers / num_hidden_groups
    times in a row (albert). Default: num_hidden_layers."""

    # the head of a task
    task_head: TaskHeadKind = "none"
    """A head in the place of the one that predicts tokens, with new weights: a class of each text
    (`sequence_classification`), of each labelled token (`token_classification`), or where an answer starts and ends in
    a text (`question_answering`). It has the form that the family has in transformers. Head keys without a task, such
    as `tie_word_embeddings`, do nothing then, and muP does not divide its logits."""
    num_labels: NonNegativeInt = 0
    """task_head: number of classes; question_answering has none."""
    classifier_transform: Literal["none", "pooler", "tanh", "norm"] = "none"
    """task_head: what comes before the classifier. `none`: nothing (llama), and the classifier of a text has no bias.
    `pooler`: tanh(dense(x)), of texts only (bert, albert, xlnet). `tanh`: the same, with dropout before it, too
    (roberta, t5, bart). `norm`: norm(act(dense(x))), with head_act and head_transform_bias (modernbert)."""

    # recurrent models
    cell: Literal["lstm", "gru"] = "lstm"
    """recurrent: long short-term memory (`lstm`; Hochreiter and Schmidhuber, 1997) or gated recurrent units (`gru`;
    Cho et al., 2014)."""
    attention_score: Literal["additive", "dot"] = "dot"
    """recurrent_encoder_decoder: how a state of the decoder is compared with one of the encoder: v tanh(W s + U h)
    (`additive`; Bahdanau et al., 2015), or their product (`dot`; Luong et al., 2015)."""
    character_filters: tuple[PositiveInt, ...] = ()
    """recurrent: vectors of tokens are made of their bytes, by convolutions of widths 1, 2, 3, ... with so many filters
    each (Kim et al., 2016). Default: each token has a vector of its own."""
    character_size: PositiveInt = 15
    """character_filters: width of the vector of a byte."""
    highway_layers: NonNegativeInt = 1
    """character_filters: layers between the convolutions and the recurrent layers (Srivastava et al., 2015)."""
    max_token_bytes: Annotated[int, Field(ge=1, le=1000)] = 24
    """character_filters: of longer tokens only the first so many bytes are read."""

    # what multiplies what
    embedding_multiplier: PositiveFloat | Literal["sqrt_hidden_size"] = 1.0
    """Embeddings are multiplied by this."""
    residual_multiplier: PositiveFloat = 1.0
    """The output of each layer is multiplied by this before it is added to the residual stream."""
    logits_scaling: PositiveFloat | Literal["sqrt_hidden_size"] = 1.0
    """Logits are divided by this; `sqrt_hidden_size` is T5's choice for a tied embedding."""
    final_logit_softcapping: PositiveFloat | None = None
    """Soft cap: logits l become cap tanh(l / cap) (gemma2)."""
    mup_base_hidden_size: PositiveInt | None = None
    """Scale by width as muP does for Adam (Yang et al., 2022, table 8). With m = hidden_size / this, the initial
    matrices of the blocks are sqrt(m) times smaller, their learning rate is 1 / m of the others', and logits are
    divided by m. Hyper-parameters that were tuned at this width then hold at hidden_size."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of the initial weights. For projections back into the residual stream it is divided by
    sqrt(2 * num_hidden_layers) (GPT-2 paper, section 2.3)."""

    # what is dropped in training
    embedding_dropout: OpenUnitInterval = 0.0
    """Share of the channels that is dropped of the embeddings, after they are summed and normalised (`embd_pdrop` of
    gpt2). What is dropped follows from train.seed and the address of a row. Rates are rounded to multiples of 2^-16."""
    attention_dropout: OpenUnitInterval = 0.0
    """Share of the attention weights that is dropped (`attention_probs_dropout_prob` of bert). On CUDA the scores of a
    document are then held in memory: PyTorch's kernels have no dropout that follows from an address."""
    hidden_dropout: OpenUnitInterval = 0.0
    """Share of the channels that is dropped of what attention and feed-forward layer add to the residual stream
    (`resid_pdrop` of gpt2). `hidden_dropout_prob` of bert and `dropout` of bart are this and embedding_dropout. Of a
    recurrent model it is what goes from one layer to the next (Zaremba et al., 2014)."""
    activation_dropout: OpenUnitInterval = 0.0
    """Share of the channels that is dropped inside the feed-forward layer, after the activation function (bart, t5)."""
    final_dropout: OpenUnitInterval = 0.0
    """Share of the channels that is dropped before the head, and of an encoder's states before a decoder sees them
    (t5)."""

    classifier_dropout: OpenUnitInterval = 0.0
    """task_head: share of the channels that is dropped before the classifier."""

    # what else is learned
    z_loss_coef: NonNegativeFloat = 0.0
    """Weight of the square of the log-normaliser of the logits (Chowdhery et al., 2022, section 5). The reported
    loss does not include it."""
    label_smoothing: OpenUnitInterval = 0.0
    """Share of a label's weight that is spread evenly over the vocabulary, or the classes of a task_head (Szegedy et
    al., 2016, section 7; 0.1 in Vaswani et al., 2017). The reported loss is that of the labels alone."""
    num_nextn_predict_layers: Annotated[NonNegativeInt, Field(le=1000)] = 0
    """Multi-token prediction (DeepSeek-AI, 2024, section 2.2): this many additional blocks, each of which predicts one
    token further ahead. They are for training only: an export leaves them out."""
    mtp_loss_coef: NonNegativeFloat = 0.1
    """Weight of the mean loss of those predictions. The reported loss does not include it."""

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads, with the default filled in."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Width of one head, with the default filled in; 0 without heads."""
        if not self.num_attention_heads:
            return 0
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rotary_width(self) -> int:
        """The part of a head's width that rotates. It is even."""
        return int(self.head_width * self.partial_rotary_factor)

    @property
    def attention_scale(self) -> float:
        """Factor on the products of queries and keys, with the default filled in."""
        return self.attention_multiplier or self.head_width**-0.5

    @property
    def width_multiplier(self) -> float:
        """muP's m: hidden_size divided by the width that was tuned; 1 without muP."""
        return self.hidden_size / (self.mup_base_hidden_size or self.hidden_size)

    @property
    def logits_divisor(self) -> float:
        """What logits are divided by in all: logits_scaling and muP's m."""
        scaling = self.hidden_size**0.5 if self.logits_scaling == "sqrt_hidden_size" else self.logits_scaling
        return scaling * self.width_multiplier

    @property
    def expert_width(self) -> int:
        """Width inside an expert, with the default filled in."""
        return self.moe_intermediate_size or self.intermediate_size

    @property
    def drops(self) -> bool:
        """Whether training has dropout."""
        return any(getattr(self, name) for name in DROPOUT_RATES)

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings, with the default filled in."""
        return sum(self.character_filters) or self.embedding_size or self.hidden_size

    @property
    def head_input_width(self) -> int:
        """Width of what is multiplied with the head's weight. A head that is tied has the embeddings' width."""
        return self.hidden_size if self.recurrent else self.embedding_width

    @property
    def recurrent(self) -> bool:
        """Whether states are carried from token to token, in the place of attention."""
        return self.architecture in ("recurrent", "recurrent_encoder_decoder")

    @property
    def reads_pairs(self) -> bool:
        """Whether an encoder reads one text, and a decoder another."""
        return self.architecture in ("encoder_decoder", "recurrent_encoder_decoder")

    @property
    def writes_text(self) -> bool:
        """Whether it generates text here."""
        return self.architecture in ("decoder", "recurrent", "encoder_decoder") and self.task_head == "none"

    @property
    def logits_of_task(self) -> int:
        """Logits of a position that the head of a task gives: one for each class, or for start and end; 0 without."""
        return 2 if self.task_head == "question_answering" else self.num_labels

    @property
    def classes(self) -> int:
        """Logits of a position that its head gives: of the vocabulary, or of a task."""
        return self.vocab_size if self.task_head == "none" else self.logits_of_task

    @property
    def transform_of_task(self) -> Literal["none", "pooler", "tanh", "norm"]:
        """What comes before the classifier: classifier_transform, where this task has it."""
        of_all = self.task_head == "sequence_classification" or self.classifier_transform == "norm"
        return self.classifier_transform if of_all else "none"

    @property
    def distinct_layers(self) -> int:
        """Number of blocks that have weights of their own."""
        return self.num_hidden_groups or self.num_hidden_layers

    @property
    def two_sided(self) -> bool:
        """Whether a token attends to those after it, too. Of an encoder-decoder: of its decoder."""
        return self.architecture == "encoder"

    @property
    def decoder_layers(self) -> int:
        """Number of blocks of an encoder-decoder's decoder, with the default filled in."""
        return self.num_decoder_layers or self.num_hidden_layers

    @property
    def encoder_part(self) -> ModelSettings:
        """The encoder of an encoder-decoder, as settings of an encoder."""
        return self.model_copy(update={"architecture": "encoder", "num_decoder_layers": None})

    @property
    def decoder_part(self) -> ModelSettings:
        """The decoder of an encoder-decoder: num_hidden_layers are its own. The architecture stays, and says that its
        blocks attend to an encoder."""
        return self.model_copy(update={"num_hidden_layers": self.decoder_layers, "num_decoder_layers": None})

    def slides(self, layer: int) -> bool:
        """Whether a layer has sliding attention."""
        if self.layer_types and self.layer_types[layer % len(self.layer_types)] == "full_attention":
            return False
        return self.sliding_window is not None

    def window_of(self, layer: int) -> int | None:
        """A token attends in a layer to tokens less than this many places away, itself included. None: to all that its
        architecture lets it see. In a decoder it is the number of these tokens."""
        if self.sliding_window is None or not self.slides(layer):
            return None
        return self.sliding_window // 2 + 1 if self.two_sided else self.sliding_window

    def has_experts(self, layer: int) -> bool:
        """Whether a layer's feed-forward half is a mixture of experts."""
        return self.num_experts > 0 and layer not in self.mlp_only_layers

    @model_validator(mode="after")
    def _family_filled_in(self) -> ModelSettings:
        # Not before: that would take pydantic out of its JSON mode, in which a list may stand for a tuple.
        chosen = FAMILIES[self.family]
        self.__dict__.update({key: chosen[key] for key in chosen.keys() - self.model_fields_set})
        if "layer_types" not in self.model_fields_set:  # a period may be longer than a small model
            self.__dict__["layer_types"] = self.layer_types[: self.num_hidden_layers]
        return self

    @model_validator(mode="after")
    def _choices_work(self) -> ModelSettings:
        for broken, why in self._contradictions():
            if broken:
                raise ValueError(why)
        return self

    def _contradictions(self) -> Iterator[tuple[bool, str]]:
        yield from self._contradictions_of_task_head()
        if self.recurrent:
            yield from self._contradictions_of_recurrent()
            return
        for key in ("num_attention_heads", "intermediate_size"):
            yield (
                getattr(self, key) == 0,
                f"{key} is missing, and architecture {self.architecture} has blocks with attention; add `{key}:`",
            )
        for key in _ONLY_RECURRENT:
            default = type(self).model_fields[key].default
            yield (
                getattr(self, key) != default,
                f"{key} {getattr(self, key)} is for recurrent models, found architecture {self.architecture}; "
                "remove it",
            )
        yield (
            self.head_dim is None and self.hidden_size % self.num_attention_heads > 0,
            f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}; "
            "change one of them or set head_dim",
        )
        yield (
            self.num_attention_heads % self.key_value_heads > 0,
            f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
            f"{self.key_value_heads}",
        )
        rotates = self.position_embedding == "rope"
        yield (
            rotates and (self.rotary_width % 2 > 0 or self.rotary_width == 0),
            f"what rotates of a head, its width times partial_rotary_factor, must be even, found {self.rotary_width}",
        )
        yield (
            self.rope_scaling is not None and not rotates,
            f"rope_scaling is for position_embedding rope, found {self.position_embedding}; remove it",
        )
        yield (
            self.position_embedding == "sinusoidal" and self.hidden_size % 2 > 0,
            f"position_embedding sinusoidal has pairs of sine and cosine: hidden_size must be even, found "
            f"{self.hidden_size}",
        )
        yield (
            self.architecture != "decoder" and self.position_embedding == "alibi",
            "position_embedding alibi is for architecture decoder; an encoder takes rope, learned, sinusoidal, t5 or "
            "none",
        )
        buckets = self.relative_attention_num_buckets
        yield (
            self.architecture != "decoder" and self.position_embedding == "t5" and (buckets % 2 > 0 or buckets < 4),
            "an encoder has relative_attention_num_buckets for two sides: an even number of 4 or more, found "
            f"{buckets}",
        )
        yield (
            self.position_embedding == "t5" and self.relative_attention_max_distance <= buckets // 2,
            f"relative_attention_max_distance {self.relative_attention_max_distance} is not beyond the "
            f"{buckets // 2} distances that have buckets of their own; make it larger",
        )
        yield (
            self.num_decoder_layers is not None and not self.reads_pairs,
            f"num_decoder_layers is for architecture encoder_decoder, found {self.architecture}; remove it",
        )
        for key, plain in _NOT_OF_ENCODER_DECODERS.items() if self.architecture == "encoder_decoder" else ():
            yield (
                getattr(self, key) != plain,
                f"architecture encoder_decoder works with {key} {plain}, found {getattr(self, key)}; remove it",
            )
        for key, plain in _NOT_OF_TWO_STREAMS.items() if self.architecture == "two_stream" else ():
            yield (
                getattr(self, key) != plain,
                f"architecture two_stream works with {key} {plain}, found {getattr(self, key)}; remove it",
            )
        yield (
            self.architecture == "two_stream" and self.key_value_heads != self.num_attention_heads,
            f"architecture two_stream has as many key and value heads as query heads, found num_key_value_heads "
            f"{self.num_key_value_heads}; remove it",
        )
        relative = self.position_embedding == "transformer_xl"
        yield (
            relative != (self.architecture == "two_stream"),
            f"position_embedding transformer_xl and architecture two_stream go together, found "
            f"{self.position_embedding} and {self.architecture}; change one of them",
        )
        yield (
            relative and self.hidden_size % 2 > 0,
            f"position_embedding transformer_xl has pairs of sine and cosine: hidden_size must be even, found "
            f"{self.hidden_size}",
        )
        yield (
            self.architecture == "encoder" and self.num_nextn_predict_layers > 0,
            "num_nextn_predict_layers is for architecture decoder: an encoder has no next token; remove it",
        )
        yield (
            self.position_offset > 0 and self.position_embedding != "learned",
            f"position_offset is for position_embedding learned, found {self.position_embedding}; remove it",
        )
        yield (
            self.norm_position == "post_residual" and self.parallel_residual,
            "norm_position post_residual normalises one sum after the other; set parallel_residual to false",
        )
        yield (
            not self.first_attention_norm and self.norm_position not in ("pre", "sandwich"),
            f"first_attention_norm is for norm_position pre or sandwich, found {self.norm_position}; remove it",
        )
        yield (
            self.local_rope_theta is not None and (not rotates or self.rope_scaling is not None),
            "local_rope_theta is for position_embedding rope without rope_scaling; remove one of them",
        )
        yield (
            self.embedding_size not in (None, self.hidden_size) and not self.head_transform,
            f"embedding_size {self.embedding_size} is not hidden_size {self.hidden_size}, so the head needs a "
            "projection, too: set head_transform to true",
        )
        yield (
            self.embedding_size is not None and self.num_nextn_predict_layers > 0,
            "num_nextn_predict_layers needs embeddings of width hidden_size; remove embedding_size",
        )
        yield (
            self.sentence_head and self.architecture != "encoder",
            f"sentence_head is for architecture encoder, found {self.architecture}; remove it",
        )
        yield (
            self.num_hidden_groups is not None and self.num_hidden_layers % self.num_hidden_groups > 0,
            f"num_hidden_layers {self.num_hidden_layers} is not a multiple of num_hidden_groups "
            f"{self.num_hidden_groups}",
        )
        yield (
            self.num_hidden_groups is not None and self.architecture == "decoder",
            "num_hidden_groups is for architecture encoder: a decoder keeps keys and values for each layer; remove it",
        )
        yield (
            self.num_hidden_groups is not None and bool(self.layer_types or self.mlp_only_layers),
            "layers that share weights are alike: remove num_hidden_groups, or layer_types and mlp_only_layers",
        )
        yield (
            len(self.layer_types) > self.num_hidden_layers,
            f"layer_types has {len(self.layer_types)} entries for num_hidden_layers {self.num_hidden_layers}",
        )
        yield (
            "sliding_attention" in self.layer_types and self.sliding_window is None,
            "layer_types has sliding_attention, but sliding_window is missing; set it",
        )
        yield (
            self.num_experts > 0 and self.num_experts_per_tok > self.num_experts,
            f"num_experts_per_tok {self.num_experts_per_tok} is more than num_experts {self.num_experts}",
        )
        yield (
            self.num_experts > 0 and self.mlp_bias,
            "experts have no biases: set mlp_bias to false, or num_experts to 0",
        )
        yield (
            self.num_experts > 0 and not self.gated_mlp,
            "experts are gated: set gated_mlp to true, or num_experts to 0",
        )
        yield (
            self.num_experts > 0 and self.activation_dropout > 0,
            "experts have no dropout inside: set activation_dropout to 0, or num_experts to 0",
        )
        for key in ("router_aux_loss_coef", "router_z_loss_coef", "router_bias_update_rate"):
            yield (
                self.num_experts == 0 and getattr(self, key) > 0,
                f"{key} {getattr(self, key)} is for a mixture of experts, and num_experts is 0; remove it",
            )
        for layer in self.mlp_only_layers:
            yield (
                layer >= self.num_hidden_layers,
                f"mlp_only_layers names layer {layer}; the last one is {self.num_hidden_layers - 1}",
            )

    def _contradictions_of_task_head(self) -> Iterator[tuple[bool, str]]:
        task = self.task_head
        classifies = task in ("sequence_classification", "token_classification")
        yield (
            classifies and self.num_labels < 2,
            f"task_head {task} needs num_labels, the number of classes: 2 or more, found {self.num_labels}",
        )
        yield (
            not classifies and self.num_labels > 0,
            f"num_labels {self.num_labels} is for task_head sequence_classification or token_classification, found "
            f"{task}; remove it",
        )
        yield (
            task == "none" and self.classifier_dropout > 0,
            f"classifier_dropout {self.classifier_dropout} is for a task_head, found none; remove it",
        )
        yield (
            task == "question_answering" and self.label_smoothing > 0,
            f"label_smoothing {self.label_smoothing} is for classes or tokens, found task_head {task}; remove it",
        )
        for key, plain in _NOT_OF_TASK_HEADS.items() if task != "none" else ():
            yield (
                getattr(self, key) != plain,
                f"task_head {task} takes the place of the language model's head: set {key} to {plain}, found "
                f"{getattr(self, key)}",
            )

    def _contradictions_of_recurrent(self) -> Iterator[tuple[bool, str]]:
        for key, field in type(self).model_fields.items():
            yield (
                key not in _OF_RECURRENT and getattr(self, key) != field.default,
                f"{key} {getattr(self, key)} is for blocks with attention, found architecture {self.architecture}; "
                "remove it",
            )
        yield (
            self.position_embedding != "none",
            f"architecture {self.architecture} carries the order of tokens in its states, found position_embedding "
            f"{self.position_embedding}; write position_embedding: none",
        )
        yield (
            self.num_decoder_layers is not None and not self.reads_pairs,
            f"num_decoder_layers is for architecture recurrent_encoder_decoder, found {self.architecture}; remove it",
        )
        both = self.reads_pairs
        yield (
            both and self.hidden_size % 2 > 0,
            f"half of hidden_size reads in each direction: it must be even, found {self.hidden_size}",
        )
        yield (
            self.tie_word_embeddings and (self.embedding_width != self.hidden_size or bool(self.character_filters)),
            "tie_word_embeddings needs vectors of tokens that are as wide as hidden_size; set it to false, or remove "
            "embedding_size and character_filters",
        )
        yield (
            self.embedding_size is not None and bool(self.character_filters),
            "character_filters say how wide the vectors of tokens are; remove embedding_size",
        )
        yield (
            len(self.character_filters) > self.max_token_bytes + 2,
            f"character_filters has convolutions of up to {len(self.character_filters)} bytes, and a token at most "
            f"max_token_bytes {self.max_token_bytes}, with a mark before and after; give fewer, or raise it",
        )
        for key in () if self.character_filters else ("character_size", "highway_layers", "max_token_bytes"):
            yield (
                getattr(self, key) != type(self).model_fields[key].default,
                f"{key} {getattr(self, key)} is for character_filters, which is empty; remove it",
            )
        yield (
            self.attention_score != "dot" and not both,
            f"attention_score {self.attention_score} is for architecture recurrent_encoder_decoder, found "
            f"{self.architecture}; remove it",
        )

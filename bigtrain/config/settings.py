"""The typed tree of settings: every key a YAML file may hold, its type, its default and its meaning.

The docstring under each field is the only description of it there is: `bigtrain config explain`, the JSON schema
and docs/config.md are made from these. Names are Hugging Face's or DeepSpeed's own where those exist. Rules that
need one section only stand in that section; rules that span sections stand in `Settings`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from bigtrain.config.cleaning import CleanStep
from bigtrain.config.section import NonNegativeFloat, OpenUnitInterval, Section, UnitInterval


def _home_filled_in(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # which pydantic would let through as a bug
        raise ValueError(f"the home directory that {path.parts[0]} stands for is unknown; write it out") from None


UserPath = Annotated[Path, AfterValidator(_home_filled_in)]
"""A path in which ~ at the start means the home directory."""


class ModelSettings(Section):
    """The decoder's shape, in Hugging Face's own names."""

    family: Literal["llama", "gpt2"] = "llama"
    """The named set of choices: `llama` (RoPE, RMSNorm, SwiGLU, grouped-query attention) or `gpt2` (learned
    positions, LayerNorm, GELU, biases)."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    num_hidden_layers: PositiveInt
    """Number of decoder blocks."""
    num_attention_heads: PositiveInt
    """Number of query heads."""
    num_key_value_heads: PositiveInt | None = None
    """Number of key and value heads; fewer than the query heads is grouped-query attention. Default: as many as
    the query heads."""
    head_dim: PositiveInt | None = None
    """Width of one head. Default: hidden_size / num_attention_heads."""
    intermediate_size: PositiveInt
    """Width inside the feed-forward layer."""
    vocab_size: PositiveInt
    """Rows of the embedding. At least the tokenizer's size; a multiple of 64 is fastest on a GPU."""
    max_position_embeddings: PositiveInt
    """Longest context, in tokens."""
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary frequencies (llama)."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the variance in every norm (`rms_norm_eps`, `layer_norm_epsilon` at Hugging Face)."""
    tie_word_embeddings: bool = False
    """Use the embedding matrix as the output projection too."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of the initial weights; projections back into the residual stream get it divided by
    sqrt(2 * num_hidden_layers) (GPT-2 paper, section 2.3)."""

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads, with the default filled in."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Width of one head, with the default filled in."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSettings:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}; change one of them or set head_dim"
            )
        if self.num_attention_heads % self.key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.key_value_heads}"
            )
        if self.family == "gpt2" and (
            self.key_value_heads != self.num_attention_heads
            or self.head_width * self.num_attention_heads != self.hidden_size
        ):
            raise ValueError("family gpt2 has neither grouped-query attention nor a free head_dim")
        if self.head_width % 2:
            raise ValueError(f"the head width must be even, found {self.head_width}")
        return self


class TokenizerSettings(Section):
    """Where the tokenizer comes from: trained on the sources, or a finished `tokenizer.json`."""

    path: UserPath | None = None
    """A `tokenizer.json` (or the Hugging Face folder that holds one) to use as it is. Default: train one."""
    vocab_size: PositiveInt = 8192
    """Size of a trained byte-level BPE vocabulary, special tokens included."""
    min_frequency: PositiveInt = 2
    """A pair seen less often than this is never merged."""
    end_of_text: str = "<|endoftext|>"
    """The special token that closes each document."""
    train_bytes: PositiveInt = 50_000_000
    """How much text a tokenizer is trained on, taken evenly over the sources."""


class SourceSettings(Section):
    """One corpus: where its documents come from and how much of the mixture it makes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """A name of your choice; a folder is called by it, and metrics and reports too."""
    kind: Literal["python_stdlib", "text", "jsonl", "parquet", "huggingface"]
    """`python_stdlib`: the standard library of the running Python; `text`: files, one document each; `jsonl`: one
    JSON object a line; `parquet`: one row a document; `huggingface`: a dataset of the `datasets` library."""
    path: str | None = None
    """text, jsonl, parquet: a file, folder or glob, also behind a URL such as s3://bucket/folder. huggingface: a hub id
    or a local folder."""
    text_field: str = "text"
    """jsonl, parquet, huggingface: the field or column that holds the text."""
    content: Literal["source", "documentation"] = "source"
    """python_stdlib: the source files, or the documentation strings in them."""
    subset: str | None = None
    """huggingface: the configuration name of a dataset that has several."""
    split: str = "train"
    """huggingface: the split to read."""
    weight: PositiveFloat | None = None
    """Share of the mixture, relative to the other sources. Default: in proportion to its tokens. Give it for all
    sources or for none."""
    license: str | None = None
    """The licence of its documents, for the data card. It changes nothing that is built or trained."""
    clean: tuple[CleanStep, ...] = ()
    """Rules that each document passes in this order before it is tokenized: the first that refuses it removes it, and
    some rewrite it. An item is the name of a rule, or `name: {threshold: value}`."""

    @property
    def exact_weight(self) -> Fraction | None:
        """The weight as it was typed, without binary rounding: 0.1 is one tenth."""
        return None if self.weight is None else Fraction(repr(self.weight))

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> SourceSettings:
        if self.kind != "python_stdlib" and not self.path:
            raise ValueError(f"source {self.name!r} of kind {self.kind!r} needs a path")
        kinds_of_key = {
            "path": ("text", "jsonl", "parquet", "huggingface"),
            "text_field": ("jsonl", "parquet", "huggingface"),
            "content": ("python_stdlib",),
            "subset": ("huggingface",),
            "split": ("huggingface",),
        }
        for key, kinds in kinds_of_key.items():
            value = getattr(self, key)
            # Its default is let through wherever it stands: it says nothing, and a run's config.yaml writes every key.
            if self.kind not in kinds and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"source {self.name!r} of kind {self.kind!r} has no {key}, found {value!r}; "
                    f"remove it: {key} is for {', '.join(kinds)} only"
                )
        return self


class ValidationSettings(Section):
    """The held-out documents."""

    fraction: OpenUnitInterval = 0.01
    """Share of the documents held out, chosen by a hash of each document's origin: the same ones every time."""


class DataSettings(Section):
    """From raw text to the order of the training samples."""

    dir: UserPath
    """The folder on this machine where tokenizer and shards are written. Several runs may share one."""
    remote: str | None = None
    """URL (s3://, gs://, https://, ...) that a built `dir` was copied to, to read the shards from there. `dir` is then
    a folder of its own for what has been fetched. Default: the shards are in `dir`."""
    cache_bytes: PositiveInt = 100_000_000_000
    """remote: how much of the disk of `dir` fetched blocks of shards may take; the least recently used go first."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    """The tokenizer."""
    sources: Annotated[list[SourceSettings], Field(min_length=1)]
    """The corpora."""
    sequence_length: PositiveInt
    """Tokens in one training sample."""
    dedup: Literal["none", "exact"] = "none"
    """`exact`: of documents with the same text, after cleaning, only the first is kept, in the order of the sources and
    over both splits. It reads and cleans the sources once more."""
    packing: Literal["concat"] = "concat"
    """`concat`: documents one after the other, cut every sequence_length tokens; attention stays inside each."""
    validation: ValidationSettings = ValidationSettings()
    """The held-out split."""
    shard_tokens: PositiveInt = 100_000_000
    """Tokens in one shard file, about."""
    workers: PositiveInt | None = None
    """Processes that tokenize. Default: one a core. The shards are byte-identical for any number."""

    @field_validator("dir", mode="before")
    @classmethod
    def _dir_is_no_url(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:  # a Path would fold its slashes
            raise ValueError(f"{value} is a URL; write remote: {value}, and as dir a folder on this machine")
        return value

    @field_validator("remote")
    @classmethod
    def _remote_is_a_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"[a-z][a-z0-9+.-]*://[^/]", value):
            raise ValueError(f"{value!r} is no URL such as s3://bucket/folder; a folder on this machine goes into dir")
        return value

    @model_validator(mode="after")
    def _names_and_weights(self) -> DataSettings:
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources have the name {twice[0]!r}")
        weighted = [source.weight is not None for source in self.sources]
        if any(weighted) and not all(weighted):
            missing = names[weighted.index(False)]
            raise ValueError(f"some sources have a weight and {missing!r} has none; give all of them one, or none")
        return self


class TrainSettings(Section):
    """How long and in which portions."""

    steps: PositiveInt | None = None
    """Optimizer steps of the whole schedule. Give this or tokens."""
    tokens: PositiveInt | None = None
    """Training tokens of the whole schedule, rounded up to a whole step. Give this or steps."""
    global_batch_size: PositiveInt
    """Samples in one optimizer step, over all ranks."""
    micro_batch_size: PositiveInt = 1
    """Samples in one forward pass on one rank. The number of gradient accumulation steps follows from it."""
    seed: NonNegativeInt = 0
    """Seeds the initial weights and the order of the data."""
    stop_after: PositiveInt | None = None
    """Commit a checkpoint and leave with status 75 after this step; the schedule still ends at `steps`."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give exactly one of train.steps and train.tokens")
        return self


class OptimizerSettings(Section):
    """The optimizer and its gradient clipping."""

    name: Literal["adamw"] = "adamw"
    """`adamw`: Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""
    learning_rate: PositiveFloat = 3e-4
    """Peak learning rate; the schedule multiplies it."""
    betas: tuple[OpenUnitInterval, OpenUnitInterval] = (0.9, 0.95)
    """Decay rates of the first and second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of matrices; norms and biases get none."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this global L2 norm. 0 turns clipping off."""


class ScheduleSettings(Section):
    """The learning rate over the steps; it never rises after its end."""

    name: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt"] = "cosine"
    """`constant`, `linear` or `cosine` decay to the end, `wsd` (warm-up, stable, decay), or `inverse_sqrt`."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate rises linearly from 0."""
    decay_steps: PositiveInt | None = None
    """wsd: the last steps, over which the rate falls. Default: a fifth of all steps."""
    min_lr_ratio: UnitInterval = 0.1
    """The rate at the end, as a share of the peak (linear, cosine, wsd)."""

    @model_validator(mode="after")
    def _decay_steps_of_wsd(self) -> ScheduleSettings:
        if self.decay_steps is not None and self.name != "wsd":
            raise ValueError(
                f"decay_steps {self.decay_steps} is for name wsd, found name {self.name}; remove it or write name: wsd"
            )
        return self


class EngineSettings(Section):
    """How the work is spread and computed. Only `precision` and the raw extras change the mathematics."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """What DeepSpeed ZeRO partitions over the ranks: 0 nothing, 1 optimizer states, 2 and gradients, 3 and
    parameters."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """`bf16`: compute in bfloat16 with float32 master weights and accumulation; `fp32`: all in float32."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Activations recomputed in the backward pass: none, the cheap ones, or all inside a block."""
    compile: bool = False
    """Compile each decoder block with torch.compile."""
    attn_implementation: Literal["auto", "varlen", "blockwise", "sdpa", "reference"] = "auto"
    """Attention back-end: `varlen` FlashAttention on CUDA, `blockwise` the same algorithm in batched matrix products
    (the fastest on a CPU), `sdpa` (PyTorch's flash kernel) anywhere, `reference` naive and slow. `auto` takes the
    best there is."""
    process_group_timeout_minutes: PositiveFloat = 10.0
    """A collective that takes longer than this ends the job."""
    deepspeed: dict[str, Any] = Field({})
    """Raw extras for DeepSpeed's configuration; a key that bigtrain sets itself is refused."""


class CheckpointSettings(Section):
    """When to save and what to keep. A checkpoint is always saved at the end and when the run is stopped."""

    every_steps: PositiveInt | None = None
    """Save after every so many steps."""
    every_minutes: PositiveFloat | None = None
    """Save when this much time has passed since the last save."""
    keep: PositiveInt | None = None
    """Keep this many of the newest verified checkpoints. Default: all of them."""


class TrackingSettings(Section):
    """Weights & Biases."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online where WANDB_API_KEY or a login is found, else offline."""
    project: str = "bigtrain"
    """The W&B project."""
    entity: str | None = None
    """The W&B team or user. Default: the one of the key."""
    name: str | None = None
    """The name of the run at W&B. Default: the name of the run directory."""
    log_every_steps: PositiveInt = 10
    """How often a progress line is printed. metrics.jsonl and W&B get every step."""


class EvaluateSettings(Section):
    """Validation along the way."""

    every_steps: PositiveInt | None = None
    """Compute the validation loss after every so many steps; always at the end too."""
    max_sequences: PositiveInt | None = 256
    """At most this many sequences of each source, always the same ones. Default: 256; null: all."""
    micro_batch_size: PositiveInt | None = None
    """Sequences in one forward pass. Default: train.micro_batch_size."""


class Settings(Section):
    """Everything about one run."""

    run_dir: UserPath
    """The run directory: settings, metrics, events, logs and checkpoints."""
    model: ModelSettings
    """The decoder."""
    data: DataSettings
    """The data."""
    train: TrainSettings
    """Length and batch."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """The optimizer."""
    schedule: ScheduleSettings = ScheduleSettings()
    """The learning rate."""
    engine: EngineSettings = EngineSettings()
    """Parallelism, precision and memory."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """Saving."""
    tracking: TrackingSettings = TrackingSettings()
    """Logging."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Validation."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole schedule."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.tokens is not None
        return -(-self.train.tokens // (self.train.global_batch_size * self.data.sequence_length))

    @property
    def validation_batch_size(self) -> int:
        """Sequences in one forward pass of an evaluation, with the default filled in."""
        return self.evaluate.micro_batch_size or self.train.micro_batch_size

    @model_validator(mode="after")
    def _sections_agree(self) -> Settings:
        if self.data.sequence_length > self.model.max_position_embeddings:
            raise ValueError(
                f"data.sequence_length {self.data.sequence_length} is longer than model.max_position_embeddings "
                f"{self.model.max_position_embeddings}"
            )
        if self.train.global_batch_size % self.train.micro_batch_size:
            raise ValueError(
                f"train.global_batch_size {self.train.global_batch_size} is not a multiple of "
                f"train.micro_batch_size {self.train.micro_batch_size}"
            )
        if self.engine.zero_stage == 0 and self.engine.precision == "bf16":
            raise ValueError(
                "engine.zero_stage 0 with engine.precision bf16 has no float32 gradient accumulation in DeepSpeed; "
                "use zero_stage 1 or precision fp32"
            )
        if self.data.tokenizer.path is None and self.data.tokenizer.vocab_size > self.model.vocab_size:
            raise ValueError(
                f"data.tokenizer.vocab_size {self.data.tokenizer.vocab_size} is larger than model.vocab_size "
                f"{self.model.vocab_size}: the embedding would have no row for the last tokens; "
                f"set data.tokenizer.vocab_size to {self.model.vocab_size} or less"
            )
        return self

    @model_validator(mode="after")
    def _steps_fit_the_run(self) -> Settings:
        if self.train.steps is not None:
            length = f"train.steps {self.train.steps}"
        else:
            length = f"the {self.total_steps} steps of train.tokens {self.train.tokens}"
        warmup, decay = self.schedule.warmup_steps, self.schedule.decay_steps
        if warmup + (decay or 0) > self.total_steps:
            plus_decay = f" + schedule.decay_steps {decay}" if decay else ""
            raise ValueError(f"schedule.warmup_steps {warmup}{plus_decay} is more than {length}")
        if self.train.stop_after is not None and self.train.stop_after > self.total_steps:
            raise ValueError(f"train.stop_after {self.train.stop_after} is more than {length}")
        return self

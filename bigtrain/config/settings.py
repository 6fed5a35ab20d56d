"""The typed tree of settings: every key a YAML file may hold, its type, its default and its meaning.

The docstring under each field is the only description of it there is: `bigtrain config explain`, the JSON schema
and docs/reference/config.md are made from these. Names are Hugging Face's or DeepSpeed's own where those exist. Rules
that need one section only stand in that section; rules that span sections stand in `Settings`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from bigtrain.config.batch_schedule import BatchSchedule
from bigtrain.config.data_settings import DataSettings
from bigtrain.config.engine_settings import EngineSettings
from bigtrain.config.guard_settings import GuardSettings
from bigtrain.config.model_settings import ModelSettings
from bigtrain.config.parallel_sizes import uneven_batch, uneven_share
from bigtrain.config.secrets import passwords_in
from bigtrain.config.section import NonNegativeFloat, OpenUnitInterval, Section, UnitInterval, UserPath


class BatchSizeStage(Section):
    """One stage of the batch-size warm-up."""

    steps: PositiveInt
    """Optimizer steps that it lasts."""
    global_batch_size: PositiveInt
    """Samples in each of them, over all ranks."""


class TrainSettings(Section):
    """How long and in which portions."""

    steps: PositiveInt | None = None
    """Optimizer steps of the whole schedule. Give this or tokens."""
    tokens: PositiveInt | None = None
    """Training tokens of the whole schedule, rounded up to a whole step. Give this or steps."""
    global_batch_size: PositiveInt
    """Samples in one optimizer step, over all ranks."""
    batch_size_warmup: tuple[BatchSizeStage, ...] = ()
    """Stages at the beginning with other, mostly smaller, batches; global_batch_size holds after them."""
    micro_batch_size: PositiveInt = 1
    """Samples in one forward pass on one rank. The number of gradient accumulation steps follows from it."""
    seed: NonNegativeInt = 0
    """Seeds the initial weights and the order of the data."""
    stop_after: PositiveInt | None = None
    """Commit a checkpoint and leave with status 75 after this step; the schedule still ends at `steps`."""

    @property
    def batches(self) -> BatchSchedule:
        """How many samples each step takes."""
        stages = [(stage.steps, stage.global_batch_size) for stage in self.batch_size_warmup]
        return BatchSchedule(stages, self.global_batch_size)

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give exactly one of train.steps and train.tokens")
        return self


class ParameterGroup(Section):
    """Other hyper-parameters for some parameters."""

    match: str
    """Which: a pattern such as `embed_tokens.*` or `*.mlp.*.weight`, against the whole name of the parameter. The first
    group that matches counts."""
    weight_decay: NonNegativeFloat | None = None
    """Their weight decay. Default: as without the group."""
    lr_scale: NonNegativeFloat = 1.0
    """Their learning rate as a multiple of that of all others; 0 freezes them."""


class OptimizerSettings(Section):
    """The optimizer and its gradient clipping."""

    name: Literal["adamw", "muon", "lion"] = "adamw"
    """`adamw`: Adam with decoupled weight decay (Loshchilov and Hutter, 2019). `muon`: orthogonalised momentum for the
    matrices inside the blocks (Jordan et al., 2024; updates scaled to AdamW's size as in Liu et al., 2025) and AdamW
    for embeddings, head, norms and biases. `lion`: sign of the interpolated momentum (Chen et al., 2023)."""
    learning_rate: PositiveFloat = 3e-4
    """Peak learning rate; the schedule multiplies it."""
    betas: tuple[OpenUnitInterval, OpenUnitInterval] = (0.9, 0.95)
    """Decay rates of the first and second moment (adamw, and what muon leaves to it), or of the update and the momentum
    (lion)."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    momentum: OpenUnitInterval = 0.95
    """muon: decay rate of the momentum, in Nesterov's form."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of matrices; norms and biases get none."""
    groups: tuple[ParameterGroup, ...] = ()
    """Other weight decays or learning rates for parameters by name."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this global L2 norm. 0 turns clipping off."""


class ScheduleSettings(Section):
    """The learning rate over the steps; it never rises after its end."""

    by: Literal["step", "token"] = "step"
    """What the schedule counts. They differ where train.batch_size_warmup makes early steps shorter: by `token`,
    half-way is where half of the tokens are."""
    name: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt"] = "cosine"
    """`constant`, `linear` or `cosine` decay to the end, `wsd` (warm-up, stable, decay), or `inverse_sqrt`."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate rises linearly from 0."""
    warmup_tokens: NonNegativeInt | None = None
    """The same in tokens, where the schedule goes by token."""
    decay_steps: PositiveInt | None = None
    """wsd: the last steps, over which the rate falls. Default: a fifth of all steps."""
    decay_tokens: PositiveInt | None = None
    """The same in tokens, where the schedule goes by token. Default: a fifth of all tokens."""
    min_lr_ratio: UnitInterval = 0.1
    """The rate at the end, as a share of the peak (linear, cosine, wsd)."""

    @property
    def warmup(self) -> int:
        """The length of the warm-up, in what the schedule counts."""
        return (self.warmup_tokens or 0) if self.by == "token" else self.warmup_steps

    @property
    def decay(self) -> int | None:
        """The length of wsd's decay, in what the schedule counts; None for the default."""
        return self.decay_tokens if self.by == "token" else self.decay_steps

    @model_validator(mode="after")
    def _one_unit(self) -> ScheduleSettings:
        other = "steps" if self.by == "token" else "tokens"
        for part in ("warmup", "decay"):
            if getattr(self, f"{part}_{other}"):
                raise ValueError(
                    f"{part}_{other} {getattr(self, f'{part}_{other}')} with by {self.by}; write {part}_{self.by}s or "
                    f"change by"
                )
        if self.name == "inverse_sqrt" and self.by == "token" and not self.warmup_tokens:
            raise ValueError(
                "name inverse_sqrt falls as the root of warmup_tokens, which is missing; set it, or write by: step"
            )
        if self.decay is not None and self.name != "wsd":
            raise ValueError(
                f"decay_{self.by}s {self.decay} is for name wsd, found name {self.name}; remove it or write name: wsd"
            )
        return self


class CheckpointSettings(Section):
    """When to save, where to, and what to keep. A checkpoint is always saved at the end and when the run is stopped."""

    every_steps: PositiveInt | None = None
    """Save after every so many steps."""
    every_minutes: PositiveFloat | Literal["auto"] | None = None
    """Save when this much time has passed since the last save. `auto`: as often as loses least, from the cost of a save
    and the observed rate of failures (Young, 1974; Daly, 2006)."""
    keep: PositiveInt | None = None
    """Keep this many of the newest verified checkpoints. Default: all of them."""
    keep_every_steps: PositiveInt | None = None
    """Keep those of every so many steps for ever, beside the newest."""
    asynchronous: bool = True
    """Train on while a checkpoint is written: a save costs the training a copy of its state. false: wait."""
    dir: str | None = None
    """Where checkpoints go: a folder, or a URL for fsspec such as s3://bucket/name. Default: RUN/checkpoints."""
    local_dir: UserPath | None = None
    """A folder on a disk of each node, for a first copy of every checkpoint: a restart on the same nodes reads from
    there. The directory of the run, or `dir`, gets every `durable_every`-th."""
    durable_every: PositiveInt = 1
    """With local_dir: which of the saves also go to the durable place. The last one of a run always does."""
    allow_change: tuple[str, ...] = ()
    """Keys that change the mathematics and may differ from the checkpoint all the same, for example train.steps to
    train longer; recorded in events.jsonl."""


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
    patience_seconds: PositiveFloat = 30.0
    """How long W&B may take to answer at the start, beside the training, and to take the rest at the end. Then the run
    is tracked offline, or left as it is: `wandb sync` sends what is in RUN/wandb."""


class EvaluateSettings(Section):
    """Validation along the way."""

    every_steps: PositiveInt | None = None
    """Compute the validation loss after every so many steps; always at the end too."""
    max_sequences: PositiveInt | None = 256
    """At most this many sequences of each source, always the same ones. Default: 256; null: all."""
    micro_batch_size: PositiveInt | None = None
    """Sequences in one forward pass. Default: train.micro_batch_size."""
    samples: NonNegativeInt = 0
    """So many beginnings of held-out documents are continued at each evaluation, always the same ones, for the report
    and W&B. It costs a pass through the model for each token of `sample_tokens`."""
    sample_tokens: PositiveInt = 64
    """How many tokens a sample gets."""


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
    guard: GuardSettings = GuardSettings()
    """Looking out for trouble."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole schedule."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.tokens is not None
        return self.train.batches.step_of(-(-self.train.tokens // self.data.sequence_length) - 1)

    @property
    def schedule_length(self) -> int:
        """How long the schedule is, in what it counts: steps, or tokens."""
        return self.schedule_position(self.total_steps)

    def schedule_position(self, step: int) -> int:
        """Where the schedule stands at the end of a step, in what it counts: steps, or tokens."""
        if self.schedule.by == "step":
            return step
        return self.train.batches.consumed_after(step) * self.data.sequence_length

    @property
    def validation_batch_size(self) -> int:
        """Sequences in one forward pass of an evaluation, with the default filled in."""
        return self.evaluate.micro_batch_size or self.train.micro_batch_size

    @model_validator(mode="after")
    def _no_passwords(self) -> Settings:
        for key in passwords_in(self.model_dump(mode="json")):
            raise ValueError(
                f"{key} holds a password, and settings are written to RUN/config.yaml and shown at W&B; give it to "
                "fsspec in the environment or in ~/.config/fsspec, or to the server in ~/.netrc"
            )
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Settings:
        if self.data.sequence_length > self.model.max_position_embeddings:
            raise ValueError(
                f"data.sequence_length {self.data.sequence_length} is longer than model.max_position_embeddings "
                f"{self.model.max_position_embeddings}"
            )
        if (uneven := uneven_batch(self.train.batches, self.train.micro_batch_size)) is not None:
            key, size = uneven
            raise ValueError(f"{key} {size} is not a multiple of train.micro_batch_size {self.train.micro_batch_size}")
        if self.data.tokenizer.path is None and self.data.tokenizer.vocab_size > self.model.vocab_size:
            raise ValueError(
                f"data.tokenizer.vocab_size {self.data.tokenizer.vocab_size} is larger than model.vocab_size "
                f"{self.model.vocab_size}: the embedding would have no row for the last tokens; "
                f"set data.tokenizer.vocab_size to {self.model.vocab_size} or less"
            )
        return self

    @model_validator(mode="after")
    def _work_divides_over_the_ranks(self) -> Settings:
        model, engine = self.model, self.engine
        tensor, sequence = engine.tensor_parallel_size, engine.sequence_parallel_size
        if (problem := uneven_share(model, self.data.sequence_length, tensor, sequence)) is not None:
            raise ValueError(problem)
        if tensor > 1:
            for key, found, works in (
                ("qk_norm", model.qk_norm, "none"),
                ("position_embedding", model.position_embedding, "rope, learned, sinusoidal or none"),
                ("num_experts", model.num_experts, "0"),
                ("num_nextn_predict_layers", model.num_nextn_predict_layers, "0"),
            ):
                if str(found) not in works:
                    raise ValueError(
                        f"engine.tensor_parallel_size {tensor} works with model.{key} {works}, found {found}; use ZeRO "
                        "or sequence parallelism"
                    )
        if sequence > 1 and model.num_nextn_predict_layers:
            raise ValueError(
                f"engine.sequence_parallel_size {sequence} works with model.num_nextn_predict_layers 0, found "
                f"{model.num_nextn_predict_layers}: a rank does not have the tokens behind its part of a sequence"
            )
        if self.optimizer.name == "muon" and model.mup_base_hidden_size is not None:
            raise ValueError(
                "model.mup_base_hidden_size scales learning rates as Adam needs it, found optimizer.name muon, whose "
                "updates do not depend on width; use one of them"
            )
        if self.optimizer.name == "muon" and tensor > 1:
            raise ValueError(
                "optimizer.name muon needs whole matrices, and engine.tensor_parallel_size cuts them; use ZeRO alone"
            )
        if self.optimizer.name == "muon" and engine.offload_optimizer != "none":
            raise ValueError(
                "optimizer.name muon orthogonalises matrices on the device; set engine.offload_optimizer to none"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits_the_run(self) -> Settings:
        steps, unit = self.total_steps, self.schedule.by
        whole = f"train.steps {steps}" if self.train.steps else f"the {steps} steps of train.tokens {self.train.tokens}"
        warmup, decay = self.schedule.warmup, self.schedule.decay
        total = self.schedule_length
        if warmup + (decay or 0) > total:
            plus_decay = f" + schedule.decay_{unit}s {decay}" if decay else ""
            length = whole if unit == "step" else f"the {total} tokens of {whole}"
            raise ValueError(f"schedule.warmup_{unit}s {warmup}{plus_decay} is more than {length}")
        if self.train.stop_after is not None and self.train.stop_after > steps:
            raise ValueError(f"train.stop_after {self.train.stop_after} is more than {whole}")
        return self

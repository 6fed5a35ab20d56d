"""The typed tree of settings: every key of a YAML file, its type, its default and its meaning.

The docstring under each field is its only description: `bigtrain config explain`, the JSON schema and
docs/reference/config.md are made from it. Names are Hugging Face's or DeepSpeed's where they have one. A rule of one
section is in the class of that section; rules that span sections are in `Settings`.
"""

from __future__ import annotations

from math import gcd
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from bigtrain.config.adapter_settings import AdapterSettings
from bigtrain.config.batch_schedule import BatchSchedule
from bigtrain.config.compression_settings import CompressionSettings
from bigtrain.config.data_settings import DataSettings
from bigtrain.config.distillation_settings import DistillationSettings
from bigtrain.config.engine_settings import EngineSettings
from bigtrain.config.guard_settings import GuardSettings
from bigtrain.config.model_settings import DROPOUT_RATES, ModelSettings
from bigtrain.config.objective_settings import (
    ARCHITECTURES_OF,
    HEAD_OF,
    HOW_TO_LABEL,
    LABELS_OF,
    METRICS_OF,
    THE_SAME_IN_EVERY_EPOCH,
    WHAT_LABELS_ARE,
    ObjectiveSettings,
)
from bigtrain.config.parallel_sizes import uneven_batch, uneven_share
from bigtrain.config.secrets import is_masked, passwords_in, with_bare_urls
from bigtrain.config.section import (
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PathOrUrl,
    PositiveInt,
    Section,
    UnitInterval,
    UserPath,
)
from bigtrain.config.training_stage import TrainingStage, first_step_of, staged_batches, training_stages

MOST_TOKENS = 2**62
"""Of a schedule, so that numbers of samples and tokens fit 64 bits."""


class BatchSizeStage(Section):
    """One stage of the batch-size warm-up."""

    steps: PositiveInt
    """Length of the stage, in optimizer steps."""
    global_batch_size: PositiveInt
    """Samples in each of its steps, over all ranks."""


class TrainSettings(Section):
    """The length of the run and the sizes of its batches."""

    steps: PositiveInt | None = None
    """Optimizer steps of the whole schedule. Give this or tokens."""
    tokens: PositiveInt | None = None
    """Training tokens of the whole schedule, rounded up to a whole step. Give this or steps."""
    global_batch_size: PositiveInt
    """Samples in one optimizer step, over all ranks."""
    batch_size_warmup: tuple[BatchSizeStage, ...] = ()
    """Stages at the start with other, mostly smaller, batches. After them, global_batch_size holds."""
    micro_batch_size: PositiveInt = 1
    """Samples in one forward pass on one rank. The number of gradient accumulation steps follows from this."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Seed of the initial weights and of the order of the data."""
    stop_after: PositiveInt | None = None
    """Commit a checkpoint and exit with status 75 after this step. The schedule still ends at `steps`."""

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
    """Hyper-parameters of their own for some parameters."""

    match: str
    """A pattern for the whole name of a parameter, such as `embed_tokens.*` or `*.mlp.*.weight`. The first group that
    matches applies."""
    weight_decay: NonNegativeFloat | None = None
    """Weight decay of these parameters. Default: as without the group."""
    lr_scale: NonNegativeFloat = 1.0
    """Learning rate of these parameters as a multiple of optimizer.learning_rate. 0 freezes them: their gradients
    are not in the gradient's norm either."""


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
    """Decoupled weight decay of matrices. Norms and biases have none."""
    groups: tuple[ParameterGroup, ...] = ()
    """Weight decays or learning rates for parameters by name."""
    layer_lr_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Fine-tuning: the learning rate is multiplied by this once for each block from a parameter to the head. So layer l
    of L, counted from 0, has the rate times this to the power of L - l, and embeddings have the lowest one (Howard and
    Ruder, 2018; the exponents are those of BEiT's code, Bao et al., 2022). 1.0: one rate for all."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this global L2 norm. 0 turns clipping off."""


class ScheduleSettings(Section):
    """The learning rate over the steps. After the end of the schedule it stays constant."""

    by: Literal["step", "token"] = "step"
    """The unit of the schedule. The two differ where train.batch_size_warmup makes early steps smaller: by `token`,
    half of the schedule is half of the tokens."""
    name: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt"] = "cosine"
    """`constant`, `linear` or `cosine` decay to the end, `wsd` (warm-up, stable, decay), or `inverse_sqrt`."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate rises linearly from 0."""
    warmup_tokens: NonNegativeInt | None = None
    """The same in tokens, for `by: token`."""
    decay_steps: PositiveInt | None = None
    """wsd: number of last steps over which the rate falls. Default: a fifth of all steps."""
    decay_tokens: PositiveInt | None = None
    """The same in tokens, for `by: token`. Default: a fifth of all tokens."""
    min_lr_ratio: UnitInterval = 0.1
    """The rate at the end, as a share of the peak (linear, cosine, wsd)."""

    @property
    def warmup(self) -> int:
        """The length of the warm-up, in the unit of the schedule."""
        return (self.warmup_tokens or 0) if self.by == "token" else self.warmup_steps

    @property
    def decay(self) -> int | None:
        """The length of wsd's decay, in the unit of the schedule; None for the default."""
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
    """When to save, where, and what to keep. A checkpoint is always saved at the end and when the run is stopped."""

    every_steps: PositiveInt | None = None
    """Save after every this many steps."""
    every_minutes: PositiveFloat | Literal["auto"] | None = None
    """Save when this much time has passed since the last save. `auto`: the interval that loses the least time, from the
    cost of a save and the observed rate of failures (Young, 1974; Daly, 2006)."""
    keep: PositiveInt | None = None
    """Keep this many of the newest verified checkpoints. Default: all of them."""
    keep_every_steps: PositiveInt | None = None
    """Also keep the checkpoints at multiples of this many steps, for ever."""
    keep_best: bool = False
    """Save after each evaluation that is better than all before it, and keep the newest of these beside the others."""
    asynchronous: bool = True
    """Continue training while a checkpoint is written: a save then costs only a copy of the state. false: wait."""
    dir: PathOrUrl | None = None
    """Where checkpoints go: a folder, or a URL for fsspec such as s3://bucket/name. Default: RUN/checkpoints."""
    local_dir: UserPath | None = None
    """A folder on a disk of each node for a first copy of every checkpoint. A restart on the same nodes reads from it.
    RUN/checkpoints, or `dir`, gets every `durable_every`-th save."""
    durable_every: PositiveInt = 1
    """With local_dir: every this many saves, one also goes to the durable folder. The last one of a run always does."""
    allow_change: tuple[str, ...] = ()
    """Keys that change the mathematics but may differ from the checkpoint, for example train.steps to train longer. The
    change is recorded in events.jsonl."""


class TrackingSettings(Section):
    """Weights & Biases."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: as WANDB_MODE, `wandb offline` or `wandb disabled` say. Without them it is online where WANDB_API_KEY or
    a login is found, else offline."""
    project: str | None = None
    """The W&B project. Default: WANDB_PROJECT, the one of `wandb init`, or bigtrain."""
    entity: str | None = None
    """The W&B team or user. Default: WANDB_ENTITY, or the one of the key."""
    name: str | None = None
    """The name of the run at W&B. Default: WANDB_NAME, or the name of the run directory."""
    log_every_steps: PositiveInt = 10
    """How often a progress line is printed. metrics.jsonl and W&B get every step."""
    patience_seconds: PositiveFloat = 30.0
    """Seconds that W&B may take to answer at the start, while the run trains, and to receive the rest at the end. After
    that the run is tracked offline; `wandb sync` sends what is in RUN/wandb."""


class EvaluateSettings(Section):
    """Validation during the run."""

    every_steps: PositiveInt | None = None
    """Compute the validation loss after every this many steps, and at the end."""
    max_sequences: PositiveInt | None = 256
    """At most this many sequences of each source, always the same ones. Default: 256; null: all."""
    metric: str = "loss"
    """What decides which evaluation is the best: `loss`, of which less is better, or one of the metrics of the
    objective, such as accuracy or f1. Over several sources it is a mean, by their numbers of labels."""
    micro_batch_size: PositiveInt | None = None
    """Sequences in one forward pass. Default: train.micro_batch_size."""
    patience: PositiveInt | None = None
    """End the run after so many evaluations in a row that were not better than the best one. Default: never."""
    samples: NonNegativeInt = 0
    """Number of held-out documents whose first tokens the model continues at each evaluation, for the report and W&B.
    The documents are always the same. Each of `sample_tokens` costs a pass through the model."""
    sample_tokens: PositiveInt = 64
    """Tokens that the model adds in each sample."""


class Settings(Section):
    """Everything about one run."""

    run_dir: UserPath
    """The run directory: settings, metrics, events, logs and checkpoints."""
    model: ModelSettings
    """The model."""
    adapter: AdapterSettings = AdapterSettings()
    """What learns in the place of the model's own parameters."""
    compression: CompressionSettings = CompressionSettings()
    """Training with weights that are pruned or rounded."""
    objective: ObjectiveSettings = ObjectiveSettings()
    """What is learned from a sample."""
    distillation: DistillationSettings = DistillationSettings()
    """Learning from another model beside the labels."""
    data: DataSettings
    """The data."""
    train: TrainSettings
    """Length and batch size."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """The optimizer."""
    schedule: ScheduleSettings = ScheduleSettings()
    """The learning rate."""
    engine: EngineSettings = EngineSettings()
    """Parallelism, precision and memory."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """Checkpoints."""
    tracking: TrackingSettings = TrackingSettings()
    """Logging."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Validation."""
    guard: GuardSettings = GuardSettings()
    """Detection of anomalies."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole schedule."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.tokens is not None
        return self.train.batches.step_of(-(-self.train.tokens // self.data.sequence_length) - 1)

    @property
    def schedule_length(self) -> int:
        """Length of the schedule in its unit: steps or tokens."""
        return self.schedule_position(self.total_steps)

    def schedule_position(self, step: int) -> int:
        """Position of the schedule at the end of a step, in its unit: steps or tokens."""
        if self.schedule.by == "step":
            return step
        return self.train.batches.consumed_after(step) * self.data.sequence_length

    @property
    def batches(self) -> BatchSchedule:
        """How many samples each step takes, in the lengths that they have."""
        return staged_batches(self.data, self.train.batches)

    @property
    def stages(self) -> tuple[TrainingStage, ...]:
        """The stages of the run: steps with one length of samples and one rotation of the model."""
        return training_stages(self.data, self.model, self.train.batches)

    def at_step(self, step: int) -> Settings:
        """The settings of a run that is, from the first to the last step, as this one is at a step: the length of the
        samples, their number in a batch and a micro-batch, and the rotation of the model are those of its stage. A
        whole step holds the same tokens as in this run.

        Args:
            step: from 1; 0 counts as 1.
        """
        if all(not phase.starts_stage for phase in self.data.phases):
            return self
        stage = next(stage for stage in reversed(self.stages) if stage.first_step <= max(1, step))
        batch, train = self.batches.stage_of(max(1, step)), self.train
        kept = [phase for phase in self.data.phases if phase.weights]
        alike = {"sequence_length": None, "rope_theta": None, "rope_scaling": None, "new_epoch": False}
        sizes = {
            "global_batch_size": int(train.global_batch_size / batch.length),
            "micro_batch_size": batch.micro_batch_size(train.micro_batch_size),
            "batch_size_warmup": tuple(
                warmup.model_copy(update={"global_batch_size": int(warmup.global_batch_size / batch.length)})
                for warmup in train.batch_size_warmup
            ),
        }
        phases = tuple(phase.model_copy(update=alike) for phase in kept)
        data = self.data.model_copy(update={"sequence_length": stage.sequence_length, "phases": phases})
        return self.model_copy(update={"model": stage.model, "data": data, "train": train.model_copy(update=sizes)})

    @property
    def drops(self) -> bool:
        """Whether training has dropout, in the model or in an adapter."""
        return self.model.drops or self.adapter.lora_dropout > 0

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
        place = self.checkpoint.dir
        if place is not None and not is_masked(place) and with_bare_urls(place) != place:
            raise ValueError(
                "checkpoint.dir holds a secret, which RUN/config.yaml does not keep, so its checkpoints could not be "
                "found again; give it to fsspec in the environment or in ~/.config/fsspec"
            )
        return self

    @model_validator(mode="after")
    def _tokens_can_be_counted(self) -> Settings:
        tokens = self.train.batches.consumed_after(self.total_steps) * self.data.sequence_length
        if tokens >= MOST_TOKENS:
            raise ValueError(
                f"train.{'steps' if self.train.tokens is None else 'tokens'} makes a schedule of {tokens:.3g} tokens, "
                f"and there may be at most {MOST_TOKENS:.3g}; lower it, train.global_batch_size or data.sequence_length"
            )
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Settings:
        for cut in self.data.cuts:
            if cut.sequence_length > self.model.max_position_embeddings:
                key = "data" if cut.phase is None else f"data.phases.{cut.phase}"
                raise ValueError(
                    f"{key}.sequence_length {cut.sequence_length} is longer than model.max_position_embeddings "
                    f"{self.model.max_position_embeddings}"
                )
        if self.evaluate.samples and not self.model.writes_text:
            raise ValueError(
                f"evaluate.samples {self.evaluate.samples} is for model.architecture decoder, recurrent or "
                "encoder_decoder: others write no text here; remove it"
            )
        if self.model.architecture not in (served := self.objective.architectures):
            able = [name for name, served in ARCHITECTURES_OF.items() if self.model.architecture in served]
            fitting = [name for name in able if name not in HEAD_OF]
            raise ValueError(
                f"objective.name {self.objective.name} needs model.architecture {' or '.join(served)}, found "
                f"model.architecture {self.model.architecture}; it learns by {' or '.join(fitting)}"
            )
        if (problem := self._sentence_problem() or self._label_problem()) is not None:
            raise ValueError(problem)
        if (problem := self._stage_problem()) is not None:
            raise ValueError(problem)
        if (uneven := uneven_batch(self.batches, self.train.micro_batch_size)) is not None:
            key, size = uneven
            what = f"{key} {size}" if key.endswith("batch_size") else f"{key} makes global batches of {size}, which"
            raise ValueError(f"{what} is not a multiple of train.micro_batch_size {self.train.micro_batch_size}")
        if self.data.tokenizer.path is None and self.data.tokenizer.vocab_size > self.model.vocab_size:
            raise ValueError(
                f"data.tokenizer.vocab_size {self.data.tokenizer.vocab_size} is larger than model.vocab_size "
                f"{self.model.vocab_size}: the embedding would have no row for the last tokens; "
                f"set data.tokenizer.vocab_size to {self.model.vocab_size} or less"
            )
        return self

    def _stage_problem(self) -> str | None:
        """What keeps a phase from starting a stage of the run."""
        phases = [(f"data.phases.{i}", phase) for i, phase in enumerate(self.data.phases) if phase.starts_stage]
        works = (
            ("objective.name", self.objective.name, "causal"),  # the others make rows of a length of their own
            ("distillation.kept_outputs", self.distillation.kept_outputs, None),  # they belong to rows of one length
            ("adapter.num_virtual_tokens", self.adapter.virtual_tokens, 0),
        )
        before = 1
        for name, phase in phases:
            for key, found, wanted in works:
                if found != wanted:
                    return f"{name} starts another stage, which works with {key} {wanted}, found {found}"
            if phase.rotation and self.model.position_embedding != "rope":
                return (
                    f"{name} changes {' and '.join(phase.rotation)}, found model.position_embedding "
                    f"{self.model.position_embedding}, which rotates nothing; remove it"
                )
            if phase.rope_scaling is not None and self.model.local_rope_theta is not None:
                return f"{name}.rope_scaling works without model.local_rope_theta; remove one of them"
            step = first_step_of(phase, self.data, self.train.batches)
            if step <= before:
                return (
                    f"{name} starts at step {step} of train.global_batch_size {self.train.global_batch_size}, as the "
                    f"stage before it; raise {name}.from_tokens"
                )
            before = step
        for cut in self.data.cuts[1:]:
            own, first = cut.sequence_length, self.data.sequence_length
            for warmup, size in zip(self.train.batches.keys, self.train.batches.sizes, strict=True):
                if size * first % own:
                    return (
                        f"data.phases.{cut.phase}.sequence_length {own}: the {size} x {first} tokens of {warmup} are "
                        f"no whole number of its samples; set {warmup} to a multiple of {own // gcd(own, first)}"
                    )
        return None

    def _label_problem(self) -> str | None:
        """What is wrong with the labels of the sources, or with what is to predict them."""
        name, wanted = self.objective.name, self.objective.labels
        head, found = self.objective.task_head, self.model.task_head
        for source in self.data.sources:
            if source.labels != wanted and wanted is not None:
                labels = "no labels" if source.labels is None else f"labels of the kind {source.labels}"
                return (
                    f"objective.name {name} needs sources with {WHAT_LABELS_ARE[wanted]}, found {source.name!r} with "
                    f"{labels}; {HOW_TO_LABEL[wanted]}"
                )
            if source.labels is not None and wanted is None:
                fitting = next(other for other, labels in LABELS_OF.items() if labels == source.labels)
                return (
                    f"source {source.name!r} has {WHAT_LABELS_ARE[source.labels]}, which objective.name {name} would "
                    f"ignore; take objective.name {fitting}, or another source"
                )
        if wanted is not None and self.data.packing != "best_fit":
            return (
                f"objective.name {name} needs whole documents: set data.packing to best_fit, found {self.data.packing}"
            )
        if head != found:
            return f"objective.name {name} needs model.task_head {head}, found {found}; set model.task_head to {head}"
        weights, classes = len(self.objective.class_weights), self.model.num_labels
        if weights not in (0, classes):
            return f"objective.class_weights has {weights} weights, found model.num_labels {classes}; give one for each"
        return None

    def _sentence_problem(self) -> str | None:
        """What is wrong with objective.sentence_task, its packing and its head."""
        task, packing, head = self.objective.sentence_task, self.data.packing, self.model.sentence_head
        wanted = {"next_sentence": "next_sentence_pairs", "sentence_order": "sentence_pairs"}.get(task)
        if wanted is None and self.data.makes_pairs:
            return (
                f"data.packing {packing} makes pairs, and objective.sentence_task is {task}: set it, or pack otherwise"
            )
        if wanted is not None and packing != wanted:
            return f"objective.sentence_task {task} needs data.packing {wanted}, found {packing}"
        if (wanted is not None) != head:
            return (
                f"objective.sentence_task {task} and model.sentence_head {str(head).lower()} do not fit: "
                f"set model.sentence_head to {str(not head).lower()}"
            )
        if wanted is not None and self.model.type_vocab_size < 2:
            return (
                f"objective.sentence_task {task} marks two kinds of segments, found model.type_vocab_size "
                f"{self.model.type_vocab_size}; set it to 2"
            )
        return None

    @model_validator(mode="after")
    def _adapter_has_a_base(self) -> Settings:
        method, model = self.adapter.method, self.model
        if method == "none":
            return self
        if model.init_from is None:
            raise ValueError(
                f"adapter.method {method} adapts a model that is there, found model.init_from null; set it to a folder "
                "that `bigtrain import` wrote"
            )
        if model.recurrent:
            raise ValueError(
                f"adapter.method {method} adapts blocks with attention, found model.architecture {model.architecture}; "
                "set adapter.method to none"
            )
        for key, found, works, instead in (
            # It replaces the linear layers.
            ("engine.tensor_parallel_size", self.engine.tensor_parallel_size, 1, "use ZeRO or sequence parallelism"),
            # No base has these blocks.
            ("model.num_nextn_predict_layers", model.num_nextn_predict_layers, 0, "remove it"),
            # A router's biases move beside the parameters: no adapter would hold them.
            ("model.router_bias_update_rate", model.router_bias_update_rate, 0.0, "remove it"),
        ):
            if found != works:
                raise ValueError(f"adapter.method {method} works with {key} {works}, found {found}; {instead}")
        if (problem := self._virtual_token_problem()) is not None:
            raise ValueError(problem)
        if self.adapter.lora_dropout and model.architecture not in ("decoder", "encoder"):
            raise ValueError(
                f"adapter.lora_dropout {self.adapter.lora_dropout} works with model.architecture decoder and encoder, "
                f"found {model.architecture}: what it would drop has no address there; remove it"
            )
        return self

    def _virtual_token_problem(self) -> str | None:
        """What keeps virtual tokens from standing in front of every document."""
        count, model = self.adapter.virtual_tokens, self.model
        if not count:
            return None
        length, most = self.data.sequence_length, model.max_position_embeddings
        if length + count > most:
            return (
                f"adapter.num_virtual_tokens {count} and data.sequence_length {length} are more than "
                f"model.max_position_embeddings {most}; lower one of the two"
            )
        if self.objective.orders:
            return (
                f"adapter.method {self.adapter.method} has no place in the order in which tokens see each other, found "
                f"objective.name {self.objective.name}; use another method"
            )
        # Virtual tokens that go through the layers have no address to drop by, and stand in no row of experts.
        of_prompts: tuple[tuple[str, object, tuple[object, ...]], ...] = (
            ("model.num_experts", model.num_experts, (0,)),
            ("model.embedding_multiplier", model.embedding_multiplier, (1.0,)),
            *((f"model.{rate}", getattr(model, rate), (0.0,)) for rate in DROPOUT_RATES),
        )
        for key, found, works in (
            ("model.architecture", model.architecture, ("decoder", "encoder")),
            ("model.position_embedding", model.position_embedding, ("rope", "learned", "sinusoidal", "none")),
            ("engine.sequence_parallel_size", self.engine.sequence_parallel_size, (1,)),
            ("engine.compile", self.engine.compile, (False,)),
            *(of_prompts if self.adapter.method == "prompt_tuning" else ()),
        ):
            if found not in works:
                return (
                    f"adapter.method {self.adapter.method} works with {key} {' or '.join(map(str, works))}, "
                    f"found {found}"
                )
        return None

    @model_validator(mode="after")
    def _compression_fits_the_layers(self) -> Settings:
        if not self.compression.is_on:
            return self
        for key, found, works in (
            ("adapter.method", self.adapter.method, "none"),
            ("model.architecture", self.model.architecture, "decoder, encoder, encoder_decoder or two_stream"),
            ("engine.tensor_parallel_size", self.engine.tensor_parallel_size, "1"),
            ("engine.float8", self.engine.float8, "False"),
            # The share that is pruned changes at each step, and each would be compiled.
            ("engine.compile", self.engine.compile, "False"),
        ):
            if str(found) not in works.replace(",", "").split():
                raise ValueError(f"compression works with {key} {works}, found {found}")
        end = self.compression.pruning_end
        if end is not None and end > self.total_steps:
            raise ValueError(
                f"compression.pruning_end {end} is after the last of {self.total_steps} steps: the run would end less "
                "sparse than compression.sparsity says"
            )
        return self

    @model_validator(mode="after")
    def _metric_is_measured(self) -> Settings:
        metric, name = self.evaluate.metric, self.objective.name
        known = ["loss", *METRICS_OF.get(name, ())]
        if name == "classification" and self.model.num_labels != 2:
            known.remove("f1")
        if metric not in known:
            raise ValueError(
                f"evaluate.metric {metric} is not measured with objective.name {name} and model.num_labels "
                f"{self.model.num_labels}; take one of {', '.join(known)}"
            )
        return self

    @model_validator(mode="after")
    def _teacher_can_be_asked(self) -> Settings:
        if not self.distillation.is_on:
            return self
        if self.model.task_head == "question_answering":
            raise ValueError(
                "distillation works with model.task_head none, sequence_classification and token_classification, found "
                "question_answering, which chooses among tokens, and not among classes"
            )
        if self.distillation.kept_outputs is not None and not self.objective.repeats:
            raise ValueError(
                f"objective.name {self.objective.name} makes other inputs of a sample in every epoch, so what "
                "a teacher says of them cannot be kept; set distillation.teacher instead of kept_outputs, or take one "
                f"of {', '.join(THE_SAME_IN_EVERY_EPOCH)}"
            )
        for key, found, works in (
            ("engine.tensor_parallel_size", self.engine.tensor_parallel_size, (1,)),
            ("engine.sequence_parallel_size", self.engine.sequence_parallel_size, (1,)),
        ):
            if found not in works:
                raise ValueError(f"distillation works with {key} {' or '.join(map(str, works))}, found {found}")
        with_states = ("decoder", "encoder", "encoder_decoder")
        if self.distillation.hidden_weight and self.model.architecture not in with_states:
            raise ValueError(
                f"distillation.hidden_weight works with model.architecture {', '.join(with_states)}, found "
                f"{self.model.architecture}; set it to 0"
            )
        if self.distillation.hidden_weight and self.model.num_hidden_groups is not None:
            raise ValueError(
                f"distillation.hidden_weight {self.distillation.hidden_weight} needs layers with weights of their own, "
                f"found model.num_hidden_groups {self.model.num_hidden_groups}; set hidden_weight to 0"
            )
        return self

    @model_validator(mode="after")
    def _orders_are_kept(self) -> Settings:
        model, backend = self.model, self.engine.attn_implementation
        name = next(iter(sorted(self.objective.orders)), None)
        if name is not None and backend not in ("auto", "flex", "sdpa", "reference"):
            raise ValueError(
                f"objective.name {name} needs attention in an order, which engine.attn_implementation {backend} does "
                "not have; set it to auto, flex, sdpa or reference"
            )
        if model.architecture == "two_stream" and self.engine.float8:
            raise ValueError(
                "model.architecture two_stream works with engine.float8 false: it multiplies as many rows as there are "
                "labels, and 8 bits need a multiple of 16"
            )
        if name == "prefix" and model.position_embedding in ("alibi", "t5"):
            raise ValueError(
                f"objective.name prefix works with model.position_embedding rope, learned, sinusoidal or none, found "
                f"{model.position_embedding}, which knows no distances to the tokens after a token of a prefix"
            )
        if name == "prefix" and model.num_nextn_predict_layers:
            raise ValueError(
                f"objective.name prefix works with model.num_nextn_predict_layers 0, found "
                f"{model.num_nextn_predict_layers}: a prefix would see the tokens that they are to predict"
            )
        return self

    @model_validator(mode="after")
    def _work_divides_over_the_ranks(self) -> Settings:
        model, engine = self.model, self.engine
        tensor, sequence = engine.tensor_parallel_size, engine.sequence_parallel_size
        for length in self.data.sequence_lengths:
            if (problem := uneven_share(model, length, tensor, sequence)) is not None:
                raise ValueError(problem)
        alone = model.reads_pairs or model.recurrent or model.architecture == "two_stream"
        if alone and max(tensor, sequence) > 1:
            raise ValueError(
                f"model.architecture {model.architecture} works with engine.tensor_parallel_size 1 and "
                f"engine.sequence_parallel_size 1, found {tensor} and {sequence}; use ZeRO alone"
            )
        if tensor > 1:
            for key, found, works in (
                ("qk_norm", model.qk_norm, "none"),
                ("position_embedding", model.position_embedding, "rope, learned, sinusoidal or none"),
                ("num_experts", model.num_experts, "0"),
                ("num_nextn_predict_layers", model.num_nextn_predict_layers, "0"),
                # A rank does not know which of all heads and channels it has.
                ("attention_dropout", model.attention_dropout, "0.0"),
                ("activation_dropout", model.activation_dropout, "0.0"),
            ):
                if str(found) not in works:
                    raise ValueError(
                        f"engine.tensor_parallel_size {tensor} works with model.{key} {works}, found {found}; use ZeRO "
                        "or sequence parallelism"
                    )
        if sequence > 1 and model.task_head == "question_answering":
            raise ValueError(
                f"engine.sequence_parallel_size {sequence} works with classes, found model.task_head "
                f"{model.task_head}, which chooses among all tokens of a document; use ZeRO alone"
            )
        if sequence > 1 and model.num_nextn_predict_layers:
            raise ValueError(
                f"engine.sequence_parallel_size {sequence} works with model.num_nextn_predict_layers 0, found "
                f"{model.num_nextn_predict_layers}: a rank does not have the tokens after its part of a sequence"
            )
        idle: tuple[tuple[str, object], ...] = (
            ("float8", False),
            ("attn_implementation", "auto"),
            ("activation_memory_budget", 1.0),
        )
        for name, plain in idle:
            if model.recurrent and getattr(engine, name) != plain:
                raise ValueError(
                    f"model.architecture {model.architecture} works with engine.{name} {plain}, found "
                    f"{getattr(engine, name)}: it has no blocks with attention; remove it"
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

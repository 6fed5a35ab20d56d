"""Which settings change the mathematics of a run, which the order of its data, and which neither.

A checkpoint records the first kind, and a run that would resume it with another value is refused. The second kind
makes the data plan, which may change for samples that the run has not used. The third may change at every start. Every
key is in one of the three lists: a test fails for a key that is in none.
"""

from __future__ import annotations

from typing import Any, Literal

from bigtrain.config.flat import flat
from bigtrain.config.keys import general
from bigtrain.config.settings import Settings

MATHEMATICS = frozenset(
    {
        # the function that is trained, and its losses
        "model",
        "adapter",
        "compression",
        "objective",
        "distillation.weight",
        "distillation.label_weight",
        "distillation.hidden_weight",
        "distillation.layer_map",
        "distillation.kept_classes",
        "distillation.temperature",
        # how long the run is, and its initial weights
        "train.steps",
        "train.tokens",
        "train.seed",
        # what a step does with the gradients
        "optimizer.name",
        "optimizer.learning_rate",
        "optimizer.betas",
        "optimizer.eps",
        "optimizer.momentum",
        "optimizer.weight_decay",
        "optimizer.groups",
        "optimizer.layer_lr_decay",
        "optimizer.max_grad_norm",
        "schedule.by",
        "schedule.name",
        "schedule.warmup_steps",
        "schedule.warmup_tokens",
        "schedule.decay_steps",
        "schedule.decay_tokens",
        "schedule.min_lr_ratio",
        "engine.precision",
        "engine.loss_scale",
        "engine.float8",
        "engine.zero_quantized_weights",
        "engine.zero_quantized_gradients",
        "engine.deepspeed",
    }
)

PLAN = frozenset(
    {
        # what the shards hold: the plan knows their Merkle roots
        "data.tokenizer.vocab_size",
        "data.tokenizer.min_frequency",
        "data.tokenizer.end_of_text",
        "data.tokenizer.begin_of_text",
        "data.tokenizer.additional_special_tokens",
        "data.tokenizer.separator",
        "data.tokenizer.train_bytes",
        "data.sources.N.kind",
        "data.sources.N.members",
        "data.sources.N.text_field",
        "data.sources.N.target_field",
        "data.sources.N.text_pair_field",
        "data.sources.N.label_field",
        "data.sources.N.tokens_field",
        "data.sources.N.tags_field",
        "data.sources.N.spans_field",
        "data.sources.N.label_names",
        "data.sources.N.task",
        "data.sources.N.doc_stride",
        "data.sources.N.max_query_length",
        "data.sources.N.package",
        "data.sources.N.languages",
        "data.sources.N.content",
        "data.sources.N.subset",
        "data.sources.N.split",
        "data.sources.N.clean",
        "data.sources.N.on_null",
        "data.dedup",
        "data.decontaminate",
        "data.poison_documents",
        "data.validation.fraction",
        # the order of the samples
        "data.sources.N.name",
        "data.sources.N.weight",
        "data.sources.N.max_epochs",
        "data.phases",
        "data.skip",
        "data.shuffle_blocks",
        "data.sequence_length",
        "data.packing",
        "train.global_batch_size",
        "train.batch_size_warmup",
    }
)
"""These change the mathematics too, but only through the plan, which is compared itself: a change is allowed where it
moves no sample that the run has used."""

OPERATION = frozenset(
    {
        # where files are: the plan fixes what the files hold, whatever their path
        "run_dir",
        "data.dir",
        "data.remote",
        "data.cache_bytes",
        "data.tokenizer.path",
        "data.tokenizer.chat_template",
        "data.sources.N.path",
        "data.sources.N.held_out_path",
        "data.sources.N.labels_path",
        "data.sources.N.license",
        "data.sources.N.metadata",
        "data.sources.N.streaming",
        "data.sources.N.max_document_bytes",
        # how the same work is divided
        "data.shard_tokens",
        "data.workers",
        "data.document_seconds",
        "train.micro_batch_size",
        "model.expect_parameters",
        "model.init_from",
        "distillation.teacher",
        "distillation.kept_outputs",
        "engine.zero_stage",
        "engine.offload_optimizer",
        "engine.offload_param",
        "engine.tensor_parallel_size",
        "engine.sequence_parallel_size",
        "engine.zero_hpz_partition_size",
        "engine.activation_checkpointing",
        "engine.activation_memory_budget",
        "engine.compile",
        "engine.attn_implementation",
        "engine.dry_run",
        "engine.process_group_timeout_minutes",
        "engine.deepspeed.zero_optimization",
        # when to stop, save, evaluate and log
        "train.stop_after",
        "checkpoint.every_steps",
        "checkpoint.every_minutes",
        "checkpoint.keep",
        "checkpoint.keep_every_steps",
        "checkpoint.keep_best",
        "checkpoint.asynchronous",
        "checkpoint.dir",
        "checkpoint.local_dir",
        "checkpoint.durable_every",
        "checkpoint.allow_change",
        "evaluate.every_steps",
        "evaluate.max_sequences",
        "evaluate.metric",
        "evaluate.micro_batch_size",
        "evaluate.patience",
        "evaluate.samples",
        "evaluate.sample_tokens",
        "tracking.wandb",
        "tracking.project",
        "tracking.entity",
        "tracking.name",
        "tracking.log_every_steps",
        "tracking.patience_seconds",
        # which anomalies to detect; their effect on the mathematics is a skip in the data plan
        "guard.on_nonfinite",
        "guard.on_spike",
        "guard.loss_z",
        "guard.grad_norm_z",
        "guard.window",
        "guard.hang_seconds",
        "guard.hang_slow_seconds",
        "guard.straggler_every_steps",
        "guard.straggler_share",
        "guard.replica_check_every_steps",
        "guard.confirm_steps",
        "guard.skip_before",
        "guard.skip_after",
        "guard.max_rewinds",
    }
)


def mathematics(settings: Settings) -> dict[str, Any]:
    """The settings that change the mathematics other than through the data plan, flat, in JSON types.

    Equal configurations give equal values however they are written: a length in tokens is converted to steps, and
    heads that follow from other keys are filled in.
    """
    values = {key: value for key, value in flat(settings).items() if kind_of(key) == "mathematics"}
    del values["train.tokens"]
    values["train.steps"] = settings.total_steps
    values["model.num_key_value_heads"] = settings.model.key_value_heads
    values["model.head_dim"] = settings.model.head_width
    return values


def kind_of(key: str) -> Literal["mathematics", "plan", "operation"]:
    """Which of the three kinds a key is. A section in a list stands for all keys in it; the innermost one decides.

    Raises:
        KeyError: the key is in no list.
    """
    path = general(key)
    while path:
        if path in MATHEMATICS:
            return "mathematics"
        if path in PLAN:
            return "plan"
        if path in OPERATION:
            return "operation"
        path = path.rpartition(".")[0]
    raise KeyError(key)

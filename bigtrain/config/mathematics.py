"""Which settings change the mathematics of a run, and which only how fast or where it happens.

A checkpoint records the first kind; a run that would resume it with another value is refused. The second kind may
change at every start. Every key is in one of the two lists, and a test fails when a new one is in neither.
"""

from __future__ import annotations

from typing import Any

from bigtrain.config.flat import flat
from bigtrain.config.keys import general
from bigtrain.config.settings import Settings

MATHEMATICS = frozenset(
    {
        # the function that is trained
        "model.family",
        "model.hidden_size",
        "model.num_hidden_layers",
        "model.num_attention_heads",
        "model.num_key_value_heads",
        "model.head_dim",
        "model.intermediate_size",
        "model.vocab_size",
        "model.max_position_embeddings",
        "model.rope_theta",
        "model.norm_eps",
        "model.tie_word_embeddings",
        "model.initializer_range",
        # which tokens, in which order
        "data.tokenizer.vocab_size",
        "data.tokenizer.min_frequency",
        "data.tokenizer.end_of_text",
        "data.tokenizer.train_bytes",
        "data.sources.N.name",
        "data.sources.N.kind",
        "data.sources.N.text_field",
        "data.sources.N.content",
        "data.sources.N.subset",
        "data.sources.N.split",
        "data.sources.N.weight",
        "data.sources.N.clean",
        "data.dedup",
        "data.sequence_length",
        "data.packing",
        "data.validation.fraction",
        "train.steps",
        "train.tokens",
        "train.global_batch_size",
        "train.seed",
        # what a step does with them
        "optimizer.name",
        "optimizer.learning_rate",
        "optimizer.betas",
        "optimizer.eps",
        "optimizer.weight_decay",
        "optimizer.max_grad_norm",
        "schedule.name",
        "schedule.warmup_steps",
        "schedule.decay_steps",
        "schedule.min_lr_ratio",
        "engine.precision",
        "engine.deepspeed",
        "engine.deepspeed.zero_optimization.zero_quantized_weights",
        "engine.deepspeed.zero_optimization.zero_quantized_gradients",
    }
)

OPERATION = frozenset(
    {
        # where things lie: what the files hold is pinned by the plan's id, not by their path
        "run_dir",
        "data.dir",
        "data.remote",
        "data.cache_bytes",
        "data.tokenizer.path",
        "data.sources.N.path",
        "data.sources.N.license",
        # how the same work is cut and spread
        "data.shard_tokens",
        "data.workers",
        "train.micro_batch_size",
        "engine.zero_stage",
        "engine.activation_checkpointing",
        "engine.compile",
        "engine.attn_implementation",
        "engine.process_group_timeout_minutes",
        "engine.deepspeed.zero_optimization",
        # when to stop, save, look and tell
        "train.stop_after",
        "checkpoint.every_steps",
        "checkpoint.every_minutes",
        "checkpoint.keep",
        "evaluate.every_steps",
        "evaluate.max_sequences",
        "evaluate.micro_batch_size",
        "tracking.wandb",
        "tracking.project",
        "tracking.entity",
        "tracking.name",
        "tracking.log_every_steps",
    }
)


ADDED_LATER = {"data.sources.N.clean": [], "data.dedup": "none"}
"""Keys that the first checkpoints do not name, with the value that those were trained with."""


def mathematics(settings: Settings) -> dict[str, Any]:
    """The settings that change the mathematics, flat, in JSON types.

    Two ways to say the same thing give the same answer: a length in tokens is given in steps, and the heads that
    follow from other keys are filled in.
    """
    values = {
        key: value
        for key, value in flat(settings).items()
        if changes_mathematics(key) and value != ADDED_LATER.get(general(key), ...)
    }
    del values["train.tokens"]
    values["train.steps"] = settings.total_steps
    values["model.num_key_value_heads"] = settings.model.key_value_heads
    values["model.head_dim"] = settings.model.head_width
    return values


def changes_mathematics(key: str) -> bool:
    """Whether a leaf changes the mathematics; the innermost listed key decides, where that is a section for all in it.

    Raises:
        KeyError: the key is in neither list.
    """
    path = general(key)
    while path:
        if path in MATHEMATICS:
            return True
        if path in OPERATION:
            return False
        path = path.rpartition(".")[0]
    raise KeyError(key)

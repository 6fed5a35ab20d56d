"""What `train_gpu.py` measures: models, amounts of work, and the cases made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bigtrain.config import ModelSettings, Settings

Contestant = Literal["bigtrain", "plain", "trainer"]

WARMUP_STEPS = 4
"""Compilation, and again once the lengths of documents have varied."""


@dataclass(frozen=True)
class Work:
    """What one optimizer step has to do, and how many are timed."""

    rows: int
    length: int
    steps: int


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    model: Literal["160M", "1B", "1B 32k", "3B"]
    contestant: Contestant = "bigtrain"
    compile: bool = True
    float8: bool = False
    attn_implementation: Literal["auto", "sdpa", "flex"] = "auto"
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    whole_rows: bool = False
    """Each row is one document: the very work of peers, which know no documents."""


# The most telling first: what the minutes do not suffice for is left out at the end.
CASES = {
    "1B": Case("1B", activation_checkpointing="selective"),
    "1B float8": Case("1B", activation_checkpointing="selective", float8=True),
    "1B whole rows": Case("1B", activation_checkpointing="selective", whole_rows=True),
    "1B plain": Case("1B", contestant="plain", whole_rows=True),
    "3B": Case("3B", activation_checkpointing="full"),
    "160M": Case("160M"),
    "160M whole rows": Case("160M", whole_rows=True),
    "160M plain": Case("160M", contestant="plain", whole_rows=True),
    "160M trainer": Case("160M", contestant="trainer", whole_rows=True),
    "1B 32k": Case("1B 32k", activation_checkpointing="full"),
    "3B float8": Case("3B", activation_checkpointing="full", float8=True),
    "1B trainer": Case("1B", contestant="trainer", whole_rows=True),
    "160M sdpa": Case("160M", attn_implementation="sdpa"),
    "160M flex": Case("160M", attn_implementation="flex"),
    "160M not compiled": Case("160M", compile=False),
    "1B nothing recomputed": Case("1B"),
}

WORK = {
    "160M": Work(rows=32, length=4096, steps=16),
    "1B": Work(rows=16, length=4096, steps=8),
    "1B 32k": Work(rows=2, length=32768, steps=6),
    "3B": Work(rows=8, length=4096, steps=6),
}
TINY_WORK = Work(rows=4, length=128, steps=3)


def work_of(model: str, tiny: bool) -> Work:
    """What a step of this model has to do."""
    return TINY_WORK if tiny else WORK[model]


def model_settings(name: str, tiny: bool) -> ModelSettings:
    """160M: the shape of JackFram/llama-160m, 162,417,408 parameters. 1B: that of configs/llama-1b.yaml. 3B: Llama 3.2
    3B, 3,212,749,824 parameters."""
    from bigtrain.config import ModelSettings, load_settings

    if tiny:
        return ModelSettings(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=128,
            vocab_size=512,
            max_position_embeddings=128,
        )
    if name == "160M":
        return ModelSettings(
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
            vocab_size=32000,
            max_position_embeddings=4096,
        )
    one = load_settings(Path(__file__).parents[1] / "configs" / "llama-1b.yaml").model
    changes = {
        "1B": {},
        "1B 32k": {"max_position_embeddings": 32768},
        "3B": {
            "hidden_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 8192,
        },
    }[name]
    return ModelSettings.model_validate({**one.model_dump(), "expect_parameters": None, **changes})


def settings_for(case: Case, model: ModelSettings, work: Work, micro_batch_size: int, compiled: bool) -> Settings:
    """The settings of a run that does this work. Its folders are never touched."""
    from bigtrain.config import Settings
    from bigtrain.config.data_settings import DataSettings, TokenizerSettings
    from bigtrain.config.engine_settings import EngineSettings
    from bigtrain.config.settings import TrainSettings
    from bigtrain.config.source_settings import SourceSettings

    return Settings(
        run_dir=Path("unused"),
        model=model,
        data=DataSettings(
            dir=Path("unused"),
            tokenizer=TokenizerSettings(vocab_size=model.vocab_size),
            sources=[SourceSettings(name="random", kind="python_stdlib")],
            sequence_length=work.length,
        ),
        train=TrainSettings(
            steps=WARMUP_STEPS + work.steps, global_batch_size=work.rows, micro_batch_size=micro_batch_size
        ),
        engine=EngineSettings(
            zero_stage=1,
            precision="bf16",
            compile=compiled,
            float8=case.float8,
            attn_implementation=case.attn_implementation,
            activation_checkpointing=case.activation_checkpointing,
        ),
    )

"""Combinations of settings that cannot work are refused when they are read, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.config import load_settings
from tests.train import parity

REFUSED = {
    "engine.zero_stage=0 engine.precision=bf16": "no float32 gradient accumulation",
    "engine.zero_stage=0 engine.precision=fp16": "no float32 gradient accumulation",
    "engine.zero_stage=0 engine.precision=fp32 engine.offload_optimizer=cpu": "zero_stage 0 partitions nothing",
    "engine.zero_stage=2 engine.offload_param=cpu": "only zero_stage 3 has, found 2",
    "engine.zero_stage=2 engine.zero_hpz_partition_size=2": "only zero_stage 3 has, found 2",
    "engine.zero_stage=1 engine.zero_quantized_weights=true": "only zero_stage 3 has, found 1",
    "engine.zero_stage=2 engine.zero_quantized_gradients=true": "only zero_stage 3 has, found 2",
    "engine.loss_scale=128": "for precision fp16, found bf16",
    "engine.float8=true engine.precision=fp32": "they need precision bf16, found fp32",
    "engine.tensor_parallel_size=2 engine.zero_stage=3": "stage 3 already cuts every matrix",
    "engine.tensor_parallel_size=2 engine.zero_stage=0 engine.precision=fp32": "gradient norm",
    "engine.tensor_parallel_size=2 engine.sequence_parallel_size=2": "cannot be used together",
    "engine.tensor_parallel_size=2 engine.activation_checkpointing=selective": "gradients would be wrong",
    "engine.tensor_parallel_size=2 engine.float8=true": "replaces the layers that float8 would",
    "engine.tensor_parallel_size=2 engine.offload_optimizer=cpu": "not tested together",
    "engine.tensor_parallel_size=3": "model.num_attention_heads 4 is not a multiple of engine.tensor_parallel_size 3",
    "engine.tensor_parallel_size=4 model.num_key_value_heads=2": "model.num_key_value_heads 2 is not a multiple",
    "engine.tensor_parallel_size=4 model.intermediate_size=130": "model.intermediate_size 130 is not a multiple",
    "engine.sequence_parallel_size=3": "4 is not a multiple of engine.sequence_parallel_size 3",
    "engine.sequence_parallel_size=4 data.sequence_length=126": "data.sequence_length 126 is not a multiple",
    "engine.tensor_parallel_size=2 optimizer.name=muon": "muon needs whole matrices",
    "engine.offload_optimizer=cpu optimizer.name=muon": "muon orthogonalises matrices on the device",
    "adapter.method=lora": "adapts a model that is there",
    "adapter.r=4": "r 4 is for method lora or dora, found method none",
    "adapter.method=lora model.init_from=base adapter.bottleneck_size=8": "is for method bottleneck, found method lora",
    "adapter.method=lora model.init_from=base engine.tensor_parallel_size=2": "engine.tensor_parallel_size 1, found 2",
    "adapter.method=lora model.init_from=base model.num_nextn_predict_layers=1": "num_nextn_predict_layers 0, found 1",
    "adapter.method=prefix_tuning model.init_from=base": "are more than model.max_position_embeddings 128",
    "adapter.method=prompt_tuning model.init_from=base data.sequence_length=64 engine.compile=true": "compile False",
    "adapter.method=prompt_tuning model.init_from=base data.sequence_length=9 model.hidden_dropout=0.1": "found 0.1",
    "adapter.method=prefix_tuning model.init_from=base adapter.r=4": "r 4 is for method lora or dora",
    "schedule.by=token schedule.warmup_steps=5": "warmup_steps 5 with by token; write warmup_tokens",
    "schedule.by=token schedule.name=inverse_sqrt": "warmup_tokens, which is missing",
    "schedule.warmup_tokens=5": "warmup_tokens 5 with by step; write warmup_steps",
    "schedule.by=token schedule.warmup_tokens=20000": "more than the 10240 tokens of train.steps 10",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_cannot_work_is_refused_with_the_reason(refusal: Callable[..., str], good: str, overrides: str) -> None:
    message = refusal(good, *overrides.split())
    assert REFUSED[overrides] in message
    assert "  fix:    change " in message  # and names the keys


@pytest.mark.parametrize(
    "overrides",
    [
        "engine.zero_stage=3 engine.offload_param=cpu engine.offload_optimizer=cpu",
        "engine.zero_stage=3 engine.zero_hpz_partition_size=2",
        "engine.tensor_parallel_size=4",
        "engine.sequence_parallel_size=4 engine.zero_stage=3",
        "engine.precision=fp16 engine.loss_scale=128",
        "optimizer.name=muon engine.zero_stage=3",
        "schedule.by=token schedule.warmup_tokens=1024 schedule.name=wsd schedule.decay_tokens=2048",
    ],
)
def test_what_can_work_is_not(good: str, tmp_path: Path, overrides: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(good)
    load_settings(path, overrides.split())


def test_sequence_parallelism_finds_classes_and_no_answers() -> None:
    """A rank lacks the other tokens of a document, among which an answer is chosen."""
    parity.settings(parity.Case(3, 4, sequence=2, task="token_classification"))
    with pytest.raises(ValueError, match="chooses among all tokens of a document"):
        parity.settings(parity.Case(3, 4, sequence=2, task="question_answering"))

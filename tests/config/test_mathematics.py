"""A checkpoint pins the settings that change the mathematics, and no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.config import load_settings, mathematics
from bigtrain.config.keys import all_keys, find
from bigtrain.config.mathematics import MATHEMATICS, OPERATION, PLAN, kind_of

LEAVES = [key.path for key in all_keys().values() if key.kind in ("value", "mapping")]


@pytest.mark.parametrize("key", LEAVES)
def test_every_leaf_is_classified(key: str) -> None:
    around = [key.rsplit(".", parts)[0] for parts in range(key.count(".") + 1)]
    listed = [(name in MATHEMATICS) + (name in PLAN) + (name in OPERATION) for name in around]
    innermost = next((lists for lists in listed if lists), 0)
    assert innermost == 1, f"say in mathematics.py what {key} changes"


def test_every_classified_key_exists() -> None:
    assert all(find(key) is not None for key in MATHEMATICS | PLAN | OPERATION)


def test_an_unclassified_key_is_an_error_not_a_guess() -> None:
    with pytest.raises(KeyError):
        kind_of("engine.brand_new")


@pytest.mark.parametrize(
    "override",
    [
        "train.seed=1",
        "train.steps=11",
        "optimizer.betas=[0.9, 0.99]",
        "schedule.name=linear",
        "engine.precision=fp32",
        "model.tie_word_embeddings=true",
        "engine.deepspeed.random_ltd.enabled=true",
        "optimizer.momentum=0.9",
    ],
)
def test_what_changes_the_mathematics_shows(good: str, write: Callable[[str], Path], override: str) -> None:
    assert mathematics(load_settings(write(good), [override])) != mathematics(load_settings(write(good)))


@pytest.mark.parametrize(
    "override",
    [
        "run_dir=elsewhere",
        "data.dir=elsewhere",
        "data.sources.0.weight=0.5",
        "data.sources.0.clean=[c4]",
        "data.dedup.method=near",
        "train.global_batch_size=16",
        "data.sources.0.path=elsewhere",
        "train.micro_batch_size=4",
        "train.stop_after=5",
        "engine.zero_stage=3",
        "engine.compile=true",
        "engine.activation_checkpointing=full",
        "engine.attn_implementation=sdpa",
        "engine.deepspeed.zero_optimization.reduce_bucket_size=1000",
        "checkpoint.every_steps=5",
        "evaluate.every_steps=5",
        "tracking.wandb=disabled",
    ],
)
def test_what_changes_plan_speed_or_place_does_not_show(good: str, write: Callable[[str], Path], override: str) -> None:
    assert mathematics(load_settings(write(good), [override])) == mathematics(load_settings(write(good)))


def test_two_ways_to_say_the_same_are_the_same(good: str, write: Callable[[str], Path]) -> None:
    same = ["train.steps=null", "train.tokens=10240", "model.num_key_value_heads=4", "model.head_dim=16"]
    assert mathematics(load_settings(write(good), same)) == mathematics(load_settings(write(good)))


def test_it_survives_a_manifest_in_json(good: str, write: Callable[[str], Path]) -> None:
    values = mathematics(load_settings(write(good)))
    assert json.loads(json.dumps(values)) == values
    assert values["optimizer.betas"] == [0.9, 0.95]

"""What a checkpoint locks, what opens the lock, and what is no difference at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bigtrain.base.errors import BigtrainError
from bigtrain.checkpoint import CheckpointSummary, Cursor
from bigtrain.checkpoint.compatibility import Change, changes_since, check_compatible
from bigtrain.config import Settings, mathematics
from bigtrain.train.continuation import check_length

TREE: dict[str, Any] = {
    "run_dir": "runs/x",
    "model": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 8192,
        "max_position_embeddings": 128,
    },
    "data": {"dir": "datasets/x", "sequence_length": 128, "sources": [{"name": "code", "kind": "python_stdlib"}]},
    "train": {"steps": 10, "global_batch_size": 8},
}


def settings(**sections: dict[str, Any]) -> Settings:
    tree = {**TREE, **{name: {**TREE.get(name, {}), **section} for name, section in sections.items()}}
    return Settings.model_validate(tree)


def manifest(then: dict[str, Any], step: int = 5) -> CheckpointSummary:
    cursor = Cursor(step, 8 * step, "plan", step)
    return CheckpointSummary(
        cursor=cursor, world_size=1, zero_stage=2, mathematics=then, versions={}, kinds=[], tensors={}
    )


THEN = mathematics(settings())


def test_a_difference_names_both_values_and_the_key_that_allows_it() -> None:
    now = mathematics(settings(train={"steps": 20}, optimizer={"learning_rate": 0.5}))
    with pytest.raises(BigtrainError) as error:
        check_compatible(manifest(THEN), now, ["train.steps"])
    message = str(error.value)
    assert "optimizer.learning_rate: 0.5" in message and "optimizer.learning_rate: 0.0003" in message
    assert "checkpoint.allow_change=[train.steps, optimizer.learning_rate]" in message
    assert "train.steps: " not in message  # that one is allowed already


def test_what_is_allowed_is_returned_with_both_values() -> None:
    now = mathematics(settings(train={"steps": 20}))
    assert check_compatible(manifest(THEN), now, ["train.steps"]) == [Change("train.steps", 10, 20)]
    assert check_compatible(manifest(THEN), now, ["train.tokens"]) == [Change("train.steps", 10, 20)]
    assert check_compatible(manifest(THEN), dict(THEN), ["train.steps"]) == []


def test_leave_for_a_list_is_leave_for_what_it_holds() -> None:
    now = mathematics(settings(optimizer={"groups": [{"match": "*.mlp.*", "lr_scale": 0.5}]}))
    keys = [change.key for change in check_compatible(manifest(THEN), now, ["optimizer.groups"])]
    assert "optimizer.groups.0.match" in keys and "optimizer.groups.0.lr_scale" in keys
    with pytest.raises(BigtrainError, match=r"optimizer\.groups\.0\.match"):
        check_compatible(manifest(THEN), now, ["optimizer.groups.0.lr_scale"])


def test_leave_for_one_key_is_none_for_a_longer_name() -> None:
    with pytest.raises(BigtrainError):
        check_compatible(manifest({**THEN, "train.steps_more": 1}), THEN, ["train.steps"])


@pytest.mark.parametrize("key", sorted(THEN.keys() - {"train.steps", *(k for k in THEN if k.startswith("model."))}))
def test_a_key_that_is_younger_than_the_checkpoint_counts_as_its_default(key: str) -> None:
    then = {name: value for name, value in THEN.items() if name != key}
    assert changes_since(then, THEN) == []


def test_a_younger_key_with_another_value_than_its_default_is_a_difference() -> None:
    then = {name: value for name, value in THEN.items() if name != "schedule.by"}
    now = mathematics(settings(schedule={"by": "token"}))
    assert changes_since(then, now) == [Change("schedule.by", "step", "token")]


def test_raw_extras_that_come_or_go_are_differences() -> None:
    now = mathematics(settings(engine={"deepspeed": {"random_ltd": {"enabled": True}}}))
    change = Change("engine.deepspeed.random_ltd.enabled", None, True)
    assert changes_since(THEN, now) == [change]
    assert changes_since(now, THEN) == [Change(change.key, True, None)]


def test_performance_settings_may_differ() -> None:
    engine = {"zero_stage": 3, "activation_checkpointing": "full", "offload_optimizer": "cpu", "compile": True}
    other = settings(engine=engine, train={"micro_batch_size": 4}, checkpoint={"every_steps": 3, "keep": 1})
    assert check_compatible(manifest(THEN), mathematics(other.model_copy(update={"run_dir": Path("y")}))) == []


def test_a_schedule_cannot_end_in_the_past() -> None:
    check_length(manifest(THEN, step=10), settings())
    with pytest.raises(BigtrainError, match=r"train.steps 10\n.*at least 11"):
        check_length(manifest(THEN, step=11), settings())

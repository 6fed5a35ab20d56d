"""Promises of phases that change the length of the samples or the rotation: what a step holds, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bigtrain.config import Settings, mathematics
from bigtrain.config.batch_schedule import BatchSchedule, LengthChange

YARN = {"rope_type": "yarn", "factor": 8.0}


def settings(*phases: dict[str, Any], **sections: dict[str, Any]) -> Settings:
    tree: dict[str, Any] = {
        "run_dir": "runs/x",
        "model": {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "vocab_size": 8192,
            "max_position_embeddings": 1024,
        },
        "data": {
            "dir": "datasets/x",
            "sequence_length": 128,
            "sources": [{"name": "code", "kind": "python_stdlib"}],
            "phases": list(phases),
        },
        "train": {"steps": 10, "global_batch_size": 16, "micro_batch_size": 4},
    }
    return Settings.model_validate(
        {**tree, **{name: {**tree.get(name, {}), **section} for name, section in sections.items()}}
    )


def test_a_step_is_that_of_a_run_with_these_settings_alone() -> None:
    """`at_step` is a run of one length: its sizes, its rotation, and the steps and tokens of the whole run."""
    staged = settings(
        {"from_tokens": 5 * 16 * 128 - 1, "sequence_length": 256, "rope_theta": 5e5},
        {"from_tokens": 8 * 16 * 128, "sequence_length": 1024, "rope_scaling": YARN, "weights": {"code": 1}},
    )
    found = [
        (each.data.sequence_length, each.train.global_batch_size, each.train.micro_batch_size, each.model.rope_theta)
        for each in map(staged.at_step, (0, 1, 5, 6, 8, 9, 10))
    ]
    assert found == [(128, 16, 4, 1e4)] * 3 + [(256, 8, 2, 5e5)] * 2 + [(1024, 2, 1, 5e5)] * 2
    assert staged.at_step(8).model.rope_scaling is None and staged.at_step(9).model.rope_scaling is not None
    for step in (1, 6, 9):
        alone = Settings.model_validate(staged.at_step(step).model_dump(mode="json"))
        assert alone.total_steps == staged.total_steps == 10
        assert alone.schedule_length == staged.schedule_length
        assert alone.stages == alone.at_step(3).stages and len(alone.stages) == 1
        assert len(alone.data.phases) == 1  # the mixture of the last one
    assert [stage.first_step for stage in staged.stages] == [1, 6, 9]


def test_settings_without_stages_are_as_they_were() -> None:
    plain = settings({"from_tokens": 999, "weights": {"code": 2}})
    assert plain.at_step(7) is plain
    assert plain.batches.stages == plain.train.batches.stages
    assert len(plain.stages) == len(plain.data.cuts) == 1


def test_the_rotation_of_a_checkpoint_is_that_of_its_step() -> None:
    """A later phase may still change, the rotation in force may not: it is among what a checkpoint locks."""
    phase = {"from_tokens": 5 * 16 * 128, "rope_scaling": YARN}
    one, other = settings(phase), settings({**phase, "rope_scaling": {**YARN, "factor": 4.0}})
    assert mathematics(one.at_step(5)) == mathematics(other.at_step(5)) == mathematics(settings())
    assert mathematics(one.at_step(6)) != mathematics(other.at_step(6))


@pytest.mark.parametrize(
    ("phase", "sections", "message"),
    [
        ({"sequence_length": 2048}, {}, "data.phases.0.sequence_length 2048 is longer than model.max_position_embedd"),
        ({"sequence_length": 384}, {}, "set train.global_batch_size to a multiple of 3"),
        ({"sequence_length": 256, "from_tokens": 10}, {"train": {"global_batch_size": 1}}, "to a multiple of 2"),
        ({"sequence_length": 32}, {"train": {"micro_batch_size": 16, "global_batch_size": 8}}, "is not a multiple of"),
        ({"sequence_length": 256}, {"data": {"packing": "best_fit"}}, "set phases.0.new_epoch to true"),
        ({"sequence_length": 192, "new_epoch": True}, {"data": {"packing": "buckets"}}, "a power of two such as 128"),
        ({"rope_theta": 1e6}, {"model": {"position_embedding": "alibi"}}, "which rotates nothing; remove it"),
        ({"rope_scaling": YARN}, {"model": {"local_rope_theta": 1e4}}, "works without model.local_rope_theta"),
        ({"sequence_length": 256}, {"objective": {"name": "prefix"}}, "works with objective.name causal, found prefix"),
        ({}, {}, "a phase changes nothing"),
        ({"weights": {"code": 0}}, {}, "every weight is 0"),
        ({"sequence_length": 150}, {"train": {"global_batch_size": 75, "micro_batch_size": 1},
         "engine": {"sequence_parallel_size": 4}},
         "data.sequence_length 150 is not a multiple of engine.sequence_parallel_size 4"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_stage_is_refused(
    phase: dict[str, Any], sections: dict[str, dict[str, Any]], message: str
) -> None:
    data = {**sections.get("data", {}), "phases": [{"from_tokens": 16 * 128, **phase}]}
    with pytest.raises(ValidationError) as error:
        settings(**{**sections, "data": data})
    assert message in str(error.value)


def test_two_stages_cannot_start_at_one_step() -> None:
    with pytest.raises(
        ValidationError, match=r"data\.phases\.1 starts at step 3 .* raise data\.phases\.1\.from_tokens"
    ):
        settings(
            {"from_tokens": 2 * 16 * 128 - 7, "sequence_length": 256},
            {"from_tokens": 2 * 16 * 128, "sequence_length": 512},
        )


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), max_size=3),
    st.lists(st.tuples(st.integers(2, 30), st.sampled_from([1, 2, 3, 6])), max_size=3, unique_by=lambda c: c[0]),
    st.integers(1, 300),
)
def test_lengths_leave_steps_and_tokens_as_they_are(
    warmup: list[tuple[int, int]], changes: list[tuple[int, int]], sample: int
) -> None:
    """At every step the samples times their length are those of the schedule without lengths, and samples and steps
    invert each other."""
    plain = BatchSchedule([(steps, 6 * size) for steps, size in warmup], 12)
    schedule = plain.with_lengths(
        [LengthChange(step, st_length, "key") for step, st_length in sorted(changes)]  # type: ignore[arg-type]
    )
    held = 0
    for step in range(1, 40):
        samples = schedule.samples_of(step)
        length = next((times for first, times in sorted(changes, reverse=True) if first <= step), 1)
        assert schedule.stage_of(step).length == length
        assert len(samples) * length == len(plain.samples_of(step))
        assert schedule.consumed_after(step) == samples.stop
        assert schedule.held_before(samples.start) == held
        held += len(samples) * length
    assert sample in schedule.samples_of(schedule.step_of(sample))

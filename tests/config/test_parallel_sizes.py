"""One rule says how ranks and samples divide, and it divides them without a rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.errors import BigtrainError
from bigtrain.config import BatchSchedule, ModelSettings
from bigtrain.config.parallel_sizes import divide_ranks, divide_work, uneven_batch, uneven_share

SIZES = st.integers(1, 12)
BATCHES = st.builds(
    BatchSchedule, st.lists(st.tuples(st.integers(1, 5), st.integers(1, 60)), max_size=3), st.integers(1, 60)
)


@given(BATCHES, SIZES, SIZES, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_the_work_is_divided_without_a_rest_or_refused(batches, micro_batch_size, world_size, tensor, sequence, copies):
    """A division gives back every batch and every rank, and it is refused only where no division does so."""
    sizes = {"tensor_parallel_size": tensor, "sequence_parallel_size": sequence, "zero_hpz_partition_size": copies}
    possible = any(
        parts * tensor * sequence == world_size
        and parts in range(copies, world_size + 1, copies)
        and all(size in range(0, 61, parts * micro_batch_size) for size in batches.sizes)
        for parts in range(1, world_size + 1)
    )
    if not possible:
        with pytest.raises(BigtrainError) as caught:
            divide_work(batches, micro_batch_size, world_size, **sizes)
        assert caught.value.found and caught.value.wanted and caught.value.fix
        return
    division = divide_work(batches, micro_batch_size, world_size, **sizes)
    assert division.data_parallel_size * tensor * sequence == world_size
    for size, steps in zip(batches.sizes, division.accumulation_steps, strict=True):
        assert steps > 0 and steps * micro_batch_size * division.data_parallel_size == size


@given(BATCHES, SIZES, SIZES)
def test_a_fix_for_a_batch_names_a_size_that_divides(batches, micro_batch_size, world_size):
    try:
        divide_work(batches, micro_batch_size, world_size)
    except BigtrainError as error:
        key, rest = error.fix.removeprefix("set ").split(" to ")
        nearest = [int(size) for size in rest.split(", or")[0].split(" or ")]
        wrong = uneven_batch(batches, micro_batch_size * world_size)
        assert wrong[0] == key and f"global_batch_size {wrong[1]}," in error.found
        for size in nearest:
            assert divide_work(BatchSchedule([], size), micro_batch_size, world_size).accumulation_steps[0] > 0
            assert abs(size - wrong[1]) < micro_batch_size * world_size


@given(SIZES, st.integers(1, 4), st.integers(1, 4))
def test_a_fix_for_the_ranks_names_a_number_that_divides(world_size, tensor, sequence):
    try:
        assert divide_ranks(world_size, tensor, sequence) * tensor * sequence == world_size
    except BigtrainError as error:
        ranks = int(error.fix.split()[1])
        assert ranks > world_size and divide_ranks(ranks, tensor, sequence) > 0


def test_a_batch_is_named_by_the_key_that_gives_its_size():
    """Stages of one size count as one stage; the key of a later stage is right all the same."""
    batches = BatchSchedule([(1, 4), (2, 4), (3, 6)], 8)
    assert batches.sizes == [4, 6, 8]
    assert uneven_batch(batches, 4) == ("train.batch_size_warmup.2.global_batch_size", 6)
    assert uneven_batch(batches, 3) == ("train.batch_size_warmup.0.global_batch_size", 4)
    assert uneven_batch(BatchSchedule([], 8), 3) == ("train.global_batch_size", 8)
    assert uneven_batch(batches, 2) is None


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 64), st.integers(1, 64), st.integers(1, 6), st.integers(1, 6)
)
def test_what_ranks_share_divides_or_is_named(groups, per_group, intermediate, length, tensor, sequence):
    heads = groups * per_group
    model = ModelSettings(
        vocab_size=64,
        hidden_size=8 * heads,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=intermediate,
        max_position_embeddings=64,
    )
    whole = {"model.num_attention_heads": heads, "model.num_key_value_heads": groups}
    uneven = {
        f"{name} {size} is not a multiple of engine.{key} {parts}"
        for key, parts, sizes in (
            ("tensor_parallel_size", tensor, whole | {"model.intermediate_size": intermediate}),
            ("sequence_parallel_size", sequence, whole | {"data.sequence_length": length}),
        )
        for name, size in sizes.items()
        if size / parts != size // parts
    }
    problem = uneven_share(model, length, tensor, sequence)
    assert (problem is None) == (not uneven) and (problem is None or problem.split(",")[0] in uneven)

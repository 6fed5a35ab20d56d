"""Silent corruption: any flipped bit is detected, and the rank that has it is named."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base.exit_status import CORRUPTED
from bigtrain.engine.copies import Part
from bigtrain.health.fingerprint import _weighted_sum, fingerprint, fingerprints
from bigtrain.health.replicas import by_majority, compare, corruption
from tests.ranks import on_ranks


@given(size=st.integers(1, 70), data=st.data())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_any_flipped_bit_changes_the_fingerprint_on_either_kind_of_device(dtype, size, data):
    tensor = torch.arange(size, dtype=torch.float32).to(dtype)
    octets = tensor.clone().view(torch.uint8)
    position, bit = data.draw(st.integers(0, octets.numel() - 1)), data.draw(st.integers(0, 7))
    octets[position] ^= 1 << bit
    other = octets.view(dtype)
    assert fingerprints([tensor]) != fingerprints([other]) and fingerprint([tensor]) == fingerprint([tensor.clone()])
    assert int(_weighted_sum(tensor.view(torch.uint8))) != int(_weighted_sum(octets))


def test_tensors_that_change_places_change_the_fingerprint():
    one, other = torch.ones(9), torch.zeros(9)
    assert fingerprint([one, other]) != fingerprint([other, one])
    rows = torch.arange(64, dtype=torch.float32).view(8, 8)
    swapped = rows[[1, 0, *range(2, 8)]]
    for number in (lambda t: fingerprint([t]), lambda t: int(_weighted_sum(t.view(-1).view(torch.uint8)))):
        assert number(rows.contiguous()) != number(swapped.contiguous())


@given(st.integers(3, 9), st.data())
def test_the_majority_names_the_one_that_differs(world, data):
    suspect = data.draw(st.integers(0, world - 1))
    of_ranks = [(0, {"a": 1, "b": 2 + (rank == suspect)}) for rank in range(world)]
    wrong, certain = by_majority(of_ranks)
    assert certain and {rank: names for rank, names in wrong.items() if names} == {suspect: {"b"}}


def test_of_two_that_differ_both_are_named():
    wrong, certain = by_majority([(0, {"a": 1}), (0, {"a": 2})])
    assert not certain and wrong == {0: {"a"}, 1: {"a"}}


def test_ranks_are_compared_with_those_of_the_same_shard():
    wrong, certain = by_majority([(0, {"a": 1}), (1, {"a": 7}), (0, {"a": 1}), (1, {"a": 7})])
    assert certain and not any(wrong.values())


class Ranks:
    """Ranks of ZeRO stage 1 in one process."""

    def __init__(self, copies: list[dict[str, torch.Tensor]], masters: torch.Tensor) -> None:
        self.world_size = len(copies)
        self._copies, self._masters = copies, masters

    def parts_of(self, rank: int) -> list[Part]:
        length = len(self._masters) // self.world_size
        own = slice(rank * length, (rank + 1) * length)
        return [Part("w", own.start, self._copies[rank]["w"][own], self._masters[own])]

    def mismatches(self) -> list[list[object]]:
        """Of each rank."""

        def work(tree):
            topology = SimpleNamespace(
                rank=tree.rank,
                world_size=self.world_size,
                tensor_size=1,
                shard_rank=0,
                reduce=tree.reduce,
                broadcast=tree.broadcast,
            )
            engine = SimpleNamespace(copies=lambda: self._copies[tree.rank], parts=lambda: self.parts_of(tree.rank))
            return compare(engine, topology)

        return on_ranks(self.world_size, work)


@given(world=st.integers(2, 4), where=st.sampled_from(["copy", "master"]), data=st.data())
def test_the_master_decides_whose_copy_is_right_also_between_two(world, where, data):
    masters = torch.arange(1.0, 1.0 + 12 * world)
    copies = [{"w": masters.to(torch.bfloat16).clone()} for _ in range(world)]
    assert Ranks(copies, masters).mismatches() == [[]] * world
    rank, position = data.draw(st.integers(0, world - 1)), data.draw(st.integers(0, 12 * world - 1))
    if where == "copy":
        copies[rank]["w"][position] += 64
    else:
        rank = position // 12
        masters[position] += 64
    mismatches = Ranks(copies, masters).mismatches()
    assert all(found == mismatches[0] for found in mismatches)
    (mismatch,) = mismatches[0]
    assert (mismatch.rank, mismatch.tensors, mismatch.certain) == (rank, ["w"], True)
    error = corruption(mismatches[0])
    assert error.status == CORRUPTED and error.shared and f"rank {rank} on" in str(error)

"""Seconds of collectives: near published sweeps, and never less for more bytes or ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.base import BigtrainError
from bigtrain.estimate import Group, device, interconnect
from tests.refusals import assert_refused

MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("name", "size", "group", "busbw"),
    [
        # nccl-tests: stas00/ml-engineering network/README.md (A100, H200), NVIDIA/dgxc-benchmarking nccl/README.md
        # (H100), coreweave/nccl-tests README.md (64 H100): GB/s of all-reduce
        ("a100", 64 * MIB, Group(8, 8), 171.5),
        ("a100", GIB, Group(8, 8), 229.0),
        ("a100", 16 * GIB, Group(8, 8), 234.9),
        ("h100", 64 * MIB, Group(8, 8), 361.7),
        ("h100", 16 * GIB, Group(8, 8), 479.9),
        ("h200", GIB, Group(8, 8), 463.6),
        ("h100", 4 * GIB, Group(64, 8), 383.2),
    ],
)
def test_an_all_reduce_takes_what_was_published(name: str, size: int, group: Group, busbw: float) -> None:
    """Within 30%, from 64 MiB to 16 GiB, in a node and over eight."""
    measured = 2 * (group.size - 1) / group.size * size / (busbw * 1e9)
    assert interconnect(device(name)).all_reduce(size, group) == pytest.approx(measured, rel=0.3)


KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")


@given(
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(["a100", "h100", "gb200"]),
    size=st.floats(1, 1e11),
    nodes=st.sampled_from([1, 2, 16, 512]),
)
def test_more_bytes_or_nodes_never_take_less(kind: str, name: str, size: float, nodes: int) -> None:
    run = getattr(interconnect(device(name)), kind)
    seconds = run(size, Group(8 * nodes, 8))
    assert 0 < seconds <= run(1.1 * size, Group(8 * nodes, 8))
    if kind not in ("send", "all_to_all"):  # more nodes: a smaller part goes to each
        assert seconds <= run(size, Group(16 * nodes, 8)) * 1.0001


@given(kind=st.sampled_from(KINDS), size=st.floats(0, 1e11))
def test_one_rank_communicates_with_nobody(kind: str, size: float) -> None:
    assert getattr(interconnect(device("h100")), kind)(size, Group(1, 1)) == 0


def test_a_network_has_a_name_or_a_number() -> None:
    known = device("h100")
    assert interconnect(known, "infiniband-ndr").network_gbs == 50
    assert interconnect(known, "100").network_gbs == interconnect(known, "100 Gbit/s").network_gbs == 12.5
    for wrong in ("token-ring", "0", "-5"):
        with pytest.raises(BigtrainError) as refused:
            interconnect(known, wrong)
        assert_refused(refused, wrong, wanted="ethernet-100", fix="number")

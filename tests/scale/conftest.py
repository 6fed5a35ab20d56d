"""One process as a rank of many, on torch's fake process group: collectives return at once and move nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore


@pytest.fixture
def join_as() -> Iterator[Callable[[int, int], None]]:
    """A function that makes this process a rank: join_as(rank, world_size)."""

    def join(rank: int, world_size: int) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)

    yield join
    if dist.is_initialized():
        dist.destroy_process_group()

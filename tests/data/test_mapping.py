"""Promises of files that are mapped."""

from __future__ import annotations

import gc
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from bigtrain.data import Dataset
from bigtrain.data.format.mapping import map_file
from tests.data.helpers import random_dataset


def mappings(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


def test_it_is_the_file_and_cannot_be_written_to(tmp_path: Path) -> None:
    data = os.urandom(100_001)
    (tmp_path / "x").write_bytes(data)
    (tmp_path / "empty").touch()
    assert bytes(map_file(tmp_path / "x")) == data
    assert bytes(map_file(tmp_path / "empty")) == b""
    array = np.frombuffer(map_file(tmp_path / "x"), np.uint8)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(FileNotFoundError):
        map_file(tmp_path / "y")


def test_it_lasts_as_long_as_a_view_of_it_and_no_longer(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abcdefgh" * 1000)
    views = [np.frombuffer(map_file(tmp_path / "x"), "<u8")[-10:] for _ in range(200)]
    gc.collect()
    assert mappings(tmp_path / "x") == 200
    assert all(view.tobytes() == b"abcdefgh" * 10 for view in views)
    del views
    gc.collect()
    assert mappings(tmp_path / "x") == 0


def test_a_dataset_of_more_shards_than_files_may_be_open_is_read(tmp_path: Path) -> None:
    random_dataset(tmp_path, 3000)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, limit[1]))
    try:
        datasets = [Dataset(tmp_path) for _ in range(20)]
        held = [(shard.tokens, shard.documents) for dataset in datasets for shard in dataset.shards]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert sum(len(tokens) for tokens, _ in held) == 20 * datasets[0].tokens

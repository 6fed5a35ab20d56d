"""The comparison of two checkpoints finds every bit that differs, however their tensors are divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bigtrain.base import ALONE
from bigtrain.checkpoint import Checkpoint, Cursor, Fragment, StorageTiers, TensorShard, compare, save
from bigtrain.trained.checkpoints import CheckpointDifference, say_diff
from tests.checkpoint.helpers import MATHEMATICS, SHAPES, save_fragments, save_step


def saved(run: Path, weights: dict[str, torch.Tensor], step: int = 1, **mathematics: Any) -> Checkpoint:
    own = [Fragment(name, "master", tuple(w.shape), 0, w.reshape(-1)) for name, w in weights.items()]
    return save(
        StorageTiers.of(run),
        Cursor(step, 8 * step, "plan", step),
        own,
        {},
        mathematics={**MATHEMATICS, **mathematics},
        zero_stage=1,
        state={},
        ranks=ALONE,
    )


def test_the_same_state_cut_in_another_way_is_equal(tmp_path: Path) -> None:
    save_step(tmp_path / "a", 1, world_size=3, seed=4)
    save_step(tmp_path / "b", 1, world_size=2, seed=4)
    a, b = (StorageTiers.of(tmp_path / name).all()[0] for name in "ab")
    difference = compare(a, b)
    assert difference["equal_tensors"] == 3 * len(SHAPES) and difference["different_tensors"] == 0
    assert difference["cursor"] == difference["settings"] == difference["versions"] == {}
    assert list(say_diff(CheckpointDifference.of(difference)))[-1] == (
        "all 9 tensors are equal to the last bit; settings that change the result and differ: none"
    )


def test_differences_are_named_with_both_values_and_their_size(tmp_path: Path) -> None:
    one = {"w": torch.tensor([[1.0, -4.0], [0.0, 2.0]]), "same": torch.ones(3), "gone": torch.ones(2)}
    two = {"w": torch.tensor([[1.0, -3.5], [0.0, 2.0]]), "same": torch.ones(3), "n": torch.full((1,), torch.nan)}
    a = saved(tmp_path / "a", one)
    b = saved(tmp_path / "b", two, step=2, **{"optimizer.learning_rate": 0.2})
    difference = compare(a, b)
    assert difference["tensors"] == {
        "master/gone": {"shapes": [[2], None]},
        "master/n": {"shapes": [None, [1]]},
        "master/w": {"elements": 1, "largest_difference": 0.5, "relative": 0.125},
    }
    assert difference["settings"] == {"optimizer.learning_rate": [0.1, 0.2]}
    assert difference["cursor"]["step"] == [1, 2]
    lines = list(say_diff(CheckpointDifference.of(difference)))
    assert "master/w: 1 elements differ, at most 0.5, relative 0.125" in lines
    assert lines[-1] == "3 of 4 tensors differ; settings that change the result and differ: 1"


def test_a_sign_of_zero_and_a_nan_are_differences(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", {"zero": torch.tensor([0.0]), "nan": torch.tensor([1.0])})
    b = saved(tmp_path / "b", {"zero": torch.tensor([-0.0]), "nan": torch.tensor([torch.nan])})
    tensors = compare(a, b)["tensors"]
    assert tensors["master/zero"] == {"elements": 1, "largest_difference": 0.0, "relative": 0.0}
    assert tensors["master/nan"] == {"elements": 1, "largest_difference": None, "relative": None}
    assert compare(b, b)["different_tensors"] == 0  # the same NaN is the same


def test_shards_are_compared_as_what_they_are_parts_of(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    halves = [
        Fragment("w", "master", (3, 4), 0, whole[:, start : start + 2].reshape(-1), TensorShard(1, start, 2))
        for start in (0, 2)
    ]
    a = save_fragments(tmp_path / "a", 1, halves, ALONE)
    b = save_fragments(tmp_path / "b", 1, [Fragment("w", "master", (3, 4), 0, whole.view(-1))], ALONE)
    assert compare(a, b)["different_tensors"] == 0

"""What goes into a checkpoint comes out of it, bit for bit, however it was cut and is cut now."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from checkpoint_support import (
    MATHEMATICS,
    SHAPES,
    ThreadRank,
    cut,
    even,
    on_ranks,
    same_bits,
    save_fragments,
    save_step,
    tensors,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from bigtrain.checkpoint import (
    ALONE,
    Fragment,
    Loaded,
    Places,
    check_compatible,
    load,
    load_weights,
    newest_verified,
)
from bigtrain.config.errors import BigtrainError


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, dict[str, list[int]]]:
    """Any division of every parameter among 1 to 5 ranks, ranks with nothing included."""
    world_size = draw(st.integers(1, 5))
    bounds = {}
    for name, shape in SHAPES.items():
        size = torch.Size(shape).numel()
        inner = draw(st.lists(st.integers(0, size), min_size=world_size - 1, max_size=world_size - 1))
        bounds[name] = [0, *sorted(inner), size]
    return world_size, bounds


@settings(max_examples=40, deadline=None)
@given(then=cuts(), now=cuts(), seed=st.integers(0, 2**31))
def test_any_cut_loads_into_any_other_bit_for_bit(
    then: tuple[int, dict[str, list[int]]], now: tuple[int, dict[str, list[int]]], seed: int
) -> None:
    state = tensors(seed)
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory)
        saved = on_ranks(then[0], lambda ranks: save_fragments(run, 3, cut(state, then[1], ranks.rank), ranks))
        path = saved[0]

        def read(ranks: ThreadRank) -> list[Fragment]:
            own = cut({key: torch.zeros_like(value) for key, value in state.items()}, now[1], ranks.rank)
            assert isinstance(load(path, own, ranks=ranks), Loaded)
            return own

        found = {key: torch.zeros_like(value) for key, value in state.items()}
        for own in on_ranks(now[0], read):
            for piece in own:
                found[piece.name, piece.kind][piece.offset : piece.offset + piece.data.numel()] = piece.data
        assert all(same_bits(found[key], state[key]) for key in state)
        weights = load_weights(path)
        assert {name: tuple(weight.shape) for name, weight in weights.items()} == SHAPES
        assert all(same_bits(weights[name].view(-1), state[name, "master"]) for name in SHAPES)


@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_what_all_ranks_hold_is_written_once(tmp_path: Path, world_size: int) -> None:
    state = tensors()

    def held_by(rank: int) -> list[Fragment]:
        return [
            Fragment(name, kind, SHAPES[name], 0, data, holder=rank, holders=world_size)
            for (name, kind), data in state.items()
        ]

    on_ranks(world_size, lambda ranks: save_fragments(tmp_path, 1, held_by(ranks.rank), ranks))
    path = Places.of(tmp_path).all()[0]
    stored = sum(
        tensor.numel()
        for file in path.path.glob("*.safetensors")
        for key, tensor in load_file(file).items()
        if not key.startswith("rng/")
    )
    assert stored == sum(data.numel() for data in state.values())
    assert all(same_bits(weight.view(-1), state[name, "master"]) for name, weight in load_weights(path).items())


def test_the_manifest_keeps_cursor_state_and_settings(tmp_path: Path) -> None:
    save_step(tmp_path, 12)
    manifest = Places.of(tmp_path).all()[0].manifest
    assert (manifest.cursor.step, manifest.cursor.consumed_samples, manifest.cursor.plan_id) == (12, 96, "plan-a")
    assert (manifest.world_size, manifest.zero_stage, manifest.state) == (2, 2, {"wandb_run_id": "abc"})
    assert manifest.mathematics == MATHEMATICS and manifest.versions["torch"] == torch.__version__
    assert {name: tuple(shape) for name, shape in manifest.tensors.items()} == SHAPES


def test_random_state_comes_back_to_its_rank_and_only_at_the_same_world_size(tmp_path: Path) -> None:
    save_step(tmp_path, 1, world_size=2)
    path = Places.of(tmp_path).all()[0]

    def rng(ranks: ThreadRank) -> list[int] | None:
        state = load(path, cut(tensors(), even(ranks.world_size), ranks.rank), ranks=ranks).rng
        return None if state is None else state["cpu"].tolist()

    assert on_ranks(2, rng) == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]
    assert on_ranks(3, rng) == [None, None, None]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [("norm.weight", (2,), r"norm.weight \[1\].*\n.*norm.weight \[2\]"), ("extra.bias", (2,), "extra.bias absent")],
)
def test_another_models_checkpoint_is_refused_naming_the_tensors(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    save_step(tmp_path, 1)
    path = Places.of(tmp_path).all()[0]
    other = {**SHAPES, name: shape}
    own = [Fragment(n, "master", s, 0, torch.zeros(torch.Size(s).numel())) for n, s in other.items()]
    with pytest.raises(BigtrainError, match=message):
        load(path, own, ranks=ALONE)
    with pytest.raises(BigtrainError, match=r"embed\.weight absent"):
        load(path, own[1:], ranks=ALONE)
    errors = on_ranks(2, lambda ranks: load(path, own[ranks.rank :: 2], ranks=ranks))
    assert [type(error) for error in errors] == [BigtrainError, BigtrainError]


def test_other_mathematics_is_refused_naming_key_and_both_values(tmp_path: Path) -> None:
    save_step(tmp_path, 1)
    manifest = Places.of(tmp_path).all()[0].manifest
    check_compatible(manifest, MATHEMATICS)
    changed = {**MATHEMATICS, "optimizer.learning_rate": 0.2}
    with pytest.raises(BigtrainError, match=r"optimizer.learning_rate: 0.2\n.*optimizer.learning_rate: 0.1"):
        check_compatible(manifest, changed)


def test_weights_load_without_deepspeed_or_a_process_group(tmp_path: Path) -> None:
    save_step(tmp_path, 1)
    path = newest_verified(Places.of(tmp_path)).newest
    assert path is not None
    script = (
        "import sys, json; from bigtrain.checkpoint import Checkpoint, load_weights; import torch.distributed as dist;"
        "w = load_weights(Checkpoint.at(sys.argv[1]));"
        "print(json.dumps([sorted(w), 'deepspeed' in sys.modules, dist.is_initialized()]))"
    )
    out = subprocess.run([sys.executable, "-c", script, path.location], capture_output=True, text=True, timeout=60)
    assert json.loads(out.stdout) == [sorted(SHAPES), False, False], out.stderr

"""What goes into a checkpoint comes out of it, bit for bit, however it was cut and is cut now."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from bigtrain.base import ALONE, RankTree
from bigtrain.base.errors import BigtrainError
from bigtrain.checkpoint import (
    Checkpoint,
    Fragment,
    Loaded,
    StorageTiers,
    Tensors,
    TensorShard,
    check_compatible,
    load,
    load_weights,
    newest_verified,
    tensor_digests,
)
from tests.checkpoint.helpers import (
    KINDS,
    MATHEMATICS,
    SHAPES,
    cut,
    even,
    same_bits,
    save_fragments,
    save_step,
    tensors,
)
from tests.ranks import on_ranks


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


def forget_pieces(checkpoint: Checkpoint) -> None:
    """Make the manifest one of a version that did not write the pieces."""
    path = checkpoint.path / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["pieces"], fields["digest"]
    digest = xxhash.xxh3_128_hexdigest(json.dumps(fields, sort_keys=True).encode())
    path.write_text(json.dumps({**fields, "digest": digest}))
    assert checkpoint.manifest.pieces is None


@settings(max_examples=40, deadline=None)
@given(then=cuts(), now=cuts(), seed=st.integers(0, 2**31), old=st.booleans())
def test_any_cut_loads_into_any_other_bit_for_bit(
    then: tuple[int, dict[str, list[int]]], now: tuple[int, dict[str, list[int]]], seed: int, old: bool
) -> None:
    state = tensors(seed)
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory)
        saved = on_ranks(then[0], lambda ranks: save_fragments(run, 3, cut(state, then[1], ranks.rank), ranks))
        path = saved[0]
        if old:
            forget_pieces(path)

        def read(ranks: RankTree) -> list[Fragment]:
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


WIDE: dict[str, tuple[int, ...]] = {"up.weight": (6, 5), "down.weight": (4, 7), "norm.weight": (5,)}


@dataclass(frozen=True)
class Division:
    """`tensor` neighbouring ranks share each matrix, `data` such groups share the state of each of them."""

    tensor: int
    data: int
    cuts: dict[str, tuple[int, list[int]]]
    """Of each matrix: which dimension is cut, and where."""

    def of(self, rank: int, state: dict[tuple[str, str], torch.Tensor]) -> list[Fragment]:
        """Rank's fragments, as copies."""
        group, member = divmod(rank, self.tensor)
        pieces = []
        for (name, kind), whole in state.items():
            shard, part, holder, holders = None, whole, member, self.tensor
            if name in self.cuts and self.tensor > 1:
                dim, bounds = self.cuts[name]
                start, end = bounds[member : member + 2]
                shard, holder, holders = TensorShard(dim, start, end - start), 0, 1
                part = whole.narrow(dim, start, end - start)
            flat = part.reshape(-1)
            start, end = (each * flat.numel() // self.data for each in (group, group + 1))
            shape = tuple(whole.shape)
            pieces.append(Fragment(name, kind, shape, start, flat[start:end].clone(), shard, holder, holders))
        return pieces


@st.composite
def divisions(draw: st.DrawFn) -> Division:
    tensor = draw(st.integers(1, 3))
    cuts = {}
    for name, shape in WIDE.items():
        if len(shape) == 2:
            dim = draw(st.integers(0, 1))
            inner = draw(st.lists(st.integers(0, shape[dim]), min_size=tensor - 1, max_size=tensor - 1))
            cuts[name] = dim, [0, *sorted(inner), shape[dim]]
    return Division(tensor, draw(st.integers(1, 3)), cuts)


@settings(max_examples=40, deadline=None)
@given(then=divisions(), now=divisions(), old=st.booleans())
def test_any_tensor_parallel_division_loads_into_any_other_bit_for_bit(
    then: Division, now: Division, old: bool
) -> None:
    state = {
        (name, kind): torch.randint(-(2**31), 2**31 - 1, shape).to(torch.int32).view(torch.float32)
        for name, shape in WIDE.items()
        for kind in KINDS
    }
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory)
        ranks = then.tensor * then.data
        saved = on_ranks(ranks, lambda ranks: save_fragments(run, 3, then.of(ranks.rank, state), ranks))
        assert isinstance(saved[0], Checkpoint), saved[0]
        if old:
            forget_pieces(saved[0])

        def read(ranks: RankTree) -> list[Fragment]:
            own = now.of(ranks.rank, {key: torch.zeros_like(value) for key, value in state.items()})
            load(saved[0], own, ranks=ranks)
            return own

        for rank, own in enumerate(on_ranks(now.tensor * now.data, read)):
            for found, wanted in zip(own, now.of(rank, state), strict=True):
                assert same_bits(found.data, wanted.data), found
        stored = Tensors(saved[0])
        assert all(same_bits(stored.read(*key), state[key]) for key in state)
        digests = {key: xxhash.xxh3_128(value.numpy().tobytes()).hexdigest() for key, value in state.items()}
        assert tensor_digests(saved[0]) == digests
        stored_bytes = sum(t.nbytes for f in saved[0].path.glob("*.safetensors") for t in load_file(f).values())
        assert stored_bytes == sum(t.nbytes for t in state.values()) + 5 * ranks  # once, and random state


def test_a_large_comb_is_read_in_blocks_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that do not fit a block, and blocks that end in the middle of a matrix."""
    whole = torch.arange(37 * 11, dtype=torch.float32).view(37, 11)
    saved = save_fragments(tmp_path, 1, [Fragment("w", "master", (37, 11), 0, whole.view(-1))], ALONE)
    for block in (1, 30, 100):
        monkeypatch.setattr(sys.modules["bigtrain.checkpoint.filling"], "_BLOCK", block)
        own = Fragment("w", "master", (37, 11), 5, torch.zeros(37 * 4 - 9), TensorShard(1, 3, 4))
        load(saved, [own], ranks=ALONE)
        assert torch.equal(own.data, whole[:, 3:7].reshape(-1)[5:-4])


def test_a_part_that_no_file_holds_is_named(tmp_path: Path) -> None:
    state = {key: value for key, value in tensors().items() if key[0] == "embed.weight"}
    pieces = cut(state, {"embed.weight": [0, 20, 21]}, 0)
    saved = save_fragments(tmp_path, 1, pieces, ALONE)
    whole = cut(state, {"embed.weight": [0, 21]}, 0)
    with pytest.raises(BigtrainError, match=r"does not hold all of master of embed\.weight\n.*20 elements.*\n.*21"):
        load(saved, whole, ranks=ALONE)


@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_what_all_ranks_hold_is_written_once(tmp_path: Path, world_size: int) -> None:
    state = tensors()

    def held_by(rank: int) -> list[Fragment]:
        return [
            Fragment(name, kind, SHAPES[name], 0, data, holder=rank, holders=world_size)
            for (name, kind), data in state.items()
        ]

    on_ranks(world_size, lambda ranks: save_fragments(tmp_path, 1, held_by(ranks.rank), ranks))
    path = StorageTiers.of(tmp_path).all()[0]
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
    manifest = StorageTiers.of(tmp_path).all()[0].manifest
    assert (manifest.cursor.step, manifest.cursor.consumed_samples, manifest.cursor.plan_id) == (12, 96, "plan-a")
    assert (manifest.world_size, manifest.zero_stage, manifest.state) == (2, 2, {"wandb_run_id": "abc"})
    assert manifest.mathematics == MATHEMATICS and manifest.versions["torch"] == torch.__version__
    assert {name: tuple(shape) for name, shape in manifest.tensors.items()} == SHAPES


def test_random_state_returns_to_its_rank_at_the_same_world_size_only(tmp_path: Path) -> None:
    save_step(tmp_path, 1, world_size=2)
    path = StorageTiers.of(tmp_path).all()[0]

    def rng(ranks: RankTree) -> list[int] | None:
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
    path = StorageTiers.of(tmp_path).all()[0]
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
    manifest = StorageTiers.of(tmp_path).all()[0].manifest
    check_compatible(manifest, MATHEMATICS)
    changed = {**MATHEMATICS, "optimizer.learning_rate": 0.2}
    with pytest.raises(BigtrainError, match=r"optimizer.learning_rate: 0.2\n.*optimizer.learning_rate: 0.1"):
        check_compatible(manifest, changed)


def test_weights_load_without_deepspeed_or_a_process_group(tmp_path: Path) -> None:
    save_step(tmp_path, 1)
    path = newest_verified(StorageTiers.of(tmp_path)).newest
    assert path is not None
    script = (
        "import sys, json; from bigtrain.checkpoint import Checkpoint, load_weights; import torch.distributed as dist;"
        "w = load_weights(Checkpoint.at(sys.argv[1]));"
        "print(json.dumps([sorted(w), 'deepspeed' in sys.modules, dist.is_initialized()]))"
    )
    out = subprocess.run([sys.executable, "-c", script, path.location], capture_output=True, text=True, timeout=60)
    assert json.loads(out.stdout) == [sorted(SHAPES), False, False], out.stderr

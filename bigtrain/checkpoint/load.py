"""Reading a checkpoint into whatever owns the state now.

A parameter lies in the files as pieces, cut where the ranks of then were divided; the fragments of now are cut
elsewhere. Each rank reads the headers of all files, then copies the overlaps with its own fragments and nothing
else. The same path serves the same cluster, another world size, another stage, and a single process that wants only
the weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from bigtrain.checkpoint.fragment import MASTER, Fragment
from bigtrain.checkpoint.manifest import Manifest, read_manifest
from bigtrain.checkpoint.ranks import Ranks, together
from bigtrain.checkpoint.tensor_file import StoredPiece, read_rng, stored_pieces
from bigtrain.config.errors import BigtrainError


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint gave this rank beside the tensors, which are in the fragments."""

    manifest: Manifest
    rng: dict[str, torch.Tensor] | None
    """The random generators' state that this rank saved; None where the world size was another."""


def load(path: Path, fragments: Sequence[Fragment], *, ranks: Ranks) -> Loaded:
    """Fill this rank's fragments from a checkpoint, whatever stage and world size wrote it. Every rank calls it.

    Raises:
        BigtrainError: on every rank, when any cannot read, or the checkpoint is of another model.
    """
    failed = f"the checkpoint {path} cannot be loaded"
    own_shapes = {fragment.name: list(fragment.shape) for fragment in fragments}
    of_all_ranks = together(ranks, failed, lambda: own_shapes)
    model_shapes = {name: shape for shapes in of_all_ranks for name, shape in shapes.items()}
    loaded: list[Loaded] = []

    def read() -> None:
        manifest = read_manifest(path)
        _check_same_model(manifest, model_shapes, {fragment.kind for fragment in fragments})
        _fill(path, manifest, fragments)
        same_ranks = manifest.world_size == ranks.world_size
        rng = read_rng(path / list(manifest.files)[ranks.rank]) if same_ranks else None
        loaded.append(Loaded(manifest, rng))

    together(ranks, failed, read)
    return loaded[0]


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """All float32 weights by parameter name, whole. Needs neither an engine nor a process group.

    Raises:
        BigtrainError: the checkpoint is damaged or not whole.
    """
    manifest = read_manifest(path)
    weights = {name: torch.empty(shape, dtype=torch.float32) for name, shape in manifest.tensors.items()}
    _fill(
        path,
        manifest,
        [Fragment(name, MASTER, tuple(weight.shape), 0, weight.view(-1)) for name, weight in weights.items()],
    )
    return weights


def _check_same_model(manifest: Manifest, model: dict[str, list[int]], kinds: set[str]) -> None:
    stored = manifest.tensors
    if differing := [name for name in sorted(stored.keys() | model.keys()) if stored.get(name) != model.get(name)]:
        raise BigtrainError(
            "the checkpoint is of another model",
            found=", ".join(f"{name} {stored.get(name, 'absent')}" for name in differing),
            wanted=", ".join(f"{name} {model.get(name, 'absent')}" for name in differing),
            fix="restore the section model of the settings, or start another run in a new run_dir",
        )
    if missing := sorted(kinds - set(manifest.kinds)):
        raise BigtrainError("the checkpoint lacks optimizer state", found=manifest.kinds, wanted=missing)


def _fill(path: Path, manifest: Manifest, fragments: Sequence[Fragment]) -> None:
    """Copy into every fragment the pieces it overlaps; every element must be covered."""
    wanted = {(fragment.name, fragment.kind) for fragment in fragments}
    pieces: defaultdict[tuple[str, str], list[StoredPiece]] = defaultdict(list)
    with ExitStack() as stack:
        files: dict[Path, Any] = {}
        try:
            for file_name in manifest.files:
                for piece in stored_pieces(path / file_name):
                    if (piece.name, piece.kind) in wanted:
                        pieces[piece.name, piece.kind].append(piece)
            for fragment in fragments:
                for piece in pieces[fragment.name, fragment.kind]:
                    if piece.path not in files:
                        files[piece.path] = stack.enter_context(safe_open(piece.path, framework="pt"))
        except Exception as error:  # safetensors raises its own kinds for a truncated or foreign file
            raise BigtrainError(f"{path} is damaged", found=f"{type(error).__name__}: {error}") from error
        for fragment in fragments:
            covered = sum(_copy_overlap(fragment, p, files[p.path]) for p in pieces[fragment.name, fragment.kind])
            if covered != fragment.data.numel():
                raise BigtrainError(
                    f"{path} does not hold all of {fragment.kind} of {fragment.name}",
                    found=f"{covered} elements",
                    wanted=fragment.data.numel(),
                )


def _copy_overlap(fragment: Fragment, piece: StoredPiece, file: Any) -> int:
    """Copy the elements that both have; how many they were."""
    start = max(fragment.offset, piece.offset)
    end = min(fragment.offset + fragment.data.numel(), piece.offset + piece.length)
    if start >= end:
        return 0
    stored = file.get_slice(piece.key)[start - piece.offset : end - piece.offset]
    fragment.data[start - fragment.offset : end - fragment.offset].copy_(stored)
    return end - start

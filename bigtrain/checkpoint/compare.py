"""The differences of two checkpoints: cursor, settings, versions, and every tensor to the last bit."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from bigtrain.checkpoint.checkpoint import Checkpoint
from bigtrain.checkpoint.compatibility import changes_since
from bigtrain.checkpoint.tensors import Tensors

_BLOCK = 1 << 24


def compare(one: Checkpoint, other: Checkpoint) -> dict[str, Any]:
    """The differences, as JSON types. Two tensors are in memory at a time.

    Returns:
        cursor, settings, versions: key -> [value in one, value in other], for keys that differ.
        tensors: "kind/name" -> the difference, for tensors that are not equal in every bit: the two shapes, or the
        largest difference and its ratio to the largest magnitude. Both are None if a number is not finite.
        equal_tensors, different_tensors: the numbers of tensors.

    Raises:
        BigtrainError: a checkpoint is damaged or incomplete.
    """
    a, b = Tensors(one), Tensors(other)
    changes = changes_since(a.manifest.mathematics, b.manifest.mathematics)
    tensors: dict[str, Any] = {}
    every = {*a.stored, *b.stored}
    for name, kind in sorted(every, key=lambda each: (each[1], each[0])):
        shapes = [each.manifest.tensors[name] if (name, kind) in each.stored else None for each in (a, b)]
        if shapes[0] != shapes[1]:
            tensors[f"{kind}/{name}"] = {"shapes": shapes}
        elif difference := _difference(a.read(name, kind).view(-1), b.read(name, kind).view(-1)):
            tensors[f"{kind}/{name}"] = difference
    return {
        "checkpoints": [one.location, other.location],
        "cursor": _differing(asdict(a.manifest.cursor), asdict(b.manifest.cursor)),
        "settings": {change.key: [change.then, change.now] for change in changes},
        "versions": _differing(a.manifest.versions, b.manifest.versions),
        "tensors": tensors,
        "equal_tensors": len(every) - len(tensors),
        "different_tensors": len(tensors),
    }


def _differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, list[Any]]:
    return {
        key: [one.get(key), other.get(key)]
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    }


def _difference(a: torch.Tensor, b: torch.Tensor) -> dict[str, Any] | None:
    """The difference of two flat float32 tensors of one size; None if every bit is equal."""
    if torch.equal(a.view(torch.int32), b.view(torch.int32)):
        return None
    largest, scale, elements = 0.0, 0.0, 0
    for start in range(0, a.numel(), _BLOCK):
        x, y = a[start : start + _BLOCK], b[start : start + _BLOCK]
        elements += int((x.view(torch.int32) != y.view(torch.int32)).sum())
        x, y = x.double(), y.double()
        largest = max(largest, float((x - y).abs().nan_to_num(nan=torch.inf).max()))
        scale = max(scale, float(x.abs().max()), float(y.abs().max()))
    finite = largest < torch.inf
    return {
        "elements": elements,
        "largest_difference": largest if finite else None,
        "relative": (largest / scale if scale else 0.0) if finite else None,
    }

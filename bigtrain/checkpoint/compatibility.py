"""Whether a checkpoint may be continued with other settings: its mathematics may change only by permission."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bigtrain.base import BigtrainError
from bigtrain.checkpoint.manifest import CheckpointSummary
from bigtrain.config import FAMILIES, find, general


class Change(NamedTuple):
    """A setting that changes the mathematics and differs from the checkpoint."""

    key: str
    then: Any
    now: Any


def check_compatible(
    summary: CheckpointSummary, mathematics: Mapping[str, Any], allowed: Sequence[str] = ()
) -> list[Change]:
    """Refuse to continue a checkpoint with other mathematics, unless the keys that differ are allowed to change.

    Args:
        mathematics: the current settings that change the result: `bigtrain.config.mathematics(settings)`.
        allowed: `checkpoint.allow_change`.

    Returns:
        The differences, all of them allowed.

    Raises:
        BigtrainError: names every other key that differs, with both values.
    """
    changes = changes_since(summary.mathematics, mathematics)
    if refused := [change for change in changes if not is_allowed(change.key, allowed)]:
        keys = ", ".join([*allowed, *(change.key for change in refused)])
        raise BigtrainError(
            f"settings that change the result differ from those of the checkpoint of step {summary.cursor.step}",
            found=", ".join(f"{change.key}: {change.now}" for change in refused),
            wanted=", ".join(f"{change.key}: {change.then}" for change in refused),
            fix="restore these values, or start another run in a new run_dir; or allow the change: "
            f"checkpoint.allow_change=[{keys}]",
        )
    return changes


def changes_since(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The keys whose values differ. A missing key has its default or its family's choice: a checkpoint that is older
    than the key was written with what is the default today."""
    changes = [Change(key, _value(then, key), _value(now, key)) for key in sorted(then.keys() | now.keys())]
    return [change for change in changes if change.then != change.now]


def is_allowed(key: str, allowed: Sequence[str]) -> bool:
    """Whether an allowed key is this key, or a section that holds it."""
    # A length in tokens is compared in steps: bigtrain.config.mathematics.
    names = ["train.steps" if name == "train.tokens" else name for name in allowed]
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _value(mathematics: Mapping[str, Any], key: str) -> Any:
    if key in mathematics:
        return mathematics[key]
    section, _, name = key.rpartition(".")
    if section == "model" and name in (choices := FAMILIES.get(mathematics.get("model.family", ""), {})):
        return list(choices[name]) if isinstance(choices[name], tuple) else choices[name]
    known = find(key)
    return known.default if known is not None and known.path == general(key) else None

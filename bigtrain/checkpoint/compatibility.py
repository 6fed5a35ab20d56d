"""Whether a checkpoint may be continued with the settings of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigtrain.checkpoint.manifest import Manifest
from bigtrain.config.errors import BigtrainError


def check_compatible(manifest: Manifest, mathematics: Mapping[str, Any]) -> None:
    """Refuse to continue a checkpoint under other mathematics.

    Args:
        mathematics: the settings of today that change the result: `bigtrain.config.mathematics(settings)`.

    Raises:
        BigtrainError: names every key that differs, with both values.
    """
    then, now = manifest.mathematics, mathematics
    if keys := [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]:
        raise BigtrainError(
            f"settings that change the result differ from those of the checkpoint of step {manifest.cursor.step}",
            found=", ".join(f"{key}: {now.get(key)}" for key in keys),
            wanted=", ".join(f"{key}: {then.get(key)}" for key in keys),
            fix="restore these values, or start another run in a new run_dir",
        )

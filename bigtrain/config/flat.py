"""The settings as a flat mapping from keys to values, as they are typed on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bigtrain.config.settings import Settings


def flat(settings: Settings) -> dict[str, Any]:
    """Every leaf by its key, values in JSON types: {"data.sources.0.weight": 0.3, "optimizer.betas": [0.9, 0.95]}."""
    return dict(_leaves("", settings.model_dump(mode="json")))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    prefix = path + "." if path else ""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(prefix + name, inner)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, inner in enumerate(value):
            yield from _leaves(f"{prefix}{index}", inner)
    else:
        yield path, value

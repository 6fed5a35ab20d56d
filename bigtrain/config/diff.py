"""Where two settings differ."""

from __future__ import annotations

from typing import Any, NamedTuple

from bigtrain.config.flat import flat
from bigtrain.config.settings import Settings


class Difference(NamedTuple):
    """One key with two values; None also stands for a key that one side does not have."""

    key: str
    left: Any
    right: Any


def diff(left: Settings, right: Settings) -> list[Difference]:
    """The leaves whose values differ, in the order of the tree."""
    ours, theirs = flat(left), flat(right)
    return [
        Difference(key, ours.get(key), theirs.get(key)) for key in ours | theirs if ours.get(key) != theirs.get(key)
    ]

"""Changes of a parsed JSON value that a stranger or a later version may make."""

from __future__ import annotations

import random
from typing import Any

STRANGE: list[Any] = [
    None, True, -1, 0, 1, 1.5, 2**53 + 1, 2**62, 2**63, 10**30, 1e302, -1e302, float("nan"), float("inf"), "", "9",
    "../x", "/etc/passwd", "manifest.json", "\x1b[31m", "\ud800", "x" * 5000, [], [[]], {}, {"a": {"b": []}}, [-1],
    [2**40, 2**40],
]  # fmt: skip


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a tree, the tree itself first."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(leaf for key, value in items for leaf in leaves(value, (*path, key)))]


def mutate(tree: Any, choose: random.Random) -> None:
    """Change, remove, rename, add or repeat a value anywhere in a tree."""
    *around, last = choose.choice(leaves(tree)[1:])
    for part in around:
        tree = tree[part]
    match choose.randrange(6):
        case 0 if isinstance(tree, dict):
            del tree[last]
        case 1 if isinstance(tree, dict):
            tree[f"{last}x"] = tree.pop(last)
        case 2 if isinstance(tree, dict):
            tree["of a later version"] = choose.choice(STRANGE)
        case 2 if isinstance(tree, list):
            tree.append(tree[last])
        case 3 if isinstance(tree[last], int) and not isinstance(tree[last], bool):
            tree[last] += choose.choice([-1, 1, 2**31, 2**61])
        case _:
            tree[last] = choose.choice(STRANGE)

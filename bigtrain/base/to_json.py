"""The results of commands as JSON: a dataclass is an object, and its fields are the keys.

A field whose default is None is left out where it has no value; any other field is always there, and null stands for
a missing value. `Annotated[..., Field(alias="other name")]` gives a key that is no identifier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints


def to_json(value: Any) -> Any:
    """Dataclasses, mappings and sequences as JSON objects and arrays, at any depth; other values stay as they are."""
    if is_dataclass(value) and not isinstance(value, type):
        values = [(key, getattr(value, name), optional) for name, key, optional in _keys(type(value))]
        return {key: to_json(item) for key, item, optional in values if item is not None or not optional}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(item) for item in value]
    return value


@cache
def _keys(cls: type) -> list[tuple[str, str, bool]]:
    """Each field of a dataclass: its name, its key in JSON, and whether the key may be left out."""
    hints = get_type_hints(cls, include_extras=True)
    keys = []
    for field in fields(cls):
        aliases = [alias for extra in getattr(hints[field.name], "__metadata__", ()) if (alias := extra.alias)]
        keys.append((field.name, aliases[0] if aliases else field.name, field.default is None))
    return keys

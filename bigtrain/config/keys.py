"""Every key of the settings with its meaning, type and default, from the JSON schema of `Settings`.

A key is written as it is typed, data.sources.0.weight; N stands for any index in the general form,
data.sources.N.weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from bigtrain.config.section import LARGEST
from bigtrain.config.settings import Settings


@dataclass(frozen=True)
class Key:
    """One key of the tree."""

    path: str
    """In the general form; the root's is empty."""
    kind: Literal["value", "mapping", "section", "list of sections"]
    meaning: str
    type: str
    """What a value must be, in plain text: `a whole number, at least 1`."""
    required: bool
    default: Any
    allowed: tuple[Any, ...] = ()
    """The allowed values, where they are few."""
    nullable: bool = False
    """Whether a section may be null."""
    alone: str | None = None
    """The key of a section that may be written alone: `dedup: near` means `dedup: {method: near}`."""

    @property
    def takes_text(self) -> bool:
        """Whether any text may be its value, and nothing but text or null."""
        kinds = set(self.type.split(", or ")) - {"null"}
        return self.kind == "value" and bool(kinds) and all(k in ("text", "a path") for k in kinds)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def section(self) -> str:
        """The path of the section around it."""
        return self.path.rpartition(".")[0]


def general(path: str) -> str:
    """The general form of a key: indices become N."""
    return ".".join("N" if part.isdecimal() else part for part in path.split("."))


@cache
def all_keys() -> dict[str, Key]:
    """Every key by its path in the general form, sections before what they hold."""
    schema = Settings.model_json_schema()
    return {key.path: key for key in _walk(schema, "", schema["$defs"], required=True)}


def find(path: str) -> Key | None:
    """The key at a path; for a path inside a free mapping such as engine.deepspeed, that mapping."""
    key = all_keys().get(general(path))
    if key is None and path:
        around = find(path.rpartition(".")[0])
        return around if around is not None and around.kind == "mapping" else None
    return key


def nearest_known(path: str) -> Key:
    """The key at a path, or the innermost one around it."""
    while (key := find(path)) is None:
        path = path.rpartition(".")[0]
    return key


def keys_of(section: str) -> list[Key]:
    """The keys directly in a section."""
    return [key for key in all_keys().values() if key.path and key.section == general(section)]


def _walk(schema: dict[str, Any], path: str, definitions: dict[str, Any], *, required: bool) -> Iterator[Key]:
    default, nullable = schema.get("default"), {"type": "null"} in schema.get("anyOf", ())
    schema = next((choice for choice in schema.get("anyOf", ()) if "$ref" in choice), schema)  # a section or null
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    meaning = schema.get("description", "").replace("\n", " ")

    if "properties" in schema:
        yield Key(
            path, "section", meaning, "a section", required, default, nullable=nullable, alone=schema.get("x-alone")
        )
        for name, inner in schema["properties"].items():
            inner_path = f"{path}.{name}" if path else name
            yield from _walk(inner, inner_path, definitions, required=name in schema.get("required", ()))
    elif "$ref" in schema.get("items", {}):
        at_least = f", at least {schema['minItems']}" if "minItems" in schema else ""
        yield Key(path, "list of sections", meaning, f"a list of sections{at_least}", required, default)
        yield from _walk(schema["items"], f"{path}.N", definitions, required=False)
    elif schema.get("type") == "object":
        yield Key(path, "mapping", meaning, _as_text(schema), required, default)
    else:
        yield Key(path, "value", meaning, _as_text(schema), required, default, tuple(schema.get("enum", ())))


def _as_text(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return ", or ".join(_as_text(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        *most, last = [str(value) for value in schema["enum"]]
        return f"{', '.join(most)} or {last}"
    if "const" in schema:
        return str(schema["const"])
    match schema["type"]:
        case "integer":
            least = schema["exclusiveMinimum"] + 1 if "exclusiveMinimum" in schema else schema["minimum"]
            at_most = f" and at most {schema['maximum']}" if schema.get("maximum", LARGEST) != LARGEST else ""
            return f"a whole number, at least {least}{at_most}"
        case "number":
            return "a number" + _range_as_text(schema)
        case "string" if "pattern" in schema:
            return f"text that matches {schema['pattern']}"
        case "string":
            return "a path" if schema.get("format") == "path" else "text"
        case "array" if "items" in schema:
            at_least = f", at least {schema['minItems']}" if "minItems" in schema else ""
            return f"a list{at_least}, each {_as_text(schema['items'])}"
        case "array":
            return f"a list of {len(schema['prefixItems'])}, each {_as_text(schema['prefixItems'][0])}"
        case plain:
            if isinstance(schema.get("additionalProperties"), dict):
                return f"a mapping of names, each to {_as_text(schema['additionalProperties'])}"
            return {"boolean": "true or false", "null": "null", "object": "a mapping"}[plain]


def _range_as_text(schema: dict[str, Any]) -> str:
    bounds = []
    for name, words in (
        ("exclusiveMinimum", "above"),
        ("minimum", "at least"),
        ("exclusiveMaximum", "below"),
        ("maximum", "at most"),
    ):
        if name in schema:
            bounds.append(f"{words} {schema[name]:g}")
    return " " + " and ".join(bounds) if bounds else ""

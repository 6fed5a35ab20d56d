"""What a key means, from the docstrings of the settings: as text, as JSON, and as a JSON schema."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from bigtrain.config.keys import Key, find, keys_of
from bigtrain.config.mathematics import kind_of
from bigtrain.config.settings import Settings
from bigtrain.config.suggest import unknown_key
from bigtrain.config.yaml12 import to_yaml_line

ON_RESUME = {
    "mathematics": "must stay the same",
    "plan": "may change what is not trained on yet",
    "operation": "may change",
}


@dataclass(frozen=True)
class Explanation:
    """One key, or a section with the keys in it."""

    key: Key
    keys: list[Key]
    """The keys directly in a section; empty for a value."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        described: dict[str, Any] = {
            "key": self.key.path,
            "meaning": self.key.meaning,
            "type": self.key.type,
            "required": self.key.required,
        }
        if self.keys:
            return described | {"keys": [Explanation(key, keys_of(key.path)).as_dict() for key in self.keys]}
        described |= {"default": self.key.default, "on_resume": ON_RESUME[kind_of(self.key.path)]}
        return described | ({"allowed": list(self.key.allowed)} if self.key.allowed else {})

    def __str__(self) -> str:
        head = f"{self.key.path or 'the settings'}\n{_wrapped(self.key.meaning)}\n"
        if not self.keys:
            resume = ON_RESUME[kind_of(self.key.path)]
            facts = (("type", self.key.type), ("default", default_text(self.key)), ("on resume", resume))
            return "\n".join([head, *(f"  {label + ':':11}{fact}" for label, fact in facts)])
        width = max(len(key.name) for key in self.keys)
        lines = [
            f"  {key.name:{width}}  {f'{key.type}  ({default_text(key)})' if key.kind == 'value' else key.meaning}"
            for key in self.keys
        ]
        example = self.keys[0].path
        return "\n".join([head, *lines, f"\nOne of them: bigtrain config explain {example}"])


def explain(path: str = "") -> Explanation:
    """Explain a key, such as engine.zero_stage. A section lists its keys, and an empty path lists the sections.

    Raises:
        BigtrainError: there is no such key. The error names the nearest one.
    """
    key = find(path)
    if key is None:
        raise unknown_key(path)
    if key.kind == "list of sections":
        return Explanation(key, keys_of(f"{key.path}.N"))
    return Explanation(key, keys_of(key.path))


def schema() -> dict[str, Any]:
    """The JSON schema of a configuration, which lets an editor check and complete it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}


def default_text(key: Key) -> str:
    """The default as it is typed in YAML, or `required`."""
    if key.required:
        return "required"
    return to_yaml_line(key.default)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, width=100, initial_indent="  ", subsequent_indent="  ")

"""Reads and writes YAML 1.2: `1e-4` is a number, `no` is text, a date is text.

PyYAML follows YAML 1.1, in which those three are text, false and a date. The rules for reading are the core schema of
YAML 1.2 (section 10.3.2), plus underscores in numbers (20_000_000). Text that either version would read as another type
is written in quotes, so that every tool reads it back as text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
MAPPING, SEQUENCE = _TAG + "map", _TAG + "seq"

_PLAIN = {
    _TAG + "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    _TAG + "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    _TAG + "int": (r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    _TAG + "float": (
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


LONGEST_INT = 100
"""Characters, underscores and leading zeros included."""


def _float(text: str) -> float:
    return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))


def _int(text: str) -> int:
    if len(text) > LONGEST_INT:
        raise ValueError(f"a whole number has at most {LONGEST_INT} characters")
    return int(text.replace("_", ""))


_CONSTRUCT: dict[str, Callable[[str], Any]] = {
    _TAG + "null": lambda text: None,
    _TAG + "bool": lambda text: text.lower() == "true",
    _TAG + "int": _int,
    _TAG + "float": _float,
    _TAG + "str": str,
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own attribute: none of YAML 1.1's rules


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # list items are indented one level deeper than their key

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, (_pattern, _first) in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)


def _short_list_in_one_line(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    flow = not any(isinstance(value, list | dict) for value in values)
    return dumper.represent_sequence(SEQUENCE, values, flow_style=flow)


_Dumper.add_representer(list, _short_list_in_one_line)


def compose(text: bytes | str) -> yaml.Node | None:
    """The tree of nodes of one YAML document, each with its line; None if there is nothing in it.

    Raises:
        yaml.YAMLError: this is not one YAML document.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def is_plain_scalar(text: str) -> bool:
    """Whether YAML reads the text, apart from blanks around it, as one scalar without quotes and nothing else."""
    try:
        node = compose(text)
    except yaml.YAMLError:
        return False
    if node is None:
        return not text.strip()
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value == text.strip()


def lost_in_yaml(text: str) -> str | None:
    """What YAML would not keep of a text: a comment, an anchor, an alias; None where it keeps all or cannot read it."""
    position = 0
    try:
        for token in yaml.scan(text, Loader=_Loader):
            if isinstance(token, yaml.AnchorToken | yaml.AliasToken):
                return f"the {'anchor &' if isinstance(token, yaml.AnchorToken) else 'alias *'}{token.value}"
            if "#" in text[position : token.start_mark.index]:
                return "a comment"
            position = token.end_mark.index
    except yaml.YAMLError:
        return None
    return None


def scalar(node: yaml.ScalarNode) -> bool | int | float | str | None:
    """The value of a node that is neither mapping nor list.

    Raises:
        ValueError: the node has a tag that cannot be read.
    """
    if node.tag not in _CONSTRUCT:
        raise ValueError(f"the tag {node.tag!r} is not read")
    value: bool | int | float | str | None = _CONSTRUCT[node.tag](node.value)
    return value


def to_yaml(value: Any) -> str:
    """A tree of JSON types as YAML, in its own order of keys."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def to_yaml_line(value: Any) -> str:
    """A value of JSON types as it would be typed after `key: `, in one line."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf, default_flow_style=True
    )
    return text.removesuffix("\n").removesuffix("\n...")

"""A YAML file as a plain tree that knows the line of each value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bigtrain.base import BigtrainError, read_regular
from bigtrain.config.yaml12 import MAPPING, SEQUENCE, compose, is_plain_scalar, lost_in_yaml, scalar

LONGEST = 16 << 20
"""Bytes of a configuration. A list of a million documents to skip is longer, and belongs in a pattern."""
MOST_VALUES = 300_000

Address = tuple[str | int, ...]
"""The path from the root to a value: ("data", "sources", 0, "weight")."""


def dotted(address: Address) -> str:
    """The address as it is typed: data.sources.0.weight."""
    return ".".join(str(part) for part in address)


@dataclass(frozen=True, order=True)
class SourceLocation:
    """Where a value was given. Locations in the file are sorted by line; overrides come after them, in their order."""

    is_override: bool
    position: int
    text: str
    """`file:line`, or the override."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where."""

    place: SourceLocation
    error: BigtrainError


@dataclass
class YamlDocument:
    """The tree of values of a file, where each was given, and what is wrong with the file itself."""

    file: str
    tree: dict[str, Any]
    places: dict[Address, SourceLocation]
    problems: list[Problem] = field(default_factory=list)

    def place(self, address: Address) -> SourceLocation:
        """Where the value at this address was given, or else the innermost section around it."""
        while address not in self.places:
            address = address[:-1]
        return self.places[address]

    def holds(self, address: Address) -> bool:
        """Whether there is a value at this address."""
        try:
            self.value(address)
        except (KeyError, IndexError, TypeError):
            return False
        return True

    def value(self, address: Address) -> Any:
        """The value at an address that is in the tree."""
        value: Any = self.tree
        for part in address:
            value = value[part]
        return value


def read_document(path: Path) -> YamlDocument:
    """Read a YAML file whose top level is a mapping. Keys that are given twice become problems of the document.

    Raises:
        BigtrainError: the file is missing, unreadable, empty, not YAML or not a mapping.
    """
    text = _read(path)
    try:
        root = compose(text)
    except yaml.YAMLError as error:
        raise _not_yaml(error, str(path), text) from None
    except RecursionError:
        raise _too_deep(path) from None
    if root is None or (isinstance(root, yaml.ScalarNode) and not root.value):
        raise BigtrainError(
            f"the configuration {path} is empty",
            wanted="at least run_dir and the sections model, data and train",
            fix="start from a copy of configs/quickstart.yaml",
        )
    if not isinstance(root, yaml.MappingNode):
        raise BigtrainError(
            f"{path}:{root.start_mark.line + 1}: the configuration is not a mapping",
            found="a list" if isinstance(root, yaml.SequenceNode) else "a single value",
            wanted="`key: value` lines at the top level",
            fix="start from a copy of configs/quickstart.yaml",
        )
    reader = _Reader(str(path))
    try:
        tree = reader.read(root, ())
    except RecursionError:
        raise _too_deep(path) from None
    return YamlDocument(str(path), tree, reader.places, reader.problems)


def _read(path: Path) -> bytes:
    fix = "give the path of a configuration, for example configs/quickstart.yaml"
    try:
        if str(path).startswith(("/dev/fd/", "/proc/self/fd/")):  # a shell's <(command)
            return path.read_bytes()
        return read_regular(path, LONGEST)
    except (FileNotFoundError, BigtrainError) as error:
        found = error.strerror if isinstance(error, OSError) else error.found
        wanted = "a YAML file" if isinstance(error, OSError) else error.wanted
        raise BigtrainError(f"cannot read the configuration {path}", found=found, wanted=wanted, fix=fix) from None


def _too_deep(where: object) -> BigtrainError:
    return BigtrainError(
        f"{where} is nested too deeply",
        found="hundreds of sections or lists inside each other",
        wanted="sections as `bigtrain config explain` shows them",
        fix="remove the inner ones",
    )


def parse_value(text: str, *, is_text: bool = False) -> Any:
    """The value of an override, read by the same rules as a file; but nothing of it is lost in them.

    In YAML ` #` starts a comment, and `&x`, `*x` and `!x` are an anchor, an alias and a tag. Text is what was typed
    all the same: `run_dir=runs/exp #2` is the folder `exp #2`.

    Args:
        text: as it was typed.
        is_text: whether the key takes text. Text in quotes is without them, and a list, a mapping, a number, true,
            false and null are what they are in YAML.

    Raises:
        BigtrainError: the text is not YAML, or YAML would leave a part of it out.
    """
    if is_text and text[:1] not in ("[", "{", '"', "'") and not is_plain_scalar(text):
        return text
    if lost := lost_in_yaml(text):
        raise BigtrainError(
            f"YAML would not read the value as it was typed: it has {lost}",
            found=text,
            wanted="a YAML value alone",
            fix="write the text in quotes, or leave that part out",
        )
    reader = _Reader(None)
    try:
        node = compose(text)
        value = None if node is None else reader.read(node, ())
    except yaml.YAMLError as error:
        raise BigtrainError(
            "the value is not YAML", found=text, wanted="a YAML value", fix=getattr(error, "problem", None)
        ) from None
    except RecursionError:
        raise _too_deep("the value") from None
    if reader.problems:
        raise reader.problems[0].error
    return value


class _Reader:
    def __init__(self, file: str | None) -> None:
        self.file = file
        self.places: dict[Address, SourceLocation] = {}
        self.problems: list[Problem] = []
        self._open: list[yaml.Node] = []
        self._count = 0

    def read(self, node: yaml.Node, address: Address) -> Any:
        self.places.setdefault(address, self._place(node))
        if node in self._open:
            raise self._refused(node, f"{dotted(address) or 'the value'} is an alias that holds itself")
        self._count += 1
        if self._count > MOST_VALUES:  # aliases of aliases multiply
            raise self._refused(node, f"there are more than {MOST_VALUES:,} values, with those that aliases repeat")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == MAPPING:
                return self._mapping(node, address)
            if isinstance(node, yaml.SequenceNode) and node.tag == SEQUENCE:
                return [self.read(item, (*address, index)) for index, item in enumerate(node.value)]
            if isinstance(node, yaml.ScalarNode):
                return scalar(node)
            raise ValueError(f"the tag {node.tag!r} is not read")
        except ValueError as error:
            raise self._refused(node, f"{dotted(address) or 'the value'} cannot be read: {error}") from None
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, address: Address) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._refused(key, "a key must be a plain word")
            inner = (*address, key.value)
            if key.value in values:
                self.problems.append(
                    Problem(
                        self._place(key),
                        BigtrainError(
                            self._at(key, f"{dotted(inner)} is given twice"),
                            found=f"the first one in {self.places[inner].text}",
                            wanted="each key once",
                            fix="remove one of the two",
                        ),
                    )
                )
                continue
            self.places[inner] = self._place(key)
            values[key.value] = self.read(value, inner)
        return values

    def _place(self, node: yaml.Node) -> SourceLocation:
        line = node.start_mark.line + 1
        return SourceLocation(False, line, f"{self.file}:{line}" if self.file else "the command line")

    def _at(self, node: yaml.Node, what: str) -> str:
        return f"{self._place(node).text}: {what}" if self.file else what

    def _refused(self, node: yaml.Node, what: str) -> BigtrainError:
        return BigtrainError(
            self._at(node, what),
            wanted="plain YAML: mappings, lists, text, numbers, true, false, null",
            fix="write the value out",
        )


def _not_yaml(error: yaml.YAMLError, file: str, text: bytes) -> BigtrainError:
    mark = getattr(error, "problem_mark", None)
    if mark is None:  # the bytes are not text
        return BigtrainError(f"{file} is not text in UTF-8", found=str(error).splitlines()[0], wanted="a YAML file")
    lines = text.decode("utf-8", "replace").splitlines()
    found = lines[mark.line].rstrip() if mark.line < len(lines) else "the end of the file"
    tab = "\t" in found[: mark.column + 1]
    return BigtrainError(
        f"{file}:{mark.line + 1}: this is not YAML: {getattr(error, 'problem', None) or error}",
        found=found.expandtabs(4),
        wanted="`key: value` lines, indented with spaces",
        fix="replace the tab by spaces" if tab else f"look at column {mark.column + 1} of this line and the line above",
    )

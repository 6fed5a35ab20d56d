"""`key=value` on the command line, for any key; list items by index (data.sources.0.weight=0.3)."""

from __future__ import annotations

from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.config.document import Address, Problem, SourceLocation, YamlDocument, dotted, parse_value
from bigtrain.config.keys import find
from bigtrain.config.suggest import unknown_key


def apply_overrides(document: YamlDocument, overrides: list[str]) -> None:
    """Set each override in the document; the last one wins. One that cannot be set becomes a problem of the
    document."""
    for position, override in enumerate(overrides):
        place = SourceLocation(True, position, f"override {override}")
        try:
            key, value = _parse(override)
            _put(document, key, value, place)
        except BigtrainError as error:
            named = BigtrainError(f"{place.text}: {error.what}", found=error.found, wanted=error.wanted, fix=error.fix)
            document.problems.append(Problem(place, named))


def _parse(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise BigtrainError(
            "this is not key=value", found=override, wanted="key=value, such as train.steps=20", fix="write key=value"
        )
    known = find(key)
    return key, parse_value(text, is_text=known is not None and known.takes_text)


def _put(document: YamlDocument, path: str, value: Any, place: SourceLocation) -> None:
    key = find(path)
    if key is not None and key.alone is not None and isinstance(value, str):
        path = f"{path}.{key.alone}"
    elif key is not None and key.kind == "section" and not (value is None and key.nullable):
        raise BigtrainError(
            f"{path} is a section",
            wanted="one key of it",
            fix=f"name the key: {path}.KEY=VALUE; see: bigtrain config explain {path}",
        )
    *parents, last = path.split(".")
    holder: Any = document.tree
    address: Address = ()
    for part in parents:
        step = _step(holder, address, part, document)
        address = (*address, step)
        if isinstance(holder, dict) and holder.get(part) is None:
            holder[part] = _new_section(address)
            document.places.setdefault(address, place)
        _write_out(holder, address, document)
        holder = holder[step]
    step = _step(holder, address, last, document)
    holder[step] = value
    address = (*address, step)
    for inside in [known for known in document.places if known[: len(address)] == address]:
        del document.places[inside]
    document.places[address] = place


def _write_out(holder: Any, address: Address, document: YamlDocument) -> None:
    """Make `dedup: near` the section `dedup: {method: near}`, so that its other keys can be set."""
    key, step = find(dotted(address)), address[-1]
    if key is not None and key.alone is not None and isinstance(holder[step], str):
        holder[step] = {key.alone: holder[step]}
        document.places[*address, key.alone] = document.place(address)


def _new_section(address: Address) -> dict[str, Any]:
    key = find(dotted(address))
    if key is None or key.kind not in ("section", "mapping"):
        raise BigtrainError(
            f"{dotted(address)} is not given in the file, so it has no items to change",
            wanted="the whole list",
            fix=f"write {dotted(address)}=[..., ...]",
        )
    return {}


def _step(holder: Any, address: Address, part: str, document: YamlDocument) -> str | int:
    """The key or index to take inside `holder`, which is at `address`."""
    if isinstance(holder, list):
        if not part.isdecimal() or int(part) >= len(holder):
            raise BigtrainError(
                f"{dotted(address)} has {len(holder)} items, and none is called {part}",
                found=part,
                wanted=f"an index from 0 to {len(holder) - 1}" if holder else "an item to change",
                fix="count from 0",
            )
        return int(part)
    if not isinstance(holder, dict):
        raise BigtrainError(
            f"{dotted(address)} is not a section in {document.file}",
            found=holder,
            wanted="a mapping",
            fix=f"correct {document.place(address).text}",
        )
    inner = dotted((*address, part))
    if find(inner) is None:
        raise unknown_key(inner)
    return part

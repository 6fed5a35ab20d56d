"""Turns the errors of pydantic into messages with file, line, found and wanted value, and a fix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bigtrain.base import BigtrainError
from bigtrain.config.document import Address, Problem, YamlDocument, dotted
from bigtrain.config.keys import Key, find, general
from bigtrain.config.suggest import unknown_key


def problems_of(error: ValidationError, document: YamlDocument) -> list[Problem]:
    """One problem for each thing that pydantic refused."""
    unknown, others = [], []
    for details in error.errors(include_url=False, include_input=False):
        if details["type"] == "extra_forbidden":
            place = document.place(details["loc"])
            unknown.append(Problem(place, unknown_key(dotted(details["loc"]), place.text)))
        else:
            others.append(details)
    misspelt = {problem.error.wanted for problem in unknown}  # a misspelt key is not reported as missing too
    return unknown + [
        _problem(details, document)
        for details in others
        if details["type"] != "missing" or dotted(details["loc"]) not in misspelt
    ]


def raise_all(problems: Sequence[Problem], file: str) -> None:
    """Raise all problems as one error, in the order of the file; do nothing if there is none.

    Raises:
        BigtrainError: there is a problem.
    """
    ordered = [problem.error for problem in sorted(problems, key=lambda problem: problem.place)]
    if len(ordered) == 1:
        raise ordered[0]
    if ordered:
        raise BigtrainError("\n\n".join([f"{len(ordered)} things are wrong with {file}", *map(str, ordered)]))


def _problem(details: ErrorDetails, document: YamlDocument) -> Problem:
    address: Address = details["loc"]
    if details["type"] == "value_error":
        return _broken_rule(str(details["ctx"]["error"]), address, document)
    key = find(dotted(address))
    if details["type"] == "missing" and key is not None:
        return _missing(key, address, document)
    while key is None:  # an item of a list such as optimizer.betas
        address = address[:-1]
        key = find(dotted(address))
    return _wrong_value(key, address, document)


def _missing(key: Key, address: Address, document: YamlDocument) -> Problem:
    place, section = document.place(address), dotted(address[:-1])
    return Problem(
        place,
        BigtrainError(
            f"{place.text}: {dotted(address)} is missing",
            wanted=f"{key.type}: {key.meaning}",
            fix=f"add `{key.name}:` to {f'section {section}' if section else 'the top level'}",
        ),
    )


def _wrong_value(key: Key, address: Address, document: YamlDocument) -> Problem:
    if not document.holds(address):  # `dedup: exat` stands for `dedup: {method: exat}`
        address = address[:-1]
    place, value, name = document.place(address), document.value(address), dotted(address)

    def write(text: str) -> str:
        if not place.is_override:
            return f"write {name.rpartition('.')[2]}: {text}"
        return f"write '{name}={text}'" if '"' in text else f"write {name}={text}"

    match value:
        case None if not key.required:
            fix = "leave it out to take the default" + (f", {_shown(key.default)}" if key.default is not None else "")
        case str() if close := _closest(value, key.allowed):
            fix = write(close)
        case str() if "number" in key.type and re.fullmatch(r"[-+]?[0-9_.]+(?:[eE][-+]?[0-9]+)?", value):
            fix = write(value) + ", without quotes"
        case str() if key.type == "true or false" and value.lower() in ("yes", "on", "no", "off"):
            fix = write("true" if value.lower() in ("yes", "on") else "false")
        case float() if "whole number" in key.type and value.is_integer():
            fix = write(f"{int(value):_}")
        case bool() | int() | float() if key.type.startswith(("text", "a path")):
            fix = write(f'"{_shown(value)}"')
        case _:
            fix = f"change it; see: bigtrain config explain {name}"
    return Problem(
        place,
        BigtrainError(
            f"{place.text}: {name} cannot be {_shown(value)}",
            found=_shown(value) if value is None else f"{_shown(value)}, {_kind(value)}",
            wanted=key.type,
            fix=fix,
        ),
    )


def _closest(value: str, allowed: Sequence[Any]) -> str | None:
    from difflib import get_close_matches

    close = get_close_matches(value.lower(), [str(choice) for choice in allowed], n=1)
    return close[0] if close else None


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return repr(value)
        case dict():
            return "{" + ", ".join(f"{key}: ..." for key in value) + "}"
        case _:
            return str(value)


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "a boolean"
        case int():
            return "a whole number"
        case float():
            return "a number"
        case str():
            return "text"
        case list():
            return f"a list of {len(value)}"
        case _:
            return "a mapping"


def _broken_rule(message: str, address: Address, document: YamlDocument) -> Problem:
    """The problem of a rule between several keys. The message names them; this adds where each was given."""
    place = document.place(address)
    section = dotted(address)
    given, edits = [], []
    names = re.sub(r"'[^']*'", "", message)  # quoted text is a value, even if it looks like a key
    for word in dict.fromkeys(re.findall(r"[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*", names)):
        named = tuple(int(part) if part.isdecimal() else part for part in word.split("."))
        inner = (*address, *named)
        if find(dotted(inner)) is None:
            inner = named
        key = find(dotted(inner))
        if key is None or key.kind == "section" or key.path != general(dotted(inner)):  # a free name in a mapping
            continue
        if document.holds(inner):
            given.append(document.place(inner))
            edits.append(f"{dotted(inner)} ({given[-1].text})")
        else:
            default = "" if key.default is None else f", so {_shown(key.default)}"
            edits.append(f"{dotted(inner)} (not given{default})")
    if not address and given:  # a rule between sections has no line of its own
        place = max(given)
    return Problem(
        place,
        BigtrainError(
            f"{place.text}: {f'{section}: ' if section else ''}{message}",
            fix="change " + " or ".join(edits) if edits else f"see: bigtrain config explain {section}",
        ),
    )

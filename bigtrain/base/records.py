"""Reads JSON that another person or a later version may have written: bounded, from regular files, typed.

Whatever stands in such a file, its reader gets a value of the expected type or one BigtrainError.
"""

from __future__ import annotations

import json
import os
import stat
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from bigtrain.base.errors import BigtrainError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import ConfigDict, TypeAdapter

RECORD_BYTES = 64 << 20
"""A JSON file that is read whole is not longer, unless its reader says so: parsed it takes about ten times as much."""

STRICT: ConfigDict = {"strict": True, "extra": "forbid"}
"""For `__pydantic_config__` of a dataclass that `as_record` makes; dataclasses in its fields need their own."""

Record = TypeVar("Record")


def read_regular(path: Path, limit: int = RECORD_BYTES) -> bytes:
    """Read a file whole, if it is a regular file of a bounded size.

    Args:
        path: the file. A symbolic link to a regular file is one.
        limit: the most bytes that it may have.

    Raises:
        FileNotFoundError: there is no such file, which many callers expect.
        BigtrainError: it is a folder, a pipe or a device, or too long, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would block
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise _unreadable(path, "a folder, a pipe or a device", "a regular file")
            content = file.read(min(limit, about.st_size) + 1)  # a buffer of this size is made first
            while len(content) <= limit and (more := file.read(1 << 20)):  # it grew, or is in /proc
                content += more
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise _unreadable(path, getattr(error, "strerror", None) or str(error), "a file that can be read") from error
    if len(content) > limit:
        raise _unreadable(path, f"{max(about.st_size, len(content))} bytes", f"at most {limit} bytes")
    return content


def parse_json(text: str | bytes, where: object) -> Any:
    """Parse JSON text.

    Args:
        text: the text. Bytes are UTF-8.
        where: the file or service that it came from, for the message.

    Raises:
        BigtrainError: it is no JSON, no UTF-8, has a number of thousands of digits, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        found = "JSON that is nested too deeply" if isinstance(error, RecursionError) else str(error)[:300]
        raise _unreadable(where, found, "JSON") from error


def read_json(path: Path, limit: int = RECORD_BYTES) -> Any:
    """Read and parse a JSON file. Raises what `read_regular` and `parse_json` raise."""
    return parse_json(read_regular(path, limit), path)


def as_record(kind: type[Record], value: Any, where: object) -> Record:
    """Make a dataclass, a TypedDict or another annotated type of a parsed JSON value.

    Annotated bounds, such as `Annotated[int, Field(ge=0)]`, are checked.

    Args:
        kind: the type. A dataclass that has `__pydantic_config__ = STRICT` converts nothing but an integer to a float:
            text stays text, `1.5` or `true` is no integer, and a key that it does not have is an error.
        value: what was parsed.
        where: the file that it came from, for the message.

    Raises:
        BigtrainError: the value is not of this type; it names the first field that is wrong.
    """
    # By JSON's rules, in which an object makes a strict dataclass.
    return _validated(kind, lambda adapter: adapter.validate_json(json.dumps(value)), where)


def as_entry(kind: type[Record], value: Any, where: object) -> Record:
    """Check one of very many parsed JSON values against a TypedDict, which it is then.

    Args:
        kind: a TypedDict that has `__pydantic_config__ = STRICT`. Dataclasses in it are not made: see `as_record`.
        value: what was parsed.
        where: the file that it came from, for the message.

    Raises:
        BigtrainError: the value is not of this type; it names the first field that is wrong.
    """
    return _validated(kind, lambda adapter: adapter.validate_python(value), where)


def _validated(kind: type[Record], validate: Callable[[TypeAdapter[Any]], Any], where: object) -> Record:
    from pydantic import ValidationError  # takes a tenth of a second, which the launcher does not need

    try:
        record: Record = validate(_adapter(cast("Any", kind)))
        return record
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise _unreadable(where, f"{field or 'value'}: {_short(first['input'])}", first["msg"]) from error
    except RecursionError as error:
        raise _unreadable(where, "JSON that is nested too deeply", kind.__name__) from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _short(value: object) -> str:
    return repr(value)[:100]


def _unreadable(where: object, found: str, wanted: str) -> BigtrainError:
    return BigtrainError(
        f"{where} cannot be read",
        found=found,
        wanted=wanted,
        fix="restore it from where it came from, or use the version of bigtrain that wrote it",
    )

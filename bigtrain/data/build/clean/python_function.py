"""A rule of the user's own: a function that keeps, rewrites or removes a text.

The hash of the file of its module is part of what a source was built with; so is not what that module imports. The
function is called in worker processes, for any document in any of them: its result must follow from the text alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.config import PythonSettings
from bigtrain.data.build.clean.model_files import require_content
from bigtrain.data.build.clean.text import Rejection, Text

RULE = "python"
LONGEST_REASON = 80
"""Characters of a reason, which is a row of the funnel: what differs from text to text does not belong there."""


class FunctionFailedError(BigtrainError):
    """A function of the user's own failed, or returned something else; whatever calls it names the document."""


def python(text: Text, limits: PythonSettings) -> Text | Rejection:
    """Ask the function. Raises FunctionFailedError if it fails."""
    assert limits.hash is not None
    function = _opened(limits.function, limits.hash)
    try:
        result = function(text.text)
    except Exception as error:  # of a stranger's code: any
        raise FunctionFailedError(
            f"the rule python: {limits.function} failed",
            found=f"{type(error).__name__}: {error}"[:300],
            wanted="a text, or None",
            fix="correct the function, or let it return None for such a text",
        ) from error
    if isinstance(result, str) and _is_unicode(result):
        return Text(result)
    if result is None:
        return Rejection(RULE, limits.function)
    match result:
        case (None, str(reason)) if 0 < len(reason) <= LONGEST_REASON and reason.isprintable():
            return Rejection(RULE, f"{limits.function}: {reason}")
    raise FunctionFailedError(
        f"the rule python: {limits.function} returned something else than a text",
        found=f"{type(result).__name__}: {result!r}"[:200],
        wanted=f'a text in valid Unicode, None, or (None, "reason") with at most {LONGEST_REASON} characters',
        fix="correct what the function returns",
    )


def pin_python(limits: PythonSettings) -> PythonSettings:
    """The settings with the hash of the module's file.

    Raises:
        BigtrainError: the function cannot be imported, or its module has another content than the settings say.
    """
    file = _file_of(_imported(limits.function)[0], limits.function)
    return limits.model_copy(update={"hash": require_content(file, limits.hash, RULE)})


@lru_cache(maxsize=8)
def _opened(name: str, content: str) -> Callable[[str], Any]:
    module, function = _imported(name)
    require_content(_file_of(module, name), content, RULE)
    return function


def _imported(name: str) -> tuple[Any, Callable[[str], Any]]:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` has it; last, so that nothing there hides another module
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise BigtrainError(
            f"data.sources: the rule python cannot import {module_name}",
            found=f"{type(error).__name__}: {error}"[:300],
            wanted="a module that each process of the build can import",
            fix="set PYTHONPATH to the folder that holds it, or start the build in that folder",
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise BigtrainError(
            f"data.sources: the rule python finds no function {attribute} in {module_name}",
            found=type(function).__name__ if hasattr(module, attribute) else "nothing of this name",
            wanted="a function that takes a text",
            fix="correct function: package.module:function",
        )
    return module, function


def _file_of(module: Any, name: str) -> Path:
    file = getattr(module, "__file__", None)
    if not file:
        raise BigtrainError(
            f"data.sources: the rule python cannot hash the module of {name}",
            found="a module without a file",
            wanted="a module in a file, whose content is recorded with the data",
            fix="put the function into a file of its own",
        )
    return Path(file)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""Names of a package's face that are imported when they are first asked for (PEP 562).

    if TYPE_CHECKING:                                  what type checkers see, and the only list of these names
        from package.module import Name
    else:
        __getattr__ = deferred(__name__, __file__)     imports Name from package.module at its first use

So a face can export what needs PyTorch beside what does not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def deferred(module: str, file: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module, for the names that it imports under `if TYPE_CHECKING:`.

    Args:
        module: its name.
        file: its source.

    Returns:
        A function that raises AttributeError for any other name.
    """

    def get(name: str) -> Any:
        home = _homes(file).get(name)
        if home is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = getattr(import_module(home), name)
        setattr(sys.modules[module], name, value)  # the next use does not come here
        return value

    return get


@cache
def _homes(file: str) -> Mapping[str, str]:
    """The module of each name that a source imports for type checkers."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    checked = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for each in checked for node in each.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports for alias in node.names if node.module}

"""A user that this machine does not know, as containers have it: a uid without a name, and without a home directory.

Libraries take a home for granted: without one they fail, or write into a folder named `~`. So such a process gets a
name, and an empty temporary home, which is removed when it ends. Processes that it starts use the same one.
"""

from __future__ import annotations

import getpass
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = "BIGTRAIN_TEMPORARY_HOME"
"""Environment variable: the home that was made for this process, or for the one that started it."""


@contextmanager
def known_user() -> Iterator[None]:
    """Give this process a user's name and a home for the block, where it has none. Raises OSError."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid-{os.getuid()}"
    if has_home() or os.environ.get(_TEMPORARY):
        yield
        return
    made = tempfile.mkdtemp(prefix="bigtrain-home-")
    os.environ["HOME"] = os.environ[_TEMPORARY] = made
    try:
        yield
    finally:
        shutil.rmtree(made, ignore_errors=True)


def has_home() -> bool:
    """Whether the user has a home directory that is not a temporary one."""
    try:
        return str(Path.home()) != os.environ.get(_TEMPORARY)
    except RuntimeError:
        return False

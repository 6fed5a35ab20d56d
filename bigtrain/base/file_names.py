"""Names of files that were read from a manifest, an index or a listing, which may come from a stranger."""

from __future__ import annotations

import re

from bigtrain.base.errors import BigtrainError

_BARE = re.compile(r"(?!\.{1,2}\Z)[^/\\\0\ud800-\udfff]+")
"""Half of a surrogate pair, which JSON can hold, is in no file name."""


def bare_name(name: object, where: object) -> str:
    """Return a name as it is, if it can only be that of a file in a folder, and not a path.

    Args:
        name: as it was read.
        where: the manifest, index or listing that it was read from.

    Raises:
        BigtrainError: it is empty, `.` or `..`, no text, or holds `/`, a backslash or NUL.
    """
    if isinstance(name, str) and _BARE.fullmatch(name):
        return name
    raise BigtrainError(
        f"{where} has a path in place of the name of a file",
        found=repr(name)[:200],
        wanted="the bare name of a file in its own folder",
        fix="do not use these files; get them again from a source that you trust",
    )

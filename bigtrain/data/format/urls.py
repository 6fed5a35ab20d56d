"""URLs in what a build records."""

from __future__ import annotations


def without_query(path: str) -> str:
    """A web address without what follows `?`: a signature there is a secret, and another one names the same file.

    Any other path or URL stays as it is.
    """
    return path.partition("?")[0] if path.lower().startswith(("http://", "https://")) else path

"""URLs in what a build records."""

from __future__ import annotations

from bigtrain.config import with_bare_urls


def without_query(path: str) -> str:
    """A web address without what follows `?`: a signature there is a secret, and another one names the same file.

    Any other path or URL stays as it is.
    """
    return path.partition("?")[0] if path.lower().startswith(("http://", "https://")) else path


def recorded_path(path: str) -> str:
    """A path or URL as records keep it: without a signature, and with other secrets masked.

    So one that RUN/config.yaml keeps, masked, is recorded as the same.
    """
    return with_bare_urls(without_query(path))

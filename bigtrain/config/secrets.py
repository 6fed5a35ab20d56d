"""Keeps passwords and keys out of what a run writes: settings, logs, events, and data for W&B.

A setting may not hold a password (`passwords_in`). All text that a run writes goes through `without_secrets`, which
also removes secrets of the environment, because a library's message may quote one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

HIDDEN = "***"
SHORTEST = 16
"""Shorter values of environment variables are not searched for: they occur in other text by chance."""

_NAME = r"(?:password|passwd|secret|token|signature|credential|api_?key|access_?key|\bsig\b)"
_VARIABLE = re.compile(r"(?:^|_)(?:PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIALS?|KEY)(?:_ID)?$", re.IGNORECASE)
_PASSWORD = re.compile(r"""\b([a-z][a-z0-9+.-]*://[^/\s:@"']*):[^/\s@"']+@""", re.IGNORECASE)
_BARE_TOKEN = re.compile(r"""\b([a-z][a-z0-9+.-]*://)[A-Za-z0-9_.~+-]{20,}@""", re.IGNORECASE)
_PARAMETER = re.compile(rf"""([?&][^=&\s"']*{_NAME}[^=&\s"']*=)[^&\s"']+""", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """Hide the secrets in a text: passwords and tokens in URLs, and secrets of the environment.

    A JSON line stays valid, since no secret that is removed has a quotation mark.
    """
    text = with_bare_urls(text)
    for secret in _secrets(tuple(value for name, value in os.environ.items() if _is_secret(name))):
        text = text.replace(secret, HIDDEN)
    return text


def with_bare_urls(text: str) -> str:
    """Hide the passwords and tokens in the URLs of a text, before their hosts and in their parameters."""
    if "://" in text:
        text = _PASSWORD.sub(rf"\1:{HIDDEN}@", text)
        text = _BARE_TOKEN.sub(rf"\1{HIDDEN}@", text)
        text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    return text


def hide_secrets(tree: Any) -> Any:
    """`without_secrets` for every text in a tree of mappings and lists."""
    match tree:
        case str():
            return without_secrets(tree)
        case Mapping():
            return {key: hide_secrets(value) for key, value in tree.items()}
        case list() | tuple():
            return [hide_secrets(value) for value in tree]
    return tree


def passwords_in(tree: Any, key: str = "") -> Iterator[str]:
    """The keys, with dots, of the texts in a tree that are URLs with a password or a token before their host."""
    if isinstance(tree, str):
        if _PASSWORD.search(tree) or _BARE_TOKEN.search(tree):
            yield key
    elif isinstance(tree, Mapping | list | tuple):
        for name, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from passwords_in(value, f"{key}.{name}" if key else str(name))


@lru_cache(maxsize=256)
def _is_secret(variable: str) -> bool:
    return bool(_VARIABLE.search(variable))


@lru_cache(maxsize=8)
def _secrets(values: tuple[str, ...]) -> list[str]:
    """The secrets, longest first, so that no part of one is left. A path, such as that of a key file, is not a
    secret."""
    found = {value for value in values if len(value) >= SHORTEST and not re.search(r"""^[./~]|["\\\s]""", value)}
    return sorted(found, key=len, reverse=True)

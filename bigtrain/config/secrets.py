"""Keeps passwords and keys out of what a run writes: settings, logs, events, and data for W&B.

A setting may not hold a password (`passwords_in`). All text that a run writes goes through `without_secrets`, which
also removes secrets of the environment, because a library's message may quote one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from bigtrain.base import BigtrainError

HIDDEN = "***"
SHORTEST = 16
"""Shorter values of environment variables are not searched for: they occur in other text by chance."""
SHORTEST_PASSWORD = 8
"""The same for passwords, which people choose, if they are more than a word or a number."""

_NAME = (
    r"(?:password|passwd|passphrase|secret|token|signature|credential|api_?key|access_?key"
    r"|\b(?:sig|key|pwd|pass|pat|auth)\b)"
)
_PASSWORD_VARIABLE = re.compile(r"PASSWORD$|PASSWD$|(?:^|_)PASS$|^SSHPASS$|_PWD$|PASSPHRASE$", re.IGNORECASE)
_VARIABLE = re.compile(
    r"(?:SECRET|TOKEN|(?:^|_)(?:CREDENTIALS?|KEY|PAT|AUTH|AUTHORIZATION))(?:_ID)?$|" + _PASSWORD_VARIABLE.pattern,
    re.IGNORECASE,
)
_KNOWN_TOKEN = re.compile(
    r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|xox[abprs]-)[A-Za-z0-9_-]{16,}|\bsk-[A-Za-z0-9_-]*[A-Za-z0-9]{20,}"
)
_BEARER = re.compile(r"\b((?:Authorization[\"']?: *[\"']?[a-z]+|Bearer) +)[A-Za-z0-9._~+/=-]{16,}", re.IGNORECASE)
_PASSWORD = re.compile(r"""\b([a-z][a-z0-9+.-]*://[^/\s:@"']*):[^/\s"']+@""", re.IGNORECASE)
_BARE_TOKEN = re.compile(r"""\b([a-z][a-z0-9+.-]*://)[A-Za-z0-9_.~+-]{20,}@""", re.IGNORECASE)
_PARAMETER = re.compile(rf"""([?&#;][^=&\s"']*{_NAME}[^=&\s"']*=)[^&\s"']+""", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """Hide the secrets in a text: passwords and tokens in URLs, bearer tokens, and secrets of the environment.

    A JSON line stays valid, since no secret that is removed has a quotation mark.
    """
    text = with_bare_urls(text)
    text = _KNOWN_TOKEN.sub(HIDDEN, _BEARER.sub(rf"\1{HIDDEN}", text))
    for secret in _secrets(tuple((name, value) for name, value in os.environ.items() if _is_secret(name))):
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
def _secrets(variables: tuple[tuple[str, str], ...]) -> list[str]:
    """The secrets, longest first, so that no part of one is left. A path, such as that of a key file, is not a
    secret."""
    found = {value for name, value in variables if _is_long_enough(name, value) and not _is_no_secret(value)}
    return sorted(found, key=len, reverse=True)


def _is_long_enough(name: str, value: str) -> bool:
    if len(value) >= SHORTEST:
        return True
    return (
        len(value) >= SHORTEST_PASSWORD
        and not value.isalpha()
        and not re.fullmatch(r"[-+0-9.eE]+", value)
        and bool(_PASSWORD_VARIABLE.search(name))
    )


def _is_no_secret(value: str) -> bool:
    """Whether it is a path, or has a character that would make a JSON line invalid. AWS keys may begin with `/`."""
    if re.search(r"""^(?:\.{0,2}/|~)|["\\\s]""", value) is None:
        return False
    if not value.startswith("/") or re.search(r"""["\\\s]""", value):
        return True
    return Path("/", Path(value).parts[1]).exists() if len(Path(value).parts) > 1 else True


def is_masked(text: str) -> bool:
    """Whether a setting was written without its secrets, so that it names no place any more."""
    return HIDDEN in text


def refuse_masked(key: str, text: str) -> None:
    """Raise BigtrainError where a setting of RUN/config.yaml was written without its secrets."""
    if is_masked(text):
        raise BigtrainError(
            f"{key} was written without its secret, so this command cannot open it",
            found=text,
            wanted="the whole URL",
            fix=f"write the URL with its secret into {key} of RUN/config.yaml for this command",
        )

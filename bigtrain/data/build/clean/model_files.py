"""The files that rules read: a build holds each of them to one content, on every machine.

The process that starts a build hashes each file. The rules that it sends to its workers have the hash, and a worker
that finds another content refuses it. The hashes are recorded with the source, so other content means other data.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.data.format.hashing import file_digest


def content_of(path: Path, rule: str) -> str:
    """The hash of a rule's file. Raises BigtrainError if it cannot be read."""
    try:
        return file_digest(path)
    except OSError as error:
        raise BigtrainError(
            f"data.sources: the rule {rule} cannot read {path}",
            found=error.strerror or str(error),
            wanted="a file that this machine can read",
            fix=f"correct the path in the rule {rule}; a relative one starts at the current directory",
        ) from None


def require_content(path: Path, wanted: str | None, rule: str) -> str:
    """The hash of a rule's file. Raises BigtrainError if it is not the one that is wanted; None means any."""
    found = content_of(path, rule)
    if wanted not in (None, found):
        raise BigtrainError(
            f"data.sources: the rule {rule} finds another content in {path}",
            found=f"hash {found}",
            wanted=f"hash {wanted}",
            fix="put that file back, on each machine that builds; or correct hash in the rule",
        )
    return found


@lru_cache(maxsize=8)
def opened_fasttext(path: Path, content: str, rule: str) -> Any:
    """A model of fastText, loaded once in each process.

    Args:
        path: its file, which was checked when the build started.
        content: the hash that the file must have.
        rule: the rule that asks it, for messages.

    Raises:
        BigtrainError: the file has another content.
    """
    import fasttext

    require_content(path, content, rule)
    return fasttext.load_model(str(path))


def require_fasttext(rule: str) -> None:
    """Raise BigtrainError if the library that asks fastText's models is not installed."""
    try:
        import fasttext  # noqa: F401
    except ImportError:
        raise BigtrainError(
            f"data.sources: the rule {rule} needs the fasttext-predict library",
            found="it is not installed",
            fix=f"pip install 'bigtrain[clean]', or take {rule} out of clean",
        ) from None

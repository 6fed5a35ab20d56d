"""Stable hashes: the same on every machine, Python and run. Identities use BLAKE2b, checksums xxh3."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

DIGEST_BYTES = 16


def canonical_json(value: object) -> bytes:
    """`value` as canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def identity(value: object) -> str:
    """BLAKE2b-128 over canonical JSON, as 32 hex digits."""
    return hashlib.blake2b(canonical_json(value), digest_size=DIGEST_BYTES).hexdigest()


def digest(data: bytes, *, person: bytes = b"", size: int = DIGEST_BYTES) -> bytes:
    """BLAKE2b over bytes; `person` (at most 16 bytes) keeps different uses apart."""
    return hashlib.blake2b(data, digest_size=size, person=person).digest()


def file_digest(path: Path) -> str:
    """BLAKE2b-128 over the bytes of a file, as 32 hex digits. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()

"""Opens the storage for a path or a URL."""

from __future__ import annotations

from pathlib import Path

from bigtrain.checkpoint.storage import Storage


def storage_at(location: str | Path) -> Storage:
    """The storage of a folder, or of a URL such as s3://bucket/name.

    Raises:
        BigtrainError: the protocol is unknown, or its package is not installed.
    """
    from bigtrain.checkpoint.folder import Folder

    if isinstance(location, Path) or "://" not in location:
        return Folder(Path(location).expanduser())
    if location.startswith("file://"):
        return Folder(Path(location.removeprefix("file://")))
    from bigtrain.checkpoint.object_store import ObjectStore

    return ObjectStore(location)

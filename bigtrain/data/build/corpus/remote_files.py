"""The files of a corpus at a URL."""

from __future__ import annotations

import glob
from collections import Counter
from typing import Any

from bigtrain.data.build.corpus.files import CorpusFile, FoundFiles, printable, reading, suffix_of, unicode_name
from bigtrain.data.format.remote_files import file_system
from bigtrain.data.format.urls import without_query

NOT_THERE = (404, 410)
"""HTTP statuses that say so; any other failure is no answer."""


def find_remote_files(where: str, url: str, suffixes: tuple[str, ...], before: tuple[str, ...]) -> FoundFiles:
    """The files of a URL, by the rules of `find_files`, possibly none. What follows `?` in a web address is sent to the
    server, but is no part of a name.

    Raises:
        BigtrainError: the server does not answer, or refuses.
    """
    bare = without_query(url)
    signed = bare != url
    web = url.lower().startswith(("http://", "https://"))
    files, path = file_system(url if signed else url.rstrip("/"), where)
    files.invalidate_cache()  # of listings: the corpus may have changed since the last listing
    strictly = {"on_error": "raise"} if web else {}  # else the library takes a folder that fails for an empty one
    skipped: Counter[str] = Counter()
    with reading(printable(bare)):
        about = _about(files, path, web=web)
        in_folder = False
        if about is not None and about["type"] == "file":
            root, found = without_query(path).rpartition("/")[0], {path: about}
        elif signed or (web and not glob.has_magic(path)):
            root, found = path, {}
        elif glob.has_magic(path):
            root = path[: path.index(next(c for c in path if c in "*?["))].rpartition("/")[0]
            found = files.glob(path, detail=True, **strictly)
        else:
            root, in_folder = path, True
            found = files.find(path, detail=True, **strictly)
        described = []
        for full, info in found.items():
            name = without_query(full)[len(root) :].strip("/")
            if info["type"] != "file" or any(part.startswith(".") for part in name.split("/")):
                continue
            if in_folder and suffixes and not name.lower().endswith(suffixes):
                skipped[suffix_of(name)] += 1
                continue
            described.append(
                CorpusFile(
                    files.unstrip_protocol(full),
                    unicode_name(name),
                    info["size"] or 0,
                    _version(info),
                    found_before=not in_folder or not before or name.endswith(before),
                )
            )
    return FoundFiles(sorted(described, key=lambda file: file.name), skipped, in_folder)


def _about(files: Any, path: str, *, web: bool) -> dict[str, Any] | None:
    """What the server says of a path; None if nothing is there. Raises the library's error if it does not answer."""
    try:
        about: dict[str, Any] = files.info(path)
    except FileNotFoundError as error:
        cause = error.__cause__
        missing = isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) in NOT_THERE
        if web and isinstance(cause, Exception) and not missing:  # for the web, the library calls every failure so
            raise cause from None
        return None
    return about


def _version(info: dict[str, Any]) -> str:
    """A value of the server that changes with the content of the file, besides its size."""
    keys = ("ETag", "etag", "LastModified", "mtime", "updated")
    return str(next((info[key] for key in keys if info.get(key)), ""))

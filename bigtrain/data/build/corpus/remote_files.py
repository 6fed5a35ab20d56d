"""The files of a corpus at a URL."""

from __future__ import annotations

import glob
from typing import Any

from bigtrain.data.build.corpus.files import CorpusFile, no_files, reading
from bigtrain.data.format.remote_files import file_system


def find_remote_files(where: str, url: str, suffixes: tuple[str, ...]) -> list[CorpusFile]:
    """The files of a URL, by the rules of `find_files`. Raises BigtrainError if there are none."""
    files, path = file_system(url.rstrip("/"), where)
    files.invalidate_cache()  # of listings: the corpus may have changed since the last listing
    with reading(url):
        if files.isfile(path):
            root, found = path.rpartition("/")[0], {path: files.info(path)}
        elif glob.has_magic(path):
            root = path[: path.index(next(c for c in path if c in "*?["))].rpartition("/")[0]
            found = files.glob(path, detail=True)
        else:
            root = path
            below = files.find(path, detail=True)
            found = {name: info for name, info in below.items() if not suffixes or name.endswith(suffixes)}
        described = []
        for name, info in found.items():
            parts = name[len(root) :].strip("/")
            if info["type"] == "file" and not any(part.startswith(".") for part in parts.split("/")):
                described.append(CorpusFile(files.unstrip_protocol(name), parts, info["size"] or 0, _version(info)))
    if not described:
        raise no_files(where, url, suffixes)
    return sorted(described, key=lambda file: file.name)


def _version(info: dict[str, Any]) -> str:
    """A value of the server that changes with the content of the file, besides its size."""
    keys = ("ETag", "etag", "LastModified", "mtime", "updated")
    return str(next((info[key] for key in keys if info.get(key)), ""))

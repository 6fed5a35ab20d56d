"""A build whose data go to a URL: shards as they are written, all else when it is complete, manifests last.

    DATA.building/        beside data.dir, on a disk that all workers share: what an unfinished build knows
      |  tokens, labels   --any worker--> URL/<source>/<split>/00000.tok, as soon as a shard is complete
      |  documents, packs, records        --any worker--> URL, when everything is built
      |  manifests                        --this process--> URL, last: they commit a source

The folder is removed at the end. `data.dir` is what a run fetches into, as ever: see store/mirror.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bigtrain.base import BigtrainError, write_atomically
from bigtrain.config import DataSettings, is_masked, refuse_masked, with_bare_urls
from bigtrain.data.build.execute import BuildExecutor
from bigtrain.data.format.layout import BUILD_RECORD
from bigtrain.data.format.manifest import MANIFEST
from bigtrain.data.format.tokenizer import TOKENIZER_FILE
from bigtrain.data.format.tokenizer_content import CHAT_TEMPLATE
from bigtrain.data.format.work_folder import LocalFolder, WorkFolder

SHARED = (BUILD_RECORD, TOKENIZER_FILE, CHAT_TEMPLATE)
"""Files of a data folder that all of its sources share."""
READ_ONLY = ("http://", "https://")


def building_at(settings: DataSettings) -> tuple[DataSettings, WorkFolder]:
    """The settings of the folder in which the data for `data.remote` are built, and the folder at the URL.

    Raises:
        BigtrainError: nothing can be written at such a URL, or a packing needs the tokens that are there.
    """
    assert settings.remote is not None
    if is_masked(settings.remote):
        refuse_masked("data.remote", settings.remote)
    if settings.remote.lower().startswith(READ_ONLY):
        raise BigtrainError(
            "data.remote is the URL of a web server, which takes no files",
            found=with_bare_urls(settings.remote),
            wanted="an object store, such as s3://bucket/folder or gs://bucket/folder",
            fix="build without data.remote, and copy data.dir to the server",
        )
    if settings.makes_pairs:
        raise BigtrainError(
            f"data.packing {settings.packing} reads the tokens of shards, which are at a URL",
            found=f"data.remote {with_bare_urls(settings.remote)}",
            wanted="no data.remote",
            fix="build without data.remote, copy data.dir to the URL, then train with data.remote and another data.dir",
        )
    folder = settings.dir.with_name(f"{settings.dir.name}.building")
    return settings.model_copy(update={"dir": folder, "remote": None}), WorkFolder.at(settings.remote)


def fetch_shared(target: WorkFolder, directory: Path) -> None:
    """Bring the tokenizer of a folder at a URL, which has other sources already, to where a source is built."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        if not (directory / name).exists() and target.exists(name):
            write_atomically(directory / name, target.read(name))


def is_published(target: WorkFolder, source: str) -> bool:
    """Whether a source is complete at a URL."""
    return target.exists(f"{source}/train/{MANIFEST}")


@dataclass(frozen=True)
class _Upload:
    """Copies a file; it is pickled for the workers."""

    folder: LocalFolder
    target: WorkFolder

    def __call__(self, name: str) -> None:
        """Copy the file with this name."""
        self.target.write(name, self.folder.read(name))


def publish(settings: DataSettings, target: WorkFolder, executor: BuildExecutor, report: Callable[[str], None]) -> None:
    """Copy what was built beside the tokens to the URL, manifests last.

    Args:
        settings: as `building_at` returns them.
        target: the folder at the URL.
        executor: copies the files.
        report: called with lines of progress.
    """
    folder = LocalFolder(settings.dir.absolute())
    names = [name for name in folder.names() if not name.startswith(".")]
    manifests = [name for name in names if name.endswith(f"/{MANIFEST}")]
    for _ in executor.map_in_order(_Upload(folder, target), [name for name in names if name not in manifests]):
        pass
    for name in sorted(manifests, reverse=True):  # train, the first by name, commits a source
        _Upload(folder, target)(name)
    report(f"{len(names):,} files beside the tokens are at their URL, too")
    folder.clear()

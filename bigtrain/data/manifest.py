"""The manifest of a dataset: written last, it makes the shards beside it a dataset."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigtrain.config.errors import BigtrainError
from bigtrain.data.files import write_atomically
from bigtrain.data.hashing import canonical_json, identity

FORMAT = 1
BLOCK_BYTES = 4 << 20
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FileRecord:
    """A file as the manifest names it."""

    name: str
    size: int
    blocks: list[str]
    """xxh3-128 of each block of `Manifest.block_bytes`, in hexadecimal; the last block may be short."""


@dataclass(frozen=True)
class ShardRecord:
    """A shard as the manifest names it."""

    tokens: int
    documents: int
    files: list[FileRecord]
    """The `.tok` file, then the `.doc` file."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest. (`asdict` copies every hash: a second for ten thousand shards.)"""
        return {**vars(self), "files": [vars(file) for file in self.files]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ShardRecord:
        """Back from `to_json`."""
        return cls(value["tokens"], value["documents"], [FileRecord(**file) for file in value["files"]])


@dataclass(frozen=True)
class Manifest:
    """What a dataset holds."""

    source: str
    split: str
    dtype: str
    """`<u2` or `<u4`."""
    vocab_size: int
    """Every token id is below this."""
    special_ids: dict[str, int]
    """`end_of_text`: the token that closes each document."""
    tokenizer: str
    """Hash of the tokenizer that made the ids."""
    parents: dict[str, str]
    """Hashes of what the dataset was made from."""
    shards: list[ShardRecord]
    block_bytes: int = BLOCK_BYTES
    format: int = FORMAT
    dataset_id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dataset_id", identity(self._content()))

    @property
    def end_of_text(self) -> int:
        """Id of the token that closes each document."""
        return self.special_ids["end_of_text"]

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents in all shards."""
        return sum(shard.documents for shard in self.shards)

    def write(self, directory: Path) -> None:
        """Commit the dataset: from here on it exists."""
        totals = {"tokens": self.tokens, "documents": self.documents}
        content = {**self._content(), "dataset_id": self.dataset_id, **totals}
        write_atomically(directory / MANIFEST, lambda file: file.write(canonical_json(content)))

    def _content(self) -> dict[str, Any]:
        """What the dataset id is the hash of."""
        content = {key: value for key, value in vars(self).items() if key != "dataset_id"}
        return {**content, "shards": [shard.to_json() for shard in self.shards]}

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read a dataset's manifest. Raises BigtrainError where it is missing, changed, or of another format."""
        path = directory / MANIFEST
        try:
            value = json.loads(path.read_bytes())
            if value["format"] != FORMAT:
                raise BigtrainError(
                    f"{path} is of a format that this version of bigtrain does not read",
                    found=f"format {value['format']}",
                    wanted=f"format {FORMAT}",
                    fix="build the data again, or use the version of bigtrain that wrote it",
                )
            dataset_id, tokens, documents = value.pop("dataset_id"), value.pop("tokens"), value.pop("documents")
            value["shards"] = [ShardRecord.from_json(shard) for shard in value["shards"]]
            manifest = cls(**value)
        except FileNotFoundError:
            raise BigtrainError(
                f"there is no dataset in {directory}", fix="build the data first: bigtrain data build CONFIG"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise changed_error(path, f"{type(error).__name__}: {error}", "a manifest as bigtrain wrote it") from error
        if (manifest.dataset_id, manifest.tokens, manifest.documents) != (dataset_id, tokens, documents):
            raise changed_error(path, f"dataset id {dataset_id}", f"{manifest.dataset_id}, the hash of its content")
        return manifest


def changed_error(path: Path, found: str, wanted: str) -> BigtrainError:
    """The error for a file of a dataset that does not hold what it must."""
    fix = "restore the file, or remove its folder and build the data again"
    return BigtrainError(f"{path} was changed after it was written", found=found, wanted=wanted, fix=fix)

"""Where things lie in a data folder, and what each was asked to be.

    DIR/tokenizer.json            the tokenizer, in canonical form
    DIR/build.json                the settings it was made from, and its hash
    DIR/<source>/build.json       the settings of the source, and the state of the corpus it was built from
    DIR/<source>/train/           the shards and manifest of the training split
    DIR/<source>/validation/      those of the held-out documents
    DIR/<source>/funnel.json      what became of the documents of the source (funnel.py)
    DIR/<source>/progress-*.json  finished shards of an unfinished build
    DIR/.dedup/                   hashes of all texts, where duplicates are looked for (dedup.py)

`build.json` is written before the shards, so that shards of different settings can never mix.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from bigtrain.config.data_settings import DataSettings, SourceSettings
from bigtrain.config.errors import BigtrainError
from bigtrain.data.files import write_atomically
from bigtrain.data.hashing import identity

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
BUILD_RECORD = "build.json"

Record = dict[str, Any]

ADDED_LATER: Record = {"clean": [], "dedup": []}
"""Settings that the first records do not name, with the value that those data were built with."""


def tokenizer_request(settings: DataSettings) -> Record:
    """The settings that decide what the tokenizer is."""
    tokenizer = settings.tokenizer
    if tokenizer.path is not None:
        return {"path": str(tokenizer.path), "end_of_text": tokenizer.end_of_text}
    return tokenizer.model_dump(mode="json")


def source_request(source: SourceSettings, settings: DataSettings, tokenizer: str) -> Record:
    """The settings that decide what the shards of a source hold."""
    return {
        "source": source.model_dump(mode="json", exclude={"weight", "license"}),
        "dedup": _compared_with(source, settings),
        "validation": settings.validation.model_dump(mode="json"),
        "shard_tokens": settings.shard_tokens,
        "tokenizer": tokenizer,
    }


def _compared_with(source: SourceSettings, settings: DataSettings) -> list[str]:
    """The sources whose documents are not written into this one again: those before it, and itself."""
    if settings.dedup.method == "none":
        return []
    upto = settings.sources[: settings.sources.index(source) + 1]
    return [f"{s.name} ({identity(s.model_dump(mode='json', exclude={'weight'}))[:8]})" for s in upto]


def read_record(folder: Path) -> Record | None:
    """The `build.json` of a folder; None where there is none."""
    path = folder / BUILD_RECORD
    try:
        record: Record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise BigtrainError(f"{path} is damaged: {error}", fix=f"remove {folder} and build the data again") from None
    return record


def write_record(folder: Path, record: Record) -> None:
    """Write the `build.json` of a folder."""
    write_atomically(folder / BUILD_RECORD, lambda file: file.write(json.dumps(record, indent=2).encode()))


def require_same(folder: Path, built: Record, wanted: Record) -> None:
    """Refuse to use what was built with other settings, naming the first that differs and both its values."""
    for key, value in wanted.items():
        was = built.get(key, ADDED_LATER.get(key))
        if isinstance(value, dict) and isinstance(was, dict):
            require_same(folder, was, value)
        elif was != value:
            raise BigtrainError(
                f"{folder} was built with another {key}",
                found=f"{key} {was} in {folder}",
                wanted=f"{key} {value}",
                fix=f"set {key} back, or set another data.dir, or remove {folder} to build it again",
            )

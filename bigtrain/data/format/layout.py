"""The files of a data folder, and the settings that each part was built with.

    DIR/tokenizer.json            the tokenizer, in canonical form
    DIR/build.json                the settings of the tokenizer, its hash, and what documents begin with
    DIR/chat_template.jinja       the chat template that came with the tokenizer, for conversations and for exports
    DIR/<source>/build.json       the settings of the source, and the state of the corpus it was built from
    DIR/<source>/train/           the shards and manifest of the training split, and its packs (pack_file.py)
    DIR/<source>/validation/      the same for the held-out documents
    DIR/<source>/funnel.json      how many documents each rule removed (build/funnel.py)
    DIR/<source>/progress-*.json  finished shards of an unfinished build
    DIR/.build/                   finished pieces of an unfinished build (build/piece_results.py)
    DIR/.dedup/                   keys of all documents, for deduplication (build/dedup/)
    DIR/.decontaminate/           n-grams of the evaluation texts (build/decontaminate.py)

`build.json` is written before the shards, so that shards of different settings never mix.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from bigtrain.base import BigtrainError, read_json, write_atomically
from bigtrain.config import DataSettings, SourceSettings, TokenizerSettings
from bigtrain.data.format.hashing import identity
from bigtrain.data.format.urls import recorded_path

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
BUILD_RECORD = "build.json"
WORK = ".build"
"""The folder of an unfinished build. A build that ends removes it."""

Record = dict[str, Any]
Part = TypeVar("Part", dict[str, Any], str)

ADDED_TO_SOURCES: Record = {
    "on_null": "refuse",
    "target_field": None,
    "package": None,
    "languages": [],
    "held_out_path": None,
    "text_pair_field": None,
    "label_field": None,
    "tokens_field": None,
    "tags_field": None,
    "spans_field": None,
    "label_names": [],
    "labels_path": None,
    "task": None,
    "doc_stride": 128,
    "max_query_length": 64,
    "members": "*",
    "metadata": [],
}
"""Keys of a source that the first versions did not have, with the values that they built with."""
ADDED_LATER: Record = {"clean": [], "dedup": [], "decontaminate": None, **ADDED_TO_SOURCES}
"""Settings that the first versions did not record, with the values that they built with."""


ABOUT_TRAINING = {"weight", "max_epochs", "streaming", "max_document_bytes"}
"""Keys of a source that say how it is read or trained on. They do not change what is built."""


def tokenizer_request(settings: DataSettings) -> Record:
    """The settings that determine the tokenizer. What documents begin with is recorded beside them."""
    tokenizer = settings.tokenizer
    if tokenizer.path is not None:
        return {"path": str(tokenizer.path), "end_of_text": tokenizer.end_of_text, **_additional(tokenizer)}
    later = {"begin_of_text", "additional_special_tokens", "separator", "chat_template"}
    return {**tokenizer.model_dump(mode="json", exclude=later), **_additional(tokenizer)}


def _additional(tokenizer: TokenizerSettings) -> Record:
    """Recorded only where there are any, so that older data stay as they are."""
    tokens = list(tokenizer.additional_special_tokens)
    return {"additional_special_tokens": tokens} if tokens else {}


def _for_rows(source: SourceSettings, settings: DataSettings) -> Record:
    """What the documents of labelled sources also follow from: the length of a row, and what separates two texts."""
    if not source.fits_rows:
        return {}
    separator = {"separator": settings.tokenizer.separator} if source.separated else {}
    return {"sequence_length": settings.sequence_length, **separator}


def source_request(source: SourceSettings, settings: DataSettings, tokenizer: str) -> Record:
    """The settings that determine the shards of a source.

    For evaluation texts this is only how they are searched for, since training does not read them. The build adds
    their identity.
    """
    decontaminate = settings.decontaminate
    return {
        "source": _recorded(source, ABOUT_TRAINING | {"license"}),
        "dedup": _compared_with(source, settings),
        "decontaminate": decontaminate and decontaminate.model_dump(mode="json", exclude={"paths"}),
        "validation": settings.validation.model_dump(mode="json"),
        "shard_tokens": settings.shard_tokens,
        "tokenizer": tokenizer,
        **_for_rows(source, settings),
    }


def _compared_with(source: SourceSettings, settings: DataSettings) -> list[str]:
    """How documents are compared, and the sources with which they are compared: earlier sources and this one."""
    dedup = settings.dedup
    if dedup.method == "none":
        return []
    how = [f"near: {dedup.bands} bands of {dedup.rows} rows, {dedup.ngram}-grams"] if dedup.method == "near" else []
    upto = settings.sources[: settings.sources.index(source) + 1]
    return how + [f"{s.name} ({identity(what_documents(s))[:8]})" for s in upto]


def what_documents(source: SourceSettings) -> Record:
    """The settings of a source that determine its documents. The licence, which does not, is null.

    A hash of them is recorded, so keys that were added later are left out at their defaults.
    """
    values = _recorded(source.model_copy(update={"license": None}), ABOUT_TRAINING)
    return {key: value for key, value in values.items() if ADDED_TO_SOURCES.get(key, values) != value}


def _recorded(source: SourceSettings, exclude: set[str]) -> Record:
    values = source.model_dump(mode="json", exclude=exclude)
    paths = {key: values[key] and recorded_path(values[key]) for key in ("path", "held_out_path")}
    return {**values, **paths}


def with_defaults(record: Record) -> Record:
    """The `build.json` of a source with the keys that were added after it was written."""
    source = record.get("source")
    return {**record, "source": {**ADDED_TO_SOURCES, **(source if isinstance(source, dict) else {})}}


def read_record(folder: Path) -> Record | None:
    """The `build.json` of a folder; None without one."""
    path = folder / BUILD_RECORD
    try:
        record = read_json(path)
    except FileNotFoundError:
        return None
    except BigtrainError as error:
        raise _damaged(folder, str(error.found), "JSON as bigtrain wrote it") from error
    if not isinstance(record, dict):
        raise _damaged(folder, f"a JSON {type(record).__name__}", "an object")
    return record


def part_of(record: Record, key: str, kind: type[Part], folder: Path) -> Part:
    """A part of the `build.json` of a folder. Raises BigtrainError where it lacks it, or it is of another type."""
    value = record.get(key)
    if not isinstance(value, kind):
        raise _damaged(folder, f"{key}: {value!r}"[:200], f"{key}: {kind.__name__}")
    return value


def _damaged(folder: Path, found: str, wanted: str) -> BigtrainError:
    fix = f"restore it, or remove {folder} and build the data again"
    return BigtrainError(f"{folder / BUILD_RECORD} is damaged", found=found, wanted=wanted, fix=fix)


def write_record(folder: Path, record: Record) -> None:
    """Write the `build.json` of a folder."""
    write_atomically(folder / BUILD_RECORD, json.dumps(record, indent=2).encode())


def require_same(folder: Path, built: Record, wanted: Record) -> None:
    """Refuse data that were built with other settings. The error names the first difference and both values."""
    for key, value in wanted.items():
        was = built.get(key, ADDED_LATER.get(key))
        if isinstance(value, dict) and isinstance(was, dict):
            require_same(folder, was, value)
        elif was != value and not (key == "path" and isinstance(was, str) and recorded_path(was) == value):
            raise BigtrainError(
                f"{folder} was built with another {key}",
                found=f"{key} {str(was)[:500]} in {folder}",
                wanted=f"{key} {value}",
                fix=f"set {key} back, or set another data.dir, or remove {folder} to build it again",
            )

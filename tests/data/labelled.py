"""Labelled sources for the tests: builds of them, and their documents as they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigtrain.config import DataSettings, SourceSettings, TokenizerSettings
from bigtrain.data import DataTokenizer, open_datasets
from tests.data.helpers import VOCABULARY, data_settings, make

SEPARATOR = "[SEP]"


class Stored(NamedTuple):
    """A document in the shards."""

    split: str
    file: str
    position: int
    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


def source_of(kind: str, path: Path, **changes: Any) -> SourceSettings:
    return SourceSettings.model_validate({"name": "made", "kind": kind, "path": str(path), **changes})


def labelled_settings(folder: Path, source: SourceSettings, length: int = 64, **changes: Any) -> DataSettings:
    tokenizer = TokenizerSettings(vocab_size=300, additional_special_tokens=(SEPARATOR,), separator=SEPARATOR)
    values: dict[str, Any] = {"packing": "best_fit", "sequence_length": length, "tokenizer": tokenizer, **changes}
    return data_settings(folder, source, **values)


def built(folder: Path, source: SourceSettings, length: int = 64, **changes: Any) -> DataSettings:
    settings = labelled_settings(folder, source, length, **changes)
    make(settings)
    return settings


def stored(settings: DataSettings) -> Iterator[Stored]:
    """The documents of both splits, in their order."""
    for split in ("train", "validation"):
        for dataset in open_datasets(settings, model_vocab_size=VOCABULARY, split=split):
            for shard in dataset.shards:
                columns = shard.documents
                for number, position in enumerate(columns.position.tolist()):
                    first, end = columns.offset[number : number + 2].tolist()
                    yield Stored(
                        split,
                        columns.file_name(number),
                        position,
                        shard.tokens[first:end].astype(np.int64),
                        shard.labels[first:end].astype(np.int64),
                    )


def names_of(settings: DataSettings) -> tuple[str, ...]:
    (dataset,) = open_datasets(settings, model_vocab_size=VOCABULARY)
    assert dataset.summary.label_scheme is not None
    return dataset.summary.label_scheme.names


def tokenizer_of(settings: DataSettings) -> DataTokenizer:
    return DataTokenizer.open(settings.dir)

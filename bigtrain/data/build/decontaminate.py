"""Decontamination: documents that share a long n-gram of words with an evaluation text are removed.

As in Brown et al. 2020 (GPT-3), appendix C, with n-grams of 13 words, but the whole document is removed, not only 200
characters around the n-gram. An evaluation text that is shorter than an n-gram is one n-gram, if it has at least
MIN_WORDS words: "Paris" would remove everything.

    DIR/.decontaminate/ngrams.npy    [2, n] u64: the hashes of all n-grams in ascending order, and the file of each
    DIR/.decontaminate/hits.npy      [2^b] bool, at least 8 per n-gram: whether a hash has these leading b bits
    DIR/.decontaminate/ngrams.json   lengths of the n-grams, names of the files, and the identity of all of it

The worker processes map them, so a machine has them in memory once. Most n-grams of a document fail at `hits`, which
costs one access to memory instead of the two dozen of a binary search. Two n-grams have the same hash in one of 2^64
cases: if 10^12 n-grams are compared with 10^7, about every second build removes one document too many.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field
from typing_extensions import TypedDict

from bigtrain.base import STRICT, BigtrainError, as_record, read_json, write_atomically
from bigtrain.config import DecontaminateSettings
from bigtrain.data.build.clean import Rejection
from bigtrain.data.build.evaluation_texts import find_evaluation_files, read_evaluation_texts
from bigtrain.data.build.shingles import U64, hash_words, ngram_hashes, words_of
from bigtrain.data.format.hashing import canonical_json, digest

RULE = "decontaminate"
MIN_WORDS = 5
"""Shorter evaluation texts are not searched for, unless `ngram` is even smaller."""
NGRAMS, HITS, ABOUT = "ngrams.npy", "hits.npy", "ngrams.json"


@dataclass(frozen=True)
class EvaluationNgrams:
    """The n-grams of all evaluation texts, in a folder; it is pickled for the worker processes."""

    folder: Path
    identity: str
    """Hash of the n-grams and the names of the files."""

    def rejection(self, text: str) -> Rejection | None:
        """Why a text is removed: its first n-gram that is also in an evaluation text. None if it has none."""
        evaluation = _load(self.folder, self.identity)
        words = words_of(text)
        found: list[tuple[int, int, int]] = []
        for length, hashes in ngram_hashes(hash_words(words), evaluation.lengths):
            starts = np.flatnonzero(evaluation.hits[_leading_bits(hashes, len(evaluation.hits))])
            at = np.minimum(np.searchsorted(evaluation.ngrams, hashes[starts]), len(evaluation.ngrams) - 1)
            equal = np.flatnonzero(evaluation.ngrams[at] == hashes[starts])
            if len(equal):
                found.append((int(starts[equal[0]]), length, int(evaluation.file_of[at[equal[0]]])))
        if not found:
            return None
        start, length, file = min(found)
        return Rejection(
            RULE, f"an n-gram of {evaluation.files[file]}", evidence=" ".join(words[start : start + length])
        )


def evaluation_ngrams(
    settings: DecontaminateSettings, directory: Path, report: Callable[[str], None]
) -> EvaluationNgrams:
    """Read the evaluation texts and write their n-grams into the data folder.

    Raises:
        BigtrainError: a path matches no files, a file cannot be read, or all texts are too short.
    """
    files = find_evaluation_files(settings)
    parts, lengths, texts = [np.empty((2, 0), np.uint64)], set(), 0
    for number, file in enumerate(files):
        hashes = [np.empty(0, np.uint64)]
        for text in read_evaluation_texts(file, settings.text_fields):
            texts += 1
            for length, found in _ngrams_of(text, settings.ngram):
                lengths.add(length)
                hashes.append(found)
        of_file = np.unique(np.concatenate(hashes))
        parts.append(np.stack([of_file, np.full_like(of_file, number)]))
    joined = np.concatenate(parts, axis=1)
    ngrams, first = np.unique(joined[0], return_index=True)  # an n-gram of several files belongs to the first
    if not len(ngrams):
        raise BigtrainError(
            "data.decontaminate: the evaluation texts are too short to be searched for",
            found=f"{texts:,} texts in {len(files):,} files, each of fewer words",
            wanted=f"texts of {min(MIN_WORDS, settings.ngram)} words or more",
            fix="name fields with longer texts in data.decontaminate.text_fields, such as the questions",
        )
    content = np.ascontiguousarray(joined[:, first], "<u8")
    about = {"lengths": sorted(lengths), "files": [file.name for file in files]}
    identity = digest(digest(content.tobytes()) + canonical_json(about), person=b"evaluation").hex()
    folder = directory / ".decontaminate"
    folder.mkdir(exist_ok=True)
    hits = np.zeros(1 << (8 * len(ngrams) - 1).bit_length(), np.bool_)
    hits[_leading_bits(ngrams, len(hits))] = True
    _save(folder / NGRAMS, content)
    _save(folder / HITS, hits)
    description = json.dumps({**about, "identity": identity}).encode()
    write_atomically(folder / ABOUT, description)
    report(f"decontaminate: {texts:,} evaluation texts in {len(files):,} files, {len(ngrams):,} n-grams")
    return EvaluationNgrams(folder, identity)


def _ngrams_of(text: str, ngram: int) -> Iterator[tuple[int, U64]]:
    words = hash_words(words_of(text))
    if len(words) >= min(ngram, MIN_WORDS):
        yield from ngram_hashes(words, [min(ngram, len(words))])


def _leading_bits(hashes: U64, slots: int) -> U64:
    """The slot of each hash: its leading bits, for a power of two of slots."""
    return hashes >> np.uint64(64 - (slots.bit_length() - 1))


def _save(path: Path, array: npt.NDArray[np.generic]) -> None:
    npy = BytesIO()
    np.save(npy, array)
    write_atomically(path, npy.getbuffer())


@dataclass(frozen=True)
class _Loaded:
    """The files of the folder, memory-mapped."""

    lengths: frozenset[int]
    files: list[str]
    ngrams: U64
    """[n], ascending."""
    file_of: U64
    """[n], an index into `files`."""
    hits: npt.NDArray[np.bool_]


@lru_cache(maxsize=1)
def _load(folder: Path, identity: str) -> _Loaded:
    about = as_record(_About, read_json(folder / ABOUT), folder / ABOUT)
    if about["identity"] != identity:
        raise _changed(folder, f"evaluation texts {about['identity']}", identity)
    columns, hits = (_mapped(folder / name) for name in (NGRAMS, HITS))
    files, slots = len(about["files"]), hits.size
    if columns.dtype != "<u8" or columns.ndim != 2 or len(columns) != 2 or not columns.size:
        raise _changed(folder, f"{NGRAMS} of {columns.dtype}{list(columns.shape)}", "two columns of u64")
    if hits.dtype != bool or hits.ndim != 1 or not slots or slots & (slots - 1) or columns[1].max() >= files:
        raise _changed(folder, f"{HITS} of {hits.dtype}{list(hits.shape)}", "a power of two of bool")
    return _Loaded(frozenset(about["lengths"]), about["files"], columns[0], columns[1], hits)


class _About(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    lengths: list[Annotated[int, Field(ge=1, lt=2**31)]]
    files: list[str]
    identity: str


def _mapped(path: Path) -> npt.NDArray[Any]:
    try:
        return np.asarray(np.load(path, mmap_mode="r"))  # which refuses pickled objects
    except (ValueError, EOFError) as error:
        raise _changed(path.parent, f"{path.name}: {str(error)[:200]}", "an array") from error


def _changed(folder: Path, found: str, wanted: str) -> BigtrainError:
    fix = "start the build again when no other build runs in this folder"
    return BigtrainError(f"{folder} was changed while data were built", found=found, wanted=wanted, fix=fix)

"""Decontamination: documents that share a long n-gram of words with an evaluation text are removed.

As in Brown et al. 2020 (GPT-3), appendix C, with n-grams of 13 words; but the whole document goes, not only 200
characters around the n-gram. An evaluation text of fewer words than an n-gram is one n-gram by itself, if it has
MIN_WORDS: "Paris" would remove everything.

    DIR/.decontaminate/ngrams.npy    [2, n] u64: the hashes of all n-grams in ascending order, and of each its file
    DIR/.decontaminate/ngrams.json   their lengths, the names of the files, and the identity of the whole

The worker processes map it, so a machine holds it once. Two n-grams have the same hash in one of 2^64 cases: where
10^12 n-grams are looked up among 10^7, about every second build removes one document too many.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np

from bigtrain.config.data_settings import DecontaminateSettings
from bigtrain.config.errors import BigtrainError
from bigtrain.data.clean import Verdict
from bigtrain.data.evaluation_texts import find_evaluation_files, read_evaluation_texts
from bigtrain.data.files import write_atomically
from bigtrain.data.hashing import canonical_json, digest
from bigtrain.data.shingles import U64, hash_words, ngram_hashes, words_of

RULE = "decontaminate"
MIN_WORDS = 5
"""An evaluation text of fewer words is not looked for, unless `ngram` is even smaller."""
NGRAMS, ABOUT = "ngrams.npy", "ngrams.json"


@dataclass(frozen=True)
class EvaluationNgrams:
    """The n-grams of all evaluation texts, in a folder; this object travels to the worker processes."""

    folder: Path
    identity: str
    """Of the n-grams and the names of the files: other texts, another identity."""

    def verdict(self, text: str) -> Verdict | None:
        """Why a text is removed: the first n-gram in it that an evaluation text has too. None where there is none."""
        lengths, files, ngrams, of_file = _load(self.folder, self.identity)
        words = words_of(text)
        found: list[tuple[int, int, int]] = []
        for length, hashes in ngram_hashes(hash_words(words), lengths):
            at = np.minimum(np.searchsorted(ngrams, hashes), len(ngrams) - 1)
            hits = np.flatnonzero(ngrams[at] == hashes)
            if len(hits):
                found.append((int(hits[0]), length, int(of_file[at[hits[0]]])))
        if not found:
            return None
        start, length, file = min(found)
        return Verdict(RULE, f"an n-gram of {files[file]}", evidence=" ".join(words[start : start + length]))


def evaluation_ngrams(
    settings: DecontaminateSettings, directory: Path, report: Callable[[str], None]
) -> EvaluationNgrams:
    """Read the evaluation texts and write their n-grams into the data folder.

    Raises:
        BigtrainError: a path means no files, a file cannot be read, or all texts are too short.
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
    together = np.concatenate(parts, axis=1)
    ngrams, first = np.unique(together[0], return_index=True)  # one that several files have is named after the first
    if not len(ngrams):
        raise BigtrainError(
            "data.decontaminate: the evaluation texts are too short to be looked for",
            found=f"{texts:,} texts in {len(files):,} files, each of fewer words",
            wanted=f"texts of {min(MIN_WORDS, settings.ngram)} words or more",
            fix="name fields with longer texts in data.decontaminate.text_fields, such as the questions",
        )
    content = np.ascontiguousarray(together[:, first], "<u8")
    about = {"lengths": sorted(lengths), "files": [file.name for file in files]}
    identity = digest(digest(content.tobytes()) + canonical_json(about), person=b"evaluation").hex()
    folder = directory / ".decontaminate"
    folder.mkdir(exist_ok=True)
    npy, description = BytesIO(), json.dumps({**about, "identity": identity}).encode()
    np.save(npy, content)
    write_atomically(folder / NGRAMS, lambda target: target.write(npy.getbuffer()))
    write_atomically(folder / ABOUT, lambda target: target.write(description))
    report(f"decontaminate: {texts:,} evaluation texts in {len(files):,} files, {len(ngrams):,} n-grams")
    return EvaluationNgrams(folder, identity)


def _ngrams_of(text: str, ngram: int) -> Iterator[tuple[int, U64]]:
    words = hash_words(words_of(text))
    if len(words) >= min(ngram, MIN_WORDS):
        yield from ngram_hashes(words, [min(ngram, len(words))])


@lru_cache(maxsize=1)
def _load(folder: Path, identity: str) -> tuple[frozenset[int], list[str], U64, U64]:
    """Lengths, names of the files, the hashes in order, and of each the number of its file."""
    about = json.loads((folder / ABOUT).read_bytes())
    if about["identity"] != identity:
        raise BigtrainError(
            f"{folder} was written anew while data were built",
            found=f"evaluation texts {about['identity']}",
            wanted=identity,
            fix="start the build again when no other one runs in this folder",
        )
    content = np.load(folder / NGRAMS, mmap_mode="r")
    return frozenset(about["lengths"]), about["files"], content[0], content[1]

"""Corpus kind `gettext`: pairs of a message and its translation, from message catalogues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.corpus import Corpus, corpus_of_files, find_files, grouped_by_size, total_size
from bigtrain.data.build.corpus.files import CorpusFile, FoundFiles, no_files, too_long
from bigtrain.data.build.corpus.records import pair_of
from bigtrain.data.format.documents import Document

SUFFIX = ".po"
FOLDER = "LC_MESSAGES"


@dataclass(frozen=True)
class _Catalogues:
    files: list[CorpusFile]
    marked: bool
    """Whether a source begins with the language of its target."""
    limit: int
    continued: bool = False

    @property
    def extent(self) -> int:
        return total_size(self.files)

    def documents(self) -> Iterator[Document]:
        for file in self.files:
            mark = f">>{language_of(file.name)}<< " if self.marked else ""
            for position, (message, translation) in enumerate(_pairs(file, self.limit)):
                # A message is in training in all languages, or held out in all.
                yield pair_of(mark + message, translation, file.name, position, group=message)


def language_of(name: str) -> str:
    """The language of a catalogue: the folder above LC_MESSAGES, or the name of the file."""
    path = PurePosixPath(name)
    return path.parent.parent.name if path.parent.name == FOLDER and path.parent.parent.name else path.stem


def _pairs(file: CorpusFile, limit: int) -> Iterator[tuple[str, str]]:
    for entry in _entries(file):
        if entry.obsolete or entry.fuzzy:
            continue
        pairs = [(entry.msgid, entry.msgstr)]
        if entry.msgid_plural:
            forms = [entry.msgstr_plural[number] for number in sorted(entry.msgstr_plural)]
            pairs = [(entry.msgid, forms[0]), (entry.msgid_plural, forms[-1])] if forms else []
        for message, translation in pairs:
            if len((message + translation).encode(errors="replace")) > limit:
                raise too_long(file.place, limit)
            if message.strip() and translation.strip():
                yield message, translation


def _entries(file: CorpusFile) -> Any:
    import polib

    try:
        return polib.pofile(file.read().decode("utf-8-sig"))
    except (OSError, ValueError) as error:  # polib raises both for what is no catalogue
        raise BigtrainError(
            f"{file.place} is no message catalogue",
            found=str(error)[:200],
            wanted="a .po file in UTF-8",
            fix="correct it with msgfmt --check, convert it with msgconv --to-code=UTF-8, or leave it out",
        ) from None


def gettext(source: SourceSettings) -> Corpus:
    """Each translated message of the catalogues is a pair, by file and place in it.

    Raises:
        BigtrainError: there are no catalogues, or none of one of the languages, or polib or the package is missing.
    """
    where = f"data.sources: {source.name!r}"
    if find_spec("polib") is None:
        raise BigtrainError(f"{where}: kind gettext needs the library polib", fix="pip install 'bigtrain[translation]'")
    path = source.path if source.package is None else _folder_of(source.package, where)
    assert path is not None
    found = _of_languages(find_files(where, path, (SUFFIX,)), source, path, where)
    marked = len(source.languages) != 1

    def pieces() -> Iterator[_Catalogues]:
        return (_Catalogues(group, marked, source.max_document_bytes) for group in grouped_by_size(found.files))

    return corpus_of_files(found.files, pieces, found.skipped if source.package is None else {})


def _folder_of(package: str, where: str) -> str:
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise BigtrainError(
            f"{where}: the package {package!r} is not installed",
            wanted="a Python package with message catalogues",
            fix=f"pip install {package}, or set path to the catalogues in place of package",
        )
    return str(Path(folders[0]))


def _of_languages(found: FoundFiles, source: SourceSettings, path: str, where: str) -> FoundFiles:
    if not source.languages:
        return found
    known = Counter(language_of(file.name) for file in found.files)
    if unknown := [language for language in source.languages if language not in known]:
        raise BigtrainError(
            f"{where}: languages names what there is no catalogue of",
            found=", ".join(unknown),
            wanted=f"among {', '.join(sorted(known))}",
            fix="correct languages, or leave it out for all of them",
        )
    files = [file for file in found.files if language_of(file.name) in source.languages]
    if not files:
        raise no_files(where, path, (SUFFIX,), found.skipped)
    return FoundFiles(files, found.skipped, found.in_folder)

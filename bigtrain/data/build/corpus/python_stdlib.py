"""Corpus kind `python_stdlib`: the standard library of the running Python, as real text that is always available."""

from __future__ import annotations

import ast
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.corpus import Corpus, corpus_of_files, describe_files, grouped_by_size, total_size
from bigtrain.data.build.corpus.files import CorpusFile
from bigtrain.data.format.documents import Document

NOT_STANDARD = {"site-packages", "dist-packages"}
TOPICS = "pydoc_data/topics.py"


@dataclass(frozen=True)
class _Modules:
    files: list[CorpusFile]
    content: Literal["source", "documentation"]
    continued: bool = False

    @property
    def extent(self) -> int:
        return total_size(self.files)

    def documents(self) -> Iterator[Document]:
        for file in self.files:
            try:
                source = file.read().decode()
            except UnicodeDecodeError:  # a few test files are in other encodings on purpose
                continue
            text = source if self.content == "source" else documentation(source, file.name)
            yield Document(text, file.name, 0)


def documentation(source: str, file: str) -> str:
    """The documentation strings of a module, its classes and functions, each under its qualified name.

    `pydoc_data/topics.py` has the language reference in a dictionary, whose texts are concatenated.
    Empty for a file without any, or one that does not parse (some test files, on purpose).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    texts = list(_topics(module)) if file == TOPICS else list(_docstrings(module, name))
    return "\n\n".join(texts) + "\n" if texts else ""


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> Iterator[str]:
    if text := ast.get_docstring(node):
        yield f"{name}\n\n{text}"
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings(child, f"{name}.{child.name}")


def _topics(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Dict):
            for value in node.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield inspect.cleandoc(value.value)


def python_stdlib(source: SourceSettings) -> Corpus:
    """One document per file: its source text, or the documentation in it, both with the same origin."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = describe_files((p for p in root.rglob("*.py") if not NOT_STANDARD & set(p.parts)), root)
    return corpus_of_files(files, lambda: (_Modules(group, source.content) for group in grouped_by_size(files)))

#!/usr/bin/env python3
"""Labelled data from real text: the source of Python's standard library, labelled by its own parser.

    launch/label_python.py OUT

Every tenth module is held out: nothing of it is in a file whose name does not say so.

OUT/tags.jsonl, tags-held-out.jsonl             a function or class a line: `tokens`, and for each a tag in `tags`:
                                                B-FUNCTION where a function is defined, B-CLASS, B-PARAMETER, B-MODULE
                                                where one is imported, B-LOCAL where a name is assigned to
OUT/questions.json, questions-held-out.json     questions about functions and classes with their source as context, in
                                                the format of SQuAD 2.0: what a function returns, what the default of a
                                                parameter is, which class a class extends; some have no answer
OUT/text.jsonl                                  the source of all other modules, as `text`, to pre-train on

The same files come out of the same version of Python.
"""

from __future__ import annotations

import ast
import io
import json
import keyword
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

HELD_OUT = 10
"""One module in so many is held out."""
NO_MODULES = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
"""Folders whose files are no modules of the standard library."""
LONGEST, SHORTEST = 1200, 60
"""Characters of a function or class that is taken."""
UNANSWERABLE = 4
"""One function in so many is asked for something that it does not have."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Question = tuple[str, str, int | None]
"""Question, answer and its place in the context; None where there is none."""


def main() -> None:
    """Write both files."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out, library = Path(sys.argv[1]), Path(sysconfig.get_path("stdlib"))
    out.mkdir(parents=True, exist_ok=True)
    modules = [path for path in sorted(library.rglob("*.py")) if not NO_MODULES & set(path.relative_to(library).parts)]
    held_out = modules[HELD_OUT - 1 :: HELD_OUT]
    learned = [path for path in modules if path not in set(held_out)]
    texts = [json.dumps({"text": source}) for path in learned if (source := source_of(path))]
    (out / "text.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    for paths, suffix in ((learned, ""), (held_out, "-held-out")):
        tags, articles = labelled(paths, library)
        (out / f"tags{suffix}.jsonl").write_text("\n".join(tags) + "\n", encoding="utf-8")
        document = json.dumps({"version": "v2.0", "data": articles})
        (out / f"questions{suffix}.json").write_text(document, encoding="utf-8")
        count = sum(len(paragraph["qas"]) for article in articles for paragraph in article["paragraphs"])
        print(f"{out}: {len(tags):,} functions and classes with tags, {count:,} questions{suffix.replace('-', ' ')}")


def source_of(path: Path) -> str:
    """The text of a module; empty where it is none that this Python can read."""
    try:
        source = path.read_text(encoding="utf-8")
        ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    return source


def labelled(paths: list[Path], library: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Lines with tags, and articles with questions, of modules."""
    lines: list[str] = []
    articles: list[dict[str, Any]] = []
    for path in paths:
        name, paragraphs = path.relative_to(library).with_suffix("").as_posix(), []
        for text, node in definitions(source_of(path)):
            lines.append(json.dumps(dict(zip(("tokens", "tags"), tagged(text, node), strict=True))))
            asked = [as_record(f"{name}:{node.lineno}:{n}", *each) for n, each in enumerate(questions(text, node))]
            if asked:
                paragraphs.append({"context": text, "qas": asked})
        if paragraphs:
            articles.append({"title": name, "paragraphs": paragraphs})
    return lines, articles


def definitions(source: str) -> Iterator[tuple[str, Any]]:
    """The functions and classes of a module, by themselves: their text without what it is indented by."""
    of_module = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            continue
        lines = of_module[node.lineno - 1 : node.end_lineno]
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        text = "\n".join(lines)
        if not SHORTEST <= len(text) <= LONGEST or not text.isascii():
            continue
        text = "\n".join([lines[0], *(line.removeprefix(" " * node.col_offset) for line in lines[1:])])
        try:
            (alone,) = ast.parse(text).body
        except (SyntaxError, ValueError):  # a text in several lines may have lost what it needs
            continue
        alone.lineno = node.lineno - 1 + alone.lineno
        yield text, alone


def tagged(text: str, definition: Any) -> tuple[list[str], list[str]]:
    """The tokens of a text, without comments and line breaks, and their tags."""
    (tree,) = ast.parse(text).body
    tags: dict[tuple[int, int], str] = {}
    names = list(tokenize.generate_tokens(io.StringIO(text).readline))
    for node in ast.walk(tree):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            at = next(
                token.start
                for before, token in pairwise(names)
                if before.string in ("def", "class") and token.string == node.name and token.start[0] >= node.lineno
            )
            tags[at] = "B-CLASS" if isinstance(node, ast.ClassDef) else "B-FUNCTION"
        elif isinstance(node, ast.arg):
            tags[node.lineno, node.col_offset] = "B-PARAMETER"
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            tags[node.lineno, node.col_offset] = "B-LOCAL"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()
            modules |= {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and node.module else set()
            for token in names:
                if token.start[0] == node.lineno and token.string in modules and not keyword.iskeyword(token.string):
                    tags[token.start] = "B-MODULE"
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    kept = [token for token in names if token.type not in skipped and token.string.strip()]
    return [token.string for token in kept], [tags.get(token.start, "O") for token in kept]


def questions(text: str, definition: Any) -> Iterator[Question]:
    """What may be asked about a function or class."""
    (tree,) = ast.parse(text).body
    assert isinstance(tree, (*FUNCTIONS, ast.ClassDef))
    if isinstance(tree, ast.ClassDef):
        if len(tree.bases) == 1:
            yield f"Which class does {tree.name} extend?", *where(text, tree.bases[0])
        return
    returns = [node for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value is not None]
    if len(returns) == 1:
        yield f"What does {tree.name} return?", *where(text, returns[0].value)
    parameters = [*tree.args.posonlyargs, *tree.args.args]
    given = parameters[len(parameters) - len(tree.args.defaults) :]
    for parameter, default in zip(given, tree.args.defaults, strict=True):
        yield f"What is the default of {parameter.arg}?", *where(text, default)
    if not returns and len(text) % UNANSWERABLE == 0:
        yield f"What does {tree.name} return?", "", None


def where(text: str, node: Any) -> tuple[str, int]:
    """The text of a part, and where it starts."""
    lines = text.split("\n")
    start = sum(len(line) + 1 for line in lines[: node.lineno - 1]) + node.col_offset
    segment = ast.get_source_segment(text, node)
    assert segment is not None and text[start : start + len(segment)] == segment
    return segment, start


def as_record(name: str, question: str, answer: str, start: int | None) -> dict[str, Any]:
    """A question as SQuAD 2.0 has it."""
    answers = [] if start is None else [{"text": answer, "answer_start": start}]
    return {"id": name, "question": question, "answers": answers, "is_impossible": not answers}


if __name__ == "__main__":
    main()

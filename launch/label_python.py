#!/usr/bin/env python3
"""Labelled data from real text: the source of Python's standard library, labelled by its own parser.

    launch/label_python.py OUT

OUT/tags.jsonl        a function or class a line: `tokens`, and for each a tag in `tags`: B-FUNCTION where a function is
                      defined, B-CLASS, B-PARAMETER, B-MODULE where one is imported, B-LOCAL where a name is assigned to
OUT/questions.json    questions about functions and classes with their source as context, in the format of SQuAD 2.0:
                      what a function returns, what the default of a parameter is, which class a class extends; and
                      questions without an answer

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
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    articles: list[dict[str, Any]] = []
    lines, count = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = path.read_text(encoding="utf-8")
        paragraphs = []
        for text, node in definitions(source):
            lines.append(json.dumps(dict(zip(("tokens", "tags"), tagged(text, node), strict=True))))
            asked = [as_record(f"{path.stem}:{node.lineno}:{n}", *each) for n, each in enumerate(questions(text, node))]
            if asked:
                paragraphs.append({"context": text, "qas": asked})
            count += len(asked)
        if paragraphs:
            articles.append({"title": path.stem, "paragraphs": paragraphs})
    (out / "tags.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "questions.json").write_text(json.dumps({"version": "v2.0", "data": articles}), encoding="utf-8")
    print(f"{out}: {len(lines):,} functions and classes with tags, {count:,} questions about {len(articles)} modules")


def definitions(source: str) -> Iterator[tuple[str, Any]]:
    """The functions and classes of a module, by themselves: their text without what it is indented by."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            continue
        text = ast.get_source_segment(source, node)
        if text is None or not SHORTEST <= len(text) <= LONGEST or not text.isascii():
            continue
        lines = text.split("\n")
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

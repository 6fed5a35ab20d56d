"""STYLE.md, as far as a test can hold it: words, the length of sentences in messages, the length of tests' names."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BANNED = {
    "aloud": "explicitly",
    "anew": "again",
    "behind": "after, or in the background",
    "birth": "start",
    "courier": "messenger thread",
    "doomed": "expired",
    "gist": "summary",
    "judge": "assess, check",
    "judged": "assessed, checked",
    "judges": "assesses, checks",
    "passed over": "skipped",
    "picture": "thread dump, figure",
    "pictures": "thread dumps, figures",
    "pulse": "heartbeat",
    "rotten": "corrupted",
    "scribe": "writer",
    "scribes": "writers",
    "seal": "checksum",
    "sealed": "verified",
    "seals": "checksums",
    "tell": "report, say",
    "tells": "reports, says",
    "the begin": "the start",
    "told": "reported",
    "trouble": "anomaly, fault",
    "void": "superseded",
    "yardstick": "baseline",
    "yardsticks": "baselines",
}
"""The old private words, and the field's."""
STANDING = ("--yardsticks", "--no-yardsticks", ".tell()", "def tell(self)", "c_void_p", "np.void")
"""Where a banned word stays: options that scripts use, idioms and other people's names."""
CHECKED = ("bigtrain", "launch", "configs", "docker", "README.md", "CONTRIBUTING.md", "docs")
HISTORY = {"docs/decisions.md", "docs/notebook.md", "docs/faults.md"}
SUFFIXES = {".py", ".md", ".sh", ".sbatch", ".yaml", ".yml", ""}
SENTENCE_WORDS = 25
TEST_NAME = 70
_BANNED = re.compile(
    r"(?<![a-z])(" + "|".join(re.escape(word).replace(r"\ ", r"[\s_]+") for word in BANNED) + r")(?![a-z])",
    re.IGNORECASE,
)


@cache
def tracked() -> tuple[str, ...]:
    """The files of the repository."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    return tuple(name for name in listed.stdout.splitlines() if (ROOT / name).is_file())


def old_words(text: str) -> Iterator[tuple[int, str]]:
    """Each banned word in a text, with the number of its line."""
    for number, line in enumerate(text.splitlines(), start=1):
        for phrase in STANDING:
            line = line.replace(phrase, "")
        spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", line)  # a word inside a name counts too
        for match in _BANNED.finditer(spaced):
            yield number, match[1]


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The texts of errors, with a placeholder for each value in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "BigtrainError":
            for value in (
                *node.args,
                *(keyword.value for keyword in node.keywords if keyword.arg in ("fix", "wanted")),
            ):
                if (text := _text_of(value)) is not None:
                    yield value.lineno, text


def _text_of(value: ast.expr) -> str | None:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    if isinstance(value, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "VALUE" for part in value.values)
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        parts = _text_of(value.left), _text_of(value.right)
        return "".join(part if part is not None else "VALUE" for part in parts)
    return None


def long_sentences(text: str) -> Iterator[str]:
    """The sentences, or independent clauses, of a message that have too many words."""
    for sentence in re.split(r"[.;:!?](?=\s|$)|\n", text):
        if len(sentence.split()) > SENTENCE_WORDS:
            yield sentence.strip()


def words_of(name: str) -> list[str]:
    return [f"{name}:{line}: {word!r}" for line, word in old_words((ROOT / name).read_text(encoding="utf-8"))]


def test_the_field_s_words_are_used():
    """No page, message, comment or name has one of the old private words of STYLE.md's glossary."""
    names = [n for n in tracked() if n.startswith(CHECKED) and Path(n).suffix in SUFFIXES and n not in HISTORY]
    found = [problem for name in names for problem in words_of(name)]
    assert len(names) > 200 and not found, "\n".join(found)


@pytest.mark.parametrize("line", ["a = anew()", "TellProgress", "said\nit aloud", "the begin of it", "is_void = 1"])
def test_an_old_word_is_found_in_a_name_too(line):
    assert list(old_words(line))


def test_the_sentences_of_messages_are_short():
    """An error says what is wrong in sentences of at most 25 words."""
    found = []
    for name in tracked():
        if name.startswith("bigtrain/") and name.endswith(".py"):
            tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
            found += [f"{name}:{line}: {s}" for line, text in messages(tree) for s in long_sentences(text)]
    assert not found, "\n".join(found)


def test_the_names_of_tests_are_short():
    """The name of a test is a promise of at most 70 characters; the rest of it goes into the docstring."""
    found = []
    for name in tracked():
        if name.startswith("tests/") and Path(name).name.startswith("test_") and name.endswith(".py"):
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and len(node.name) > TEST_NAME:
                    found.append(f"{name}:{node.lineno}: {len(node.name)} characters: {node.name}")
    assert not found, "\n".join(found)


def test_a_name_of_a_type_is_unique():
    """No two classes of the package have the same name."""
    where: dict[str, list[str]] = {}
    for name in tracked():
        if name.startswith("bigtrain/") and name.endswith(".py"):
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    where.setdefault(node.name, []).append(name)
    assert len(where) > 300 and not {n: files for n, files in where.items() if len(files) > 1}
